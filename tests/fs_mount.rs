// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a back-end shares, mounted on this machine with `vhost-user-fs-mount`.
//!
//! A file system that hangs hangs everybody who touches it, beyond the reach of signals. So every
//! mount has a limit to its life: when it is over, the bridge is killed, which fails all that
//! waits, and the test with it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use rustix::process::{Pid, Signal, kill_process};

use crate::fs_back_end::FsBackEnd;
use crate::process::{Launch, Process, ProcessError, Result};

/// The program that mounts; the package has the same name.
pub const MOUNT_TOOL: &str = "vhost-user-fs-mount";

/// How long the start may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why nothing can be mounted here; `None` when everything is there.
#[must_use]
pub fn needs() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting needs root".into());
    }
    let mut options = std::fs::OpenOptions::new();
    let opened = options.read(true).write(true).open("/dev/fuse");
    opened.err().map(|error| format!("/dev/fuse: {error}"))
}

/// How a share is mounted.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions<'a> {
    /// The mount options of `vhost-user-fs-mount`.
    pub options: &'a str,
    /// Its other arguments.
    pub args: &'a [&'a str],
    /// How long the mount may live.
    pub limit: Duration,
}

impl Default for MountOptions<'_> {
    /// As a virtual machine mounts it.
    fn default() -> Self {
        Self {
            options: "allow_other,default_permissions",
            args: &[],
            limit: Duration::from_secs(300),
        }
    }
}

/// A mounted share with its two processes; all gone on drop.
#[derive(Debug)]
pub struct FsMount {
    mountpoint: PathBuf,
    bridge: Process,
    back_end: FsBackEnd,
    /// Dropped, it ends the watch.
    _watch: Sender<()>,
}

impl FsMount {
    /// Starts a back-end with `args` that shares `dir`, and mounts that.
    ///
    /// # Errors
    ///
    /// When either does not start or end up mounted in time.
    pub fn start(dir: &Path, args: &[&str], options: &MountOptions<'_>) -> Result<Self> {
        Self::of(FsBackEnd::start(dir, args)?, options)
    }

    /// Mounts what a running back-end shares.
    ///
    /// # Errors
    ///
    /// When that does not succeed in time.
    pub fn of(back_end: FsBackEnd, options: &MountOptions<'_>) -> Result<Self> {
        let launch = Launch::back_end(MOUNT_TOOL)?;
        let mountpoint = launch.path("mnt");
        std::fs::create_dir(&mountpoint).map_err(|e| ProcessError::pipe("mkdir", e))?;
        let bridge = launch
            .arg("--socket-path")
            .arg(back_end.socket())
            .args(["-o", options.options])
            .args(options.args)
            .arg(&mountpoint)
            .spawn()?;
        let mut mount = Self {
            _watch: watch(bridge.id(), options.limit)?,
            mountpoint,
            bridge,
            back_end,
        };
        let mountpoint = mount.mountpoint.clone();
        mount.bridge.poll_until("mount", PATIENCE, |_| {
            Ok(is_mounted(&mountpoint).then_some(()))
        })?;
        Ok(mount)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// A path on the mount.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// The bridge.
    pub fn bridge_mut(&mut self) -> &mut Process {
        &mut self.bridge
    }

    /// The back-end.
    pub fn back_end_mut(&mut self) -> &mut FsBackEnd {
        &mut self.back_end
    }
}

impl Drop for FsMount {
    fn drop(&mut self) {
        // The processes follow, and with the bridge everything that waits for it fails.
        let _ = umount2(&self.mountpoint, MntFlags::MNT_DETACH);
    }
}

/// Whether something is mounted there; asks the kernel's list, since a look at the place itself
/// would wait for the back-end.
#[must_use]
pub fn is_mounted(mountpoint: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let wanted = mountpoint.to_string_lossy();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(wanted.as_ref()))
}

/// Kills the process unless the returned value is dropped before.
fn watch(pid: u32, limit: Duration) -> Result<Sender<()>> {
    let (sender, receiver) = channel::<()>();
    let body = move || {
        if receiver.recv_timeout(limit) == Err(RecvTimeoutError::Timeout)
            && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        {
            crate::skip::say(&format!(
                "the mount of process {pid:?} is killed after {limit:?}"
            ));
            // Gone already is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
    };
    thread::Builder::new()
        .name("mount-watch".into())
        .spawn(body)
        .map_err(|error| ProcessError::pipe("starting a thread", error))?;
    Ok(sender)
}
