// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a thread has of its own.
#![expect(unsafe_code, reason = "one system call, in one block")]

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::Result;

/// Gives the calling thread a current directory and a umask of its own.
///
/// # Errors
/// Of `unshare(2)`.
pub fn unshare_fs() -> Result<()> {
    // SAFETY: descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
}
