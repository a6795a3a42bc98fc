// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How names and descriptors lead to nodes.

#![expect(
    clippy::missing_errors_doc,
    reason = "a lookup fails with the errno that the host has for it"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, Statx};

use super::{Found, Nodes};
use crate::error::{Errno, Result};
use crate::sys::handle::name_to_handle;
use crate::sys::{self, HOLD};
use crate::tables::{Key, Mount, Node, Place};
use crate::wire::name::Name;

impl Nodes {
    /// Finds what `name` in the directory `parent` is, and counts a lookup of it. A thread that is
    /// not to wait asks no mount but the directory's, unless that is known to be quick.
    ///
    /// # Errors
    /// Errors of the host, and EXDEV for what is on a mount that the thread does not ask.
    pub fn lookup(&self, parent: &Node, name: Name<'_>, waits: bool) -> Result<Found> {
        let dir = self.fd(parent)?;
        let guess = self.hints.get(parent.number(), name);
        if let Some(guess) = guess.and_then(|id| self.slab.get(id)) {
            if !waits && guess.mount().is_slow() {
                return Err(Errno::XDEV);
            }
            let stat = self.statx_in(parent, dir.as_fd(), name, waits)?;
            if guess.key() == Key::of(&stat) && guess.is_hot() && guess.remember() {
                let node = Arc::clone(&guess);
                return Ok(Found { node, stat });
            }
            if let Some(node) = self.recognise(dir.as_fd(), name, &stat) {
                return Ok(Found { node, stat });
            }
        }
        let open = if waits {
            sys::open_beneath
        } else {
            sys::open_within
        };
        let open = || open(dir.as_fd(), name.as_c_str(), HOLD, Mode::empty());
        let found = self.adopt_as(self.opening(open)?, parent.mount(), true)?;
        self.hints.set(parent.number(), name, found.node.number());
        Ok(found)
    }

    /// As [`lookup`](Self::lookup), where `inode` is what the directory says: a node that is known
    /// needs no guess. One that is not gets no descriptor that another node has to give up, since
    /// listings go over more than will be used. They do not go over to other mounts, any of which
    /// may have the caller wait.
    ///
    /// # Errors
    /// Errors of the host, and EXDEV for what is on another mount.
    pub fn lookup_entry(
        &self,
        parent: &Node,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        inode: u64,
    ) -> Result<Found> {
        let key = Key {
            inode,
            ..parent.key()
        };
        if self.find(key).is_some() {
            let stat = self.statx_in(parent, dir, name, parent.mount().is_remote())?;
            if let Some(node) = self.recognise(dir, name, &stat) {
                return Ok(Found { node, stat });
            }
        }
        let open = || sys::open_within(dir, name.as_c_str(), HOLD, Mode::empty());
        self.adopt_as(self.opening(open)?, parent.mount(), !self.hot.is_full())
    }

    /// The attributes of `name` in the directory `dir` of `parent`. For a caller that does not
    /// wait, the directory is on this machine and no server is asked, so that what is mounted there
    /// cannot make us wait.
    #[inline]
    fn statx_in(
        &self,
        parent: &Node,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        waits: bool,
    ) -> Result<Statx> {
        let stat = sys::statx_asking(dir, name.as_c_str(), waits)?;
        if !waits
            && stat.stx_mnt_id != parent.mount().number()
            && !self.mounts.is_quick(stat.stx_mnt_id)
        {
            return Err(Errno::XDEV);
        }
        Ok(stat)
    }

    /// The known node that `name`, whose attributes are `stat`, leads to, with one more lookup. The
    /// attributes are those of its inode, whatever the name leads to by now.
    #[inline]
    fn recognise(&self, dir: BorrowedFd<'_>, name: Name<'_>, stat: &Statx) -> Option<Arc<Node>> {
        let node = self.find(Key::of(stat))?;
        if !node.is_hot() {
            let Place::Handle(known) = node.place() else {
                return None;
            };
            let (handle, _) = name_to_handle(dir, name.as_c_str(), AtFlags::empty()).ok()?;
            if handle != *known {
                return None;
            }
        }
        node.remember().then_some(node)
    }

    /// The node of the file of `fd` (`O_PATH`), with one more lookup; `near` is a mount that it is
    /// likely to be on.
    pub fn adopt(&self, fd: OwnedFd, near: &Arc<Mount>) -> Result<Found> {
        self.adopt_as(fd, near, true)
    }

    /// As [`adopt`](Self::adopt), where its attributes are known.
    pub fn adopt_known(&self, fd: OwnedFd, stat: Statx, near: &Arc<Mount>) -> Result<Found> {
        self.intern_as(fd, stat, near, true)
    }

    /// As [`adopt`](Self::adopt); the descriptor is kept if the node needs it, or `keeps` says so.
    fn adopt_as(&self, fd: OwnedFd, near: &Arc<Mount>, keeps: bool) -> Result<Found> {
        let stat = sys::statx_of(fd.as_fd())?;
        self.intern_as(fd, stat, near, keeps)
    }

    fn intern_as(&self, fd: OwnedFd, stat: Statx, near: &Arc<Mount>, keeps: bool) -> Result<Found> {
        if let Some(node) = self.find_and_remember(Key::of(&stat)) {
            return Ok(Found { node, stat });
        }
        let mount = self.mount_of(&stat, fd.as_fd(), Some(near));
        let place = self.place_of(fd.as_fd(), &mount)?;
        let kept = keeps || !matches!(place, Place::Handle(_));
        let node = self.intern(&stat, place, mount, kept.then_some(fd))?;
        Ok(Found { node, stat })
    }

    /// The node of an open file that was just made; `fd` stays the caller's.
    pub fn adopt_open(&self, fd: BorrowedFd<'_>, near: &Arc<Mount>) -> Result<Found> {
        let stat = sys::statx_of(fd)?;
        if let Some(node) = self.find_and_remember(Key::of(&stat)) {
            return Ok(Found { node, stat });
        }
        let mount = self.mount_of(&stat, fd, Some(near));
        let place = self.place_of(fd, &mount)?;
        let own = match place {
            Place::Handle(_) => None,
            _ => Some(self.opening(|| self.reopen(fd, HOLD))?),
        };
        let node = self.intern(&stat, place, mount, own)?;
        Ok(Found { node, stat })
    }
}
