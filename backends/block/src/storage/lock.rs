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

use super::error::ImageError;
use super::options::ImageOptions;
use super::sys;

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
    fn into_image_error(self, path: &Path) -> ImageError {
        let path = path.to_owned();
        match self {
            Self::InUse { permission } => ImageError::InUse { path, permission },
            Self::Failed(source) => ImageError::Lock { path, source },
        }
    }
}

/// How long the locks of a process may outlive it: the kernel takes its `io_uring` apart, and with
/// it the registered image, in its own time. A back-end is often restarted at once.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(5);

/// As [`lock`]; but where the file system has no locks (NFS without its lock daemon, some of FUSE)
/// the image is served all the same, as it is by QEMU.
pub(super) fn lock_or_say_why_not(fd: &OwnedFd, options: &ImageOptions) -> Result<(), ImageError> {
    match lock(fd, options.read_only) {
        Err(LockError::Failed(error @ (Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP))) => {
            log::warn!(
                "{}: the file system cannot lock ({error}): nothing keeps others from using the \
                 image",
                options.path.display()
            );
            Ok(())
        }
        locked => locked.map_err(|error| error.into_image_error(&options.path)),
    }
}

/// Locks an image for as long as its open file description lives.
fn lock(fd: &OwnedFd, read_only: bool) -> Result<(), LockError> {
    let had: &[_] = if read_only {
        &[CONSISTENT_READ]
    } else {
        &[CONSISTENT_READ, WRITE, RESIZE]
    };
    // Without locks of our own meanwhile: they would turn others away.
    let deadline = Instant::now() + PATIENCE;
    while matches!(check_all(fd, had), Err(LockError::InUse { .. })) && Instant::now() < deadline {
        std::thread::sleep(RETRY);
    }
    for permission in had {
        take(fd, HAVE_BASE + permission.bit, permission)?;
    }
    for permission in &DENIED {
        take(fd, DENY_BASE + permission.bit, permission)?;
    }
    check_all(fd, had)
}

/// Whether anyone else denies what we have, or has what we deny.
fn check_all(fd: &OwnedFd, had: &[Permission]) -> Result<(), LockError> {
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
