// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counting system calls of one thread, without slowing it down as a tracer would.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::{POLL_INTERVAL, ProcessError, Result};

/// The kernel's tracing file system, mounted where nobody else sees it, if it is not there already.
pub const PRIVATE_TRACEFS: &str =
    "{ mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; }";

/// Whether this machine lets a test trace the kernel, and if not, why.
///
/// # Errors
///
/// A text for a skip.
pub fn tracing_available() -> std::result::Result<(), String> {
    let script = format!("{PRIVATE_TRACEFS} && ls /sys/kernel/tracing/events/raw_syscalls");
    let tried = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output();
    match tried {
        Err(error) => Err(format!("unshare: {error}")),
        Ok(output) if !output.status.success() => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("no tracefs here: {}", text.trim()))
        }
        Ok(_) => match Command::new("perf").arg("version").output() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("perf: {error}")),
        },
    }
}

/// `perf stat` of the system calls of one thread.
#[derive(Debug)]
pub struct SyscallCounter {
    perf: Child,
    output: tempfile::NamedTempFile,
}

impl SyscallCounter {
    /// Starts to count; returns when it does.
    ///
    /// # Errors
    ///
    /// When perf does not start.
    pub fn attach(thread: u32) -> Result<Self> {
        let output = tempfile::NamedTempFile::new().map_err(ProcessError::io("a file"))?;
        let script = format!(
            "{PRIVATE_TRACEFS} && exec perf stat -x, -e raw_syscalls:sys_enter -t {thread} -o \"$0\""
        );
        let mut perf = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .arg(output.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(ProcessError::io("starting perf"))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !counts(perf.id()) {
            if Instant::now() > deadline {
                let _ = perf.kill();
                let _ = perf.wait();
                return Err(ProcessError::Timeout {
                    event: "perf event",
                    timeout: Duration::from_secs(20),
                    stderr: String::new(),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(Self { perf, output })
    }

    /// Ends the count and returns it.
    ///
    /// # Errors
    ///
    /// When perf has not counted.
    pub fn finish(mut self) -> Result<u64> {
        rustix::process::kill_process(Pid::from_child(&self.perf), Signal::INT)
            .map_err(ProcessError::io("kill"))?;
        self.perf.wait().map_err(ProcessError::io("wait"))?;
        let text = fs::read_to_string(self.output.path()).map_err(ProcessError::io("a file"))?;
        text.lines()
            .find(|line| line.contains("sys_enter"))
            .and_then(|line| line.split(',').next()?.parse().ok())
            .ok_or_else(|| ProcessError::Proc {
                pid: self.perf.id(),
                file: "perf stat",
                field: "count",
            })
    }
}

/// Whether perf has opened its event and let it run.
fn counts(pid: u32) -> bool {
    let fds = Path::new("/proc").join(pid.to_string()).join("fd");
    fs::read_dir(fds).is_ok_and(|entries| {
        entries
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .any(|target| target.to_string_lossy().contains("perf_event"))
    })
}
