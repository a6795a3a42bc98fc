// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All nodes.

mod lookup;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx};
use rustix::path::DecInt;

use super::budget::{Budget, For};
use super::hints::Hints;
use super::hot::Hot;
use super::mounts::{Between, Mount, Mounts, is_fuse};
use super::node::{Key, NewNode, Node, NodeFd, Place};
use super::slab::{Slab, SlabRef};
use crate::config::InodeHandles;
use crate::error::{Errno, Result};
use crate::sys::handle::name_to_handle;
use crate::sys::{self, HOLD, OPEN};
use crate::wire::name::Name;
use ringside_common::num::usize_of;

/// Parts of the map.
const PARTS: usize = 64;

/// All nodes that the guest knows.
#[derive(Debug)]
pub struct Nodes {
    slab: Slab<Node>,
    parts: Box<[Mutex<HashTable<Arc<Node>>>]>,
    hasher: foldhash::fast::RandomState,
    hot: Hot,
    mounts: Mounts,
    hints: Hints,
    options: NodeOptions,
}

/// How nodes are kept.
#[derive(Debug)]
pub struct NodeOptions {
    /// Whether as file handles.
    pub inode_file_handles: InodeHandles,
    /// How many descriptors are kept for nodes that could do without.
    pub max_hot: usize,
    /// How many nodes there may be.
    pub max_nodes: usize,
    /// Where nodes that need a descriptor take it from.
    pub budget: Arc<Budget>,
    /// How many threads may wait for one mount.
    pub pool_threads: usize,
    /// `/proc/self/fd`.
    pub proc_self_fd: OwnedFd,
}

/// What a name led to.
#[derive(Debug)]
pub struct Found {
    /// The node, with one more lookup.
    pub node: Arc<Node>,
    /// Its attributes.
    pub stat: Statx,
}

impl Nodes {
    /// A table without nodes.
    #[must_use]
    pub fn new(options: NodeOptions) -> Self {
        Self {
            slab: Slab::default(),
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            hot: Hot::new(options.max_hot),
            mounts: Mounts::new(options.pool_threads),
            hints: Hints::default(),
            options,
        }
    }

    /// Adds the root of a share, which `fd` is (`O_PATH`); it stays.
    ///
    /// # Errors
    /// Errors of the host, and EOPNOTSUPP where file handles are wanted and there are none.
    pub fn add_root(&self, fd: OwnedFd) -> Result<Arc<Node>> {
        let stat = sys::statx_of(fd.as_fd())?;
        let mount = self.mount_of(&stat, fd.as_fd(), None);
        if self.options.inode_file_handles == InodeHandles::Mandatory && !mount.has_handles() {
            return Err(Errno::OPNOTSUPP);
        }
        let node = NewNode {
            key: Key::of(&stat),
            kind: kind_of(&stat),
            place: Place::Descriptor,
            mount,
            fd: Some(fd),
            pinned: true,
        };
        let mut part = self.part(node.key);
        let node = self.make(node)?;
        part.insert_unique(self.hash(node.key()), Arc::clone(&node), |n| {
            self.hash(n.key())
        });
        Ok(node)
    }

    /// Adds the directory of several shares.
    ///
    /// # Errors
    /// Never the first time.
    pub fn add_virtual_root(&self) -> Result<Arc<Node>> {
        self.make(NewNode {
            key: Key {
                mount: 0,
                device: 0,
                inode: 1,
            },
            kind: FileType::Directory,
            place: Place::Virtual,
            mount: self.mounts.of_nothing(),
            fd: None,
            pinned: true,
        })
    }

    /// The node with this number.
    ///
    /// # Errors
    /// ENOENT when the guest was not told of it, or has forgotten it.
    #[inline]
    pub fn get(&self, id: u64) -> Result<SlabRef<Node>> {
        self.slab.get(id).ok_or(Errno::NOENT)
    }

    /// The mounts that they are on.
    #[inline]
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// What the threads are for that wait for what `name` in the directory `parent` leads to, if it
    /// is on another mount that is not known.
    pub fn beyond(&self, parent: u64, name: Name<'_>) -> Between {
        use std::hash::BuildHasher as _;
        Between::Entry(parent, self.hasher.hash_one(name.to_bytes()))
    }

    /// Nodes there are.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// The `O_PATH` descriptor of a node.
    ///
    /// # Errors
    /// ESTALE when the file is gone; ENFILE; EPERM for the directory of several shares.
    #[inline]
    pub fn fd(&self, node: &Node) -> Result<NodeFd> {
        match node.hot_fd() {
            Some(fd) => Ok(fd),
            None => self.warm(node),
        }
    }

    #[cold]
    fn warm(&self, node: &Node) -> Result<NodeFd> {
        let Place::Handle(handle) = node.place() else {
            return Err(Errno::PERM);
        };
        let fd = self.opening(|| node.mount().open(handle, HOLD))?;
        let fd = node.warm(fd);
        self.has_warmed(node);
        Ok(fd)
    }

    /// Opens a regular file or a directory anew, with the rights of this thread.
    ///
    /// # Errors
    /// Errors of the host, and EAGAIN while another process has a lease on the file, which it was
    /// told to give up; ELOOP or ENXIO for what is never opened.
    pub fn open(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        self.open_as(node, flags | OPEN)
    }

    /// As [`open`](Self::open), but waits for the holder of a lease. That may take until the kernel
    /// ends it, `/proc/sys/fs/lease-break-time`. There is nothing else to wait for: what is opened
    /// is no FIFO and no device.
    ///
    /// # Errors
    /// As [`open`](Self::open) but EAGAIN.
    pub fn open_waiting(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        self.open_as(node, (flags | OPEN) - OFlags::NONBLOCK)
    }

    fn open_as(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        match node.kind() {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        if let Place::Handle(handle) = node.place() {
            return self.opening(|| node.mount().open(handle, flags));
        }
        let fd = self.fd(node)?;
        self.opening(|| self.reopen(fd.as_fd(), flags))
    }

    /// Opens the file of a descriptor once more.
    fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        let number = DecInt::from_fd(fd);
        // The number is a link, which must be followed.
        let flags = flags - OFlags::NOFOLLOW;
        let proc_self_fd = &self.options.proc_self_fd;
        rustix::fs::openat(proc_self_fd, number.as_c_str(), flags, Mode::empty())
    }

    /// Counts one more lookup of a node; false if it is about to go.
    pub fn remember(&self, node: &Node) -> bool {
        node.remember()
    }

    /// Whether the root of a share has this key.
    pub fn is_root(&self, key: Key) -> bool {
        self.find(key).is_some_and(|node| node.is_root())
    }

    /// The guest has forgotten `lookups` lookups of a node.
    pub fn forget(&self, id: u64, lookups: u64) {
        let Some(node) = self.slab.get(id) else {
            return;
        };
        if node.forget(lookups) {
            self.drop_node(&node);
        }
    }

    /// Takes back a lookup that was counted and that the guest does not get.
    pub fn unremember(&self, node: &Arc<Node>) {
        if node.forget(1) {
            self.drop_node(node);
        }
    }

    /// Takes all nodes out but the roots. Those that have a descriptor are in the budget until
    /// their share is given back when they are closed.
    pub fn clear(&self) -> Vec<Arc<Node>> {
        let mut left = Vec::new();
        for id in self.slab.ids() {
            let Some(node) = self.slab.get(id).filter(|node| node.forget(u64::MAX)) else {
                continue;
            };
            drop(self.unmap(&node));
            let Some(removed) = self.slab.remove(id) else {
                continue;
            };
            if removed.is_hot() && matches!(removed.place(), Place::Handle(_)) {
                self.options.budget.add_node();
            }
            left.push(removed);
        }
        self.hot.clear();
        left
    }

    /// Nothing leads to a node by what it is on the host any more.
    fn unmap(&self, node: &Arc<Node>) -> Option<Arc<Node>> {
        let mut part = self.part(node.key());
        let hash = self.hash(node.key());
        let entry = part.find_entry(hash, |n| Arc::ptr_eq(n, node));
        entry.ok().map(|entry| entry.remove().0)
    }

    fn drop_node(&self, node: &Arc<Node>) {
        drop(self.unmap(node));
        if self.slab.remove(node.number()).is_some() && matches!(node.place(), Place::Descriptor) {
            self.options.budget.give_back(For::Node);
        }
    }

    fn intern(
        &self,
        stat: &Statx,
        place: Place,
        mount: Arc<Mount>,
        fd: Option<OwnedFd>,
    ) -> Result<Arc<Node>> {
        let key = Key::of(stat);
        let hash = self.hash(key);
        let mut part = self.part(key);
        if let Ok(entry) = part.find_entry(hash, |n| n.key() == key) {
            let known = Arc::clone(entry.get());
            // Its handle is the same, or another file has got its number since.
            if is_same(&known, &place) && known.remember() {
                drop(part);
                if let Some(fd) = fd
                    && !known.is_hot()
                {
                    drop(known.warm(fd));
                    self.has_warmed(&known);
                }
                return Ok(known);
            }
            let _gone = entry.remove();
        }
        let hot = fd.is_some() && matches!(place, Place::Handle(_));
        let node = self.make(NewNode {
            key,
            kind: kind_of(stat),
            place,
            mount,
            fd,
            pinned: false,
        })?;
        part.insert_unique(hash, Arc::clone(&node), |n| self.hash(n.key()));
        drop(part);
        if hot {
            self.has_warmed(&node);
        }
        Ok(node)
    }

    fn make(&self, new: NewNode) -> Result<Arc<Node>> {
        if self.slab.len() >= self.options.max_nodes {
            return Err(Errno::NFILE);
        }
        let keeps = matches!(new.place, Place::Descriptor);
        if keeps {
            self.options.budget.take(For::Node)?;
        }
        let node = self.slab.insert(|id| Node::new(id, new));
        if keeps && node.is_none() {
            self.options.budget.give_back(For::Node);
        } else if keeps {
            self.make_room();
        }
        node.ok_or(Errno::NFILE)
    }

    /// Takes from nodes that can do without what others have taken of the budget.
    #[inline]
    pub fn make_room(&self) {
        self.hot
            .keep_at_most(self.options.budget.free(), &self.slab);
    }

    /// A node has got a descriptor that it could do without.
    fn has_warmed(&self, node: &Node) {
        self.hot
            .add(node.number(), self.options.budget.free(), &self.slab);
    }

    /// The node that had this key when it was met last.
    fn find(&self, key: Key) -> Option<Arc<Node>> {
        let part = self.part(key);
        part.find(self.hash(key), |n| n.key() == key)
            .map(Arc::clone)
    }

    /// The node with this key, if its inode is sure to exist.
    fn find_and_remember(&self, key: Key) -> Option<Arc<Node>> {
        self.find(key)
            .filter(|node| node.is_hot() && node.remember())
    }

    fn place_of(&self, fd: BorrowedFd<'_>, mount: &Mount) -> Result<Place> {
        if self.options.inode_file_handles == InodeHandles::Never || !mount.has_handles() {
            if self.options.inode_file_handles == InodeHandles::Mandatory {
                return Err(Errno::OPNOTSUPP);
            }
            return Ok(Place::Descriptor);
        }
        match name_to_handle(fd, c"", AtFlags::empty()) {
            Ok((handle, _)) => Ok(Place::Handle(handle)),
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW)
                if self.options.inode_file_handles == InodeHandles::Prefer =>
            {
                Ok(Place::Descriptor)
            }
            Err(error) => Err(error),
        }
    }

    fn mount_of(&self, stat: &Statx, fd: BorrowedFd<'_>, near: Option<&Arc<Mount>>) -> Arc<Mount> {
        if let Some(near) = near
            && near.number() == stat.stx_mnt_id
        {
            return Arc::clone(near);
        }
        let wanted = || match self.options.inode_file_handles {
            InodeHandles::Never => false,
            InodeHandles::Prefer => !is_fuse(fd),
            InodeHandles::Mandatory => true,
        };
        let openable = matches!(kind_of(stat), FileType::Directory | FileType::RegularFile);
        self.mounts.get(stat.stx_mnt_id, fd, || {
            if !openable || !wanted() {
                return None;
            }
            self.opening(|| self.reopen(fd, OFlags::RDONLY | OPEN)).ok()
        })
    }

    /// Opens something; where there are no descriptors left, nodes give some up.
    ///
    /// # Errors
    /// ENFILE when there still are none.
    pub fn opening<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.hot.shrink(&self.slab);
                match open() {
                    Err(Errno::MFILE) => Err(Errno::NFILE),
                    result => result,
                }
            }
            result => result,
        }
    }

    #[inline]
    fn hash(&self, key: Key) -> u64 {
        use std::hash::BuildHasher as _;
        self.hasher.hash_one(key)
    }

    #[inline]
    fn part(&self, key: Key) -> MutexGuard<'_, HashTable<Arc<Node>>> {
        // The table itself uses the lowest and the highest bits.
        let at = usize_of(self.hash(key) >> 32) % PARTS;
        // `at` is below the number of parts.
        let part = self.parts.get(at).unwrap_or(&self.parts[0]);
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the node that has a key is what was just found with it.
fn is_same(known: &Node, place: &Place) -> bool {
    match (known.place(), place) {
        (Place::Handle(a), Place::Handle(b)) => a == b,
        // It has kept its descriptor, so its number is its own.
        _ => known.is_hot(),
    }
}

/// What kind of thing it is.
fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

#[cfg(test)]
mod tests;
