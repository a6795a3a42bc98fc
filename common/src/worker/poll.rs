// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long to look for work before sleeping.
//!
//! A sleep and a wake-up cost some microseconds on both sides, so it pays to look a little longer
//! when work has been coming quickly, and never when it has not. The window follows the gaps seen:
//! a gap the largest window would have covered makes it grow, a longer one takes it to nothing at
//! once. An idle vring therefore costs one window and then nothing at all.

/// First window when there was none, in nanoseconds: about the price of a wake-up.
const FIRST_NS: u64 = 4_000;

/// The polling window of one data thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdaptivePoll {
    max_ns: u64,
    window_ns: u64,
}

impl AdaptivePoll {
    pub(super) fn new(max_ns: u64) -> Self {
        Self {
            max_ns,
            window_ns: 0,
        }
    }

    /// How long to look this time.
    pub(super) fn window_ns(self) -> u64 {
        self.window_ns
    }

    /// Takes note of a gap of `gap_ns` without work, polled and slept through.
    pub(super) fn observe(&mut self, gap_ns: u64) {
        if gap_ns > self.max_ns {
            self.window_ns = 0;
        } else if gap_ns > self.window_ns {
            self.window_ns = (self.window_ns * 2).max(FIRST_NS).min(self.max_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_grows_with_short_gaps_up_to_its_bound() {
        let mut poll = AdaptivePoll::new(50_000);
        for want in [4_000, 8_000, 16_000, 32_000, 50_000, 50_000] {
            poll.observe(50_000);
            assert_eq!(poll.window_ns(), want);
        }
    }

    #[test]
    fn window_that_suffices_stays() {
        let mut poll = AdaptivePoll::new(50_000);
        poll.observe(3_000);
        poll.observe(3_000);
        assert_eq!(poll.window_ns(), 4_000);
    }

    #[test]
    fn long_gap_ends_polling() {
        let mut poll = AdaptivePoll::new(50_000);
        poll.observe(10_000);
        poll.observe(50_001);
        assert_eq!(poll.window_ns(), 0);
    }

    #[test]
    fn no_polling_where_none_is_allowed() {
        let mut poll = AdaptivePoll::new(0);
        poll.observe(1);
        assert_eq!(poll.window_ns(), 0);
    }
}
