// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of descriptors in guest memory.

use crate::chain::{DESCRIPTOR_BYTES, Descriptor, Table};
use crate::memory::Memory;

/// The descriptor table of a ring.
pub(super) struct DirectTable {
    start: *mut u8,
    size: u16,
}

impl DirectTable {
    /// The table of `size` entries at `start`, which is mapped and 16-aligned.
    #[inline]
    pub(super) fn new(start: *mut u8, size: u16) -> Self {
        Self { start, size }
    }
}

impl Table for DirectTable {
    #[inline]
    fn size(&self) -> u32 {
        u32::from(self.size)
    }

    #[inline]
    fn get(&self, index: u16) -> Option<Descriptor> {
        let at = self.start.wrapping_add(usize::from(index) * 16);
        Some(load_descriptor(at))
    }
}

/// Reads one descriptor that lies in one piece at an 8-aligned address.
#[inline]
pub(super) fn load_descriptor(at: *mut u8) -> Descriptor {
    #[expect(clippy::cast_ptr_alignment, reason = "callers pass aligned addresses")]
    let words = at.cast::<u64>();
    // SAFETY: callers pass an 8-aligned address with 16 mapped bytes: an entry of a table that
    // `resolve` or `IndirectTable::new` checked.
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
pub(crate) struct IndirectTable<'a> {
    memory: &'a Memory,
    guest: u64,
    entries: u32,
    /// The whole table in one piece and 8-aligned, as drivers place it.
    whole: Option<*mut u8>,
}

impl<'a> IndirectTable<'a> {
    pub(crate) fn new(
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
