// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One file, directory or other thing that the guest knows.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use rustix::fs::{FileType, Statx};

use super::mounts::Mount;
use super::slab::Identified;
use crate::sys::handle::FileHandle;

/// What a node is on the host, while its inode exists.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Key {
    /// The number of its mount.
    pub mount: u64,
    /// Its device, major number in the upper half.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
}

impl Key {
    /// The key in a `statx` that asked for the mount.
    #[inline]
    #[must_use]
    pub fn of(stat: &Statx) -> Self {
        Self {
            mount: stat.stx_mnt_id,
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            inode: stat.stx_ino,
        }
    }

    /// Whether inode numbers here and there have nothing to do with each other: another mount, or
    /// another device in the same one, as the subvolumes of btrfs are, whose roots all have one
    /// inode number.
    #[inline]
    #[must_use]
    pub fn is_apart_from(self, other: Self) -> bool {
        (self.mount, self.device) != (other.mount, other.device)
    }
}

/// How a node is found on the host.
#[derive(Debug)]
pub enum Place {
    /// By its file handle.
    Handle(FileHandle),
    /// By its descriptor alone, which it keeps.
    Descriptor,
    /// Nowhere: the directory of several shares.
    Virtual,
}

/// One thing that the guest knows.
pub struct Node {
    id: u64,
    key: Key,
    kind: FileType,
    place: Place,
    mount: Arc<Mount>,
    /// How often the guest was told of it and has not forgotten; zero: it is about to go.
    lookups: AtomicU64,
    /// It stays whatever the guest forgets.
    pinned: bool,
    /// Used since the clock came by.
    used: AtomicBool,
    fd: ArcSwapOption<OwnedFd>,
}

/// What a node is made of.
#[derive(Debug)]
pub(super) struct NewNode {
    /// What it is on the host.
    pub(super) key: Key,
    /// What kind of thing.
    pub(super) kind: FileType,
    /// How it is found.
    pub(super) place: Place,
    /// Where.
    pub(super) mount: Arc<Mount>,
    /// Its `O_PATH` descriptor, if it has one.
    pub(super) fd: Option<OwnedFd>,
    /// It is the root of a share.
    pub(super) pinned: bool,
}

/// The descriptor of a node, for as long as it is needed.
pub struct NodeFd(Inner);

enum Inner {
    Kept(Guard<Option<Arc<OwnedFd>>>),
    Fresh(Arc<OwnedFd>),
}

impl AsFd for NodeFd {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Inner::Kept(guard) => match &**guard {
                Some(fd) => fd.as_fd(),
                // `hot_fd` makes no other.
                None => unreachable!("a reference to no descriptor"),
            },
            Inner::Fresh(fd) => fd.as_fd(),
        }
    }
}

impl fmt::Debug for NodeFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeFd").field(&self.as_fd()).finish()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("key", &self.key)
            .field("kind", &self.kind)
            .field("lookups", &self.lookups)
            .finish_non_exhaustive()
    }
}

impl Identified for Node {
    #[inline]
    fn id(&self) -> u64 {
        self.id
    }
}

impl Node {
    pub(super) fn new(id: u64, new: NewNode) -> Self {
        Self {
            id,
            key: new.key,
            kind: new.kind,
            place: new.place,
            mount: new.mount,
            lookups: AtomicU64::new(1),
            pinned: new.pinned,
            used: AtomicBool::new(true),
            fd: ArcSwapOption::from_pointee(new.fd),
        }
    }

    /// Its number.
    #[inline]
    pub fn number(&self) -> u64 {
        self.id
    }

    /// What it is on the host.
    #[inline]
    pub fn key(&self) -> Key {
        self.key
    }

    /// What kind of thing it is; that never changes.
    #[inline]
    pub fn kind(&self) -> FileType {
        self.kind
    }

    /// Whether it is a directory.
    #[inline]
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Whether it is a regular file.
    #[inline]
    pub fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    /// Whether it is the root of a share.
    #[inline]
    pub fn is_root(&self) -> bool {
        self.pinned
    }

    /// How it is found.
    #[inline]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where it is.
    #[inline]
    pub fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }

    /// Counts one more lookup, unless it is about to go.
    #[inline]
    pub(super) fn remember(&self) -> bool {
        self.pinned
            || self
                .lookups
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                    (n > 0).then(|| n.saturating_add(1))
                })
                .is_ok()
    }

    /// Takes lookups back; true when none is left.
    #[inline]
    pub(super) fn forget(&self, lookups: u64) -> bool {
        if self.pinned || lookups == 0 {
            return false;
        }
        let before = self
            .lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n > 0).then(|| n.saturating_sub(lookups))
            });
        matches!(before, Ok(n) if n <= lookups)
    }

    /// Whether it has a descriptor: then its inode exists.
    #[inline]
    pub fn is_hot(&self) -> bool {
        self.fd.load().is_some()
    }

    /// The descriptor it has.
    #[inline]
    pub(super) fn hot_fd(&self) -> Option<NodeFd> {
        let fd = self.fd.load();
        fd.is_some().then_some(())?;
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        Some(NodeFd(Inner::Kept(fd)))
    }

    /// Gives it a descriptor.
    pub(super) fn warm(&self, fd: OwnedFd) -> NodeFd {
        let fd = Arc::new(fd);
        self.fd.store(Some(Arc::clone(&fd)));
        self.used.store(true, Ordering::Relaxed);
        NodeFd(Inner::Fresh(fd))
    }

    /// Closes its descriptor on this thread, which may have to wait.
    pub fn close_here(self) {
        drop(self.fd.swap(None));
    }

    /// Whether it can do without its descriptor and was not used since the last call.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.place, Place::Handle(_)) && !self.used.swap(false, Ordering::Relaxed)
    }

    /// Takes its descriptor away, which is closed after its last use.
    pub(super) fn cool(&self) -> Cooled {
        let fd = matches!(self.place, Place::Handle(_))
            .then(|| self.fd.swap(None))
            .flatten();
        Cooled(fd.map(|fd| (fd, Arc::clone(&self.mount))))
    }
}

/// The descriptor that a node had. To drop it may take as long as the file system likes, if it is
/// the last of a file without a name: not to be done under a lock.
#[derive(Debug, Default)]
pub(super) struct Cooled(Option<(Arc<OwnedFd>, Arc<Mount>)>);

impl Drop for Cooled {
    fn drop(&mut self) {
        if let Some((fd, mount)) = self.0.take() {
            mount.close(fd);
        }
    }
}

/// The thread with the last reference need not wait for the file system: it may be the thread of
/// urgent requests, or one that has a part of the map locked.
impl Drop for Node {
    fn drop(&mut self) {
        if self.mount.is_slow()
            && let Some(fd) = self.fd.swap(None)
        {
            self.mount.close(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_another_mount_or_device_is_apart_whatever_its_inode() {
        let key = |mount, device, inode| Key {
            mount,
            device,
            inode,
        };
        let here = key(1, 2, 256);
        for (other, apart) in [
            (key(1, 2, 256), false),
            (key(1, 2, 300), false),
            (key(2, 2, 256), true),
            // A subvolume of btrfs.
            (key(1, 3, 256), true),
        ] {
            assert_eq!(here.is_apart_from(other), apart, "{other:?}");
            assert_eq!(other.is_apart_from(here), apart, "{other:?}");
        }
    }
}
