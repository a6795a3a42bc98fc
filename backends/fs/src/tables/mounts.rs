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

/// Where the files of a file system are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Home {
    /// On this machine, and closing one does nothing that can fail.
    Local,
    /// In others of this machine. What closing one does is their affair.
    Stacked,
    /// On another machine or served by another process; or nobody knows, which is taken for that:
    /// the price of being wrong is a thread that need not have waited.
    Elsewhere,
}

/// One mount.
#[derive(Debug)]
pub struct Mount {
    number: u64,
    /// Its root, opened to read; none where file handles cannot be used.
    root: Option<OwnedFd>,
    home: Home,
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
            home: Home::Local,
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

    /// Whether its files are on another machine, or served by another process, as far as we know.
    #[inline]
    pub fn is_remote(&self) -> bool {
        self.home == Home::Elsewhere
    }

    /// Whether closing a file tells nothing: neither the file system what to write now, nor us what
    /// it could not write.
    #[inline]
    pub fn closes_silently(&self) -> bool {
        self.home == Home::Local
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
            home: home_of(fd),
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

fn home_of(fd: BorrowedFd<'_>) -> Home {
    let kind = rustix::fs::fstatfs(fd).map(|stat| stat.f_type);
    kind.map_or(Home::Elsewhere, home_of_kind)
}

/// Where files are, by the magic number of their file system (`statfs(2)`, `linux/magic.h`).
fn home_of_kind(kind: i64) -> Home {
    /// In order: ext2 to ext4, XFS, btrfs, tmpfs, ramfs, ZFS, F2FS, bcachefs, hugetlbfs, EROFS,
    /// squashfs, ISO 9660, FAT, exFAT, NTFS (ntfs3). None of them has anything to do when a file is
    /// closed, but F2FS, which ends what it alone knows of and never fails.
    const LOCAL: [i64; 15] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x0102_1994,
        0x8584_58f6,
        0x2fc1_2fc1,
        0xf2f5_2010,
        0xca45_1a4e,
        0x9584_58f6,
        0xe0f5_e1e2,
        0x7371_7368,
        0x9660,
        0x4d44,
        0x2011_bab0,
        0x7366_746e,
    ];
    /// overlayfs, eCryptfs
    const STACKED: [i64; 2] = [0x794c_7630, 0xf15f];
    // Where `f_type` is 32 bits, some are negative.
    let kind = kind & 0xffff_ffff;
    if LOCAL.contains(&kind) {
        Home::Local
    } else if STACKED.contains(&kind) {
        Home::Stacked
    } else {
        Home::Elsewhere
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn home_of_a_file_system_is_elsewhere_unless_it_is_known() {
        for (kind, home) in [
            (0xef53, Home::Local),
            (0x5846_5342, Home::Local),
            (i64::from(0x9123_683e_u32.cast_signed()), Home::Local),
            (0x794c_7630, Home::Stacked),
            (FUSE, Home::Elsewhere),
            // NFS, SMB, 9P, Lustre, and nobody.
            (0x6969, Home::Elsewhere),
            (0xff53_4d42, Home::Elsewhere),
            (0x0102_1997, Home::Elsewhere),
            (0x0bd0_0bd0, Home::Elsewhere),
            (0, Home::Elsewhere),
        ] {
            assert_eq!(home_of_kind(kind), home, "{kind:#x}");
        }
    }

    #[test]
    fn mount_of_an_unknown_file_system_is_remote_and_flushed() {
        let mount = |path| {
            let fd = File::open(path).unwrap();
            Mounts::default().get(1, fd.as_fd(), || None)
        };
        let unknown = mount("/proc/self/status");
        assert_eq!(
            (unknown.is_remote(), unknown.closes_silently()),
            (true, false)
        );
        let known = mount("/dev/shm");
        assert_eq!((known.is_remote(), known.closes_silently()), (false, true));
    }
}
