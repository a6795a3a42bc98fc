// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table of descriptors that a ring has.

use crate::chain::Descriptor;
use crate::chain::table::{Table, load_descriptor};

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
