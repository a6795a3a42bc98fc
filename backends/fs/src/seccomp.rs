// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that serving files needs, beside those of every back-end.
//!
//! Calls that take a path take it beneath a descriptor, or in the working directory, which is
//! `/proc/self/fd`; nothing starts a program. `unshare(2)` gives a
//! thread its own working directory and umask. `ioctl(2)` is limited to flags and attributes of
//! files.

use ringside_common::sandbox::SandboxError;
use ringside_common::sandbox::seccomp::AllowList;

/// With any arguments.
const FILES: &[i64] = &[
    // Names and nodes.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchdir,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_utimensat,
    // Data.
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_syncfs,
    libc::SYS_truncate,
    // Extended attributes.
    libc::SYS_getxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    // Taking the identity of a guest's user.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getgroups,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_umask,
];

/// linux/fs.h; the size in the numbers of the first two is that of `long`, as passed by the guest.
const FILE_IOCTLS: &[u64] = &[
    0x8008_6601, // FS_IOC_GETFLAGS
    0x4008_6602, // FS_IOC_SETFLAGS
    0x801c_581f, // FS_IOC_FSGETXATTR
    0x401c_5820, // FS_IOC_FSSETXATTR
];

/// Adds what `ringside-fs` calls.
///
/// # Errors
/// Never in practice: the rules are well-formed.
pub fn allow(list: &mut AllowList) -> Result<(), SandboxError> {
    list.allow(FILES);
    let file_system = u64::from(libc::CLONE_FS.unsigned_abs());
    list.allow_value(libc::SYS_unshare, 0, file_system)?;
    for &command in FILE_IOCTLS {
        list.allow_value(libc::SYS_ioctl, 1, command)?;
    }
    Ok(())
}
