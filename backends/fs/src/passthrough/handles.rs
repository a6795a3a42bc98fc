// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and directories that the guest has open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::Mutex;

use rustix::fs::OFlags;

use crate::error::{Errno, Result};
use crate::tables::{Budget, For, Identified, Mount, MountFd, Node, Slab, SlabRef};

/// An open file or directory.
#[derive(Debug)]
pub struct Handle {
    id: u64,
    node: u64,
    fd: MountFd,
    /// What it was opened with.
    flags: OFlags,
    /// Of a directory: the cookie where the kernel will go on reading.
    position: Option<Mutex<u64>>,
}

impl Identified for Handle {
    #[inline]
    fn id(&self) -> u64 {
        self.id
    }
}

impl AsFd for Handle {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Handle {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.id
    }

    /// Where the file is.
    #[inline]
    pub(super) fn mount(&self) -> &Arc<Mount> {
        self.fd.mount()
    }

    /// Closes it on this thread, which may have to wait.
    pub(super) fn close_here(self) {
        self.fd.close_here();
    }

    /// What it was opened with.
    #[inline]
    pub(super) fn flags(&self) -> OFlags {
        self.flags
    }

    /// Of a directory: where it is read.
    pub(super) fn position(&self) -> Result<&Mutex<u64>> {
        self.position.as_ref().ok_or(Errno::NOTDIR)
    }
}

/// All handles of the guest.
#[derive(Debug)]
pub struct Handles {
    slab: Slab<Handle>,
    budget: Arc<Budget>,
}

impl Handles {
    /// None; each will take a descriptor from `budget`.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            slab: Slab::default(),
            budget,
        }
    }

    /// The file or directory that was opened as `handle` of `node`.
    ///
    /// # Errors
    /// EBADF when there is none, or it is of another node.
    #[inline]
    pub fn get(&self, handle: u64, node: u64) -> Result<SlabRef<Handle>> {
        self.slab
            .get(handle)
            .filter(|h| h.node == node)
            .ok_or(Errno::BADF)
    }

    /// The same of a regular file.
    ///
    /// # Errors
    /// As [`get`](Self::get); EISDIR.
    #[inline]
    pub fn file(&self, handle: u64, node: u64) -> Result<SlabRef<Handle>> {
        let handle = self.get(handle, node)?;
        if handle.position.is_some() {
            return Err(Errno::ISDIR);
        }
        Ok(handle)
    }

    /// Handles there are.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Makes room for one more; to be asked before a file is opened.
    ///
    /// # Errors
    /// ENFILE when there is none.
    pub(super) fn reserve(&self, whom: For) -> Result<Reserved<'_>> {
        self.budget.take(whom).map(|()| Reserved(self))
    }

    /// Takes a handle out. It is closed after its last use.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) fn remove(&self, handle: u64, node: u64) -> Result<Arc<Handle>> {
        self.get(handle, node)?;
        let removed = self.slab.remove(handle).ok_or(Errno::BADF)?;
        self.budget.give_back(For::File);
        Ok(removed)
    }

    /// Takes all out. They stay in the budget until they are closed.
    pub(super) fn clear(&self) -> Vec<Arc<Handle>> {
        let ids = self.slab.ids();
        ids.filter_map(|id| self.slab.remove(id)).collect()
    }

    /// Where they take their descriptors from.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }
}

/// Room for a handle.
#[derive(Debug)]
pub(super) struct Reserved<'a>(&'a Handles);

impl Reserved<'_> {
    /// Fills it.
    ///
    /// # Errors
    /// ENFILE when numbers have run out.
    pub(super) fn fill(self, node: &Node, fd: OwnedFd, flags: OFlags) -> Result<Arc<Handle>> {
        let handle = self.0.slab.insert(|id| Handle {
            id,
            node: node.number(),
            fd: MountFd::new(fd, node.mount()),
            flags,
            position: node.is_dir().then(Mutex::default),
        });
        let handle = handle.ok_or(Errno::NFILE)?;
        // It is counted until it is removed.
        let _counted = std::mem::ManuallyDrop::new(self);
        Ok(handle)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.budget.give_back(For::File);
    }
}
