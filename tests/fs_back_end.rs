// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running `ringside-fs`, or virtiofsd in its place.
//!
//! The suites ask for nothing that only one of the two has on its command line, so that with
//! `RINGSIDE_FS_BACK_END=virtiofsd` they show what that one makes of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{Launch, Process, ProcessError, Result, old_back_end_binary};

/// Names the back-end the suites run: `ringside-fs` (default) or `virtiofsd`.
pub const BACK_END_VARIABLE: &str = "RINGSIDE_FS_BACK_END";

const PACKAGE: &str = "ringside-fs";

/// How long the start may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which program serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsProgram {
    /// Ours.
    Ringside,
    /// Ours from before a change.
    Old,
    /// The one that is in use today.
    Virtiofsd,
}

impl FsProgram {
    /// The one the environment asks for.
    #[must_use]
    pub fn chosen() -> Self {
        match std::env::var(BACK_END_VARIABLE).as_deref() {
            Ok("virtiofsd") => Self::Virtiofsd,
            _ => Self::Ringside,
        }
    }

    fn launch(self) -> Result<Launch> {
        match self {
            Self::Ringside => Launch::back_end(PACKAGE),
            Self::Old => match old_back_end_binary(PACKAGE) {
                Some(old) => Launch::program(old),
                None => Launch::back_end(PACKAGE),
            },
            Self::Virtiofsd => {
                let found = crate::fs_tools::virtiofsd();
                Launch::program(found.unwrap_or_else(|| PathBuf::from("virtiofsd")))
            }
        }
    }
}

/// The process and where it listens.
#[derive(Debug)]
pub struct FsBackEnd {
    process: Process,
}

impl FsBackEnd {
    /// Starts the chosen program, which shares `dir`, outside of any sandbox, and waits until it
    /// listens.
    ///
    /// # Errors
    ///
    /// When it does not build or start.
    pub fn start(dir: &Path, args: &[&str]) -> Result<Self> {
        Self::start_program(FsProgram::chosen(), dir, args)
    }

    /// Starts one of the programs.
    ///
    /// # Errors
    ///
    /// When it does not build or start.
    pub fn start_program(program: FsProgram, dir: &Path, args: &[&str]) -> Result<Self> {
        let mut what = std::ffi::OsString::from("--shared-dir=");
        what.push(dir);
        Self::start_sharing(program, &[what], args)
    }

    /// Starts our program, which shares several directories, each by its name.
    ///
    /// # Errors
    ///
    /// When it does not build or start.
    pub fn start_shares(shares: &[(&str, &Path)], args: &[&str]) -> Result<Self> {
        let share = |(name, dir): &(&str, &Path)| {
            let mut what = std::ffi::OsString::from(format!("--share={name}="));
            what.push(dir);
            what
        };
        let shares: Vec<_> = shares.iter().map(share).collect();
        Self::start_sharing(FsProgram::Ringside, &shares, args)
    }

    fn start_sharing(
        program: FsProgram,
        what: &[std::ffi::OsString],
        args: &[&str],
    ) -> Result<Self> {
        let launch = program.launch()?;
        let socket = launch.socket();
        let mut process = launch
            .args(what)
            .arg("--socket-path")
            .arg(socket)
            .args(["--tag", "share", "--sandbox", "none"])
            .args(args)
            .spawn()?;
        process.wait_listening(PATIENCE)?;
        Ok(Self { process })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.process.socket().to_path_buf()
    }

    /// The process.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Whether an error says that there is no such program.
#[must_use]
pub fn is_missing(error: &ProcessError) -> bool {
    matches!(error, ProcessError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}
