// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file system back-end under test: ours, or virtiofsd, which proves the runner with something
//! we did not write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::backend::START_LIMIT;
use super::child::Child;
use super::error::VmError;
use super::program::{find_program, run_command};
use crate::fs_tools;
use crate::process::back_end_binary;

/// The parts of this repository that [`Share::add_source_tree`] packs: some hundred files in some
/// dozen directories.
const SOURCES: &[&str] = &["common", "docs", "tests"];

/// Prints one digest of the names and contents of all files under the working directory, the
/// repository of git left out. The guest does the same with busybox.
const TREE_DIGEST: &str = include_str!("guest/tree_digest.sh");

/// Which program serves the share.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ShareServer {
    /// `ringside-fs` of this workspace.
    Ringside,
    /// `virtiofsd`, which has one request queue and ends with its first front-end.
    Virtiofsd,
}

impl ShareServer {
    /// The back-end to test: `RINGSIDE_FS_BACK_END` may say `virtiofsd`.
    #[must_use]
    pub fn under_test() -> Self {
        match std::env::var("RINGSIDE_FS_BACK_END").as_deref() {
            Ok("virtiofsd") => Self::Virtiofsd,
            _ => Self::Ringside,
        }
    }

    /// The program to start. Ours is built first, so that no stale one is tested.
    ///
    /// # Errors
    /// When it cannot be built, or is not there.
    pub fn program(self) -> Result<PathBuf, VmError> {
        match self {
            Self::Ringside => back_end_binary("ringside-fs").map_err(VmError::Build),
            Self::Virtiofsd => fs_tools::virtiofsd().ok_or_else(|| VmError::Start {
                program: "virtiofsd".into(),
                source: std::io::ErrorKind::NotFound.into(),
            }),
        }
    }
}

/// How a directory is shared.
#[derive(Clone, Debug, Default)]
pub struct ShareOptions {
    /// Request queues offered; only ours can be told.
    pub request_queues: Option<u16>,
    /// Any other arguments.
    pub args: Vec<String>,
}

/// A running back-end with one shared directory; both vanish when dropped.
#[derive(Debug)]
pub struct Share {
    server: ShareServer,
    child: Child,
    dir: TempDir,
}

impl Share {
    /// Shares an empty directory.
    ///
    /// # Errors
    /// When the directory cannot be made or the back-end does not start.
    pub fn start(server: ShareServer, tag: &str, options: &ShareOptions) -> Result<Self, VmError> {
        let dir = tempfile::tempdir().map_err(VmError::file(std::env::temp_dir()))?;
        let (shared, socket) = (dir.path().join("shared"), dir.path().join("socket"));
        fs::create_dir(&shared).map_err(VmError::file(&shared))?;
        let mut args = vec![
            format!("--socket-path={}", socket.display()),
            format!("--shared-dir={}", shared.display()),
            format!("--tag={tag}"),
        ];
        if server == ShareServer::Ringside {
            let queues = options.request_queues;
            args.extend(queues.map(|queues| format!("--num-request-queues={queues}")));
        }
        args.extend(options.args.iter().cloned());
        let mut child = Child::spawn(&server.program()?, args, &dir.path().join("log"))?;
        child.wait_for_file(&socket, START_LIMIT)?;
        Ok(Self { server, child, dir })
    }

    /// Where the back-end listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// A path in the shared directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("shared").join(name)
    }

    /// Packs sources of this repository into `source.tar` in the share.
    ///
    /// # Errors
    /// When `tar` fails.
    pub fn add_source_tree(&self) -> Result<(), VmError> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut tar = Command::new("tar");
        tar.arg("-cf")
            .arg(self.path("source.tar"))
            .arg("-C")
            .arg(repository)
            .args(SOURCES);
        run_command("tar", &mut tar).map(|_nothing| ())
    }

    /// Writes beside the directory `name` what the host finds in it, for the guest to compare:
    /// `NAME.digest` ([`tree_digest`]), `NAME.status` and `NAME.stale` (files whose attributes are
    /// not those the guest saw, by the index of git).
    ///
    /// # Errors
    /// When `git` fails, or a file cannot be written.
    pub fn write_findings(&self, name: &str) -> Result<(), VmError> {
        let tree = self.path(name);
        let findings = [
            ("digest", tree_digest(&tree)?),
            // Before the status, which writes attributes it has found changed into the index.
            ("stale", git(&tree, &["diff-files", "--name-only"])?),
            ("status", git(&tree, &["status", "--porcelain"])?),
        ];
        for (what, text) in findings {
            let path = self.path(&format!("{name}.{what}"));
            fs::write(&path, text).map_err(VmError::file(&path))?;
        }
        Ok(())
    }

    /// Ends the back-end after its last guest. Ours must serve until then, and end well.
    ///
    /// # Errors
    /// With its exit status and the end of its log.
    pub fn finish(mut self) -> Result<(), VmError> {
        if self.server == ShareServer::Ringside {
            self.child.still_running()?;
            self.child.signal(Signal::TERM)?;
        }
        let status = self.child.wait(START_LIMIT)?;
        if status.success() {
            Ok(())
        } else {
            Err(self.child.ended(status))
        }
    }
}

/// One digest of the names and contents of all files under `dir`.
///
/// # Errors
/// When the programs for it fail.
pub fn tree_digest(dir: &Path) -> Result<String, VmError> {
    let mut shell = Command::new("sh");
    shell
        .current_dir(dir)
        .args(["-c", &format!("{TREE_DIGEST}\ntree_digest")]);
    text("sh", &mut shell)
}

/// What git prints about the work tree `dir`, as the guest's git would: without this machine's
/// settings.
///
/// # Errors
/// When git is not there or fails.
pub fn git(dir: &Path, args: &[&str]) -> Result<String, VmError> {
    let program = find_program("git")?;
    let mut command = Command::new(program);
    command
        .arg("-C")
        .arg(dir)
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    text("git", &mut command)
}

fn text(name: &str, command: &mut Command) -> Result<String, VmError> {
    let output = run_command(name, command)?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}
