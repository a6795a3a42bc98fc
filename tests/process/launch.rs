// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Describing and starting a child process.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Process, ProcessError, Result, back_end_binary};

/// What a back-end logs is for this variable to say.
const LEVELS: &str = "RUST_LOG";

/// Whether this is a suite of hostile cases: all that a back-end can log is then looked at, as no
/// line of any level may be one that a guest floods the log with.
fn is_hostile() -> bool {
    let program = std::env::current_exe().unwrap_or_default();
    let name = program.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b"hostile_")
}

/// A process about to be started, with its temporary directory.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    dir: tempfile::TempDir,
}

impl Launch {
    /// A program by path, or by name from `PATH`.
    ///
    /// # Errors
    ///
    /// When no temporary directory can be made.
    pub fn program(program: impl AsRef<OsStr>) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("ringside-")
            .tempdir()
            .map_err(ProcessError::io("creating a temporary directory"))?;
        let mut command = Command::new(program);
        // A group of its own, so that helpers the process forks are killed with it.
        command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .process_group(0);
        if is_hostile() && std::env::var_os(LEVELS).is_none() {
            command.env(LEVELS, "trace");
        }
        Ok(Self { command, dir })
    }

    /// A back-end of this workspace, built in the profile of the running test.
    ///
    /// # Errors
    ///
    /// When it does not build or no temporary directory can be made.
    pub fn back_end(package: &'static str) -> Result<Self> {
        Self::program(back_end_binary(package)?)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// The command, for what has no method here.
    pub fn command_mut(&mut self) -> &mut Command {
        &mut self.command
    }

    /// A path in the temporary directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the back-end is told to listen.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("vhost.sock")
    }

    /// Creates a file of zeros in the temporary directory.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub fn file(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.path(name);
        File::create(&path)
            .and_then(|file| file.set_len(bytes))
            .map_err(ProcessError::io("creating a file"))?;
        Ok(path)
    }

    /// Starts the process.
    ///
    /// # Errors
    ///
    /// When it cannot be started; a missing program is `NotFound`.
    pub fn spawn(mut self) -> Result<Process> {
        let (socket, log) = (self.socket(), self.path("stderr.log"));
        let file = File::create(&log).map_err(ProcessError::io("creating the log"))?;
        let copy = file
            .try_clone()
            .map_err(ProcessError::io("dup of the log"))?;
        let child = self
            .command
            .stdout(copy)
            .stderr(file)
            .spawn()
            .map_err(ProcessError::io("starting the process"))?;
        Ok(Process {
            child,
            dir: self.dir,
            socket,
            log,
        })
    }
}
