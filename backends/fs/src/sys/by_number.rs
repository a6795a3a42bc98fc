// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls on a node that `O_PATH` descriptors refuse.
//!
//! The current directory of a thread that is set up ([`ThreadContext`]) is `/proc/self/fd`, where
//! the number of a descriptor is a magic link to what it holds: also to a symbolic link, which is
//! not followed. So these are one system call each, on every kernel; `*xattrat(2)` with
//! `AT_EMPTY_PATH` refuses `O_PATH` descriptors. What changes the owner or the times of a node
//! needs none of this: `fchownat` and `utimensat` take `AT_EMPTY_PATH`.
#![expect(unsafe_code, reason = "two system calls, one per block")]

use std::ffi::{CStr, c_int};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Access, AtFlags, CWD, Mode, XattrFlags};
use rustix::path::DecInt;

use super::handle::last_error;
use crate::credentials::ThreadContext;
use crate::error::{Errno, Result};

/// The value of an extended attribute into `value`, and how many bytes it has. An empty `value`
/// asks for the size only.
///
/// # Errors
/// Of `getxattr(2)`.
pub fn getxattr(
    _: &ThreadContext,
    node: BorrowedFd<'_>,
    name: &CStr,
    value: &mut [u8],
) -> Result<usize> {
    let path = DecInt::from_fd(node);
    if value.is_empty() {
        return rustix::fs::getxattr_query(path.as_c_str(), name);
    }
    rustix::fs::getxattr(path.as_c_str(), name, value)
}

/// The names of all extended attributes into `list`, a NUL behind each, and how many bytes that
/// is.
///
/// # Errors
/// Of `listxattr(2)`.
pub fn listxattr(_: &ThreadContext, node: BorrowedFd<'_>, list: &mut [u8]) -> Result<usize> {
    let path = DecInt::from_fd(node);
    rustix::fs::listxattr(path.as_c_str(), list)
}

/// Sets an extended attribute. `flags` are those of `setxattr(2)`.
///
/// # Errors
/// Of `setxattr(2)`.
pub fn setxattr(
    _: &ThreadContext,
    node: BorrowedFd<'_>,
    name: &CStr,
    value: &[u8],
    flags: XattrFlags,
) -> Result<()> {
    rustix::fs::setxattr(DecInt::from_fd(node).as_c_str(), name, value, flags)
}

/// Removes an extended attribute.
///
/// # Errors
/// Of `removexattr(2)`.
pub fn removexattr(_: &ThreadContext, node: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    rustix::fs::removexattr(DecInt::from_fd(node).as_c_str(), name)
}

/// Sets the permissions of a node; `mode` has the twelve lowest bits only.
///
/// # Errors
/// Of `fchmodat2(2)`; `EOPNOTSUPP` for a symbolic link.
pub fn chmod(context: &ThreadContext, node: BorrowedFd<'_>, mode: Mode) -> Result<()> {
    static NO_FCHMODAT2: AtomicBool = AtomicBool::new(false);

    if !NO_FCHMODAT2.load(Ordering::Relaxed) {
        match fchmodat2(node, mode) {
            Err(Errno::NOSYS) => NO_FCHMODAT2.store(true, Ordering::Relaxed),
            done => return done,
        }
    }
    chmod_before_6_6(context, node, mode)
}

/// Where there is no `fchmodat2(2)`.
pub(super) fn chmod_before_6_6(_: &ThreadContext, node: BorrowedFd<'_>, mode: Mode) -> Result<()> {
    let path = DecInt::from_fd(node);
    rustix::fs::chmodat(CWD, path.as_c_str(), mode, AtFlags::empty())
}

/// Linux 6.6, and nearly twice as fast as by number.
fn fchmodat2(node: BorrowedFd<'_>, mode: Mode) -> Result<()> {
    // SAFETY: the path is an empty string that ends with NUL; nothing is written.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            node.as_raw_fd(),
            c"".as_ptr(),
            mode.bits(),
            AtFlags::EMPTY_PATH.bits(),
        )
    };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}

/// Whether this thread may do something with a node. `AT_EMPTY_PATH` would do without the number,
/// but rustix does not pass it on.
///
/// # Errors
/// Of `faccessat2(2)`.
pub fn access(_: &ThreadContext, node: BorrowedFd<'_>, access: Access) -> Result<()> {
    let path = DecInt::from_fd(node);
    rustix::fs::accessat(CWD, path.as_c_str(), access, AtFlags::EACCESS)
}

/// Sets the size of a file that no handle has open for writing.
///
/// # Errors
/// Of `truncate(2)`; `EFBIG` for a size that is no file offset.
pub fn truncate(_: &ThreadContext, node: BorrowedFd<'_>, size_bytes: u64) -> Result<()> {
    let size = i64::try_from(size_bytes).map_err(|_too_big| Errno::FBIG)?;
    let path = DecInt::from_fd(node);
    // SAFETY: the path ends with NUL; nothing is written to our memory.
    let done: c_int = unsafe { libc::truncate64(path.as_c_str().as_ptr(), size) };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}

/// Gives a node one more name. Unlike with `AT_EMPTY_PATH` this needs no
/// `CAP_DAC_READ_SEARCH`.
///
/// # Errors
/// Of `linkat(2)`.
pub fn link(
    _: &ThreadContext,
    node: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &CStr,
) -> Result<()> {
    let path = DecInt::from_fd(node);
    rustix::fs::linkat(
        CWD,
        path.as_c_str(),
        directory,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )
}
