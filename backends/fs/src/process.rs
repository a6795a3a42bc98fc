// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process around the device: what it inherits, and what it locks itself into.
//!
//! The order is that of [`ringside_common::sandbox`]. Sockets are bound before; the device is made
//! after, with every layer on, so that it starts with what it will go on with.

use std::os::fd::RawFd;
use std::path::PathBuf;

use log::{debug, info};
use ringside_common::sandbox::{
    Inherited, Mode, Sandbox, SandboxError, Side, forbid_core_dumps, harden, keep_capabilities,
    limit_open_files,
};
use rustix::process::{Pid, getpid};

use crate::config::Share;
use crate::options::{Options, ProcessConfig};
use crate::seccomp::allow_list;

/// `SD_LISTEN_FDS_START`, unless `LISTEN_FDS_FIRST_FD` says otherwise.
const FIRST_ACTIVATION_FD: RawFd = 3;
/// More than one is refused, and told of with its number.
const MAX_ACTIVATION_FDS: i32 = 1 << 16;

/// Finds what we have inherited and were not told to use; to be called first of all.
///
/// # Errors
/// When the kernel does not tell.
pub fn inherited(options: &Options) -> Result<Inherited, SandboxError> {
    if let Some(fd) = options.common.fd {
        return Inherited::find(&[fd]);
    }
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    // What another process was passed is nothing to us; that nobody is named is for testing tools.
    let ours = std::env::var_os("LISTEN_PID").is_none_or(|pid| pid.is_empty())
        || number("LISTEN_PID").and_then(Pid::from_raw) == Some(getpid());
    let passed = number("LISTEN_FDS").filter(|_| ours && !options.common.names_an_endpoint());
    let count = passed.unwrap_or(0).clamp(0, MAX_ACTIVATION_FDS);
    let first = number("LISTEN_FDS_FIRST_FD").unwrap_or(FIRST_ACTIVATION_FD);
    let first = first.clamp(0, MAX_ACTIVATION_FDS);
    let known: Vec<RawFd> = (first..).zip(0..count).map(|(fd, _)| fd).collect();
    Inherited::find(&known)
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
    inherited: Inherited,
) -> Result<Side, SandboxError> {
    let shares: Vec<PathBuf> = shares.iter().map(|share| share.path.clone()).collect();
    let sandbox = Sandbox {
        mode: config.sandbox,
        shares: &shares,
        read_only,
        uid_map: &config.uid_map,
        gid_map: &config.gid_map,
    };
    let side = sandbox.enter()?;
    // Without a sandbox there is but one process.
    if matches!(side, Side::Inside(_)) && config.sandbox != Mode::None {
        inherited.close();
    }
    Ok(side)
}

/// Puts on the other layers, in the process that serves; it may go on to make connections if it
/// `connects`.
///
/// # Errors
/// When the kernel refuses one.
pub fn seal(config: &ProcessConfig, connects: bool) -> Result<(), SandboxError> {
    let missing = keep_capabilities(config.capabilities)?;
    if !missing.is_empty() {
        info!("without the capabilities {missing:?}: not every user's files can be served");
    }
    harden()?;
    allow_list(connects)?.install(config.seccomp)
}
