// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tracing a process, by strace and by the kernel's tracepoints.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use ringside_tests::process::PRIVATE_TRACEFS;
use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

/// A running strace.
pub(crate) struct Strace {
    child: Child,
    output: tempfile::TempDir,
}

impl Strace {
    /// Whether there is one, and if not, why.
    pub(crate) fn available() -> Result<(), String> {
        let tried = Command::new("strace")
            .args(["-qq", "-o", "/dev/null", "true"])
            .output();
        match tried {
            Err(error) => Err(format!("strace: {error}")),
            Ok(output) if !output.status.success() => Err("strace may not trace here".to_owned()),
            Ok(_) => Ok(()),
        }
    }

    /// Traces all threads of a process, present and future; returns when it does.
    pub(crate) fn attach(pid: u32) -> Result<Self, Box<dyn Error>> {
        let output = tempfile::tempdir()?;
        let child = Command::new("strace")
            .args(["-f", "-ttt", "-T", "-qq", "-s", "0"])
            .args(["-e", "trace=fsync,fdatasync,pwrite64,pwritev,pwritev2"])
            .args(["-p", &pid.to_string(), "-o"])
            .arg(output.path().join("trace"))
            .stderr(Stdio::null())
            .spawn()?;
        let mut strace = Self { child, output };
        let deadline = Instant::now() + PATIENCE;
        while !is_traced(pid)? {
            if strace.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err("strace did not attach".into());
            }
            std::thread::yield_now();
        }
        Ok(strace)
    }

    /// Lets go of the process and returns what was seen.
    pub(crate) fn finish(mut self) -> Result<String, Box<dyn Error>> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        self.child.wait()?;
        Ok(fs::read_to_string(self.output.path().join("trace"))?)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // Gone already unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tasks(pid: u32) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let entries = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))?;
    Ok(entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?)
}

fn is_traced(pid: u32) -> Result<bool, Box<dyn Error>> {
    for task in tasks(pid)? {
        if fs::read_to_string(task.join("status"))?.contains("TracerPid:\t0\n") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// An instance of the kernel's trace buffer, reached through a shell in a mount namespace of its
/// own, where tracefs is mounted.
pub(crate) struct Tracepoints {
    shell: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// Sets the instance up, says `ready`, and on the next line of input prints the trace.
const SCRIPT: &str = r#"
cd /sys/kernel/tracing/instances && mkdir "ringside-$$" && cd "ringside-$$" || exit 1
trap 'cd ..; rmdir "ringside-$$"' EXIT
enable() {
    echo "$2" > "events/$1/filter" && echo 1 > "events/$1/enable" || exit 1
}
echo mono > trace_clock || exit 1
enable io_uring/io_uring_submit_req "$0"
enable io_uring/io_uring_complete "$0"
enable ext4/ext4_sync_file_enter "$1"
enable ext4/ext4_sync_file_exit "$1"
echo ready
read -r line
echo 0 > tracing_on
cat trace
"#;

impl Tracepoints {
    /// Traces the `io_uring` of these threads, and the syncs of a file by whomever: those are made
    /// by helpers of the kernel, which come when they are needed. Returns when it does.
    pub(crate) fn attach(threads: &[u32], file: &Path) -> Result<Self, Box<dyn Error>> {
        let threads: Vec<String> = threads
            .iter()
            .map(|thread| format!("common_pid == {thread}"))
            .collect();
        let inode = fs::metadata(file)?.ino();
        let mut shell = Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg(format!("{PRIVATE_TRACEFS} || exit 1\n{SCRIPT}"))
            .arg(threads.join(" || "))
            .arg(format!("ino == {inode}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = shell.stdin.take();
        let mut stdout = BufReader::new(shell.stdout.take().ok_or("no output")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        if line != "ready\n" {
            return Err("the tracepoints could not be set up".into());
        }
        Ok(Self {
            shell,
            stdin,
            stdout,
        })
    }

    /// Ends the trace and returns what was seen.
    pub(crate) fn finish(mut self) -> Result<String, Box<dyn Error>> {
        let mut stdin = self.stdin.take().ok_or("no input")?;
        stdin.write_all(b"\n")?;
        drop(stdin);
        let mut text = String::new();
        self.stdout.read_to_string(&mut text)?;
        self.shell.wait()?;
        Ok(text)
    }
}

impl Drop for Tracepoints {
    fn drop(&mut self) {
        // Its input ended, the shell removes the instance and ends by itself.
        drop(self.stdin.take());
        let _ = self.stdout.read_to_string(&mut String::new());
        let _ = self.shell.wait();
    }
}
