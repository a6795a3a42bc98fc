// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's image locks, so that a QEMU and a Ringside on one image see each other.
//!
//! QEMU (`block/file-posix.c`, `raw_apply_lock_bytes` and `raw_check_lock_bytes`) gives every
//! permission a user of an image may have a bit, and every bit two bytes of the file: byte 100 +
//! bit is locked by those who *have* the permission, byte 200 + bit by those who *deny* it to
//! others. All locks are shared ones, so taking them always succeeds; the conflict shows when each
//! user, having taken its own, asks whether anyone else locked the opposite byte. Two that start
//! together may so refuse each other, but never both pass.
//!
//! As QEMU 10.0 has it, a guest's disk denies "write" (byte 201), the tools and the exports of
//! qemu-storage-daemon deny nothing, and a node nobody uses holds no lock at all.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::ImageError;
use crate::sys;

/// `RAW_LOCK_PERM_BASE`
const HAVE_BASE: u8 = 100;
/// `RAW_LOCK_SHARED_BASE`
const DENY_BASE: u8 = 200;

/// `BLK_PERM_*`, in the order of their bits.
const CONSISTENT_READ: Permission = Permission {
    bit: 0,
    name: "consistent read",
};
const WRITE: Permission = Permission {
    bit: 1,
    name: "write",
};
const RESIZE: Permission = Permission {
    bit: 3,
    name: "resize",
};

/// A reader does not mind others reading, nor writing what is there already (bit 2).
const DENIED: [Permission; 2] = [WRITE, RESIZE];

#[derive(Clone, Copy, Debug)]
struct Permission {
    bit: u8,
    /// As QEMU's own message has it.
    name: &'static str,
}

/// Why an image could not be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockError {
    InUse { permission: &'static str },
    Failed(Errno),
}

impl LockError {
    pub(super) fn of(self, path: &Path) -> ImageError {
        let path = path.to_owned();
        match self {
            Self::InUse { permission } => ImageError::InUse { path, permission },
            Self::Failed(source) => ImageError::Lock { path, source },
        }
    }
}

/// How long a predecessor may take to let go: the kernel closes the files of an `io_uring` some
/// time after the process that had it has ended, and a restart is faster than that.
const PATIENCE: Duration = Duration::from_millis(500);

/// Locks an image for as long as its open file description lives.
pub(super) fn lock(fd: &OwnedFd, read_only: bool) -> Result<(), LockError> {
    // Not in step with another one that starts at the same time.
    let pause = Duration::from_millis(5 + u64::from(std::process::id() % 16));
    let start = Instant::now();
    loop {
        match lock_now(fd, read_only) {
            Err(LockError::InUse { .. }) if start.elapsed() < PATIENCE => {
                release(fd)?;
                std::thread::sleep(pause);
            }
            result => return result,
        }
    }
}

/// Takes back what a failed attempt has locked, so that of two that start together one succeeds.
fn release(fd: &OwnedFd) -> Result<(), LockError> {
    sys::ofd_unlock(fd, HAVE_BASE..=DENY_BASE + RESIZE.bit).map_err(LockError::Failed)
}

fn lock_now(fd: &OwnedFd, read_only: bool) -> Result<(), LockError> {
    let had: &[_] = if read_only {
        &[CONSISTENT_READ]
    } else {
        &[CONSISTENT_READ, WRITE, RESIZE]
    };
    for permission in had {
        take(fd, HAVE_BASE + permission.bit, permission)?;
    }
    for permission in &DENIED {
        take(fd, DENY_BASE + permission.bit, permission)?;
    }
    for permission in had {
        check(fd, DENY_BASE + permission.bit, permission)?;
    }
    for permission in &DENIED {
        check(fd, HAVE_BASE + permission.bit, permission)?;
    }
    Ok(())
}

fn take(fd: &OwnedFd, byte: u8, permission: &Permission) -> Result<(), LockError> {
    sys::ofd_lock_shared(fd, byte).map_err(|errno| match errno {
        // Someone holds an exclusive lock, which QEMU never does.
        Errno::AGAIN | Errno::ACCESS => LockError::InUse {
            permission: permission.name,
        },
        other => LockError::Failed(other),
    })
}

fn check(fd: &OwnedFd, byte: u8, permission: &Permission) -> Result<(), LockError> {
    match sys::ofd_is_locked_by_other(fd, byte) {
        Ok(false) => Ok(()),
        Ok(true) => Err(LockError::InUse {
            permission: permission.name,
        }),
        Err(errno) => Err(LockError::Failed(errno)),
    }
}
