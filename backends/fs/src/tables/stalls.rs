// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a mount of this machine that did not answer is quick again.
//!
//! Meanwhile its requests go to its own threads. These may wait for it, but are slower than a data
//! thread where it is quick. It counts as quick again when all threads that waited for it have come
//! back, and none of its requests was late for a while after that.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ringside_common::worker::monotonic_ns;

/// A request that takes this long is late.
const LATE_NS: u64 = 40_000_000;
/// How long no request may be late.
const QUIET_NS: u64 = 1_000_000_000;

/// Gone when a thread has come back that waited for a mount.
pub type Hung = Weak<dyn Any + Send + Sync>;

/// What is known of the stall of one mount.
#[derive(Debug, Default)]
pub struct Stall(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    hung: Vec<Hung>,
    /// When requests under way were handed over.
    under_way: Vec<u64>,
    /// Since when none is late.
    quiet_since_ns: u64,
}

impl Stall {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread waits for the mount, until `hung` is gone.
    pub(super) fn add(&self, hung: Hung) {
        let mut state = self.lock();
        state.hung.push(hung);
        state.quiet_since_ns = monotonic_ns();
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over(monotonic_ns())
    }
}

impl State {
    fn is_over(&mut self, now_ns: u64) -> bool {
        self.hung.retain(|hung| hung.strong_count() > 0);
        let late = |since_ns: &u64| now_ns.saturating_sub(*since_ns) > LATE_NS;
        if !self.hung.is_empty() || self.under_way.iter().any(late) {
            self.quiet_since_ns = now_ns;
        }
        now_ns.saturating_sub(self.quiet_since_ns) >= QUIET_NS
    }

    fn end(&mut self, since_ns: u64, now_ns: u64) {
        if let Some(at) = self.under_way.iter().position(|other| *other == since_ns) {
            self.under_way.swap_remove(at);
        }
        if now_ns.saturating_sub(since_ns) > LATE_NS {
            self.quiet_since_ns = now_ns;
        }
    }
}

/// A request under way that shows whether a mount is quick again.
#[derive(Debug)]
pub struct Watched {
    stall: Arc<Stall>,
    since_ns: u64,
}

impl Watched {
    /// One that is handed over.
    pub fn new(stall: &Arc<Stall>) -> Self {
        let since_ns = monotonic_ns();
        stall.lock().under_way.push(since_ns);
        Self {
            stall: Arc::clone(stall),
            since_ns,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let now_ns = monotonic_ns();
        self.stall.lock().end(self.since_ns, now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment of the test, in milliseconds.
    fn ms(at: u64) -> u64 {
        at * 1_000_000
    }

    #[test]
    fn f4_4_stall_is_over_a_second_after_all_are_back_and_nothing_was_late() {
        let thread: Arc<dyn Any + Send + Sync> = Arc::new(());
        let mut state = State::default();
        state.hung.push(Arc::downgrade(&thread));
        assert!(!state.is_over(ms(5000)));
        drop(thread);
        assert!(!state.is_over(ms(5999)));
        assert!(state.is_over(ms(6000)));
    }

    #[test]
    fn f4_4_stall_goes_on_while_requests_are_late_and_not_for_those_that_are_not() {
        let mut state = State::default();
        state.under_way.extend([ms(2000), ms(2500), ms(2990)]);
        // The first two are late.
        assert!(!state.is_over(ms(3000)));
        state.end(ms(2000), ms(3500));
        state.end(ms(2500), ms(3500));
        state.end(ms(2990), ms(3020));
        assert!(!state.is_over(ms(4499)));
        state.under_way.push(ms(4490));
        assert!(state.is_over(ms(4500)));
        assert_eq!(state.under_way, [ms(4490)]);
    }
}
