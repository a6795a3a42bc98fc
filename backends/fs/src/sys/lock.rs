// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks of open file descriptions (`fcntl(2)`, `F_OFD_SETLK`); `flock(2)` is in rustix.
#![expect(unsafe_code, reason = "one system call, in one block")]

use std::ffi::{c_int, c_short};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::handle::last_error;
use crate::error::{Errno, Result};

/// How a range is locked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LockKind {
    /// `F_RDLCK`: shared.
    Read,
    /// `F_WRLCK`: exclusive.
    Write,
    /// `F_UNLCK`: not at all.
    Unlock,
}

/// A range of a file and how it is locked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RangeLock {
    /// How.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` or more for the end of the file, wherever that will be.
    pub end: u64,
}

/// The largest offset of a file (`OFFSET_MAX`).
pub const OFFSET_MAX: u64 = i64::MAX.cast_unsigned();

impl LockKind {
    /// By its number, as `fcntl(2)` and FUSE have it.
    ///
    /// # Errors
    /// `EINVAL` for another.
    pub fn new(number: u32) -> Result<Self> {
        match number.cast_signed() {
            libc::F_RDLCK => Ok(Self::Read),
            libc::F_WRLCK => Ok(Self::Write),
            libc::F_UNLCK => Ok(Self::Unlock),
            _ => Err(Errno::INVAL),
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.raw().cast_unsigned()
    }

    fn raw(self) -> c_int {
        match self {
            Self::Read => libc::F_RDLCK,
            Self::Write => libc::F_WRLCK,
            Self::Unlock => libc::F_UNLCK,
        }
    }
}

impl RangeLock {
    /// As `struct flock`, where length 0 is up to the end of the file.
    fn to_raw(self) -> Result<libc::flock64> {
        let offset = |at: u64| i64::try_from(at).map_err(|_too_big| Errno::INVAL);
        if self.end < self.start {
            return Err(Errno::INVAL);
        }
        let len = if self.end >= OFFSET_MAX {
            0
        } else {
            offset(self.end - self.start + 1)?
        };
        Ok(libc::flock64 {
            l_type: short(self.kind.raw())?,
            l_whence: short(libc::SEEK_SET)?,
            l_start: offset(self.start)?,
            l_len: len,
            l_pid: 0,
        })
    }

    fn from_raw(raw: &libc::flock64) -> Result<Self> {
        let kind = LockKind::new(c_int::from(raw.l_type).cast_unsigned())?;
        let start = u64::try_from(raw.l_start).map_err(|_negative| Errno::IO)?;
        let len = u64::try_from(raw.l_len).map_err(|_negative| Errno::IO)?;
        let end = match len {
            0 => OFFSET_MAX,
            len => start.saturating_add(len - 1),
        };
        Ok(Self { kind, start, end })
    }
}

fn short(number: c_int) -> Result<c_short> {
    c_short::try_from(number).map_err(|_too_big| Errno::INVAL)
}

fn ofd_call(fd: BorrowedFd<'_>, command: c_int, lock: &mut libc::flock64) -> Result<()> {
    // SAFETY: both commands used here take a `struct flock64`, and F_OFD_GETLK writes one.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}

/// Locks or unlocks a range for the open file description `fd`, and does not wait.
///
/// # Errors
/// `EAGAIN` if another holds it, `EBADF` if it is not opened for such a lock, `EINVAL` for a range
/// that is none, or what the file system says.
pub fn ofd_set(fd: BorrowedFd<'_>, lock: RangeLock) -> Result<()> {
    match ofd_call(fd, libc::F_OFD_SETLK, &mut lock.to_raw()?) {
        Err(Errno::ACCESS) => Err(Errno::AGAIN),
        done => done,
    }
}

/// The lock of another owner that is in the way of `lock` on `fd`; none: `fd` could have it. No
/// process is named as its holder: such locks belong to open files.
///
/// # Errors
/// As [`ofd_set`].
pub fn ofd_get(fd: BorrowedFd<'_>, lock: RangeLock) -> Result<Option<RangeLock>> {
    let mut raw = lock.to_raw()?;
    ofd_call(fd, libc::F_OFD_GETLK, &mut raw)?;
    let found = RangeLock::from_raw(&raw)?;
    Ok((found.kind != LockKind::Unlock).then_some(found))
}
