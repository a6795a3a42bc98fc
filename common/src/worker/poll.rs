// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long to look for work before sleeping.
//!
//! A sleep and a wake-up cost some microseconds on both sides, so it pays to look a little longer
//! when work has been coming quickly, and never when it has not. The window follows the gaps seen:
//! a gap the largest window would have covered makes it grow, a longer one takes it to nothing at
//! once. An idle vring therefore costs one window and then nothing at all.
//!
//! Where work only ever comes after we sleep, it comes *because* we do: the driver has no other
//! processor to run on than ours. That shows in windows that find nothing although they are as long
//! as the gap was without one. Several of those in a row are followed by a rest without windows, a
//! longer one each time.

/// First window when there was none, in nanoseconds: about the price of a wake-up.
const FIRST_NS: u64 = 4_000;
/// Windows in a row that may find nothing although they should have.
const MAX_MISSES: u32 = 6;
/// Sleeps without a window that follow, at first and at most. With the latter, windows take some
/// hundredths of the time; a driver that got its own processor back is found after milliseconds.
const FIRST_REST: u32 = 64;
const LONGEST_REST: u32 = 1024;

/// The polling window of one data thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdaptivePoll {
    max_ns: u64,
    window_ns: u64,
    /// The last gap that was slept through without a window.
    unpolled_gap_ns: u64,
    /// Windows in a row that found nothing although they should have.
    misses: u32,
    /// Sleeps to come without a window.
    resting: u32,
    /// How many the next rest has.
    next_rest: u32,
}

impl AdaptivePoll {
    pub(super) fn new(max_ns: u64) -> Self {
        Self {
            max_ns,
            window_ns: 0,
            unpolled_gap_ns: u64::MAX,
            misses: 0,
            resting: 0,
            next_rest: FIRST_REST,
        }
    }

    /// How long to look this time.
    pub(super) fn window_ns(self) -> u64 {
        if self.resting > 0 { 0 } else { self.window_ns }
    }

    /// Work was found within the window.
    pub(super) fn hit(&mut self) {
        self.misses = 0;
        self.next_rest = FIRST_REST;
    }

    /// Takes note of a gap of `gap_ns` without work, polled in vain and slept through.
    pub(super) fn slept(&mut self, gap_ns: u64) {
        if self.window_ns() == 0 {
            self.unpolled_gap_ns = gap_ns;
        } else if self.window_ns >= self.unpolled_gap_ns {
            self.misses += 1;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return;
        }
        if self.misses == MAX_MISSES {
            self.misses = 0;
            self.resting = self.next_rest;
            self.next_rest = (self.next_rest * 2).min(LONGEST_REST);
        }
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
        for want in [4_000, 8_000, 16_000, 32_000, 50_000] {
            poll.slept(50_000);
            assert_eq!(poll.window_ns(), want);
        }
        poll.hit();
        assert_eq!(poll.window_ns(), 50_000);
    }

    #[test]
    fn long_gap_ends_polling() {
        let mut poll = AdaptivePoll::new(50_000);
        poll.slept(10_000);
        poll.slept(50_001);
        assert_eq!(poll.window_ns(), 0);
    }

    #[test]
    fn no_polling_where_none_is_allowed() {
        let mut poll = AdaptivePoll::new(0);
        poll.slept(1);
        assert_eq!(poll.window_ns(), 0);
    }

    /// Sleeps of a driver that comes `gap_ns` after the sleep begins, whatever the window, until
    /// there was a window and is none for many sleeps; returns how many those are.
    fn rest(poll: &mut AdaptivePoll, gap_ns: u64) -> u32 {
        loop {
            let mut rest = 0;
            while poll.window_ns() == 0 {
                poll.slept(gap_ns);
                rest += 1;
            }
            if rest > 1 {
                return rest;
            }
            while poll.window_ns() > 0 {
                poll.slept(poll.window_ns() + gap_ns);
            }
        }
    }

    #[test]
    fn windows_without_use_are_followed_by_longer_and_longer_rests() {
        let mut poll = AdaptivePoll::new(50_000);
        let rests: Vec<_> = (0..7).map(|_| rest(&mut poll, 10_000)).collect();
        assert!(rests.is_sorted(), "{rests:?}");
        assert!(rests[0] >= 64 && rests[6] >= 1024, "{rests:?}");
        poll.hit();
        assert!(rest(&mut poll, 10_000) < 70);
    }

    #[test]
    fn window_that_is_only_too_short_is_no_reason_to_rest() {
        let mut poll = AdaptivePoll::new(50_000);
        for _ in 0..100 {
            poll.slept(60_000);
            poll.slept(45_000);
            while poll.window_ns() < 32_000 {
                poll.slept(45_000);
                assert_ne!(poll.window_ns(), 0);
            }
        }
    }

    #[test]
    fn hit_ends_the_count_of_misses() {
        let mut poll = AdaptivePoll::new(50_000);
        poll.slept(3_000);
        for _ in 0..100 {
            for _ in 1..MAX_MISSES {
                poll.slept(50_000);
                assert_ne!(poll.window_ns(), 0);
            }
            poll.hit();
        }
    }
}
