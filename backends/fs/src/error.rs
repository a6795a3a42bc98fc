// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes wrong is told as the guest is told it: by `errno`.

pub use rustix::io::Errno;

/// The result of whatever the guest asked for, or the `errno` that answers it.
pub type Result<T> = std::result::Result<T, Errno>;
