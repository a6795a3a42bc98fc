// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that does nothing for a while.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{ProcessError, Result};

/// How long it may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process that is stopped; it goes on when dropped.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stops a process, with all its threads.
    ///
    /// # Errors
    ///
    /// When it does not stop in time, or is not ours to stop.
    pub fn new(pid: u32) -> Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let process = number.ok_or(ProcessError::Proc {
            pid,
            file: "",
            field: "process",
        })?;
        let stopped = Self(process);
        kill_process(process, Signal::STOP).map_err(ProcessError::io("stop"))?;
        let deadline = Instant::now() + PATIENCE;
        // Its threads stop one after the other.
        while !stopped
            .is_still()
            .map_err(ProcessError::io("its threads"))?
        {
            if Instant::now() > deadline {
                return Err(ProcessError::Timeout {
                    event: "stop",
                    timeout: PATIENCE,
                    stderr: String::new(),
                });
            }
            std::thread::sleep(super::POLL_INTERVAL);
        }
        Ok(stopped)
    }

    fn is_still(&self) -> std::io::Result<bool> {
        for task in fs::read_dir(format!("/proc/{}/task", self.0.as_raw_nonzero()))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            if !status.contains("State:\tT") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // If it has gone, nothing waits for it.
        let _ = kill_process(self.0, Signal::CONT);
    }
}
