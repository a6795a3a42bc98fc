// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A checked walk of a descriptor chain (virtio 1.3 §2.7.5).
//!
//! A chain is served whole or not at all: whatever is wrong with it is a [`ChainFault`], never a
//! silently shorter chain. What could be read before the fault stays in the [`Buffers`], so that
//! a device can answer the driver where the place of its answer is sound:
//!
//! * a fault of *structure* (loop, bad link, bad indirect table, order) ends the walk; the bytes
//!   before it are there;
//! * a fault of *address* (a buffer outside of guest memory) does not: the links are sound, and
//!   the buffers behind it are there, too. A status byte at the end of the chain is sound if the
//!   last writable buffer is ([`Buffers::take_tail`]). A header at the front of the chain is sound
//!   if it lies before the first buffer that is not ([`Buffers::keep_front`]).

pub(crate) mod table;

use std::rc::Rc;

use thiserror::Error;

use crate::memory::{Buffers, Memory};
pub use table::{DESCRIPTOR_BYTES, Descriptor};
use table::{IndirectTable, Table, flag};

/// Longest indirect table. Linux fills tables longer than a short queue, so the queue size is no
/// bound; 1024 is what the largest usual queue gives and what the kernel takes in one iovec.
pub const MAX_INDIRECT: u32 = 1024;

/// Longest chain in a ring, however large that is. Drivers have shorter ones: disks and folders
/// tell them how much a request may have, and a frame has 64 KiB.
pub const MAX_DIRECT: u32 = 1024;

/// virtio 1.3 §2.7.5: a chain is at most 2^32 bytes long.
const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ChainFault {
    /// More descriptors than a chain may have: a loop, or too long.
    #[error("chain of more than {limit} descriptors")]
    TooLong {
        /// The limit.
        limit: u32,
    },
    /// A link out of the table.
    #[error("descriptor {index}: next {next} outside of a table of {size}")]
    Next {
        /// The descriptor.
        index: u16,
        /// Its link.
        next: u16,
        /// Entries of the table.
        size: u32,
    },
    /// More than 4 GiB.
    #[error("chain of {bytes} bytes")]
    TooManyBytes {
        /// Bytes up to the fault.
        bytes: u64,
    },
    /// A device-readable descriptor behind a device-writable one.
    #[error("descriptor {index} is device-readable behind a device-writable one")]
    Order {
        /// The descriptor.
        index: u16,
    },
    /// Flags that do not exist.
    #[error("descriptor {index}: unknown flags {flags:#x}")]
    Flags {
        /// The descriptor.
        index: u16,
        /// Its flags.
        flags: u16,
    },
    /// INDIRECT without the feature, with NEXT, or inside of an indirect table.
    #[error("descriptor {index}: indirect where it may not be")]
    Indirect {
        /// The descriptor.
        index: u16,
    },
    /// An indirect table whose length is no multiple of 16, zero, or too long.
    #[error("indirect table of {len_bytes} bytes")]
    IndirectLength {
        /// Its length.
        len_bytes: u32,
    },
    /// An indirect table outside of guest memory.
    #[error("indirect table at {guest:#x} is not guest memory")]
    IndirectAddress {
        /// Its address.
        guest: u64,
    },
    /// The chain lies in another memory table than those it was to be added to.
    #[error("chain of another memory table")]
    OtherMemory,
    /// A buffer outside of guest memory.
    #[error("buffer {guest:#x}+{len_bytes:#x} is not guest memory")]
    Address {
        /// Its address.
        guest: u64,
        /// Its length.
        len_bytes: u32,
    },
}

/// The state of one walk.
pub(crate) struct Walk<'a> {
    pub(crate) memory: &'a Rc<Memory>,
    pub(crate) hint: &'a mut usize,
    pub(crate) out: &'a mut Buffers,
    /// Whether `INDIRECT_DESC` was acknowledged.
    pub(crate) indirect: bool,
}

/// What the walk has seen so far.
#[derive(Default)]
struct Seen {
    descriptors: u32,
    bytes: u64,
    writable: bool,
    /// The first buffer outside of guest memory.
    hole: Option<ChainFault>,
}

impl Seen {
    /// Nothing yet, but that `writable` descriptors may have come before.
    #[inline]
    fn behind(writable: bool) -> Self {
        Self {
            writable,
            ..Self::default()
        }
    }
}

impl Walk<'_> {
    /// Walks the chain that starts at `head` of `table` into `out`.
    #[inline]
    pub(crate) fn run(&mut self, table: &impl Table, head: u16) -> Result<(), ChainFault> {
        self.out.begin(self.memory);
        self.whole(table, head, false)
    }

    /// Walks the chain that starts at `head` of `table`, all of it device-writable, into `out`
    /// behind what is there; a chain with a fault is left out.
    #[inline]
    pub(crate) fn run_on(&mut self, table: &impl Table, head: u16) -> Result<(), ChainFault> {
        let mark = self.out.resume(self.memory);
        let mark = mark.ok_or(ChainFault::OtherMemory)?;
        // As if a device-writable descriptor had come before: a readable one is out of order.
        let result = self.whole(table, head, true);
        if result.is_err() {
            self.out.rewind(mark);
        }
        result
    }

    /// Walks a whole chain; `writable` if device-writable descriptors have come before it.
    #[inline]
    fn whole(&mut self, table: &impl Table, head: u16, writable: bool) -> Result<(), ChainFault> {
        let first = table.get(head);
        let mut seen = Seen::behind(writable);
        // Most frames are in one buffer.
        if let Some(only) = first.filter(Descriptor::is_last_buffer) {
            let result = self.add(head, &only, &mut seen);
            return self.end(&seen, result);
        }
        self.several(table, (head, first), writable)
    }

    /// The same of a chain whose `first` descriptor has been read, and is not its last. Not
    /// inlined, so that a chain of one does not pay for what this one needs.
    #[inline(never)]
    fn several(
        &mut self,
        table: &impl Table,
        first: (u16, Option<Descriptor>),
        writable: bool,
    ) -> Result<(), ChainFault> {
        let mut seen = Seen::behind(writable);
        let result = match self.links(table, first, self.indirect, &mut seen) {
            Ok(None) => Ok(()),
            Ok(Some((index, indirect))) => self.indirect_table(index, &indirect, &mut seen),
            Err(fault) => Err(fault),
        };
        self.end(&seen, result)
    }

    #[inline]
    fn end(&mut self, seen: &Seen, result: Result<(), ChainFault>) -> Result<(), ChainFault> {
        self.out.note_descriptors(seen.descriptors);
        result?;
        seen.hole.map_or(Ok(()), Err)
    }

    /// Follows the links of one table from its descriptor `index`, which has been read; stops at an
    /// indirect descriptor and returns it.
    #[inline]
    fn links(
        &mut self,
        table: &impl Table,
        (mut index, mut read): (u16, Option<Descriptor>),
        indirect: bool,
        seen: &mut Seen,
    ) -> Result<Option<(u16, Descriptor)>, ChainFault> {
        let size = table.size();
        let limit = size.min(MAX_DIRECT);
        for _ in 0..limit {
            let Some(descriptor) = read else {
                return Err(ChainFault::IndirectAddress {
                    guest: u64::from(index),
                });
            };
            let flags = descriptor.flags;
            if flags & !(flag::NEXT | flag::WRITE) != 0 {
                special_flags(index, flags, indirect)?;
                return Ok(Some((index, descriptor)));
            }
            self.add(index, &descriptor, seen)?;
            if flags & flag::NEXT == 0 {
                return Ok(None);
            }
            if u32::from(descriptor.next) >= size {
                return Err(ChainFault::Next {
                    index,
                    next: descriptor.next,
                    size,
                });
            }
            index = descriptor.next;
            read = table.get(index);
        }
        Err(ChainFault::TooLong { limit })
    }

    #[inline]
    fn add(&mut self, index: u16, d: &Descriptor, seen: &mut Seen) -> Result<(), ChainFault> {
        seen.descriptors += 1;
        let writable = d.is_writable();
        if seen.writable && !writable {
            return Err(ChainFault::Order { index });
        }
        seen.writable = writable;
        // At most 32768 times 2^32: no overflow.
        seen.bytes = seen.bytes.wrapping_add(u64::from(d.len_bytes));
        if seen.bytes > MAX_CHAIN_BYTES {
            return Err(ChainFault::TooManyBytes { bytes: seen.bytes });
        }
        let sound = self.out.push(d.addr, d.len_bytes, writable, self.hint);
        if !sound {
            let fault = ChainFault::Address {
                guest: d.addr,
                len_bytes: d.len_bytes,
            };
            seen.hole.get_or_insert(fault);
        }
        Ok(())
    }

    fn indirect_table(
        &mut self,
        index: u16,
        descriptor: &Descriptor,
        seen: &mut Seen,
    ) -> Result<(), ChainFault> {
        if descriptor.flags & flag::NEXT != 0 {
            return Err(ChainFault::Indirect { index });
        }
        let len_bytes = descriptor.len_bytes;
        let entries = len_bytes / DESCRIPTOR_BYTES;
        if entries == 0 || !len_bytes.is_multiple_of(DESCRIPTOR_BYTES) || entries > MAX_INDIRECT {
            return Err(ChainFault::IndirectLength { len_bytes });
        }
        let table = IndirectTable::new(self.memory, descriptor.addr, entries, self.hint).ok_or(
            ChainFault::IndirectAddress {
                guest: descriptor.addr,
            },
        )?;
        // A nested table is refused by `special_flags`: the last argument allows none.
        let first = (0, table.get(0));
        self.links(&table, first, false, seen).map(|_none| ())
    }
}

/// Flags beyond NEXT and WRITE: INDIRECT passes where it is allowed, any other is a fault.
fn special_flags(index: u16, flags: u16, indirect: bool) -> Result<(), ChainFault> {
    if flags & !(flag::NEXT | flag::WRITE | flag::INDIRECT) != 0 {
        return Err(ChainFault::Flags { index, flags });
    }
    if indirect {
        Ok(())
    } else {
        Err(ChainFault::Indirect { index })
    }
}
