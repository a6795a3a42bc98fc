// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one call that has no safe wrapper.

#![expect(unsafe_code, reason = "an ioctl of /dev/fuse")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

mod request {
    // `FUSE_DEV_IOC_CLONE`
    nix::ioctl_read!(clone_fuse, 229, 0, u32);
}

/// Opens `/dev/fuse`.
pub(crate) fn open_fuse() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// Another descriptor of a mounted connection, with a queue of requests being served of its own.
pub(crate) fn clone_fuse(connection: BorrowedFd<'_>) -> io::Result<File> {
    let clone = open_fuse()?;
    let mut number = u32::try_from(connection.as_raw_fd()).unwrap_or(u32::MAX);
    // SAFETY: the kernel reads the number of a descriptor from an integer of ours.
    let cloned = unsafe { request::clone_fuse(clone.as_fd().as_raw_fd(), &raw mut number) };
    cloned?;
    Ok(clone)
}
