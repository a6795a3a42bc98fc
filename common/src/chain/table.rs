// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors, and tables of them in guest memory.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

use crate::memory::Memory;

/// One descriptor, as read once from guest memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len_bytes: u32,
    /// NEXT, WRITE and INDIRECT.
    pub flags: u16,
    /// The descriptor that follows, with NEXT.
    pub next: u16,
}

impl Descriptor {
    /// Whether the device writes to its buffer.
    #[must_use]
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.flags & flag::WRITE != 0
    }

    /// Whether it is a buffer, and nothing comes behind it.
    #[inline]
    pub(super) fn is_last_buffer(&self) -> bool {
        self.flags & !flag::WRITE == 0
    }
}

/// Bytes of a descriptor in guest memory.
pub const DESCRIPTOR_BYTES: u32 = 16;

#[expect(
    clippy::cast_possible_truncation,
    reason = "the bindings give 16-bit flags as u32"
)]
pub(super) mod flag {
    pub(crate) const NEXT: u16 = super::VRING_DESC_F_NEXT as u16;
    pub(crate) const WRITE: u16 = super::VRING_DESC_F_WRITE as u16;
    pub(crate) const INDIRECT: u16 = super::VRING_DESC_F_INDIRECT as u16;
}

/// A table of descriptors that can be read one at a time.
pub(crate) trait Table {
    /// Entries in the table.
    fn size(&self) -> u32;
    /// Entry `index`, which is below [`size`](Table::size); `None` when it is not guest memory.
    fn get(&self, index: u16) -> Option<Descriptor>;
}

/// Reads one descriptor that lies in one piece at an 8-aligned address.
#[inline]
pub(crate) fn load_descriptor(at: *mut u8) -> Descriptor {
    #[expect(clippy::cast_ptr_alignment, reason = "callers pass aligned addresses")]
    let words = at.cast::<u64>();
    // SAFETY: callers pass an 8-aligned address with 16 mapped bytes: an entry of a table that the
    // ring or `IndirectTable::new` checked.
    #[expect(unsafe_code, reason = "a load from guest memory")]
    let addr = unsafe { words.read_volatile() };
    // SAFETY: as above, the second half.
    #[expect(unsafe_code, reason = "a load from guest memory")]
    let rest = unsafe { words.wrapping_add(1).read_volatile() };
    Descriptor::from_words(addr, rest)
}

impl Descriptor {
    /// The descriptor whose two little-endian halves are `addr` and `rest`.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    fn from_words(addr: u64, rest: u64) -> Self {
        let rest = u64::from_le(rest);
        Self {
            addr: u64::from_le(addr),
            len_bytes: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// An indirect table somewhere in guest memory (virtio 1.3 §2.7.5.3): it need not be aligned, and
/// may cross from one region to the next.
pub(super) struct IndirectTable<'a> {
    memory: &'a Memory,
    guest: u64,
    entries: u32,
    /// The whole table in one piece and 8-aligned, as drivers place it.
    whole: Option<*mut u8>,
}

impl<'a> IndirectTable<'a> {
    pub(super) fn new(
        memory: &'a Memory,
        guest: u64,
        entries: u32,
        hint: &mut usize,
    ) -> Option<Self> {
        let bytes = u64::from(entries) * u64::from(DESCRIPTOR_BYTES);
        let run = memory.guest_run(guest, bytes, hint)?;
        let one_piece = run.len_bytes as u64 == bytes && run.start.addr().is_multiple_of(8);
        Some(Self {
            memory,
            guest,
            entries,
            whole: one_piece.then_some(run.start),
        })
    }

    /// Puts an entry together byte by byte.
    #[cold]
    fn gather(&self, index: u16) -> Option<Descriptor> {
        let start = self
            .guest
            .checked_add(u64::from(index) * u64::from(DESCRIPTOR_BYTES))?;
        let mut bytes = [0; 16];
        let mut hint = 0;
        for (offset, byte) in (0_u64..).zip(&mut bytes) {
            let run = self
                .memory
                .guest_run(start.checked_add(offset)?, 1, &mut hint)?;
            // SAFETY: `guest_run` returned one mapped byte.
            #[expect(unsafe_code, reason = "a load from guest memory")]
            let value = unsafe { run.start.read_volatile() };
            *byte = value;
        }
        let (addr, rest) = bytes.split_first_chunk::<8>()?;
        let rest = rest.first_chunk::<8>()?;
        Some(Descriptor::from_words(
            u64::from_ne_bytes(*addr),
            u64::from_ne_bytes(*rest),
        ))
    }
}

impl Table for IndirectTable<'_> {
    fn size(&self) -> u32 {
        self.entries
    }

    #[inline]
    fn get(&self, index: u16) -> Option<Descriptor> {
        match self.whole {
            Some(table) => Some(load_descriptor(table.wrapping_add(usize::from(index) * 16))),
            None => self.gather(index),
        }
    }
}
