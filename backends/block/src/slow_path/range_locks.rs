// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks that keep a write from undoing another in the same block.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Locks of byte ranges, shared or exclusive, served in the order they were asked for.
///
/// A lock waits for every earlier one it conflicts with, held or itself waiting; so no stream of
/// shared locks starves an exclusive one.
///
/// Those who wait take a thread each, and threads are few. So a lock is for who has one already, or
/// whom the kernel works for: were it held by a job that is still to get a thread, those that wait
/// for it could have all of them.
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

    pub(super) fn lock(self: &Arc<Self>, range: Range<u64>, exclusive: bool) -> RangeGuard {
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
