// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls that rustix has no safe wrapper for, and the flags that all calls on the share use.
//!
//! A node is held by an `O_PATH` descriptor, which many calls refuse. [`by_number`] names such a
//! descriptor by its number, relative to `/proc/self/fd`; [`handle`] names a node that no
//! descriptor holds.

pub mod by_number;
pub mod file;
pub mod handle;
pub mod inode_flags;
pub mod lock;
mod thread;

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};

use crate::error::Result;

pub use thread::unshare_fs;

/// How names of the guest are resolved: nowhere but below, and through no link.
pub const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS);

/// How a node is held: `O_PATH`, a symbolic link as itself.
pub const HOLD: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The flags of every open for data: it waits for no other process. Where one has a lease on the
/// file (`fcntl(2)`), the open fails with EAGAIN, and a thread that may wait tries it again without
/// `O_NONBLOCK`.
pub const OPEN: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// `STATX_MNT_ID_UNIQUE`, Linux 6.8.
const STATX_MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// What is asked of a node. Kernels that know no unique mount numbers give the ones that are used
/// again.
pub const STATX_NODE: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID)
    .union(STATX_MNT_ID_UNIQUE);

/// Opens what `name` is in `directory`. `flags` is [`HOLD`] or contains [`OPEN`].
///
/// # Errors
/// Of `openat2(2)`.
pub fn open_beneath(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd> {
    rustix::fs::openat2(directory, name, flags, mode, RESOLVE)
}

/// As [`open_beneath`], but not on another mount.
///
/// # Errors
/// As [`open_beneath`]; EXDEV where another mount is, of which nothing was asked.
pub fn open_within(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd> {
    let resolve = RESOLVE | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, name, flags, mode, resolve)
}

/// Attributes of the node that a descriptor of any kind holds, with the number of its mount.
///
/// # Errors
/// Of `statx(2)`.
#[inline]
pub fn statx_of(node: BorrowedFd<'_>) -> Result<Statx> {
    statx_at(node, c"")
}

/// Attributes of what `name` is in `directory`; a symbolic link is not followed, an automount not
/// mounted.
///
/// # Errors
/// Of `statx(2)`.
#[inline]
pub fn statx_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<Statx> {
    statx_asking(directory, name, true)
}

/// The same. Unless it `asks`, no server of a file system is asked: this machine says what it
/// knows.
///
/// # Errors
/// Of `statx(2)`.
#[inline]
pub fn statx_asking(directory: BorrowedFd<'_>, name: &CStr, asks: bool) -> Result<Statx> {
    let mut flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    flags.set(AtFlags::STATX_DONT_SYNC, !asks);
    rustix::fs::statx(directory, name, flags, STATX_NODE)
}

#[cfg(test)]
mod tests;
