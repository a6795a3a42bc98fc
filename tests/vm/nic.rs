// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network back-end under test, `ringside-net`, as a process that can be killed and come back.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;

use super::backend::START_LIMIT;
use super::child::{Child, Place};
use super::error::VmError;
use super::network::Network;
use super::program::give_to_nobody;
use crate::process::back_end_binary;

const PROGRAM: &str = "ringside-net";

/// How network devices are served.
#[derive(Clone, Debug)]
pub struct NicOptions {
    /// What frames come from and go to: the value of `--backend`.
    pub backend: String,
    /// How many front-ends are served, each at a socket of its own.
    pub ports: usize,
    /// Connects to a front-end that listens ([`Device::listen`](super::Device::listen)), instead
    /// of listening itself. Only for one port.
    pub connect: bool,
    /// In the namespace of the tests, not in that of the network: `backend` says where its tap is.
    pub outside: bool,
    /// As user `nobody`, with no capability.
    pub unprivileged: bool,
    /// Any other arguments.
    pub args: Vec<String>,
}

impl NicOptions {
    /// One front-end on `backend`, served by a process with the privileges of the test.
    #[must_use]
    pub fn new(backend: &str) -> Self {
        Self {
            backend: backend.to_owned(),
            ports: 1,
            connect: false,
            outside: false,
            unprivileged: false,
            args: Vec::new(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().copied().map(str::to_owned));
        self
    }
}

/// A running back-end; it vanishes when dropped.
#[derive(Debug)]
pub struct Nic {
    place: Place,
    program: PathBuf,
    options: NicOptions,
    child: Option<Child>,
    starts: u32,
    dir: TempDir,
}

impl Nic {
    /// Starts the back-end, in `network` unless it is to be outside. It listens when this returns; one that connects goes on
    /// trying until its front-end listens.
    ///
    /// # Errors
    /// When the back-end cannot be built or does not start.
    pub fn start(network: &Network, options: NicOptions) -> Result<Self, VmError> {
        let dir = tempfile::tempdir().map_err(VmError::file(std::env::temp_dir()))?;
        let mut program = back_end_binary(PROGRAM).map_err(VmError::Build)?;
        if options.unprivileged {
            program = hand_over(dir.path(), &program)?;
        }
        let place = Place {
            namespace: (!options.outside).then(|| network.path()),
            unprivileged: options.unprivileged,
        };
        let mut nic = Self {
            place,
            program,
            options,
            child: None,
            starts: 0,
            dir,
        };
        nic.restart()?;
        Ok(nic)
    }

    /// The socket of a port, counted from 0.
    #[must_use]
    pub fn socket(&self, port: usize) -> PathBuf {
        self.dir.path().join(format!("socket{port}"))
    }

    /// Kills the process (SIGKILL).
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Starts the process, after the end of one that runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<(), VmError> {
        self.kill();
        let sockets: Vec<PathBuf> = (0..self.options.ports)
            .map(|port| self.socket(port))
            .collect();
        if !self.options.connect {
            // The socket of a killed process stays; only a new one says that somebody listens.
            for socket in sockets.iter().filter(|socket| socket.exists()) {
                fs::remove_file(socket).map_err(VmError::file(socket))?;
            }
        }
        self.starts += 1;
        let log = self.dir.path().join(format!("log{}", self.starts));
        let child = Child::spawn_at(&self.place, &self.program, self.arguments(&sockets), &log)?;
        let child = self.child.insert(child);
        if !self.options.connect {
            for socket in &sockets {
                child.wait_for_file(socket, START_LIMIT)?;
            }
        }
        Ok(())
    }

    fn arguments(&self, sockets: &[PathBuf]) -> Vec<String> {
        let NicOptions {
            backend,
            connect,
            args,
            ..
        } = &self.options;
        let option = if *connect {
            "--connect"
        } else {
            "--socket-path"
        };
        let sockets = sockets
            .iter()
            .map(|socket| format!("{option}={}", socket.display()));
        sockets
            .chain([format!("--backend={backend}")])
            .chain(args.iter().cloned())
            .collect()
    }

    /// Asks the process to end, and fails unless it ends well.
    ///
    /// # Errors
    /// With its exit status and the end of its log.
    pub fn terminate(&mut self) -> Result<(), VmError> {
        if let Some(mut child) = self.child.take() {
            child.signal(Signal::TERM)?;
            let status = child.wait(START_LIMIT)?;
            if !status.success() {
                return Err(child.ended(status));
            }
        }
        Ok(())
    }

    /// Fails when the process has ended by itself.
    ///
    /// # Errors
    /// With its exit status and the end of its log.
    pub fn still_serving(&mut self) -> Result<(), VmError> {
        self.child.as_mut().map_or(Ok(()), Child::still_running)
    }

    /// What the process printed since it was last started.
    #[must_use]
    pub fn log(&self) -> String {
        self.child.as_ref().map(Child::log).unwrap_or_default()
    }
}

/// Gives `dir` to the user `nobody`, with a copy of `program` in it: the original may lie where
/// only root comes.
fn hand_over(dir: &Path, program: &Path) -> Result<PathBuf, VmError> {
    let copy = dir.join(PROGRAM);
    fs::copy(program, &copy).map_err(VmError::file(program))?;
    give_to_nobody(&copy)?;
    give_to_nobody(dir)?;
    Ok(copy)
}
