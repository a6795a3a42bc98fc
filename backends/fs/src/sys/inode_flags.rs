// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The calls behind `chattr(1)` and `lsattr(1)`.
#![expect(unsafe_code, reason = "raw ioctls, one per block")]

use std::ffi::c_long;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use crate::error::Result;

/// `FS_IOC_GETFLAGS`. Its number says `long`; what is moved is 32 bits.
pub const FS_IOC_GETFLAGS: Opcode = opcode::read::<c_long>(b'f', 1);
/// `FS_IOC_SETFLAGS`, as above.
pub const FS_IOC_SETFLAGS: Opcode = opcode::write::<c_long>(b'f', 2);
/// `FS_IOC32_GETFLAGS`: the number that 32-bit programs use.
pub const FS_IOC32_GETFLAGS: Opcode = opcode::read::<u32>(b'f', 1);
/// `FS_IOC32_SETFLAGS`, as above.
pub const FS_IOC32_SETFLAGS: Opcode = opcode::write::<u32>(b'f', 2);
/// `FS_IOC_FSGETXATTR`.
pub const FS_IOC_FSGETXATTR: Opcode = opcode::read::<Fsxattr>(b'X', 31);
/// `FS_IOC_FSSETXATTR`.
pub const FS_IOC_FSSETXATTR: Opcode = opcode::write::<Fsxattr>(b'X', 32);

/// `FS_PROJINHERIT_FL`: what is made in a directory is in its project.
pub const FS_PROJINHERIT_FL: u32 = 0x2000_0000;
/// `FS_XFLAG_PROJINHERIT`, the same in `struct fsxattr`.
pub const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// Bytes of `struct fsxattr`.
pub const FSXATTR_BYTES: usize = 28;

/// `struct fsxattr`, of seven 32-bit numbers and padding, as it comes.
pub type Fsxattr = [u8; FSXATTR_BYTES];

/// `FS_*_FL` of an open file or directory.
///
/// # Errors
/// Of `ioctl(2)`; `ENOTTY` where the file system has none.
pub fn get_flags(fd: BorrowedFd<'_>) -> Result<u32> {
    // SAFETY: the kernel writes 32 bits for this code, whatever its number says.
    let getter = unsafe { Getter::<FS_IOC_GETFLAGS, u32>::new() };
    // SAFETY: the getter describes the call; a descriptor of another kind fails with an error.
    unsafe { ioctl(fd, getter) }
}

/// Sets `FS_*_FL`.
///
/// # Errors
/// Of `ioctl(2)`; `EPERM` without `CAP_LINUX_IMMUTABLE` if a flag of that kind changes.
pub fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    // SAFETY: the kernel reads 32 bits for this code, whatever its number says.
    let setter = unsafe { Setter::<FS_IOC_SETFLAGS, u32>::new(flags) };
    // SAFETY: as in `get_flags`.
    unsafe { ioctl(fd, setter) }
}

/// Extended flags, extent size hints and project of an open file or directory.
///
/// # Errors
/// As [`get_flags`].
pub fn get_fsxattr(fd: BorrowedFd<'_>) -> Result<Fsxattr> {
    // SAFETY: the kernel writes one `struct fsxattr` for this code.
    let getter = unsafe { Getter::<FS_IOC_FSGETXATTR, Fsxattr>::new() };
    // SAFETY: as in `get_flags`.
    unsafe { ioctl(fd, getter) }
}

/// Sets what [`get_fsxattr`] gets.
///
/// # Errors
/// As [`set_flags`].
pub fn set_fsxattr(fd: BorrowedFd<'_>, value: Fsxattr) -> Result<()> {
    // SAFETY: the kernel reads one `struct fsxattr` for this code.
    let setter = unsafe { Setter::<FS_IOC_FSSETXATTR, Fsxattr>::new(value) };
    // SAFETY: as in `get_flags`.
    unsafe { ioctl(fd, setter) }
}
