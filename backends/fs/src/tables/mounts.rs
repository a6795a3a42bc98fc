// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mounts that shared files are on.
//!
//! File handles are opened relative to a descriptor of their mount. A mount is met first at its
//! root, since there is no other way in, and the root is what is opened for that.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{AtFlags, OFlags};

use crate::error::{Errno, Result};
use crate::sys::HOLD;
use crate::sys::handle::{FileHandle, name_to_handle, open_by_handle};

/// One mount.
#[derive(Debug)]
pub struct Mount {
    number: u64,
    /// Its root, opened to read; none where file handles cannot be used.
    root: Option<OwnedFd>,
    /// Whether its files are on another machine.
    remote: bool,
    /// Its files cannot be read without waiting.
    no_nowait: AtomicBool,
}

impl Mount {
    /// The mount of the directory of several shares.
    #[must_use]
    pub fn of_nothing() -> Arc<Self> {
        Arc::new(Self {
            number: 0,
            root: None,
            remote: false,
            no_nowait: AtomicBool::new(false),
        })
    }

    /// Its number (`statx(2)`, `stx_mnt_id`).
    #[inline]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether files on it can be opened by their handles.
    #[inline]
    pub fn has_handles(&self) -> bool {
        self.root.is_some()
    }

    /// Whether its files are on another machine, or served by another process.
    #[inline]
    pub fn is_remote(&self) -> bool {
        self.remote
    }

    /// Whether reads that would have to wait can be refused (`RWF_NOWAIT`).
    #[inline]
    pub fn has_nowait(&self) -> bool {
        !self.no_nowait.load(Ordering::Relaxed)
    }

    /// They cannot.
    pub fn note_no_nowait(&self) {
        self.no_nowait.store(true, Ordering::Relaxed);
    }

    /// Opens a file on it.
    ///
    /// # Errors
    /// ESTALE when it is gone; EOPNOTSUPP where there are no handles.
    pub fn open(&self, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd> {
        let root = self.root.as_ref().ok_or(Errno::OPNOTSUPP)?;
        open_by_handle(root.as_fd(), handle, flags)
    }
}

/// All mounts in use.
#[derive(Debug, Default)]
pub struct Mounts(Mutex<HashMap<u64, Weak<Mount>>>);

impl Mounts {
    /// The mount `number`, which `fd` is on; `open` opens its root to read if it was not met before.
    pub fn get(
        &self,
        number: u64,
        fd: BorrowedFd<'_>,
        open: impl FnOnce() -> Option<OwnedFd>,
    ) -> Arc<Mount> {
        let known = |map: &HashMap<u64, Weak<Mount>>| map.get(&number).and_then(Weak::upgrade);
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known(&lock());
        if let Some(mount) = found {
            return mount;
        }
        let root = open().filter(|fd| can_use_handles(fd.as_fd()));
        let mut map = lock();
        if let Some(mount) = known(&map) {
            return mount;
        }
        map.retain(|_, mount| mount.strong_count() > 0);
        let mount = Arc::new(Mount {
            number,
            root,
            remote: is_remote(fd),
            no_nowait: AtomicBool::new(false),
        });
        map.insert(number, Arc::downgrade(&mount));
        mount
    }
}

/// Whether the file system has file handles and we may open them.
fn can_use_handles(root: BorrowedFd<'_>) -> bool {
    name_to_handle(root, c"", AtFlags::empty())
        .and_then(|(handle, _)| open_by_handle(root, &handle, HOLD))
        .is_ok()
}

/// `FUSE_SUPER_MAGIC`
const FUSE: i64 = 0x6573_5546;

/// Whether a file system is served by another process. Unless that one exports it, a handle finds
/// only what the kernel happens to have in memory, and before Linux 6.9 nothing tells.
pub(super) fn is_fuse(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type == FUSE)
}

/// Whether a file system is one of those that are kept elsewhere.
fn is_remote(fd: BorrowedFd<'_>) -> bool {
    /// NFS, FUSE, SMB (three of them), Ceph, 9P, AFS: `statfs(2)`.
    const REMOTE: [i64; 8] = [
        0x6969,
        FUSE,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x00c3_6400,
        0x0102_1997,
        0x5346_414f,
    ];
    rustix::fs::fstatfs(fd).is_ok_and(|stat| REMOTE.contains(&stat.f_type))
}
