// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process around the device: what it inherits, and what it locks itself into.
//!
//! The order is that of [`ringside_common::sandbox`]. Sockets are bound before; the device is made
//! after, with every layer on, so that it starts with what it will go on with.

use std::path::PathBuf;

use log::{debug, info};
use ringside_common::sandbox::{
    Sandbox, SandboxError, Side, close_inherited, forbid_core_dumps, harden, keep_capabilities,
    limit_open_files,
};

use crate::config::Share;
use crate::options::{Options, ProcessConfig};
use crate::seccomp::allow_list;

/// `SD_LISTEN_FDS_START`.
const FIRST_ACTIVATION_FD: u32 = 3;

/// Closes what we have inherited and were not told to use; to be called first of all.
///
/// # Errors
/// When the kernel does not.
pub fn close_foreign(options: &Options) -> Result<(), SandboxError> {
    let named = options.common.fd.and_then(|fd| u32::try_from(fd).ok());
    let passed = std::env::var("LISTEN_FDS")
        .ok()
        .and_then(|count| count.parse::<u32>().ok())
        .map_or(0, |count| count.min(u32::from(u16::MAX)));
    let mut keep: Vec<u32> = (FIRST_ACTIVATION_FD..FIRST_ACTIVATION_FD + passed).collect();
    keep.extend(named);
    close_inherited(&keep)
}

/// Sets the limits; returns how many files this process may have open.
///
/// # Errors
/// When more was asked for than can be had.
pub fn limit(config: &ProcessConfig) -> Result<usize, SandboxError> {
    let files = limit_open_files(config.max_open_files)?;
    debug!("at most {files} open files");
    forbid_core_dumps()?;
    Ok(usize::try_from(files).unwrap_or(usize::MAX))
}

/// Enters the sandbox; returns in two processes, see [`Side`].
///
/// # Errors
/// When what was asked for cannot be had.
pub fn enter(
    config: &ProcessConfig,
    shares: &[Share],
    read_only: bool,
) -> Result<Side, SandboxError> {
    let shares: Vec<PathBuf> = shares.iter().map(|share| share.path.clone()).collect();
    let sandbox = Sandbox {
        mode: config.sandbox,
        shares: &shares,
        read_only,
        uid_map: &config.uid_map,
        gid_map: &config.gid_map,
    };
    sandbox.enter()
}

/// Puts on the other layers, in the process that serves.
///
/// # Errors
/// When the kernel refuses one.
pub fn seal(config: &ProcessConfig) -> Result<(), SandboxError> {
    let missing = keep_capabilities(config.capabilities)?;
    if !missing.is_empty() {
        info!("without the capabilities {missing:?}: not every user's files can be served");
    }
    harden()?;
    allow_list()?.install(config.seccomp)
}
