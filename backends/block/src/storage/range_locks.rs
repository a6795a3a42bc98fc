// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks that keep a write from undoing another in the same block.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Locks of byte ranges, shared or exclusive, served in the order they were asked for.
///
/// A lock waits for every earlier one it conflicts with, held or itself waiting; so no stream of
/// shared locks starves an exclusive one.
///
/// Every wait takes a thread, and threads are few. So only what has a thread, or I/O in the kernel,
/// may hold a lock: if a job that has no thread yet held one, the jobs that wait for the lock could
/// take all threads.
#[derive(Debug, Default)]
pub struct RangeLocks {
    /// In order of arrival: those held and those waiting.
    entries: Mutex<Entries>,
    released: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Entries {
    next_id: u64,
    pub(super) list: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    id: u64,
    range: Range<u64>,
    exclusive: bool,
}

impl Entry {
    fn conflicts_with(&self, range: &Range<u64>, exclusive: bool) -> bool {
        (self.exclusive || exclusive)
            && self.range.start < range.end
            && range.start < self.range.end
    }
}

impl Entries {
    fn push(&mut self, range: Range<u64>, exclusive: bool) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.list.push(Entry {
            id,
            range,
            exclusive,
        });
        id
    }

    fn must_wait(&self, id: u64, range: &Range<u64>, exclusive: bool) -> bool {
        let mut earlier = self.list.iter().take_while(|entry| entry.id != id);
        earlier.any(|entry| entry.conflicts_with(range, exclusive))
    }
}

impl RangeLocks {
    /// Waits for a range that others may share.
    pub fn lock_shared(self: &Arc<Self>, range: Range<u64>) -> RangeGuard {
        self.lock(range, false)
    }

    /// Waits for a range of one's own.
    pub fn lock_exclusive(self: &Arc<Self>, range: Range<u64>) -> RangeGuard {
        self.lock(range, true)
    }

    /// A shared range if it can be had at once; never waits, for data threads.
    #[must_use]
    pub fn try_lock_shared(self: &Arc<Self>, range: Range<u64>) -> Option<RangeGuard> {
        let mut entries = self.entries();
        if entries
            .list
            .iter()
            .any(|entry| entry.conflicts_with(&range, false))
        {
            return None;
        }
        let id = entries.push(range, false);
        Some(RangeGuard {
            locks: Arc::clone(self),
            id,
        })
    }

    fn lock(self: &Arc<Self>, range: Range<u64>, exclusive: bool) -> RangeGuard {
        let mut entries = self.entries();
        let id = entries.push(range.clone(), exclusive);
        while entries.must_wait(id, &range, exclusive) {
            entries = self
                .released
                .wait(entries)
                .unwrap_or_else(PoisonError::into_inner);
        }
        RangeGuard {
            locks: Arc::clone(self),
            id,
        }
    }

    /// The list is whole between any two statements that could panic, so poison means nothing.
    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A held range; dropping it, on any thread, lets it go.
#[derive(Debug)]
#[must_use]
pub struct RangeGuard {
    locks: Arc<RangeLocks>,
    id: u64,
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut entries = self.locks.entries();
        entries.list.retain(|entry| entry.id != self.id);
        drop(entries);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn range_locks_conflict_only_where_they_must() {
        let locks: Arc<RangeLocks> = Arc::default();
        let shared = locks.lock_shared(0..10);
        assert!(locks.try_lock_shared(5..15).is_some());
        let exclusive = locks.lock_exclusive(10..20);
        assert!(locks.try_lock_shared(0..10).is_some());
        assert!(locks.try_lock_shared(20..30).is_some());
        assert!(locks.try_lock_shared(9..11).is_none());
        assert!(locks.try_lock_shared(19..40).is_none());
        drop(exclusive);
        assert!(locks.try_lock_shared(9..11).is_some());
        drop(shared);
        drop(locks.lock_exclusive(0..u64::MAX));
        assert!(locks.entries().list.is_empty());
    }

    #[test]
    fn range_lock_waits_for_earlier_ones_in_order() {
        let locks: Arc<RangeLocks> = Arc::default();
        let held = locks.lock_shared(0..10);
        let (sender, receiver) = mpsc::channel();
        let spawn = |name, exclusive| {
            let (waiting, sender) = (Arc::clone(&locks), sender.clone());
            let num_before = locks.entries().list.len();
            let thread = thread::spawn(move || {
                let _guard = waiting.lock(0..10, exclusive);
                sender.send(name).unwrap();
            });
            while locks.entries().list.len() == num_before {
                thread::yield_now();
            }
            thread
        };
        // A shared lock behind a waiting exclusive one waits too: the exclusive one cannot starve.
        let writer = spawn("exclusive", true);
        let reader = spawn("shared", false);
        assert!(locks.try_lock_shared(0..10).is_none());
        let nobody = receiver.recv_timeout(Duration::from_millis(50));
        assert_eq!(nobody, Err(mpsc::RecvTimeoutError::Timeout));
        drop(held);
        assert_eq!(
            [receiver.recv().unwrap(), receiver.recv().unwrap()],
            ["exclusive", "shared"]
        );
        writer.join().unwrap();
        reader.join().unwrap();
    }
}
