// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the suites share.

use std::error::Error;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringside_tests::covering;
use ringside_tests::fs_back_end::FsProgram;
use ringside_tests::fs_mount::{self, FsMount, MountOptions};

pub(crate) type TestResult<T = ()> = Result<T, Box<dyn Error>>;

/// If set, the directory of the programs that `tests/fs/install` builds.
const TOOLS_VARIABLE: &str = "RINGSIDE_FS_TOOLS";

/// The suites are loads of their own: two at once would be measured by their time limits.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits until no other suite runs.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether to run everything, and for long.
pub(crate) fn is_full() -> bool {
    std::env::var_os(covering::FULL_VARIABLE).is_some()
}

/// Why a suite that needs these programs cannot run here.
pub(crate) fn needs(programs: &[&str]) -> Option<String> {
    fs_mount::needs().or_else(|| {
        let missing: Vec<_> = programs
            .iter()
            .filter(|name| tool(name).is_none())
            .collect();
        (!missing.is_empty()).then(|| format!("no {missing:?}; tests/fs/install installs them"))
    })
}

/// Skips the test if it cannot run here.
macro_rules! needs_or_skip {
    ($($program:literal),*) => {
        if let Some(reason) = $crate::support::needs(&[$($program),*]) {
            ringside_tests::skip!("{reason}");
        }
    };
}
pub(crate) use needs_or_skip;

/// Where a program is.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let built = std::env::var_os(TOOLS_VARIABLE).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fs-tools/bin"),
        PathBuf::from,
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::iter::once(built).chain(std::env::split_paths(&path));
    dirs.find_map(|dir| {
        let program = dir.join(name);
        program.is_file().then_some(program)
    })
}

/// A program, ready to be given its arguments.
pub(crate) fn command(name: &str) -> TestResult<Command> {
    let program = tool(name).ok_or_else(|| format!("no {name} here"))?;
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").current_dir("/");
    Ok(command)
}

/// What the program wrote, if it succeeded.
pub(crate) fn run(command: &mut Command) -> TestResult<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(text(&output));
    }
    let status = output.status;
    Err(format!("{command:?}: {status}\n{}", text(&output)).into())
}

/// Both streams of a program.
pub(crate) fn text(output: &Output) -> String {
    let mut bytes = output.stdout.clone();
    bytes.extend_from_slice(&output.stderr);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A directory that everybody may enter.
pub(crate) fn scratch() -> TestResult<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("ringside-fs-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// A mount of a directory for at most that long, with attributes, as most want it.
pub(crate) fn mount(dir: &Path, args: &[&str], limit_s: u64) -> TestResult<FsMount> {
    let options = MountOptions {
        limit: Duration::from_secs(limit_s),
        ..MountOptions::default()
    };
    let args: Vec<_> = args.iter().copied().chain(["--xattr"]).collect();
    Ok(FsMount::start(dir, &args, &options)?)
}

/// The same with a number of request queues; virtiofsd has one.
pub(crate) fn mount_with_queues(
    dir: &Path,
    args: &[&str],
    queues: usize,
    limit_s: u64,
) -> TestResult<FsMount> {
    let queues = queues.to_string();
    let mut args: Vec<_> = args.iter().copied().chain(["--xattr"]).collect();
    if queues != "1" {
        args.extend(["--num-request-queues", &queues]);
    }
    let options = MountOptions {
        limit: Duration::from_secs(limit_s),
        args: &["--queues", &queues],
        ..MountOptions::default()
    };
    Ok(FsMount::start(dir, &args, &options)?)
}

/// Request queues that the back-end can have.
pub(crate) fn queue_counts() -> &'static [usize] {
    match FsProgram::chosen() {
        FsProgram::Ringside | FsProgram::Old => &[1, 2],
        FsProgram::Virtiofsd => &[1],
    }
}
