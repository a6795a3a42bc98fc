// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors and the extents of a split virtqueue.

use std::sync::atomic::Ordering;

use crate::error::{FrontendError, Result};
use crate::memory::{GuestMemory, GuestSlice};

/// Descriptor flags (virtio 1.3 §2.7.5).
pub mod desc_flag {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// Device-writable.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// One buffer of a chain; the ring adds `NEXT` where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// Descriptor flags besides `NEXT`.
    pub flags: u16,
}

impl Segment {
    /// A device-readable buffer.
    #[must_use]
    pub fn readable(gpa: u64, len: u32) -> Self {
        Self { gpa, len, flags: 0 }
    }

    /// A device-writable buffer.
    #[must_use]
    pub fn writable(gpa: u64, len: u32) -> Self {
        Self {
            gpa,
            len,
            flags: desc_flag::WRITE,
        }
    }
}

/// A descriptor, every field free to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// See [`desc_flag`].
    pub flags: u16,
    /// The next descriptor of the chain, if `NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    /// Length of a descriptor in a table.
    pub const BYTES: usize = 16;
    /// The same as a descriptor's `len` counts.
    pub const LEN: u32 = 16;

    #[inline]
    pub(super) fn store(self, table: &GuestSlice, index: u16) {
        self.store_at(table, usize::from(index) * Self::BYTES);
    }

    /// Two stores, since the fields are naturally packed into two words.
    #[inline]
    pub(super) fn store_at(self, table: &GuestSlice, offset: usize) {
        let rest = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        let order = Ordering::Relaxed;
        table.u64(offset).store(self.addr.to_le(), order);
        table.u64(offset + 8).store(rest.to_le(), order);
    }

    pub(super) fn load_at(table: &GuestSlice, offset: usize) -> Self {
        let order = Ordering::Relaxed;
        let addr = u64::from_le(table.u64(offset).load(order));
        let rest = u64::from_le(table.u64(offset + 8).load(order)).to_le_bytes();
        Self {
            addr,
            len: u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]),
            flags: u16::from_le_bytes([rest[4], rest[5]]),
            next: u16::from_le_bytes([rest[6], rest[7]]),
        }
    }

    /// The bytes of the descriptor, for tables written to arbitrary addresses.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

impl From<Segment> for Descriptor {
    #[inline]
    fn from(segment: Segment) -> Self {
        Self {
            addr: segment.gpa,
            len: segment.len,
            flags: segment.flags,
            next: 0,
        }
    }
}

/// Guest-physical addresses of the three parts of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// The descriptor table, aligned to 16 bytes.
    pub desc_gpa: u64,
    /// The available ring, aligned to 2 bytes.
    pub avail_gpa: u64,
    /// The used ring, aligned to 4 bytes.
    pub used_gpa: u64,
}

impl RingLayout {
    /// Reserves room for a ring, each part on cache lines of its own.
    pub(super) fn alloc(memory: &GuestMemory, size: u16) -> Result<Self> {
        const CACHE_LINE: usize = 64;
        if !size.is_power_of_two() {
            return Err(FrontendError::Unusable {
                what: "ring size",
                value: u64::from(size),
            });
        }
        Ok(Self {
            desc_gpa: memory.alloc(Self::desc_bytes(size), CACHE_LINE)?,
            avail_gpa: memory.alloc(Self::avail_bytes(size), CACHE_LINE)?,
            used_gpa: memory.alloc(Self::used_bytes(size), CACHE_LINE)?,
        })
    }

    /// Length of the descriptor table.
    #[must_use]
    pub fn desc_bytes(size: u16) -> usize {
        usize::from(size) * Descriptor::BYTES
    }

    /// Length of the available ring with `used_event`.
    #[must_use]
    pub fn avail_bytes(size: u16) -> usize {
        4 + 2 * usize::from(size) + 2
    }

    /// Length of the used ring with `avail_event`.
    #[must_use]
    pub fn used_bytes(size: u16) -> usize {
        4 + 8 * usize::from(size) + 2
    }
}
