// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long a sender waits for a receiver.
//!
//! Both sides have a bound: a receiver keeps its senders waiting for a part of the time only
//! ([`Patience`]), and a sender waits for a part of its time only, however many receivers there are
//! that it would have to wait for ([`SenderPatience`]). What cannot be waited for is lost.

use super::slot::RxSlot;

/// What each frame taken gives back: a receiver that takes 50 000 a second may always be waited
/// for.
const FRAME_NS: u64 = 20_000;

/// How long senders may be kept waiting for a receiver without buffers: a sixteenth of the time,
/// and 100 ms at once, in which its processor comes back to it on a busy host. A receiver that is a
/// little slow loses nothing that way, and one that never has buffers holds no sender up for long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Patience {
    spent_ns: u64,
    updated_ns: u64,
    /// Frames taken.
    taken: u64,
    waiting: bool,
}

impl Patience {
    const BURST_NS: u64 = 100_000_000;
    const SHARE: u64 = 16;
    /// Between two looks whether the receiver has got buffers, where it does not say so itself.
    pub(super) const STEP_NS: u64 = 200_000;

    /// The receiver has no buffers at `now_ns`; whether to wait for it.
    pub(super) fn wait(&mut self, now_ns: u64) -> bool {
        self.update(now_ns);
        self.waiting = self.spent_ns < Self::BURST_NS;
        self.waiting
    }

    /// It has no buffers, and a sender waits no longer for it.
    pub(super) fn give_up(&mut self, now_ns: u64) {
        self.update(now_ns);
        self.waiting = false;
    }

    fn update(&mut self, now_ns: u64) {
        let since_ns = now_ns.saturating_sub(self.updated_ns);
        self.spent_ns = if self.waiting {
            self.spent_ns.saturating_add(since_ns)
        } else {
            self.spent_ns.saturating_sub(since_ns / Self::SHARE)
        };
        self.updated_ns = now_ns;
    }

    /// It has taken a frame.
    #[inline]
    pub(super) fn end(&mut self, now_ns: u64) {
        if self.waiting {
            self.update(now_ns);
            self.waiting = false;
        }
        self.taken = self.taken.wrapping_add(1);
        self.spent_ns = self.spent_ns.saturating_sub(FRAME_NS);
    }

    /// Whether a sender waits.
    #[inline]
    pub(super) fn is_waiting(self) -> bool {
        self.waiting
    }

    /// Whether it has been waited for, not long ago.
    #[inline]
    pub(super) fn is_strained(self) -> bool {
        self.spent_ns > 0
    }

    /// Frames it has taken.
    #[inline]
    pub(super) fn taken(self) -> u64 {
        self.taken
    }
}

/// What a sender waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Awaited {
    /// The receive vring in this slot.
    Vring(RxSlot),
    /// The uplink.
    Uplink,
}

/// How long one transmit queue may be kept waiting: a thirty-second of the time, and 50 ms at once.
/// Waiting for a receiver that takes frames meanwhile is given back, so that one that is slower
/// than its senders still has them wait.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SenderPatience {
    spent_ns: u64,
    updated_ns: u64,
    waits: Option<Wait>,
}

/// A wait under way.
#[derive(Clone, Copy, Debug)]
struct Wait {
    awaited: Awaited,
    since_ns: u64,
    /// Frames that the receiver had taken by then.
    taken: u64,
}

impl SenderPatience {
    const BURST_NS: u64 = 50_000_000;
    const SHARE: u64 = 32;

    /// What it waits for.
    #[inline]
    pub(super) fn awaited(&self) -> Option<Awaited> {
        self.waits.map(|wait| wait.awaited)
    }

    /// The wait is over, or a step of it. `taken` is what the receiver has taken by now; nothing if
    /// it has gone.
    pub(super) fn account(&mut self, now_ns: u64, taken: Option<u64>) {
        let Some(wait) = self.waits.take() else {
            return;
        };
        let waited_ns = now_ns.saturating_sub(wait.since_ns);
        let frames = taken.map_or(0, |taken| taken.wrapping_sub(wait.taken));
        let spent_ns = self.spent_ns.saturating_add(waited_ns);
        self.spent_ns = spent_ns.saturating_sub(frames.saturating_mul(FRAME_NS));
        self.updated_ns = now_ns;
    }

    /// Whether it may wait once more.
    pub(super) fn may_wait(&mut self, now_ns: u64) -> bool {
        let since_ns = now_ns.saturating_sub(self.updated_ns);
        self.spent_ns = self.spent_ns.saturating_sub(since_ns / Self::SHARE);
        self.updated_ns = now_ns;
        self.spent_ns < Self::BURST_NS
    }

    /// It waits for a receiver that has `taken` as many frames.
    pub(super) fn wait(&mut self, now_ns: u64, awaited: Awaited, taken: u64) {
        self.waits = Some(Wait {
            awaited,
            since_ns: now_ns,
            taken,
        });
    }

    /// A receiver that had been waited for has taken a frame of it.
    #[inline]
    pub(super) fn relax(&mut self) {
        self.spent_ns = self.spent_ns.saturating_sub(FRAME_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks every step from `start_ns` on whether to wait; returns for how long the answer was yes.
    fn wait_out(patience: &mut Patience, start_ns: u64) -> u64 {
        let mut now_ns = start_ns;
        while patience.wait(now_ns) {
            now_ns += Patience::STEP_NS;
        }
        now_ns - start_ns
    }

    #[test]
    fn receiver_that_never_has_buffers_is_given_up() {
        let mut patience = Patience::default();
        let waited_ns = wait_out(&mut patience, 1);
        assert!((Patience::BURST_NS..2 * Patience::BURST_NS).contains(&waited_ns));
        assert!(!patience.is_waiting());
    }

    #[test]
    fn patience_comes_back_with_a_part_of_the_time() {
        let mut patience = Patience::default();
        let waited_ns = wait_out(&mut patience, 1);
        let start_ns = 1 + waited_ns + 16 * 10 * Patience::STEP_NS;
        let again_ns = wait_out(&mut patience, start_ns);
        assert!((5 * Patience::STEP_NS..20 * Patience::STEP_NS).contains(&again_ns));
    }

    #[test]
    fn receiver_that_is_back_in_time_costs_little() {
        let mut patience = Patience::default();
        for round in 0..10_000 {
            let now_ns = round * 100_000_000;
            assert!(patience.wait(now_ns), "{round}");
            patience.end(now_ns + 1_000_000);
        }
    }

    /// A sender goes round among receivers for a second of virtual time: it waits wherever both
    /// sides allow it, and each frame takes 20 us. Returns how long it has waited.
    fn wait_among(receivers: &mut [Patience], takes: bool) -> u64 {
        const SECOND_NS: u64 = 1_000_000_000;
        let mut sender = SenderPatience::default();
        let (mut now_ns, mut waited_ns) = (1, 0);
        while now_ns < SECOND_NS {
            for (slot, receiver) in receivers.iter_mut().enumerate() {
                now_ns += 20_000;
                while sender.may_wait(now_ns) && receiver.wait(now_ns) {
                    sender.wait(now_ns, Awaited::Vring(RxSlot(slot)), receiver.taken());
                    now_ns += Patience::STEP_NS;
                    waited_ns += Patience::STEP_NS;
                    if takes {
                        // What it has got buffers for.
                        (0..10).for_each(|_| receiver.end(now_ns));
                    }
                    sender.account(now_ns, Some(receiver.taken()));
                    if takes {
                        break;
                    }
                }
                if !takes {
                    receiver.give_up(now_ns);
                }
            }
        }
        waited_ns
    }

    #[test]
    fn f2_2_sender_waits_a_part_of_the_time_however_many_receivers_have_no_buffers() {
        for receivers in [1, 2, 16, 32, 200] {
            let waited_ns = wait_among(&mut vec![Patience::default(); receivers], false);
            let most_ns = SenderPatience::BURST_NS + 1_000_000_000 / SenderPatience::SHARE;
            assert!(waited_ns <= most_ns + Patience::STEP_NS, "{waited_ns}");
            assert!(waited_ns >= SenderPatience::BURST_NS, "{waited_ns}");
        }
    }

    #[test]
    fn f2_2_receivers_that_take_frames_are_waited_for_all_the_time() {
        for receivers in [1, 2, 16] {
            let waited_ns = wait_among(&mut vec![Patience::default(); receivers], true);
            assert!(waited_ns > 800_000_000, "{waited_ns}");
        }
    }

    #[test]
    fn wait_for_a_receiver_that_has_gone_is_charged_and_over() {
        let mut sender = SenderPatience::default();
        sender.wait(1000, Awaited::Uplink, 7);
        assert_eq!(sender.awaited(), Some(Awaited::Uplink));
        sender.account(1000 + SenderPatience::BURST_NS, None);
        assert_eq!(sender.awaited(), None);
        assert!(!sender.may_wait(1000 + SenderPatience::BURST_NS));
    }
}
