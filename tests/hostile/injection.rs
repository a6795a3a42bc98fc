// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls of a running process that fail or hang, by strace.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{Result, wait_until};

/// A strace that is attached; detached on drop.
#[derive(Debug)]
pub struct Injection(Child);

impl Injection {
    /// Whether there is a strace that may trace here.
    #[must_use]
    pub fn is_possible() -> bool {
        let tried = Command::new("strace")
            .args(["-qq", "-o", "/dev/null", "true"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        tried.is_ok_and(|status| status.success())
    }

    /// Does to `calls` what `what` says (strace(1), "inject"), on all threads of the process,
    /// present and future; returns when it does.
    ///
    /// # Errors
    ///
    /// When strace does not attach.
    pub fn attach(pid: u32, calls: &str, what: &str) -> Result<Self> {
        let mut child = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null"])
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{what}")])
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        wait_until("strace to attach", || {
            if let Some(status) = child.try_wait()? {
                return Err(format!("strace has ended: {status}").into());
            }
            is_traced(pid)
        })?;
        Ok(Self(child))
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Who is traced is let go of, as far as it still is there.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether all threads are.
fn is_traced(pid: u32) -> Result<bool> {
    for task in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        if tracer.is_none_or(|tracer| tracer.trim() == "0") {
            return Ok(false);
        }
    }
    Ok(true)
}
