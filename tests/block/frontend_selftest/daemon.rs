// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! qemu-storage-daemon as the other side.

use std::error::Error;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::time::Duration;

use ringside_frontend::blk::{BlkConfig, BlkDriver};
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::process::{Launch, Process, ProcessError};

/// What a test returns.
pub(crate) type TestResult = Result<(), Box<dyn Error>>;

/// Length of the daemon's disk.
pub(crate) const DISK_BYTES: u64 = 64 << 20;
/// The daemon's monitor socket in its directory.
pub(crate) const MONITOR: &str = "monitor.sock";
/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Starts the storage daemon; `None` when it is not installed.
pub(crate) fn storage_daemon() -> Result<Option<Process>, Box<dyn Error>> {
    let launch = Launch::program("qemu-storage-daemon")?;
    let disk = launch.file("disk.img", DISK_BYTES)?;
    let mut blockdev = OsString::from("driver=file,discard=unmap,node-name=f,filename=");
    blockdev.push(&disk);
    let mut export = OsString::from(
        "type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=2,addr.type=unix,addr.path=",
    );
    export.push(launch.socket());
    let chardev = format!("socket,id=m,server=on,wait=off,path={MONITOR}");
    let launch = launch
        .args(["--chardev", &chardev, "--monitor", "chardev=m"])
        .args(["--blockdev".into(), blockdev])
        .args(["--export".into(), export]);
    match launch.spawn() {
        Ok(process) => Ok(Some(process)),
        Err(ProcessError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The running daemon, or the end of the test.
macro_rules! storage_daemon_or_skip {
    () => {
        match crate::daemon::storage_daemon()? {
            Some(process) => process,
            None => ringside_tests::skip!("qemu-storage-daemon is not installed"),
        }
    };
}

pub(crate) use storage_daemon_or_skip;

/// Connects a session and a driver on its first queue.
pub(crate) fn connect(
    process: &mut Process,
    builder: SessionBuilder,
    config: BlkConfig,
) -> Result<(Session, BlkDriver), Box<dyn Error>> {
    let mut session = builder.from_stream(process.connect(PATIENCE)?)?;
    let vring = session.start_all()?.remove(0);
    Ok((session, BlkDriver::new(vring, config)?))
}
