// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fetching ahead: what a chain needs is in the cache of the driver's processor.
//!
//! To wait for each line in turn is most of the cost of a small request, so the processor is asked
//! for them some chains before: first the descriptor, later what it names. These are hints; the
//! chain is read, and checked, when its turn comes.

use std::sync::atomic::Ordering;

use super::SplitRing;
use crate::chain::table::load_descriptor;
use crate::sys;

/// Chains that descriptors are fetched ahead.
const DESCRIPTORS_AHEAD: u16 = 16;
/// Chains that buffers are; their descriptors have come by then.
const BUFFERS_AHEAD: u16 = 10;

impl SplitRing {
    /// Has the processor fetch what the chain taken some chains later will need: its lines are in
    /// the cache of the driver's processor, and to wait for each in turn is most of the cost of a
    /// small request.
    #[inline]
    pub(super) fn look_ahead(&self) {
        let left = self.avail_idx.wrapping_sub(self.next_avail);
        if left <= BUFFERS_AHEAD {
            return;
        }
        if left > DESCRIPTORS_AHEAD {
            self.fetch_descriptor(DESCRIPTORS_AHEAD);
        }
        self.fetch_buffer(BUFFERS_AHEAD);
    }

    /// The same for the first chains of a batch, all at once.
    #[inline]
    pub(super) fn look_at_batch(&self) {
        let left = self.avail_idx.wrapping_sub(self.next_avail);
        for ahead in 0..left.min(DESCRIPTORS_AHEAD + 1) {
            self.fetch_descriptor(ahead);
        }
        for ahead in 0..left.min(BUFFERS_AHEAD + 1) {
            self.fetch_buffer(ahead);
        }
    }

    #[inline]
    fn fetch_descriptor(&self, ahead: u16) {
        if let Some(descriptor) = self.descriptor_ahead(ahead) {
            sys::prefetch(descriptor);
        }
    }

    #[inline]
    fn fetch_buffer(&self, ahead: u16) {
        let Some(descriptor) = self.descriptor_ahead(ahead) else {
            return;
        };
        let descriptor = load_descriptor(descriptor);
        let mut hint = self.hint;
        let Some(run) = self.memory.guest_run(descriptor.addr, 1, &mut hint) else {
            return;
        };
        let lines = [run.start, run.start.wrapping_add(64)];
        for line in lines {
            if descriptor.is_writable() {
                sys::prefetch_to_write(line);
            } else {
                sys::prefetch(line);
            }
        }
    }

    /// The descriptor of the head that comes `ahead` of the next, if it is one.
    #[inline]
    fn descriptor_ahead(&self, ahead: u16) -> Option<*mut u8> {
        let slot = 4 + 2 * usize::from(self.next_avail.wrapping_add(ahead) & self.mask());
        let head = self
            .u16_at(self.parts.available, slot)
            .load(Ordering::Relaxed);
        let offset = 16 * usize::from(head);
        (head < self.addresses.size).then(|| self.parts.descriptor.wrapping_add(offset))
    }
}
