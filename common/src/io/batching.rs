// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When to wait for several completions with one system call.
//!
//! Writes to the page cache go through the kernel's own threads on most file systems. They end one
//! by one, and each end would cost a system call to see it and another to start the next. With
//! many in flight it pays to wait for a part of them: those threads keep the rest to work on, and
//! with completions at an even pace no request takes longer by more than that part of its time.
//! Where they come too slowly the wait is given up, and tried again ever more rarely.
//!
//! Reads from the page cache end while they are submitted, and direct I/O ends when the disk says
//! so: neither is waited for in batches.

/// The part of the writes in flight that is waited for.
const SHARE: usize = 2;
/// The most waited for.
const MAX_COUNT: usize = 32;
/// Fewer are not worth it.
const MIN_COUNT: usize = 4;
/// The most turns between two attempts.
const MAX_PAUSE: u32 = 63;

/// Decides it for one data thread.
#[derive(Debug, Default)]
pub(super) struct Batching {
    /// Turns without an attempt after the next failure.
    pause: u32,
    /// Turns left of that.
    left: u32,
}

impl Batching {
    /// How many completions to wait for with this many writes in flight; `None` for not at all.
    #[inline]
    pub(super) fn size(&mut self, in_flight: usize) -> Option<usize> {
        let count = (in_flight / SHARE).min(MAX_COUNT);
        if count < MIN_COUNT {
            return None;
        }
        if self.left > 0 {
            self.left -= 1;
            return None;
        }
        Some(count)
    }

    /// Takes note of how many of the `wanted` completions came in time. Half of them are worth the
    /// wait as well.
    #[inline]
    pub(super) fn observe(&mut self, wanted: usize, came: usize) {
        self.pause = if came * 2 >= wanted {
            0
        } else {
            (self.pause * 2 + 1).min(MAX_PAUSE)
        };
        self.left = self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_in_flight_is_not_waited_for() {
        let mut batching = Batching::default();
        assert_eq!(batching.size(0), None);
        assert_eq!(batching.size(7), None);
        assert_eq!(batching.size(8), Some(4));
        assert_eq!(batching.size(32), Some(16));
        assert_eq!(batching.size(3000), Some(32));
    }

    #[test]
    fn slow_completions_end_the_waits_and_quick_ones_bring_them_back() {
        let mut batching = Batching::default();
        for pause in [1, 3, 7, 15, 31, 63, 63] {
            assert_eq!(batching.size(32), Some(16));
            batching.observe(16, 7);
            for _ in 0..pause {
                assert_eq!(batching.size(32), None);
            }
        }
        assert_eq!(batching.size(32), Some(16));
        batching.observe(16, 8);
        assert_eq!(batching.size(32), Some(16));
    }
}
