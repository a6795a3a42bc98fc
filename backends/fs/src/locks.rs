// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks of the guest, taken on the host, where others see them (`--posix-lock`, `--flock`).
//!
//! A lock of `fcntl(2)` belongs to a process of the guest, which comes as a number (`owner`). Each
//! owner of locks of a node has an open file description of its own, whose locks (`F_OFD_SETLK`)
//! exclude those of every other, in this process or elsewhere. It goes when the owner closes the
//! file (`FLUSH`), and all its locks with it; so files of such a device must not be opened with
//! `FOPEN_NOFLUSH`. A lock of `flock(2)` belongs to an open file, and is taken on the handle's own
//! description.
//!
//! A lock of `F_OFD_SETLK` comes as one of `fcntl(2)` whose owner is an open file of the guest, and
//! no `FLUSH` ever names that. So an owner also goes when the handles that it has locked with are
//! closed (`RELEASE`). To a process nothing happens by that: it has closed its handle, and said so,
//! before the guest does.
//!
//! No thread waits in the kernel for a lock, since nothing could end that but a signal; the module
//! `waiters` tries again instead. Owners that wait for each other in a circle are not noticed,
//! unlike in `fcntl(2)`.

mod waiters;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

pub use self::waiters::{Done, Ticket};
use self::waiters::{Retry, Waiters};
use ringside_common::limited;

use crate::error::{Errno, Result};
use crate::sys::lock::{LockKind, OFFSET_MAX, RangeLock, ofd_get, ofd_set};
use crate::tables::MountFd;

/// An owner of `fcntl(2)` locks, or one that is about to get some.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Owner {
    /// On which node.
    pub node: u64,
    /// The process or the open file, as the guest numbers them.
    pub owner: u64,
}

/// A lock that is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// The owner that wants it.
    pub owner: Owner,
    /// The open file that it is wanted with.
    pub handle: u64,
    /// Of what.
    pub lock: RangeLock,
}

/// The locks of a device.
#[derive(Debug)]
pub struct Locks {
    table: Arc<Table>,
    waiters: Waiters,
}

#[derive(Debug)]
struct Table {
    owners: Mutex<BTreeMap<Owner, Held>>,
    /// How many there are: most files that are closed were never locked.
    count: AtomicUsize,
    max_owners: usize,
}

/// What is kept of an owner.
#[derive(Debug)]
struct Held {
    fd: Arc<MountFd>,
    /// The open files that it has locked with and that are not closed, the latest last; never
    /// none, and no more than [`MAX_HANDLES`].
    ///
    /// All of them count, not the latest only: a lock that a process takes with one file, while
    /// another thread of it closes another, must not go with the other.
    handles: Vec<u64>,
}

/// An open file has itself, and another one when the guest gives its number away before it is
/// closed here. A process may have any number, of which the latest do: `FLUSH` comes for it.
const MAX_HANDLES: usize = 4;

/// The whole of a file.
const WHOLE: RangeLock = RangeLock {
    kind: LockKind::Unlock,
    start: 0,
    end: OFFSET_MAX,
};

impl Held {
    fn note(&mut self, handle: u64) {
        if self.handles.contains(&handle) {
            return;
        }
        if self.handles.len() == MAX_HANDLES {
            self.handles.remove(0);
        }
        self.handles.push(handle);
    }
}

impl Table {
    /// Nothing panics while it is held.
    fn owners(&self) -> MutexGuard<'_, BTreeMap<Owner, Held>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called with the owners locked, after a change.
    fn count(&self, owners: &BTreeMap<Owner, Held>) {
        self.count.store(owners.len(), Ordering::Release);
    }

    /// Without locking anything.
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn find(&self, owner: Owner) -> Option<Arc<MountFd>> {
        self.owners().get(&owner).map(|held| Arc::clone(&held.fd))
    }

    /// The description of an owner that locks with `handle`.
    fn find_for(&self, owner: Owner, handle: u64) -> Option<Arc<MountFd>> {
        let mut owners = self.owners();
        let held = owners.get_mut(&owner)?;
        held.note(handle);
        Some(Arc::clone(&held.fd))
    }

    /// The description of an owner that locks with `handle`, which becomes `fd` if it has none.
    fn keep(&self, owner: Owner, handle: u64, fd: Arc<MountFd>) -> Result<Arc<MountFd>> {
        let mut owners = self.owners();
        let full = owners.len() >= self.max_owners;
        let fd = match owners.entry(owner) {
            Entry::Occupied(mut there) => {
                there.get_mut().note(handle);
                Arc::clone(&there.get().fd)
            }
            Entry::Vacant(_) if full => return Err(Errno::NOLCK),
            Entry::Vacant(place) => {
                let handles = vec![handle];
                Arc::clone(&place.insert(Held { fd, handles }).fd)
            }
        };
        self.count(&owners);
        Ok(fd)
    }

    fn find_or_open(
        &self,
        owner: Owner,
        handle: u64,
        open: impl FnOnce() -> Result<MountFd>,
    ) -> Result<Arc<MountFd>> {
        match self.find_for(owner, handle) {
            Some(fd) => Ok(fd),
            // Opened without the table locked: of two threads the second uses what the first has
            // put in.
            None => self.keep(owner, handle, Arc::new(open()?)),
        }
    }

    fn remove(&self, owner: Owner) -> Option<Held> {
        let mut owners = self.owners();
        let removed = owners.remove(&owner);
        self.count(&owners);
        removed
    }

    /// Removes the owners that have locked with this handle, and with no other that is not closed.
    fn remove_handle(&self, node: u64, handle: u64) -> Vec<Held> {
        let of_node = |owner| Owner { node, owner };
        let mut owners = self.owners();
        let mut gone = Vec::new();
        for (owner, held) in owners.range_mut(of_node(0)..=of_node(u64::MAX)) {
            held.handles.retain(|other| *other != handle);
            if held.handles.is_empty() {
                gone.push(*owner);
            }
        }
        let removed = gone.iter().filter_map(|owner| owners.remove(owner));
        let removed = removed.collect();
        self.count(&owners);
        removed
    }

    fn clear(&self) -> BTreeMap<Owner, Held> {
        let mut owners = self.owners();
        let all = std::mem::take(&mut *owners);
        self.count(&owners);
        all
    }
}

impl Locks {
    /// With at most `max_owners` owners of `fcntl(2)` locks, each of which takes a descriptor.
    #[must_use]
    pub fn new(max_owners: usize) -> Self {
        let table = Table {
            owners: Mutex::default(),
            count: AtomicUsize::new(0),
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
        open: impl FnOnce() -> Result<MountFd>,
    ) -> Result<Option<RangeLock>> {
        // An owner that only asks is not kept.
        match self.table.find(owner) {
            Some(fd) => ofd_get(fd.as_fd(), lock),
            None => ofd_get(open()?.as_fd(), lock),
        }
    }

    /// Locks or unlocks a range. `open` as for [`Self::get`].
    ///
    /// # Errors
    /// `EAGAIN` if another owner holds it, `ENOLCK` if there are too many owners, of `open`, or as
    /// [`ofd_set`].
    pub fn set(&self, wanted: Wanted, open: impl FnOnce() -> Result<MountFd>) -> Result<()> {
        let Wanted {
            owner,
            handle,
            lock,
        } = wanted;
        if lock.kind == LockKind::Unlock {
            return self.unlock(owner, lock);
        }
        let fd = self.table.find_or_open(owner, handle, open)?;
        ofd_set(fd.as_fd(), lock)
    }

    /// As [`Self::set`], and waits if another owner holds the range. `done` is called with
    /// the result, now or later.
    pub fn set_waiting(
        &self,
        ticket: Ticket,
        wanted: Wanted,
        open: impl FnOnce() -> Result<MountFd>,
        done: Done,
    ) {
        let Wanted {
            owner,
            handle,
            lock,
        } = wanted;
        if lock.kind == LockKind::Unlock {
            return done(self.unlock(owner, lock));
        }
        let fd = match self.table.find_or_open(owner, handle, open) {
            Ok(fd) => fd,
            Err(error) => return done(Err(error)),
        };
        let table = Arc::clone(&self.table);
        // The owner may close the file on another thread, and has no description then. It goes
        // with the handle, which the guest keeps while it waits.
        let retry = move || ofd_set(table.keep(owner, handle, Arc::clone(&fd))?.as_fd(), lock);
        self.wait(ticket, Box::new(retry), done);
    }

    /// Drops all locks of an owner that has closed the file once (`FLUSH`, `RELEASE`).
    pub fn drop_owner(&self, owner: Owner) {
        if !self.table.is_empty() {
            self.give_up(self.table.remove(owner));
        }
    }

    /// Drops all locks of the owners that have locked with this handle, which is closed
    /// (`RELEASE`), and with no other that is still open.
    pub fn drop_handle(&self, node: u64, handle: u64) {
        if !self.table.is_empty() {
            self.give_up(self.table.remove_handle(node, handle));
        }
    }

    fn give_up(&self, removed: impl IntoIterator<Item = Held>) {
        let mut any = false;
        for held in removed {
            // A request of the same owner that waits may still have the description.
            if let Err(error) = ofd_set(held.fd.as_fd(), WHOLE) {
                limited!(debug, "locks of a closed file: {error}");
            }
            any = true;
        }
        if any {
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
    /// `EAGAIN` if another owner has it locked, or of `flock(2)`.
    pub fn flock(&self, file: impl AsFd, kind: LockKind) -> Result<()> {
        flock(file, operation(kind))?;
        if kind != LockKind::Write {
            self.waiters.nudge();
        }
        Ok(())
    }

    /// As [`Self::flock`], and waits if another owner has it locked. `done` is called with the
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

    /// Ends the waiting of a request with `EINTR`, at once or when it is about to begin. False if
    /// it does not wait (any more, or yet).
    pub fn interrupt(&self, unique: u64) -> bool {
        self.waiters.interrupt(unique)
    }

    /// Ends the waiting of all requests of a queue, which stops, with `ENOLCK`: for `EINTR` the
    /// guest would have to have a signal.
    pub fn cancel_queue(&self, queue: usize) {
        self.waiters
            .cancel(|waits| waits.queue == queue, Errno::NOLCK);
    }

    /// Ends all waiting with `ENOLCK`: the guest has gone. All locks of `fcntl(2)` are dropped by
    /// closing what is returned.
    pub fn clear(&self) -> impl Iterator<Item = Arc<MountFd>> {
        self.waiters.clear();
        self.table.clear().into_values().map(|held| held.fd)
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
