// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back-end as a child process: built if need be, started in a directory of its own, awaited,
//! signalled, sampled through `/proc`, and never left behind.

mod build;
mod flood;
mod launch;
mod perf;
mod sample;
mod stopped;

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

pub use build::{back_end_binary, example_binary, old_back_end_binary};
pub use flood::flood;
pub use launch::Launch;
pub use perf::{PRIVATE_TRACEFS, SyscallCounter, tracing_available};
pub use sample::{Sample, ThreadActivity, sample, thread_activity, thread_ids};
pub use stopped::Stopped;

/// Between two looks at something that has no event to wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// What can go wrong with a child process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// A system call failed.
    #[error("{action} failed")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// `cargo build` of the back-end failed.
    #[error("building {package} failed: {status}")]
    Build {
        /// The package.
        package: &'static str,
        /// How cargo ended.
        status: ExitStatus,
    },
    /// The test binary does not lie in a target directory.
    #[error("no cargo target directory around {}", exe.display())]
    NoTargetDirectory {
        /// The running test binary.
        exe: PathBuf,
    },
    /// The awaited event did not come in time.
    #[error("no {event} within {timeout:?}; the process wrote:\n{stderr}")]
    Timeout {
        /// What was awaited.
        event: &'static str,
        /// For how long.
        timeout: Duration,
        /// The process's standard error so far.
        stderr: String,
    },
    /// The process ended while something was awaited from it.
    #[error("process ended ({status}) before {event}; it wrote:\n{stderr}")]
    Ended {
        /// What was awaited.
        event: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its standard error.
        stderr: String,
    },
    /// A file of `/proc` does not look as expected.
    #[error("no {field} in /proc/{pid}/{file}")]
    Proc {
        /// The process.
        pid: u32,
        /// The file below it.
        file: &'static str,
        /// What is missing.
        field: &'static str,
    },
}

/// Result of a process operation.
pub type Result<T> = std::result::Result<T, ProcessError>;

impl ProcessError {
    /// A pipe to the process failed.
    pub(crate) fn pipe(action: &'static str, source: io::Error) -> Self {
        Self::Io { action, source }
    }

    fn io<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            source: source.into(),
        }
    }
}

/// A running child process; killed and reaped on drop, which fails when it has flooded its log.
#[derive(Debug)]
pub struct Process {
    child: Child,
    dir: tempfile::TempDir,
    socket: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Waits until the process listens on its socket, without connecting: a connection would be a
    /// session of its own.
    ///
    /// # Errors
    ///
    /// When it does not listen in time, or ends.
    pub fn wait_listening(&mut self, timeout: Duration) -> Result<()> {
        self.poll_until("listening socket", timeout, |process| {
            Ok(process.is_listening().then_some(()))
        })
    }

    /// Connects to the socket as soon as the process accepts.
    ///
    /// # Errors
    ///
    /// When it does not accept in time, or ends.
    pub fn connect(&mut self, timeout: Duration) -> Result<UnixStream> {
        self.poll_until("connection", timeout, |process| {
            Ok(UnixStream::connect(&process.socket).ok())
        })
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.pid(), signal).map_err(ProcessError::io("kill"))
    }

    /// `SIGTERM`, and how the process ends on it.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_exit(timeout)
    }

    /// `SIGKILL`, and waits for the end.
    ///
    /// # Errors
    ///
    /// When the process cannot be reaped.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().map_err(ProcessError::io("kill"))?;
        self.child.wait().map_err(ProcessError::io("wait"))
    }

    /// Waits until the process ends by itself.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_exit()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(self.timeout("exit", timeout));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    ///
    /// When the process cannot be reaped.
    pub fn try_exit(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(ProcessError::io("wait"))
    }

    /// Waits until `probe` returns something, while the process lives.
    ///
    /// # Errors
    ///
    /// When it does not in time, the process ends, or `probe` fails.
    pub fn poll_until<T>(
        &mut self,
        event: &'static str,
        timeout: Duration,
        mut probe: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(found) = probe(self)? {
                return Ok(found);
            }
            if let Some(status) = self.try_exit()? {
                let stderr = self.stderr();
                return Err(ProcessError::Ended {
                    event,
                    status,
                    stderr,
                });
            }
            if Instant::now() > deadline {
                return Err(self.timeout(event, timeout));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Checks that one line of the log, at the level INFO, says what is served: `expected`.
    ///
    /// # Errors
    ///
    /// When the process says nothing of what it serves in time, or ends.
    ///
    /// # Panics
    ///
    /// When it says something else.
    pub fn expect_served(&mut self, expected: &str, timeout: Duration) -> Result<()> {
        let log = self.poll_until("what is served", timeout, |process| {
            let log = process.stderr();
            Ok(log.contains("serving ").then_some(log))
        })?;
        let told: Vec<_> = log
            .lines()
            .filter(|line| line.contains("serving"))
            .collect();
        assert!(
            matches!(told[..], [line] if line.contains("INFO") && line.ends_with(expected)),
            "{expected}, not {told:?}"
        );
        Ok(())
    }

    /// What the process wrote to standard error and output so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Figures of the process from `/proc`.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn sample(&self) -> Result<Sample> {
        sample(self.child.id())
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where the back-end was told to listen.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A path in the temporary directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Looks into the process's own network namespace, which a sandbox may have made.
    fn is_listening(&self) -> bool {
        /// `__SO_ACCEPTCON` in the flags column.
        const LISTENING: &str = "00010000";
        let (pid, socket) = (self.child.id().to_string(), self.socket.to_string_lossy());
        ["self", &pid].iter().any(|process| {
            let sockets = fs::read(format!("/proc/{process}/net/unix")).unwrap_or_default();
            String::from_utf8_lossy(&sockets).lines().any(|line| {
                let mut columns = line.split_whitespace();
                columns.nth(3) == Some(LISTENING) && columns.nth(3) == Some(socket.as_ref())
            })
        })
    }

    fn timeout(&self, event: &'static str, timeout: Duration) -> ProcessError {
        ProcessError::Timeout {
            event,
            timeout,
            stderr: self.stderr(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group, for helpers; it is gone with its last member, so errors mean nothing.
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
        let stderr = self.stderr();
        if std::thread::panicking() {
            // Losing the log of a failing test is no reason to fail differently.
            let _ = writeln!(io::stderr(), "--- log of the child process\n{stderr}---");
        } else {
            assert_eq!(flood(&stderr), None, "the log is flooded");
        }
    }
}

/// Accepts one of those who connect, within `patience`.
///
/// # Errors
///
/// When nobody does.
pub fn accept(listener: &UnixListener, patience: Duration) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + patience;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}
