// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks of the guest, taken on the host, where others see them (`--posix-lock`, `--flock`).
//!
//! A lock of `fcntl(2)` belongs to a process of the guest, which comes as a number (`owner`). Each
//! owner of locks of a node has an open file description of its own, whose locks (`F_OFD_SETLK`)
//! exclude those of every other, in this process or elsewhere. It goes when the owner closes the
//! file (`FLUSH`, `RELEASE`), and all its locks with it; so files of such a device must not be
//! opened with `FOPEN_NOFLUSH`. A lock of `flock(2)` belongs to an open file, and is taken on the
//! handle's own description.
//!
//! No thread waits in the kernel for a lock, since nothing could end that but a signal; the module
//! `waiters` tries again instead. Owners that wait for each other in a circle are not noticed,
//! unlike in `fcntl(2)`.

mod waiters;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

pub use self::waiters::{Done, Ticket};
use self::waiters::{Retry, Waiters};
use crate::error::{Errno, Result};
use crate::sys::lock::{LockKind, OFFSET_MAX, RangeLock, ofd_get, ofd_set};

/// Who has `fcntl(2)` locks, or is about to have some.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Owner {
    /// On which node.
    pub node: u64,
    /// The process, as the guest numbers them.
    pub owner: u64,
}

/// The locks of a device.
#[derive(Debug)]
pub struct Locks {
    table: Arc<Table>,
    waiters: Waiters,
}

#[derive(Debug)]
struct Table {
    owners: Mutex<HashMap<Owner, Arc<OwnedFd>>>,
    max_owners: usize,
}

/// The whole of a file.
const WHOLE: RangeLock = RangeLock {
    kind: LockKind::Unlock,
    start: 0,
    end: OFFSET_MAX,
};

impl Table {
    /// Nothing panics while it is held.
    fn owners(&self) -> MutexGuard<'_, HashMap<Owner, Arc<OwnedFd>>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, owner: Owner) -> Option<Arc<OwnedFd>> {
        self.owners().get(&owner).cloned()
    }

    /// The description of an owner, which becomes `fd` if it has none.
    fn keep(&self, owner: Owner, fd: Arc<OwnedFd>) -> Result<Arc<OwnedFd>> {
        let mut owners = self.owners();
        let full = owners.len() >= self.max_owners;
        match owners.entry(owner) {
            Entry::Occupied(there) => Ok(Arc::clone(there.get())),
            Entry::Vacant(_) if full => Err(Errno::NOLCK),
            Entry::Vacant(place) => Ok(Arc::clone(place.insert(fd))),
        }
    }

    fn find_or_open(
        &self,
        owner: Owner,
        open: impl FnOnce() -> Result<OwnedFd>,
    ) -> Result<Arc<OwnedFd>> {
        match self.find(owner) {
            Some(fd) => Ok(fd),
            // Opened without the table locked. Whoever is second uses the first one's.
            None => self.keep(owner, Arc::new(open()?)),
        }
    }
}

impl Locks {
    /// With at most so many owners of `fcntl(2)` locks, each of which takes a descriptor.
    #[must_use]
    pub fn new(max_owners: usize) -> Self {
        let table = Table {
            owners: Mutex::default(),
            max_owners,
        };
        Self {
            table: Arc::new(table),
            waiters: Waiters::default(),
        }
    }

    /// What lock of another owner keeps this one from `lock`. `open` opens the node for reading
    /// and writing, or for reading where that is not possible.
    ///
    /// # Errors
    /// Of `open`, or as [`ofd_get`].
    pub fn get(
        &self,
        owner: Owner,
        lock: RangeLock,
        open: impl FnOnce() -> Result<OwnedFd>,
    ) -> Result<Option<RangeLock>> {
        // Who asks only is not kept.
        match self.table.find(owner) {
            Some(fd) => ofd_get(fd.as_fd(), lock),
            None => ofd_get(open()?.as_fd(), lock),
        }
    }

    /// Locks or unlocks a range. `open` as for [`Self::get`].
    ///
    /// # Errors
    /// `EAGAIN` if somebody else holds it, `ENOLCK` if there are too many owners, of `open`, or as
    /// [`ofd_set`].
    pub fn set(
        &self,
        owner: Owner,
        lock: RangeLock,
        open: impl FnOnce() -> Result<OwnedFd>,
    ) -> Result<()> {
        if lock.kind == LockKind::Unlock {
            return self.unlock(owner, lock);
        }
        let fd = self.table.find_or_open(owner, open)?;
        ofd_set(fd.as_fd(), lock)
    }

    /// As [`Self::set`], and if somebody else holds the range waits for it. `done` is called with
    /// the result, now or later.
    pub fn set_waiting(
        &self,
        ticket: Ticket,
        (owner, lock): (Owner, RangeLock),
        open: impl FnOnce() -> Result<OwnedFd>,
        done: Done,
    ) {
        if lock.kind == LockKind::Unlock {
            return done(self.unlock(owner, lock));
        }
        let fd = match self.table.find_or_open(owner, open) {
            Ok(fd) => fd,
            Err(error) => return done(Err(error)),
        };
        let table = Arc::clone(&self.table);
        // The owner may close the file on another thread, and has no description then.
        let retry = move || ofd_set(table.keep(owner, Arc::clone(&fd))?.as_fd(), lock);
        self.wait(ticket, Box::new(retry), done);
    }

    /// Drops all locks of an owner, who has closed the file once (`FLUSH`, `RELEASE`).
    pub fn drop_owner(&self, owner: Owner) {
        let removed = self.table.owners().remove(&owner);
        if let Some(fd) = removed {
            // Somebody of the same owner who waits may still have the description.
            if let Err(error) = ofd_set(fd.as_fd(), WHOLE) {
                log::debug!("locks of a closed file: {error}");
            }
            drop(fd);
            self.waiters.nudge();
        }
    }

    fn unlock(&self, owner: Owner, lock: RangeLock) -> Result<()> {
        if let Some(fd) = self.table.find(owner) {
            ofd_set(fd.as_fd(), lock)?;
            self.waiters.nudge();
        }
        Ok(())
    }

    /// Locks or unlocks an open file as `flock(2)`.
    ///
    /// # Errors
    /// `EAGAIN` if somebody else has it locked, or of `flock(2)`.
    pub fn flock(&self, file: impl AsFd, kind: LockKind) -> Result<()> {
        flock(file, operation(kind))?;
        if kind != LockKind::Write {
            self.waiters.nudge();
        }
        Ok(())
    }

    /// As [`Self::flock`], and if somebody else has it locked waits. `done` is called with the
    /// result, now or later.
    pub fn flock_waiting(
        &self,
        ticket: Ticket,
        file: Arc<impl AsFd + Send + Sync + 'static>,
        kind: LockKind,
        done: Done,
    ) {
        if kind == LockKind::Unlock {
            return done(self.flock(&*file, kind));
        }
        let retry = move || flock(&*file, operation(kind));
        self.wait(ticket, Box::new(retry), done);
    }

    /// To be called when an open file that `flock(2)` locks may have been taken on is closed.
    pub fn closed(&self) {
        self.waiters.nudge();
    }

    /// Ends the waiting of a request with `EINTR`. False if it does not wait (any more).
    pub fn interrupt(&self, unique: u64) -> bool {
        self.waiters
            .cancel(|waits| waits.unique == unique, Errno::INTR)
            > 0
    }

    /// Ends the waiting of all requests of a queue, which stops, with `ENOLCK`: for `EINTR` the
    /// guest would have to have a signal.
    pub fn cancel_queue(&self, queue: usize) {
        self.waiters
            .cancel(|waits| waits.queue == queue, Errno::NOLCK);
    }

    /// Drops all locks of `fcntl(2)` and ends all waiting with `ENOLCK`: the guest has gone.
    pub fn clear(&self) {
        self.waiters.cancel(|_| true, Errno::NOLCK);
        self.table.owners().clear();
    }

    fn wait(&self, ticket: Ticket, mut retry: Retry, done: Done) {
        match retry() {
            Err(Errno::AGAIN) => self.waiters.add(ticket, retry, done),
            result => done(result),
        }
    }
}

fn operation(kind: LockKind) -> FlockOperation {
    match kind {
        LockKind::Read => FlockOperation::NonBlockingLockShared,
        LockKind::Write => FlockOperation::NonBlockingLockExclusive,
        LockKind::Unlock => FlockOperation::NonBlockingUnlock,
    }
}

#[cfg(test)]
mod tests;
