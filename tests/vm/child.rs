// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process of the tests: dies with its owner, keeps its output in a file; in a network namespace
//! of its own or without any privilege, if it should be.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::error::VmError;
use crate::process::flood;

/// How long to sleep between two looks at something that gives no event.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// The last bytes of a log that are quoted in an error: enough for a kernel's last words, whose
/// first line says most and is followed by a call trace.
const TAIL_BYTES: usize = 8000;

/// Where a process runs, and as whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// The network namespace, that of the tests when `None`.
    pub(crate) namespace: Option<PathBuf>,
    /// As user `nobody`, with no capability and no way to get one.
    pub(crate) unprivileged: bool,
}

impl Place {
    /// What stands before a program and its arguments.
    fn prefix(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            let mut option = OsString::from("--net=");
            option.push(namespace);
            words.extend(["nsenter".into(), option, "--".into()]);
        }
        words.extend(["setpriv", "--pdeathsig=KILL"].map(OsString::from));
        if self.unprivileged {
            words.extend(UNPRIVILEGED.map(OsString::from));
        }
        words.push("--".into());
        words
    }

    /// The command that runs `program` here.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let prefix = self.prefix();
        let mut words = prefix.iter();
        let mut command = Command::new(words.next().map_or(program.as_os_str(), |word| word));
        command.args(words).arg(program).stdin(Stdio::null());
        command
    }
}

/// Options of `setpriv` that leave a process nothing.
const UNPRIVILEGED: [&str; 6] = [
    "--reuid=nobody",
    "--regid=nogroup",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
    "--no-new-privs",
];

/// A running process, killed when dropped.
///
/// It also dies when the thread that spawned it ends, even by SIGKILL: it is started through
/// `setpriv --pdeathsig`.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `program`; its standard output and error go to the file `log`.
    pub(crate) fn spawn<S: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> Result<Self, VmError> {
        Self::spawn_at(&Place::default(), program, args, log)
    }

    /// Starts `program` at `place`; its standard output and error go to the file `log`.
    pub(crate) fn spawn_at<S: AsRef<OsStr>>(
        place: &Place,
        program: &Path,
        args: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> Result<Self, VmError> {
        let output = File::create(log).map_err(VmError::file(log))?;
        let errors = output.try_clone().map_err(VmError::file(log))?;
        let process = place
            .command(program)
            .args(args)
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|source| VmError::Start {
                program: program.display().to_string(),
                source,
            })?;
        let name = program.file_name().unwrap_or(program.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            process,
            log: log.to_owned(),
        })
    }

    /// Fails when the process has ended.
    pub(crate) fn still_running(&mut self) -> Result<(), VmError> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    /// The exit status, when the process has ended.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>, VmError> {
        self.process.try_wait().map_err(|source| VmError::Start {
            program: self.name.clone(),
            source,
        })
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus, VmError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let what = format!("the end of {}", self.name);
                return Err(VmError::Timeout {
                    what,
                    limit,
                    console: self.log_tail(),
                });
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until `path` exists.
    pub(crate) fn wait_for_file(&mut self, path: &Path, limit: Duration) -> Result<(), VmError> {
        self.wait_until(&format!("make {}", path.display()), limit, |_| {
            path.exists()
        })
    }

    /// Waits until the process has printed `text`.
    pub(crate) fn wait_for_text(&mut self, text: &str, limit: Duration) -> Result<(), VmError> {
        self.wait_until(&format!("say '{text}'"), limit, |child| {
            child.log().contains(text)
        })
    }

    /// Waits until the process has done `what`, as `done` finds.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), VmError> {
        let deadline = Instant::now() + limit;
        while !done(self) {
            self.still_running()?;
            if Instant::now() >= deadline {
                return Err(VmError::Timeout {
                    what: format!("{} to {what}", self.name),
                    limit,
                    console: self.log_tail(),
                });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), VmError> {
        kill_process(Pid::from_child(&self.process), signal).map_err(|errno| VmError::Start {
            program: self.name.clone(),
            source: errno.into(),
        })
    }

    /// The error for a process that ended with `status` too early.
    pub(crate) fn ended(&self, status: ExitStatus) -> VmError {
        VmError::Ended {
            name: self.name.clone(),
            status,
            log: self.log_tail(),
        }
    }

    /// What the process printed so far.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of what the process printed.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self
            .process
            .kill()
            .and_then(|()| self.process.wait().map(|_| ()))
        {
            log::warn!("cannot end {}: {error}", self.name);
        }
        if !thread::panicking() {
            assert_eq!(flood(&self.log()), None, "{} floods its log", self.name);
        }
    }
}

/// The end of a text file; empty when it cannot be read.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let start = bytes.len().saturating_sub(TAIL_BYTES);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::program::{find_program, run_command};

    #[test]
    fn unprivileged_place_leaves_no_capability() {
        if !rustix::process::geteuid().is_root() {
            crate::skip!("not root: no user to change to");
        }
        let place = Place {
            namespace: None,
            unprivileged: true,
        };
        let cat = find_program("cat").unwrap();
        let output = run_command("cat", place.command(&cat).arg("/proc/self/status")).unwrap();
        let output = String::from_utf8_lossy(&output);
        let field = |name| output.lines().find_map(|line| line.strip_prefix(name));
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set), Some("\t0000000000000000"), "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), Some("\t1"));
        let users = field("Uid:").unwrap_or_default().trim();
        assert!(!users.split('\t').any(|user| user == "0"), "{users}");
    }
}
