// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of this machine: where they are, and what they print.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::VmError;

/// Directories that programs are looked up in; a user's search path may lack the first.
const PATHS: &[&str] = &["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where this machine has a program; a path is that program.
pub(crate) fn find_program(name: &str) -> Result<PathBuf, VmError> {
    let dirs = if name.contains('/') { &[""] } else { PATHS };
    let found = dirs
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file());
    found.ok_or_else(|| VmError::Start {
        program: name.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// Runs a program to its end and gives what it printed to its standard output.
pub(crate) fn run_program(program: &str, args: &[&str]) -> Result<Vec<u8>, VmError> {
    run_command(program, Command::new(program).args(args))
}

/// Runs a command to its end and gives what it printed to its standard output. Errors call it
/// `name`.
pub(crate) fn run_command(name: &str, command: &mut Command) -> Result<Vec<u8>, VmError> {
    let output = command.output().map_err(|source| VmError::Start {
        program: name.to_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(VmError::Program {
        program: name.to_owned(),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Makes the user `nobody` own a file or directory, open to all.
pub(crate) fn give_to_nobody(path: &Path) -> Result<(), VmError> {
    let id = |option| -> Result<Option<u32>, VmError> {
        let id = run_program("id", &[option, "nobody"])?;
        Ok(String::from_utf8_lossy(&id).trim().parse().ok())
    };
    chown(path, id("-u")?, id("-g")?)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
        .map_err(VmError::file(path))
}
