// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocking access to one file of a disk.

use rustix::io::{Errno, ReadWriteFlags};

use super::alignment::Alignment;

/// Blocking access to one file of a disk. Tests have layers of their own.
pub trait Layer: Send + Sync {
    /// What every call but `discard` must keep to.
    fn alignment(&self) -> Alignment;
    /// `pread`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize, Errno>;
    /// `pwritev2`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn write_at(&self, bytes: &[u8], offset: u64, flags: ReadWriteFlags) -> Result<usize, Errno>;
    /// What the ranges of `zero_range` and `discard` must be whole multiples of.
    fn clear_granule_bytes(&self) -> u32;
    /// Zeroes a range without writing it; deallocates it on `unmap` if that is possible.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn zero_range(&self, offset: u64, len_bytes: u64, unmap: bool) -> Result<(), Errno>;
    /// Deallocates a range as far as possible.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn discard(&self, offset: u64, len_bytes: u64) -> Result<(), Errno>;
}

/// Whether an errno of fallocate(2), or of an ioctl in its place, says that the file has no such
/// call, at least not for this range. File systems do not agree on one: FUSE and GPFS say EINVAL,
/// filters of system calls ENOSYS or EPERM. If the cause is another one, writing fails likewise.
#[must_use]
pub const fn is_not_supported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::NODEV | Errno::NOTTY | Errno::PERM
    )
}
