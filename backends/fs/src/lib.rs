// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user file system device of Ringside.

pub mod config;
pub mod idmap;
pub mod seccomp;
pub mod wire;
pub mod xattrmap;
