// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a vring may have served before the others have their turn.
//!
//! A round robin in which the one whose turn it is gets a quantum of bytes to spend. What a chain
//! costs is known when it is taken, so that the last one of a turn may cost more than is left; what
//! it was too much is a debt, and the turns in which it is paid back are for the others.

use crate::io::MAX_QUEUED_BYTES;

/// Bytes of a turn: what is started before completions are looked at, so that a vring that is alone
/// has its whole turn at once.
pub(super) const QUANTUM_BYTES: i64 = MAX_QUEUED_BYTES.cast_signed();

/// The most that a chain costs. Larger ones are few that do any I/O.
const MAX_COST_BYTES: i64 = 1024 * QUANTUM_BYTES;

/// The credit of one vring, at most a quantum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credit {
    bytes: i64,
}

impl Credit {
    pub(super) const FULL: Self = Self {
        bytes: QUANTUM_BYTES,
    };

    /// Whether a chain may be taken, whatever it costs.
    #[inline]
    pub(super) fn is_left(self) -> bool {
        self.bytes > 0
    }

    /// What is left; a debt is negative.
    #[inline]
    pub(super) fn bytes(self) -> i64 {
        self.bytes
    }

    #[inline]
    pub(super) fn add(&mut self, bytes: i64) {
        self.bytes = self.bytes.saturating_add(bytes).min(QUANTUM_BYTES);
    }

    /// Pays for a chain of so many bytes; it costs `least_bytes` at least.
    #[inline]
    pub(super) fn pay(&mut self, bytes: u64, least_bytes: i64) {
        let cost = bytes.min(MAX_COST_BYTES.cast_unsigned()).cast_signed();
        self.bytes -= cost.max(least_bytes);
    }
}

/// What the smallest chain costs where `budget` of them are a turn.
pub(super) const fn least_cost(budget: usize) -> i64 {
    QUANTUM_BYTES
        .cast_unsigned()
        .div_ceil(budget as u64)
        .cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f2_1_budget_of_small_chains_is_a_quantum() {
        for budget in [1, 8, 60, 64] {
            let mut credit = Credit::FULL;
            let mut taken = 0;
            while credit.is_left() {
                credit.pay(17, least_cost(budget));
                taken += 1;
            }
            assert_eq!(taken, budget);
        }
    }

    #[test]
    fn f2_1_chain_beyond_the_quantum_is_paid_back_in_quanta() {
        for (bytes, quanta) in [
            (1, 0),
            (1 << 18, 1),
            (1 << 20, 4),
            (5 << 18, 5),
            (u64::MAX, 1024),
        ] {
            let mut credit = Credit::FULL;
            credit.pay(bytes, 1);
            let mut waited = 0;
            while !credit.is_left() {
                credit.add(QUANTUM_BYTES);
                waited += 1;
            }
            assert_eq!(waited, quanta, "{bytes}");
        }
    }

    #[test]
    fn f2_1_credit_is_a_quantum_at_most() {
        let mut credit = Credit::FULL;
        credit.add(i64::MAX);
        assert_eq!(credit.bytes(), QUANTUM_BYTES);
    }
}
