// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cable between a guest and its network, which an operator plugs in and out.
//!
//! A receive queue serves while it is started and enabled. It notices each change of the cable
//! before it takes another frame, and drops what has come until then: so what came while the cable
//! was out is not delivered, and what comes after [`Cable::wait`] is.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The cable of one guest.
#[derive(Debug, Default)]
pub struct Cable {
    /// How often it was plugged in or out; odd: it is out.
    changes: AtomicU32,
    queues: Mutex<Queues>,
    noticed: Condvar,
}

/// Receive queues of the guest.
#[derive(Debug, Default)]
struct Queues {
    /// Those that serve.
    serving: u16,
    /// Those of them that have not noticed the last change.
    behind: u16,
}

impl Cable {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often it was plugged in or out.
    #[must_use]
    #[inline]
    pub fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether it is plugged in.
    #[must_use]
    #[inline]
    pub fn is_in(&self) -> bool {
        self.changes().is_multiple_of(2)
    }

    /// Whether a guest is at its end.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.is_in() && self.lock().serving > 0
    }

    /// Plugs it in or out; returns whether it was the other way before.
    pub fn set(&self, is_in: bool) -> bool {
        let mut queues = self.lock();
        if self.is_in() == is_in {
            return false;
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
        queues.behind = queues.serving;
        true
    }

    /// A queue begins to serve, and has noticed as many changes as are returned.
    pub fn begin(&self) -> u32 {
        let mut queues = self.lock();
        queues.serving += 1;
        self.changes()
    }

    /// A queue that has noticed as many changes ceases to serve.
    pub fn end(&self, noticed: u32) {
        let mut queues = self.lock();
        queues.serving = queues.serving.saturating_sub(1);
        self.catch_up(queues, noticed);
    }

    /// A queue that has noticed `noticed` changes notices as many as are returned.
    pub fn notice(&self, noticed: u32) -> u32 {
        self.catch_up(self.lock(), noticed)
    }

    fn catch_up(&self, mut queues: MutexGuard<'_, Queues>, noticed: u32) -> u32 {
        let changes = self.changes();
        if noticed != changes {
            queues.behind = queues.behind.saturating_sub(1);
            drop(queues);
            self.noticed.notify_all();
        }
        changes
    }

    /// Waits until all queues have noticed the last change, or for `most`.
    pub fn wait(&self, most: Duration) {
        let behind = |queues: &mut Queues| queues.behind > 0;
        // A queue whose thread is that busy notices it later.
        drop(self.noticed.wait_timeout_while(self.lock(), most, behind));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[test]
    fn guest_is_there_while_a_queue_serves_and_the_cable_is_in() {
        let cable = Cable::default();
        assert!(cable.is_in() && !cable.is_served());
        let noticed = cable.begin();
        assert!(cable.is_served());
        assert!(cable.set(false) && !cable.set(false));
        assert!(!cable.is_in() && !cable.is_served());
        assert!(cable.set(true) && !cable.set(true));
        assert!(cable.is_served());
        cable.end(noticed);
        assert!(!cable.is_served());
    }

    #[test]
    fn wait_ends_when_every_queue_has_noticed_or_has_gone() {
        let cable = Cable::default();
        let noticed = [cable.begin(), cable.begin()];
        cable.set(false);
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                cable.wait(Duration::from_secs(60));
                cable.lock().behind
            });
            assert_eq!(cable.notice(noticed[0]), 1);
            cable.end(noticed[1]);
            assert_eq!(waits.join().unwrap(), 0);
        });
        // Nobody is behind who was not there.
        assert_eq!(cable.begin(), 1);
        cable.wait(Duration::from_secs(60));
        // A queue that never looks is waited for no longer than that.
        cable.set(true);
        cable.wait(SOON);
        assert_eq!(cable.lock().behind, 2);
    }
}
