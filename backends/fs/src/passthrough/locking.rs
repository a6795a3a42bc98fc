// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks that the guest takes on the host.

use std::sync::Arc;

use rustix::fs::OFlags;

use super::{Cx, PassThrough};
use crate::error::{Errno, Result};
use crate::locks::{Done, Owner, Ticket, Wanted};
use crate::sys::lock::{LockKind, RangeLock};
use crate::tables::{MountFd, Node};
use crate::wire::flags::InitFlags;
use crate::wire::operation::LockIn;
use crate::wire::reply::Lock;

impl PassThrough {
    /// `GETLK`: what is in the way of a lock.
    ///
    /// # Errors
    /// Errors of the host, and ENOSYS when locks are the guest's own affair.
    pub fn get_lock(&self, cx: &Cx<'_>, lock: &LockIn) -> Result<Lock> {
        let node = self.lockable(cx, lock)?;
        let owner = owner(&node, lock);
        let found = self
            .locks
            .get(owner, range(lock)?, || self.open_to_lock(&node))?;
        let free = Lock {
            start: lock.start,
            end: lock.end,
            kind: kind_number(LockKind::Unlock),
            pid: 0,
        };
        Ok(found.map_or(free, |found| Lock {
            start: found.start,
            end: found.end,
            kind: kind_number(found.kind),
            // No process that the guest knows.
            pid: 0,
        }))
    }

    /// `SETLK`, and `SETLKW` where no other lock is in the way.
    ///
    /// # Errors
    /// As [`get_lock`](Self::get_lock); EAGAIN when one is.
    pub fn set_lock(&self, cx: &Cx<'_>, lock: &LockIn) -> Result<()> {
        let node = self.lockable(cx, lock)?;
        if lock.flock {
            let handle = self.handles.get(lock.handle, node.number())?;
            return self.locks.flock(&**handle, kind(lock)?);
        }
        let wanted = wanted(&node, lock)?;
        self.locks.set(wanted, || self.open_to_lock(&node))
    }

    /// `SETLKW`, where another owner has the lock: `done` is called when it was given up.
    ///
    /// # Errors
    /// As [`get_lock`](Self::get_lock); `done` is not called then.
    pub fn wait_for_lock(
        &self,
        cx: &Cx<'_>,
        lock: &LockIn,
        queue: u16,
        done: Done,
    ) -> std::result::Result<(), (Errno, Done)> {
        let ticket = Ticket {
            queue: queue.into(),
            unique: cx.header.unique,
        };
        let node = match self.lockable(cx, lock) {
            Ok(node) => node,
            Err(error) => return Err((error, done)),
        };
        if lock.flock {
            let handle = self.handles.get(lock.handle, node.number());
            let (handle, kind) = match handle.and_then(|handle| Ok((handle, kind(lock)?))) {
                Ok(both) => both,
                Err(error) => return Err((error, done)),
            };
            self.locks
                .flock_waiting(ticket, Arc::clone(&handle), kind, done);
            return Ok(());
        }
        let wanted = match wanted(&node, lock) {
            Ok(wanted) => wanted,
            Err(error) => return Err((error, done)),
        };
        self.locks
            .set_waiting(ticket, wanted, || self.open_to_lock(&node), done);
        Ok(())
    }

    fn lockable(&self, cx: &Cx<'_>, lock: &LockIn) -> Result<Arc<Node>> {
        let flag = if lock.flock {
            InitFlags::FLOCK_LOCKS
        } else {
            InitFlags::POSIX_LOCKS
        };
        if !self.negotiated().contains(flag) {
            return Err(Errno::NOSYS);
        }
        self.node(cx).map(|node| Arc::clone(&node))
    }

    fn open_to_lock(&self, node: &Node) -> Result<MountFd> {
        let opened = match self.nodes.open(node, OFlags::RDWR) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::ISDIR | Errno::TXTBSY) => {
                self.nodes.open(node, OFlags::RDONLY)
            }
            result => result,
        };
        opened.map(|fd| MountFd::new(fd, node.mount()))
    }

    /// A process of the guest has closed a file: its locks go.
    pub(super) fn drop_locks(&self, node: u64, owner: u64) {
        if self.negotiated().contains(InitFlags::POSIX_LOCKS) {
            self.locks.drop_owner(Owner { node, owner });
        }
    }

    /// A handle was closed, and what was locked by it is free.
    pub(super) fn released(&self, node: u64, handle: u64) {
        self.locks.drop_handle(node, handle);
        if self.negotiated().contains(InitFlags::FLOCK_LOCKS) {
            self.locks.closed();
        }
    }
}

fn owner(node: &Node, lock: &LockIn) -> Owner {
    Owner {
        node: node.number(),
        owner: lock.owner,
    }
}

fn wanted(node: &Node, lock: &LockIn) -> Result<Wanted> {
    Ok(Wanted {
        owner: owner(node, lock),
        handle: lock.handle,
        lock: range(lock)?,
    })
}

fn range(lock: &LockIn) -> Result<RangeLock> {
    Ok(RangeLock {
        kind: kind(lock)?,
        start: lock.start,
        end: lock.end,
    })
}

fn kind(lock: &LockIn) -> Result<LockKind> {
    match i32::try_from(lock.kind) {
        Ok(libc::F_RDLCK) => Ok(LockKind::Read),
        Ok(libc::F_WRLCK) => Ok(LockKind::Write),
        Ok(libc::F_UNLCK) => Ok(LockKind::Unlock),
        _ => Err(Errno::INVAL),
    }
}

fn kind_number(kind: LockKind) -> u32 {
    let number = match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    };
    number.cast_unsigned()
}
