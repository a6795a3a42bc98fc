// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two calls on open files that are hidden elsewhere.
#![expect(unsafe_code, reason = "two system calls, one per block")]

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use super::handle::last_error;
use crate::error::{Errno, Result};

/// Goes on reading an open directory at a cookie of its entries. Some file systems use all of its
/// bits, so that what `lseek(2)` takes and returns is negative, which is no error.
///
/// # Errors
/// Of `lseek(2)`.
pub fn seek_to_cookie(directory: BorrowedFd<'_>, cookie: u64) -> Result<()> {
    let offset = cookie.cast_signed();
    // SAFETY: the call has no memory of ours to do with.
    let reached = unsafe { libc::lseek64(directory.as_raw_fd(), offset, libc::SEEK_SET) };
    if reached == offset {
        Ok(())
    } else if reached < 0 {
        Err(last_error())
    } else {
        Err(Errno::INVAL)
    }
}

/// Closes a descriptor and tells what the host says of what was written before.
///
/// # Errors
/// Of `close(2)`; the descriptor is closed all the same.
pub fn close(fd: OwnedFd) -> Result<()> {
    // SAFETY: the descriptor was ours alone, and is given up here.
    let closed = unsafe { libc::close(fd.into_raw_fd()) };
    if closed < 0 {
        Err(last_error())
    } else {
        Ok(())
    }
}
