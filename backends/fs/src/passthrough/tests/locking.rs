// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks and the files that they are taken with.

use rustix::fs::{FlockOperation, flock};

use super::*;
use crate::sys::lock::{LockKind, OFFSET_MAX, RangeLock, ofd_set};
use crate::wire::flags::ReleaseFlags;
use crate::wire::operation::{LockIn, Release};

/// A file of a guest whose locks are all taken on the host, and the same file on the host.
fn locking(max_files: usize) -> (Guest, u64, File) {
    let config = FsConfig {
        posix_locks: true,
        flocks: true,
        ..FsConfig::default()
    };
    let mut guest = Guest::with_files(config, max_files);
    std::fs::write(guest.path("a"), "").unwrap();
    let node = guest.lookup(ROOT_NODE, c"a").unwrap().node;
    let path = guest.path("a");
    let file = File::options().read(true).write(true).open(path).unwrap();
    (guest, node, file)
}

impl Guest {
    fn lock(&mut self, node: u64, handle: u64, owner: u64, flock: bool) -> Result<()> {
        let lock = LockIn {
            handle,
            owner,
            end: OFFSET_MAX,
            kind: libc::F_WRLCK.cast_unsigned(),
            flock,
            ..LockIn::default()
        };
        self.ask(node, |fs, cx| fs.set_lock(cx, &lock))
    }
}

/// Takes the lock on the host, and gives it up again.
fn try_on_host(file: &File) -> Result<()> {
    let lock = |kind| RangeLock {
        kind,
        start: 0,
        end: OFFSET_MAX,
    };
    ofd_set(file.as_fd(), lock(LockKind::Write))?;
    ofd_set(file.as_fd(), lock(LockKind::Unlock))
}

#[test]
fn lock_of_an_open_file_goes_when_it_is_released() {
    const HASH_OF_FILE: u64 = 0xf11e;
    const HASH_OF_FILES: u64 = 0xf11e5;
    let (mut guest, node, file) = locking(1 << 16);
    let handle = guest.open(node).unwrap();
    let other = guest.open(node).unwrap();
    guest.lock(node, handle, HASH_OF_FILE, false).unwrap();
    // As Linux closes a file: the process, and then the file without one.
    guest
        .ask(node, |fs, cx| fs.flush(cx, handle, HASH_OF_FILES))
        .unwrap();
    guest.release(node, other).unwrap();
    assert_eq!(try_on_host(&file), Err(Errno::AGAIN));
    guest.release(node, handle).unwrap();
    assert_eq!(try_on_host(&file), Ok(()));
}

#[test]
fn locks_of_one_open_file_after_the_other_are_never_refused() {
    // An eighth of half of them may have locks.
    let (mut guest, node, file) = locking(64);
    let held = guest.open(node).unwrap();
    for owner in 100..200 {
        let handle = guest.open(node).unwrap();
        assert_eq!(guest.lock(node, handle, owner, false), Ok(()));
        assert_eq!(guest.lock(node, held, 1, false), Err(Errno::AGAIN));
        guest.release(node, handle).unwrap();
    }
    assert_eq!(try_on_host(&file), Ok(()));
}

#[test]
fn lock_of_a_process_stays_when_a_file_with_another_lock_is_released() {
    let (mut guest, node, file) = locking(1 << 16);
    let locked = guest.open(node).unwrap();
    let flocked = guest.open(node).unwrap();
    guest.lock(node, locked, 1, false).unwrap();
    guest.lock(node, flocked, 2, true).unwrap();
    let taken = flock(&file, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(taken, Err(Errno::AGAIN));
    let release = Release {
        handle: flocked,
        release_flags: ReleaseFlags::FLOCK_UNLOCK.bits(),
        lock_owner: 1,
        ..Release::default()
    };
    guest.ask(node, |fs, cx| fs.release(cx, &release)).unwrap();
    assert_eq!(
        flock(&file, FlockOperation::NonBlockingLockExclusive),
        Ok(())
    );
    assert_eq!(try_on_host(&file), Err(Errno::AGAIN));
    // A handle that is none changes nothing.
    assert_eq!(guest.release(node, flocked), Err(Errno::BADF));
    assert_eq!(guest.release(ROOT_NODE, locked), Err(Errno::BADF));
    assert_eq!(try_on_host(&file), Err(Errno::AGAIN));
    guest.ask(node, |fs, cx| fs.flush(cx, locked, 1)).unwrap();
    assert_eq!(try_on_host(&file), Ok(()));
}
