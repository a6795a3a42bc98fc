// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mounts that shared files are on.
//!
//! What may wait for a mount runs on threads of its own ([`Pool`]). Of a mount that is on another
//! machine, or served by another process, that is everything, down to the closing of a descriptor;
//! and so it is of one of this machine that a data thread had to wait for, until it is quick again.
//!
//! File handles are opened relative to a descriptor of their mount. A mount is met first at its
//! root, since there is no other way in, and the root is what is opened for that.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{AtFlags, OFlags};

use super::stalls::{Hung, Stall};
use crate::error::{Errno, Result};
use crate::pool::{Fate, Job, Pool, Work};
use crate::sys::HOLD;
use crate::sys::handle::{FileHandle, name_to_handle, open_by_handle};

/// Where the files of a file system are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Home {
    /// On this machine, and closing one does nothing that can fail.
    Local,
    /// In others of this machine. What closing one does is their affair.
    Stacked,
    /// On another machine or served by another process, or unknown, which counts as that:
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
    /// The threads that wait for it.
    pool: Arc<Pool>,
    /// It is on this machine, and does not answer.
    stalled: AtomicBool,
    stall: Arc<Stall>,
    /// Mounts that are not quick.
    slow: Arc<AtomicUsize>,
}

impl Mount {
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

    /// Whether it may not answer soon.
    #[inline]
    pub fn is_slow(&self) -> bool {
        self.is_remote() || (self.stalled.load(Ordering::Acquire) && !self.recovers())
    }

    /// It has not answered; the thread that waits for it is back when `hung` is gone.
    pub fn stall(&self, hung: Hung) {
        if self.is_remote() {
            return;
        }
        self.stall.add(hung);
        if !self.stalled.swap(true, Ordering::AcqRel) {
            self.slow.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Its stall; none for a mount of another machine, which is never quick.
    pub fn local_stall(&self) -> Option<&Arc<Stall>> {
        (!self.is_remote()).then_some(&self.stall)
    }

    /// Whether it is quick again.
    #[cold]
    fn recovers(&self) -> bool {
        if !self.stall.is_over() {
            return false;
        }
        if self.stalled.swap(false, Ordering::AcqRel) {
            self.slow.fetch_sub(1, Ordering::AcqRel);
        }
        true
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

    /// The threads that wait for it.
    #[inline]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Closes a file of it on a thread for which no request waits.
    pub fn close<T: Send + 'static>(&self, file: T) {
        close_on(&self.pool, self.is_slow(), file);
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

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(root) = self.root.take() {
            close_on(&self.pool, self.is_slow(), root);
        }
        if *self.stalled.get_mut() {
            self.slow.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Closing may send what was written, or what is open, to its server, and wait for that.
fn close_on<T: Send + 'static>(pool: &Arc<Pool>, slow: bool, file: T) {
    if slow {
        let job: Job = Box::new(move |_: Fate| drop(file));
        pool.run(Work::Changes, job);
    }
}

/// An open file, and the mount that it is on. Dropping it does not wait.
#[derive(Debug)]
pub struct MountFd {
    /// None once it is closed.
    fd: Option<OwnedFd>,
    mount: Arc<Mount>,
}

impl MountFd {
    /// What was opened on `mount`.
    pub fn new(fd: OwnedFd, mount: &Arc<Mount>) -> Self {
        let mount = Arc::clone(mount);
        Self {
            fd: Some(fd),
            mount,
        }
    }

    /// Where it is.
    #[inline]
    pub fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }

    /// Closes it on this thread, which may have to wait.
    pub fn close_here(mut self) {
        self.fd = None;
    }
}

impl AsFd for MountFd {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            // `close_here` and `drop` take it last.
            None => unreachable!("a file that was closed"),
        }
    }
}

impl Drop for MountFd {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.mount.close(fd);
        }
    }
}

/// All mounts in use.
#[derive(Debug)]
pub struct Mounts {
    by_number: Mutex<HashMap<u64, Weak<Mount>>>,
    /// Pools of what is about no mount, or about two.
    others: Mutex<HashMap<Between, Weak<Pool>>>,
    /// Threads of each pool.
    pool_threads: usize,
    /// How many are not quick; those of other machines stay counted.
    slow: Arc<AtomicUsize>,
}

/// What a pool is for that is no mount's.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Between {
    /// The device.
    Nothing,
    /// Two mounts, the lesser number first.
    Mounts(u64, u64),
    /// What is mounted on an entry, which is the hash of its name, of the directory with this
    /// number.
    Entry(u64, u64),
}

impl Mounts {
    /// A table without mounts; each that comes gets at most `pool_threads` threads.
    #[must_use]
    pub fn new(pool_threads: usize) -> Self {
        Self {
            by_number: Mutex::default(),
            others: Mutex::default(),
            pool_threads,
            slow: Arc::default(),
        }
    }

    /// The mount of the directory of several shares.
    pub fn of_nothing(&self) -> Arc<Mount> {
        Arc::new(self.mount(0, None, Home::Local))
    }

    /// Whether all that were ever met are on this machine, and answer.
    #[inline]
    pub fn are_quick(&self) -> bool {
        self.slow.load(Ordering::Acquire) == 0
    }

    /// Whether the mount with this number was met, is on this machine, and answers.
    pub fn is_quick(&self, number: u64) -> bool {
        let known = self.lock().get(&number).and_then(Weak::upgrade);
        known.is_some_and(|mount| !mount.is_slow())
    }

    /// None of them answers, as far as we know; see [`Mount::stall`].
    pub fn stall_all(&self, hung: &Hung) {
        let mounts: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        for mount in mounts {
            mount.stall(Weak::clone(hung));
        }
    }

    /// A pool of no mount. It exists while it is used.
    pub fn pool_of(&self, what: Between) -> Arc<Pool> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = others.get(&what).and_then(Weak::upgrade) {
            return pool;
        }
        others.retain(|_, pool| pool.strong_count() > 0);
        let pool = Pool::new(self.pool_threads);
        others.insert(what, Arc::downgrade(&pool));
        pool
    }

    fn mount(&self, number: u64, root: Option<OwnedFd>, home: Home) -> Mount {
        if home == Home::Elsewhere {
            self.slow.fetch_add(1, Ordering::AcqRel);
        }
        Mount {
            number,
            root,
            home,
            no_nowait: AtomicBool::new(false),
            pool: Pool::new(self.pool_threads),
            stalled: AtomicBool::new(false),
            stall: Arc::default(),
            slow: Arc::clone(&self.slow),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<Mount>>> {
        self.by_number
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The mount `number`, which `fd` is on; `open` opens its root to read if it was not met
    /// before.
    pub fn get(
        &self,
        number: u64,
        fd: BorrowedFd<'_>,
        open: impl FnOnce() -> Option<OwnedFd>,
    ) -> Arc<Mount> {
        let known = |map: &HashMap<u64, Weak<Mount>>| map.get(&number).and_then(Weak::upgrade);
        let found = known(&self.lock());
        if let Some(mount) = found {
            return mount;
        }
        // Both ask the file system, which may not answer.
        let root = open().filter(|fd| can_use_handles(fd.as_fd()));
        let home = home_of(fd);
        let mut map = self.lock();
        if let Some(mount) = known(&map) {
            drop(map);
            return mount;
        }
        map.retain(|_, mount| mount.strong_count() > 0);
        let mount = Arc::new(self.mount(number, root, home));
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
            Mounts::new(1).get(1, fd.as_fd(), || None)
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
