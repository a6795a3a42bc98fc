// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every field of the ring, to read and to write: how a test misbehaves.
//!
//! None of these touch what the driver remembers. Slots are free-running indices and wrap by
//! themselves; a descriptor index outside the table is a mistake of the test and panics.

use std::sync::atomic::Ordering;

use super::{Descriptor, SplitRing};
use crate::error::Result;
use crate::memory::GuestMemory;

/// An element of the used ring, as the device wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedElem {
    /// Head of the completed chain.
    pub id: u32,
    /// Bytes written, says the device.
    pub len: u32,
}

impl SplitRing {
    /// Overwrites a descriptor.
    pub fn set_desc(&self, index: u16, descriptor: Descriptor) {
        descriptor.store(&self.desc, index);
    }

    /// A descriptor as it stands.
    #[must_use]
    pub fn desc(&self, index: u16) -> Descriptor {
        Descriptor::load_at(&self.desc, usize::from(index) * Descriptor::BYTES)
    }

    /// Changes single fields of a descriptor.
    pub fn edit_desc(&self, index: u16, edit: impl FnOnce(&mut Descriptor)) {
        let mut descriptor = self.desc(index);
        edit(&mut descriptor);
        self.set_desc(index, descriptor);
    }

    /// Overwrites a slot of the available ring.
    #[inline]
    pub fn set_avail_slot(&self, slot: u16, head: u16) {
        let offset = 4 + 2 * self.place(slot);
        self.avail
            .u16(offset)
            .store(head.to_le(), Ordering::Relaxed);
    }

    /// A slot of the available ring as it stands.
    #[must_use]
    pub fn avail_slot(&self, slot: u16) -> u16 {
        let offset = 4 + 2 * self.place(slot);
        u16::from_le(self.avail.u16(offset).load(Ordering::Relaxed))
    }

    /// Overwrites the available idx (with release order), past [`SplitRing::publish`].
    pub fn set_avail_idx(&self, idx: u16) {
        self.avail.u16(2).store(idx.to_le(), Ordering::Release);
    }

    /// The available idx as it stands.
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail.u16(2).load(Ordering::Relaxed))
    }

    /// Overwrites the flags of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.avail.u16(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// Overwrites `used_event`, the completion after which a call is wanted.
    #[inline]
    pub fn set_used_event(&self, event: u16) {
        let offset = 4 + 2 * usize::from(self.config.size);
        self.avail
            .u16(offset)
            .store(event.to_le(), Ordering::Relaxed);
    }

    /// `avail_event`, the chain after which the device wants a kick.
    #[inline]
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        let offset = 4 + 8 * usize::from(self.config.size);
        u16::from_le(self.used.u16(offset).load(Ordering::Relaxed))
    }

    /// The flags of the used ring.
    #[inline]
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        u16::from_le(self.used.u16(0).load(Ordering::Relaxed))
    }

    /// The used idx as it stands.
    #[inline]
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.used.u16(2).load(Ordering::Acquire))
    }

    /// Overwrites the used idx, which belongs to the device.
    pub fn set_used_idx(&self, idx: u16) {
        self.used.u16(2).store(idx.to_le(), Ordering::Release);
    }

    /// An element of the used ring as it stands.
    #[inline]
    #[must_use]
    pub fn used_elem(&self, slot: u16) -> UsedElem {
        let offset = 4 + 8 * self.place(slot);
        let field = |at| u32::from_le(self.used.u32(at).load(Ordering::Relaxed));
        UsedElem {
            id: field(offset),
            len: field(offset + 4),
        }
    }

    /// Makes the driver believe that these are the next indices, after raw writes.
    pub fn set_next(&mut self, next_avail: u16, next_used: u16) {
        self.next_avail = next_avail;
        self.published = next_avail;
        self.next_used = next_used;
        self.seen_used = next_used;
    }

    /// Where the slot of a free-running index lies.
    #[inline]
    fn place(&self, slot: u16) -> usize {
        usize::from(slot & (self.config.size - 1))
    }
}

/// Writes descriptors to any guest address, aligned or not: an indirect table made by hand.
///
/// # Errors
///
/// When part of the table is not mapped.
pub fn write_table(memory: &GuestMemory, gpa: u64, table: &[Descriptor]) -> Result<()> {
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.to_bytes()).collect();
    memory.write(gpa, &bytes)
}
