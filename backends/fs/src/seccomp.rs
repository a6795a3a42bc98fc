// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that serving files needs, beside those of every back-end.
//!
//! Calls that take a path take it beneath a descriptor, or in the working directory, which is
//! `/proc/self/fd`; there is no `socket(2)`, and nothing starts a program. `unshare(2)` gives a thread its own working directory and umask.
//! `ioctl(2)` is limited to flags and attributes of files.

use ringside_common::sandbox::SandboxError;
use ringside_common::sandbox::seccomp::AllowList;

/// With any arguments.
const FILES: &[i64] = &[
    // Names and nodes.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
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
    #[cfg(not(target_arch = "riscv64"))]
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_symlinkat,
    libc::SYS_utimensat,
    // Data.
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_splice,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_truncate,
    // Extended attributes.
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    // getxattrat(2) and its kin (Linux 6.13), which have the same numbers everywhere.
    SYS_SETXATTRAT,
    SYS_GETXATTRAT,
    SYS_LISTXATTRAT,
    SYS_REMOVEXATTRAT,
    // Taking the identity of a guest's user.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getgroups,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_umask,
];

const SYS_SETXATTRAT: i64 = 463;
const SYS_GETXATTRAT: i64 = 464;
const SYS_LISTXATTRAT: i64 = 465;
const SYS_REMOVEXATTRAT: i64 = 466;

/// linux/fs.h; the size in the numbers of the first four is that of `long`, as passed by the guest.
const FILE_IOCTLS: &[u64] = &[
    0x8008_6601, // FS_IOC_GETFLAGS
    0x4008_6602, // FS_IOC_SETFLAGS
    0x8008_7601, // FS_IOC_GETVERSION
    0x801c_581f, // FS_IOC_FSGETXATTR
    0x401c_5820, // FS_IOC_FSSETXATTR
];

/// Everything `ringside-fs` may call.
///
/// # Errors
/// Never in practice: the rules are well-formed.
pub fn allow_list() -> Result<AllowList, SandboxError> {
    let mut list = AllowList::common()?;
    list.allow(FILES);
    let file_system = u64::from(libc::CLONE_FS.unsigned_abs());
    list.allow_value(libc::SYS_unshare, 0, file_system)?;
    for &command in FILE_IOCTLS {
        list.allow_value(libc::SYS_ioctl, 1, command)?;
    }
    Ok(list)
}
