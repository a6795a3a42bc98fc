// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! fsx: one file, changed at random in every way there is, and read back.

use super::support::{TestResult, alone, command, is_full, mount, needs_or_skip, run, scratch};

/// What is done to the file besides reading, writing and truncating.
const MORE: &str = "
close_open = 1.0
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 2.0
punch_hole = 2.0
sendfile = 2.0
posix_fadvise = 1.0
copy_file_range = 2.0
";
const NOT_MAPPED: &str = "mapread = 0.0\nmapwrite = 0.0\n";
/// The cache is dropped through a mapping, too.
const MAPPED: &str = "mapread = 20.0\nmapwrite = 20.0\ninvalidate = 1.0\n";

/// What one run of it does. It never unmaps what it reads through mappings (0.3.2), so one run of a
/// million operations would need more mappings than Linux gives a process, on any file system.
const OPERATIONS_PER_RUN: u32 = 20_000;

/// Runs it with these weights on a mount of a back-end with these arguments: a million operations
/// if the suite is to be full.
fn exercise(weights: &str, args: &[&str], seed: u32) -> TestResult {
    let (runs, limit_s) = if is_full() { (50, 1800) } else { (1, 180) };
    // In memory: what is written through mappings is synchronised each time.
    let (share, own) = (tempfile::tempdir_in("/dev/shm")?, scratch()?);
    let configuration = own.path().join("fsx.toml");
    // Without a least size it asks for room for no bytes now and then, which is EINVAL anywhere.
    let text = format!("flen = 1048576\n[opsize]\nmin = 1\n[weights]\n{weights}{MORE}");
    std::fs::write(&configuration, text)?;
    let mount = mount(share.path(), args, limit_s)?;
    for run_number in 0..runs {
        run(command("fsx")?
            .args(["-q", "-N", &OPERATIONS_PER_RUN.to_string()])
            .args(["-S", &(seed + 4 * run_number).to_string()])
            .arg("-P")
            .arg(own.path())
            .arg("-f")
            .arg(&configuration)
            .arg(mount.join("file")))?;
    }
    // What the suite has left is what the host has.
    let through = std::fs::read(mount.join("file"))?;
    drop(mount);
    assert_eq!(std::fs::read(share.path().join("file"))?, through);
    Ok(())
}

#[test]
fn fsx_buffered_reads_what_it_wrote() -> TestResult {
    needs_or_skip!("fsx");
    let _alone = alone();
    exercise(NOT_MAPPED, &["--cache", "auto"], 1)
}

#[test]
fn fsx_written_back_late_reads_what_it_wrote() -> TestResult {
    needs_or_skip!("fsx");
    let _alone = alone();
    exercise(MAPPED, &["--cache", "always", "--writeback"], 2)
}

#[test]
fn fsx_uncached_reads_what_it_wrote() -> TestResult {
    needs_or_skip!("fsx");
    let _alone = alone();
    exercise(NOT_MAPPED, &["--cache", "never"], 3)
}

#[test]
fn fsx_mapped_reads_what_it_wrote() -> TestResult {
    needs_or_skip!("fsx");
    let _alone = alone();
    exercise(MAPPED, &["--cache", "always"], 4)
}
