// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finding a back-end's binary, fresh.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::{ProcessError, Result};

/// If set, binaries are taken from this directory as they are, and nothing is built: for measuring
/// an installed back-end.
const BIN_DIR_VARIABLE: &str = "RINGSIDE_BIN_DIR";

/// Names the directory of the binaries from before a change, which benchmarks measure beside those of
/// this tree.
const OLD_BIN_DIR_VARIABLE: &str = "RINGSIDE_BENCH_OLD";

/// A package's binary from before a change, where the environment says where it is.
#[must_use]
pub fn old_back_end_binary(package: &str) -> Option<PathBuf> {
    let dir = std::env::var_os(OLD_BIN_DIR_VARIABLE)?;
    Some(Path::new(&dir).join(package))
}

/// Packages built by this process. The lock is held while cargo runs, so that parallel tests wait
/// for one build instead of starting several.
static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());

/// The binary of a package of this workspace, built once per test process in the same profile.
///
/// `cargo test -p ringside-tests` does not build other packages' binaries, so one lying in the
/// target directory may be stale or missing.
///
/// # Errors
///
/// When cargo fails, or the running test does not lie in a target directory.
pub fn back_end_binary(package: &'static str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN_DIR_VARIABLE) {
        return Ok(Path::new(&dir).join(package));
    }
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(binary) = built.get(package) {
        return Ok(binary.clone());
    }
    let binary = build(package, &[])?.join(package);
    built.insert(package, binary.clone());
    Ok(binary)
}

/// The binary of an example of a package, built like [`back_end_binary`].
///
/// # Errors
///
/// As [`back_end_binary`].
pub fn example_binary(package: &'static str, example: &'static str) -> Result<PathBuf> {
    let _one_build = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(build(package, &["--example", example])?
        .join("examples")
        .join(example))
}

/// Builds a package; returns the directory of the profile.
fn build(package: &'static str, target: &[&str]) -> Result<PathBuf> {
    let exe = std::env::current_exe().map_err(ProcessError::io("finding the test binary"))?;
    let (target_dir, profile_dir, profile) =
        target_dirs(&exe).ok_or_else(|| ProcessError::NoTargetDirectory { exe: exe.clone() })?;
    // Set by cargo for the tests it runs; by hand the one in PATH does.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "build",
            "--quiet",
            "--package",
            package,
            "--profile",
            profile,
        ])
        .args(target)
        .arg("--target-dir")
        .arg(target_dir)
        .status()
        .map_err(ProcessError::io("starting cargo"))?;
    if !status.success() {
        return Err(ProcessError::Build { package, status });
    }
    Ok(profile_dir.to_owned())
}

/// Target directory, directory of the profile and name of the profile around a test binary, which
/// lies in `target/<profile directory>/deps/`, or any other, one directory higher.
fn target_dirs(exe: &Path) -> Option<(&Path, &Path, &str)> {
    let dir = exe.parent()?;
    let profile_dir = if dir.ends_with("deps") {
        dir.parent()?
    } else {
        dir
    };
    let profile = match profile_dir.file_name()?.to_str()? {
        // The directory of the profiles dev and test.
        "debug" => "dev",
        other => other,
    };
    Some((profile_dir.parent()?, profile_dir, profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_dirs_of_test_binaries_are_found() {
        let dirs = target_dirs(Path::new("/w/target/debug/deps/selftest-0123"));
        let expected = (Path::new("/w/target"), Path::new("/w/target/debug"), "dev");
        assert_eq!(dirs, Some(expected));
        let dirs = target_dirs(Path::new("/t/release/deps/x"));
        let expected = (Path::new("/t"), Path::new("/t/release"), "release");
        assert_eq!(dirs, Some(expected));
        let dirs = target_dirs(Path::new("/t/release/vm-demo"));
        assert_eq!(dirs, Some(expected));
        assert_eq!(target_dirs(Path::new("/x")), None);
    }
}
