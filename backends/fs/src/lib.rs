// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user file system device of Ringside.

pub mod attr;
pub mod config;
pub mod credentials;
pub mod error;
pub mod idmap;
pub mod ioctl;
pub mod locks;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod wire;
pub mod xattrmap;
