// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Suppression of calls (virtio 1.3 §2.7.7, §2.7.10): asking for one, and keeping them away.

use std::sync::atomic::{Ordering, fence};

use super::{AVAIL_NO_INTERRUPT, CallMode, SplitRing};

impl SplitRing {
    /// Asks for a call at the next completion; `true` when there are completions already, in which
    /// case no call may come.
    pub fn arm_call(&mut self) -> bool {
        if self.config.event_idx {
            self.set_used_event(self.next_used);
        } else {
            self.set_avail_flags(0);
        }
        // virtio 1.3 §2.7.13.3: look once more after asking, or a completion in between is lost.
        fence(Ordering::SeqCst);
        self.used_idx() != self.next_used
    }

    /// Switches between calls and polling.
    pub fn set_call_mode(&mut self, calls: CallMode) {
        self.config.calls = calls;
        match (calls, self.config.event_idx) {
            (CallMode::Wanted, true) => self.set_used_event(self.next_used),
            (CallMode::Wanted, false) => self.set_avail_flags(0),
            (CallMode::Never, true) => {
                // virtio 1.3 §2.7.7.1: with EVENT_IDX the flags stay 0.
                self.set_avail_flags(0);
                self.far_event = self.next_used;
                self.keep_event_far();
            }
            (CallMode::Never, false) => self.set_avail_flags(AVAIL_NO_INTERRUPT),
        }
    }

    /// Keeps `used_event` half the number space ahead, where completions do not get to.
    ///
    /// Rewritten only once they have come a quarter of the space closer, so that polling does not
    /// write a shared line per completion.
    #[inline]
    pub(super) fn keep_event_far(&mut self) {
        const HALF: u16 = 1 << 15;
        const QUARTER: u16 = 1 << 14;
        if self.config.event_idx && self.far_event.wrapping_sub(self.next_used) <= QUARTER {
            self.far_event = self.next_used.wrapping_add(HALF);
            self.set_used_event(self.far_event);
        }
    }
}

/// Whether moving an index from `old` to `new` passes `event` (virtio 1.3 §2.7.10).
#[inline]
#[must_use]
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
