// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two shares, and the probe that is sent in.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};

use tempfile::TempDir;

/// 128 and SIGSYS: how a waiting parent tells that seccomp has killed the process inside.
pub(crate) const KILLED_BY_SECCOMP: i32 = 128 + libc::SIGSYS;

const PROBE: &str = env!("CARGO_BIN_EXE_sandbox-probe");

/// How the probe is sent in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) mode: &'static str,
    pub(crate) seccomp: &'static str,
    pub(crate) kept: &'static str,
}

/// Namespaces without seccomp, so that what they forbid is seen.
pub(crate) const NAMESPACE: Terms = Terms {
    mode: "namespace",
    seccomp: "none",
    kept: "",
};

/// Everything.
pub(crate) const STRICT: Terms = Terms {
    mode: "strict",
    seccomp: "kill",
    ..NAMESPACE
};

/// Nothing: what is forbidden elsewhere is possible here.
pub(crate) const NONE: Terms = Terms {
    mode: "none",
    ..NAMESPACE
};

/// A directory with one file, another file, and a place for the socket.
#[derive(Debug)]
pub(crate) struct Scene {
    dir: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The probe may be another user.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let share = dir.path().join("share");
        fs::create_dir(&share).unwrap();
        fs::write(share.join("inside"), "of the share").unwrap();
        fs::write(dir.path().join("single"), "a file").unwrap();
        fs::write(dir.path().join("outside"), "of the share").unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// The probe, with the directory as its only share.
    pub(crate) fn command(&self, terms: Terms, act: &str) -> Command {
        let mut command = Command::new(PROBE);
        self.arguments(&mut command, terms, act);
        command
    }

    /// The same by `setpriv(1)`, as somebody who may do less.
    pub(crate) fn command_with(&self, privileges: &[&str], terms: Terms, act: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(privileges).arg(PROBE);
        self.arguments(&mut command, terms, act);
        command
    }

    fn arguments(&self, command: &mut Command, terms: Terms, act: &str) {
        command
            .args([terms.mode, terms.seccomp, terms.kept])
            .arg(self.socket())
            .arg(act)
            .arg(self.path("share"))
            .stdin(Stdio::null());
    }

    /// What the probe says about `act`; it must end well.
    pub(crate) fn outcome(&self, terms: Terms, act: &str) -> String {
        said(&self.command(terms, act).output().unwrap())
    }

    /// How the probe ends.
    pub(crate) fn end(&self, terms: Terms, act: &str) -> ExitStatus {
        self.command(terms, act).output().unwrap().status
    }
}

/// The line that a probe has left when it has ended well.
pub(crate) fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}", output.status);
    text.trim().to_owned()
}
