// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long a sender waits for a receiver.

/// How long senders may be kept waiting for a receiver without buffers: a sixteenth of the time, and
/// 100 ms at once, in which its processor comes back to it on a busy host. A receiver that is a
/// little slow loses nothing that way, and one that never has buffers holds nobody up for long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Patience {
    spent_ns: u64,
    updated_ns: u64,
    waiting: bool,
}

impl Patience {
    const BURST_NS: u64 = 100_000_000;
    const SHARE: u64 = 16;
    /// What each frame taken gives back: one that takes 50 000 a second may always be waited for.
    const FRAME_NS: u64 = 20_000;
    /// Between two looks whether the receiver has got buffers, where it does not say so itself.
    pub(super) const STEP_NS: u64 = 200_000;

    /// The receiver has no buffers at `now_ns`; whether to wait for it.
    pub(super) fn wait(&mut self, now_ns: u64) -> bool {
        let since_ns = now_ns.saturating_sub(self.updated_ns);
        self.spent_ns = if self.waiting {
            self.spent_ns.saturating_add(since_ns)
        } else {
            self.spent_ns.saturating_sub(since_ns / Self::SHARE)
        };
        self.updated_ns = now_ns;
        self.waiting = self.spent_ns < Self::BURST_NS;
        self.waiting
    }

    /// It has taken a frame.
    #[inline]
    pub(super) fn end(&mut self, now_ns: u64) {
        if self.waiting {
            self.wait(now_ns);
            self.waiting = false;
        }
        self.spent_ns = self.spent_ns.saturating_sub(Self::FRAME_NS);
    }

    /// Whether somebody waits.
    #[inline]
    pub(super) fn is_waiting(self) -> bool {
        self.waiting
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
}
