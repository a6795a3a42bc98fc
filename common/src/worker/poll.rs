// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long to look for work before sleeping.
//!
//! A sleep and a wake-up cost some microseconds on both sides, so it pays to look a little longer
//! when work has been coming quickly, and never when it has not. The window follows the gaps seen:
//! a gap the largest window would have covered makes it grow, a longer one takes it to nothing at
//! once. An idle vring therefore costs one window and then nothing at all.
//!
//! Where work only ever comes after we sleep, it comes *because* we do: the driver has no other
//! processor to run on than ours. Windows that find nothing, several in a row, are therefore
//! followed by a rest without any, a longer one each time.

/// First window when there was none, in nanoseconds: about the price of a wake-up.
const FIRST_NS: u64 = 4_000;
/// Windows in a row that may find nothing: more than it takes to grow to the default bound.
const MAX_MISSES: u32 = 6;
/// Sleeps without a window that follow, at first and at most. The latter costs one part in a
/// thousand; a driver that got its own processor back is found after some milliseconds.
const FIRST_REST: u32 = 64;
const LONGEST_REST: u32 = 4096;

/// The polling window of one data thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdaptivePoll {
    max_ns: u64,
    window_ns: u64,
    /// Windows in a row that found nothing.
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
        if self.resting > 0 {
            self.resting -= 1;
            return;
        }
        if self.window_ns > 0 {
            self.misses += 1;
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

    /// Sleeps until there is a window again, with gaps that are `beyond` the window.
    fn rest(poll: &mut AdaptivePoll, beyond: u64) -> u32 {
        let mut sleeps = 0;
        while poll.window_ns() == 0 {
            poll.slept(beyond);
            sleeps += 1;
        }
        sleeps
    }

    #[test]
    fn windows_that_find_nothing_are_followed_by_longer_and_longer_rests() {
        let mut poll = AdaptivePoll::new(50_000);
        poll.slept(10_000);
        let mut rests = Vec::new();
        for _ in 0..8 {
            for _ in 0..MAX_MISSES {
                // Never at zero by a gap that is too long: only a rest may be one.
                assert_ne!(poll.window_ns(), 0);
                poll.slept(50_000);
            }
            rests.push(rest(&mut poll, 10_000));
        }
        assert_eq!(rests, [64, 128, 256, 512, 1024, 2048, 4096, 4096]);
    }

    #[test]
    fn hit_ends_the_count_of_misses() {
        let mut poll = AdaptivePoll::new(50_000);
        poll.slept(10_000);
        for _ in 0..100 {
            for _ in 1..MAX_MISSES {
                poll.slept(50_000);
            }
            poll.hit();
            assert_ne!(poll.window_ns(), 0);
        }
    }
}
