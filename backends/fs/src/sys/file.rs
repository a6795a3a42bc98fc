// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls on descriptors that are hidden elsewhere, or made up of several.
#![expect(unsafe_code, reason = "three system calls, one per block")]

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use rustix::fs::{Access, AtFlags};

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

/// Whether the effective user of this thread may do something with what a descriptor of any kind
/// holds.
///
/// # Errors
/// Of `faccessat2(2)`: EACCES if he may not.
pub fn access(node: BorrowedFd<'_>, access: Access) -> Result<()> {
    let flags = AtFlags::EACCESS | AtFlags::EMPTY_PATH;
    // SAFETY: the path is an empty string that ends with NUL; nothing is written.
    let done = unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            node.as_raw_fd(),
            c"".as_ptr(),
            access.bits(),
            flags.bits(),
        )
    };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}
