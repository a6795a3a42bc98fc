// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mounts that shared files are on.
//!
//! File handles are opened relative to a descriptor of their mount. A mount is met first at its
//! root, since there is no other way in, and the root is what is opened for that.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
}

impl Mount {
    /// The mount of the directory of several shares.
    #[must_use]
    pub fn of_nothing() -> Arc<Self> {
        Arc::new(Self {
            number: 0,
            root: None,
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
    /// The mount `number`; `open` opens its root to read if it was not met before.
    pub fn get(&self, number: u64, open: impl FnOnce() -> Option<OwnedFd>) -> Arc<Mount> {
        let known = |map: &HashMap<u64, Weak<Mount>>| map.get(&number).and_then(Weak::upgrade);
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mount) = known(&lock()) {
            return mount;
        }
        let root = open().filter(|fd| can_use_handles(fd.as_fd()));
        let mut map = lock();
        if let Some(mount) = known(&map) {
            return mount;
        }
        map.retain(|_, mount| mount.strong_count() > 0);
        let mount = Arc::new(Mount { number, root });
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
