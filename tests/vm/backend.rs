// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block back-end under test: ours, or QEMU's, which proves the runner with something we did
//! not write.

use std::fs::{File, OpenOptions};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use super::child::Child;
use super::error::VmError;
use super::program::find_program;
use super::qmp::Qmp;
use crate::process::back_end_binary;

/// How long a program of the tests may take to be ready.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);

/// Queues of the daemon when nothing else is asked: its own default of 1 refuses a front-end that
/// wants one per processor.
const DAEMON_QUEUES: u16 = 16;

/// Which program serves the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BackEnd {
    /// `ringside-blk` of this workspace.
    Ringside,
    /// `qemu-storage-daemon`.
    QemuStorageDaemon,
}

impl BackEnd {
    /// The back-end to test: `RINGSIDE_VM_BACKEND` may say `qemu-storage-daemon`.
    #[must_use]
    pub fn under_test() -> Self {
        match std::env::var("RINGSIDE_VM_BACKEND").as_deref() {
            Ok("qemu-storage-daemon") => Self::QemuStorageDaemon,
            _ => Self::Ringside,
        }
    }

    /// The program to start. Ours is built first, so that no stale one is tested.
    ///
    /// # Errors
    /// When it cannot be built, or is not there.
    pub fn program(self) -> Result<PathBuf, VmError> {
        match self {
            Self::Ringside => back_end_binary("ringside-blk").map_err(VmError::Build),
            Self::QemuStorageDaemon => find_program("qemu-storage-daemon"),
        }
    }
}

/// How a disk is served.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Size of a new image.
    pub size_mib: u64,
    /// Lets ours make the image itself (`--size`) instead of finding one; whole GiB only.
    pub create: bool,
    /// Queues offered; `None` leaves ours at its default.
    pub num_queues: Option<u16>,
    /// What the driver reads as the serial number; only ours can be told.
    pub serial: String,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            size_mib: 256,
            create: false,
            num_queues: None,
            serial: "ringside-test".into(),
        }
    }
}

/// A running back-end with one disk; both vanish when dropped.
#[derive(Debug)]
pub struct Disk {
    kind: BackEnd,
    child: Child,
    monitor: Option<Qmp>,
    serial: String,
    dir: TempDir,
}

impl Disk {
    /// Makes an empty image and serves it.
    ///
    /// # Errors
    /// When the image cannot be made or the back-end does not start.
    pub fn start(kind: BackEnd, options: &DiskOptions) -> Result<Self, VmError> {
        let dir = tempfile::tempdir().map_err(VmError::file(std::env::temp_dir()))?;
        let image = dir.path().join("disk.img");
        if kind == BackEnd::QemuStorageDaemon || !options.create {
            let file = File::create(&image).map_err(VmError::file(&image))?;
            file.set_len(options.size_mib << 20)
                .map_err(VmError::file(&image))?;
        }
        let program = kind.program()?;
        match kind {
            BackEnd::Ringside => Self::start_ringside(dir, &program, options),
            BackEnd::QemuStorageDaemon => Self::start_daemon(dir, &program, options),
        }
    }

    fn start_ringside(
        dir: TempDir,
        program: &Path,
        options: &DiskOptions,
    ) -> Result<Self, VmError> {
        let socket = dir.path().join("socket");
        let mut args = vec![
            format!("--socket-path={}", socket.display()),
            format!("--blk-file={}", dir.path().join("disk.img").display()),
            format!("--serial={}", options.serial),
        ];
        args.extend(
            options
                .num_queues
                .map(|queues| format!("--num-queues={queues}")),
        );
        if options.create {
            args.push(format!("--size={}G", options.size_mib >> 10));
        }
        let mut child = Child::spawn(program, args, &dir.path().join("log"))?;
        child.wait_for_file(&socket, START_LIMIT)?;
        let (kind, serial) = (BackEnd::Ringside, options.serial.clone());
        Ok(Self {
            kind,
            child,
            monitor: None,
            serial,
            dir,
        })
    }

    fn start_daemon(dir: TempDir, program: &Path, options: &DiskOptions) -> Result<Self, VmError> {
        let path = |name: &str| dir.path().join(name);
        let (socket, monitor) = (path("socket"), path("monitor"));
        let listener = UnixListener::bind(&monitor).map_err(VmError::file(&monitor))?;
        let queues = options.num_queues.unwrap_or(DAEMON_QUEUES);
        let args = daemon_arguments(&path("disk.img"), &socket, &monitor, queues);
        let mut child = Child::spawn(program, args, &path("log"))?;
        child.wait_for_file(&socket, START_LIMIT)?;
        let (stream, _) = listener
            .accept()
            .map_err(VmError::channel("daemon's monitor"))?;
        let monitor = Some(Qmp::negotiate(stream)?);
        let (kind, serial) = (BackEnd::QemuStorageDaemon, "vhost_user_blk".into());
        Ok(Self {
            kind,
            child,
            monitor,
            serial,
            dir,
        })
    }

    /// Where the back-end listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// The serial number the driver must see.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Changes the size of the image and tells the back-end.
    ///
    /// # Errors
    /// When the image cannot be resized or the back-end does not take it.
    pub fn resize(&mut self, mib: u64) -> Result<(), VmError> {
        let bytes = mib << 20;
        if let Some(monitor) = &mut self.monitor {
            monitor.execute("block_resize", json!({ "node-name": "f", "size": bytes }))?;
            return Ok(());
        }
        let image = self.image();
        let file = OpenOptions::new()
            .write(true)
            .open(&image)
            .map_err(VmError::file(&image))?;
        file.set_len(bytes).map_err(VmError::file(&image))?;
        self.child.signal(Signal::HUP)
    }

    /// Fails when the back-end has ended.
    ///
    /// # Errors
    /// With its exit status and the end of its log.
    pub fn still_serving(&mut self) -> Result<(), VmError> {
        self.child.still_running()
    }

    /// Which program serves the disk.
    #[must_use]
    pub fn kind(&self) -> BackEnd {
        self.kind
    }
}

fn daemon_arguments(image: &Path, socket: &Path, monitor: &Path, queues: u16) -> [String; 8] {
    let (image, socket, monitor) = (image.display(), socket.display(), monitor.display());
    [
        "--chardev".into(),
        format!("socket,id=monitor,path={monitor}"),
        "--monitor".into(),
        "chardev=monitor".into(),
        "--blockdev".into(),
        format!("driver=file,filename={image},node-name=f,discard=unmap"),
        "--export".into(),
        format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={socket},writable=on,\
             num-queues={queues}"
        ),
    ]
}
