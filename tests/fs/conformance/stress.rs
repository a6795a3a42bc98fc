// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! stress-ng: everything at once, whatever it does to a file system.

use std::collections::BTreeMap;
use std::path::Path;

use super::support::{TestResult, alone, command, is_full, mount, needs_or_skip, scratch, text};

/// One of each; those that hold up the machine itself, or need a block device, are left out.
const STRESSORS: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "fallocate",
    "fcntl",
    "filename",
    "flock",
    "fpunch",
    "fstat",
    "getdent",
    "hdd",
    "io",
    "iomix",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "readahead",
    "rename",
    "seek",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
];

/// Open files of a stressor, what Linux gives a process by default. Some open as many as they may,
/// and what all of them have open one back-end has, which is under the limit of one process itself.
const OPEN_FILES: &str = "--nofile=1024:1024";

/// The stressors that failed, and what each said first.
fn failures(dir: &Path, seconds: u32) -> TestResult<BTreeMap<String, String>> {
    let mut command = command("prlimit")?;
    command.args([OPEN_FILES, "stress-ng", "--verify", "--temp-path"]);
    command.arg(dir);
    command.args(["--timeout", &seconds.to_string()]);
    for stressor in STRESSORS {
        command.args([&format!("--{stressor}"), "1"]);
    }
    let output = command.output()?;
    let text = text(&output);
    let mut failed = BTreeMap::new();
    for (_, rest) in text.lines().filter_map(|line| line.split_once("fail:")) {
        if let Some((_, said)) = rest.split_once(']')
            && let Some((stressor, what)) = said.trim().split_once(':')
        {
            let first = failed.entry(stressor.trim().to_owned());
            first.or_insert_with(|| what.trim().to_owned());
        }
    }
    if output.status.success() || !failed.is_empty() {
        Ok(failed)
    } else {
        Err(format!("{}:\n{text}", output.status).into())
    }
}

#[test]
fn stress_fails_nowhere_that_the_host_does_not() -> TestResult {
    needs_or_skip!("stress-ng", "prlimit");
    let _alone = alone();
    let seconds = if is_full() { 300 } else { 20 };
    let (host, share) = (scratch()?, scratch()?);
    let known = failures(host.path(), 10)?;
    let mount = mount(share.path(), &[], 600)?;
    let found = failures(mount.path(), seconds)?;
    let mut new = found;
    new.retain(|stressor, _| !known.contains_key(stressor));
    assert!(new.is_empty(), "{new:?} failed, on the host only {known:?}");
    // It still is a file system.
    std::fs::write(mount.join("after"), b"there")?;
    assert_eq!(std::fs::read(share.path().join("after"))?, b"there");
    Ok(())
}
