// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory in files that are no memory: on a disk of this machine, and of a server.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use ringside_frontend::memory::{GuestMemory, MemoryLayout};
use ringside_tests::fs_mount::{FsMount, MountOptions, needs};
use ringside_tests::host_fs::HostFs;
use ringside_tests::hostile::{Result, TestResult};
use ringside_tests::skip;
use rustix::process::Signal;

use super::{REGION, Target};

const ALLOWED: [&str; 1] = ["--allow-file-memory"];

fn file(dir: &Path) -> Result<File> {
    let layout = MemoryLayout::default();
    let bytes = layout.regions().map(|region| region.bytes as u64).sum();
    let mut options = File::options();
    let file = options.read(true).write(true).create(true);
    let file = file.truncate(false).open(dir.join("memory"))?;
    file.set_len(bytes)?;
    Ok(file)
}

/// A directory on a file system that has a block device of this machine under it, and what keeps it
/// there.
fn on_a_disk() -> Result<(PathBuf, Box<dyn std::any::Any>)> {
    let dir = tempfile::tempdir()?;
    if rustix::fs::major(rustix::fs::stat(dir.path())?.st_dev) != 0 {
        return Ok((dir.path().to_owned(), Box::new(dir)));
    }
    let mounted = HostFs::ext4(256 << 20)?;
    Ok((mounted.path(), Box::new(mounted)))
}

#[test]
fn f1_5_memory_on_a_disk_is_refused_without_its_option_and_served_with_it() -> TestResult {
    let (dir, _kept) = match on_a_disk() {
        Ok(found) => found,
        Err(error) => skip!("no file system on a disk: {error}"),
    };
    for mut target in Target::all()? {
        target.refuses(REGION, file(&dir)?.as_fd())?;
        let log = target.process.stderr();
        assert!(log.contains("--allow-file-memory"), "{log}");
        target.serves()?;
        target.ends()?;
    }
    for mut target in Target::all_with(&ALLOWED)? {
        let memory = GuestMemory::on_files(&MemoryLayout::default(), [file(&dir)?.into()])?;
        target.serves_in(memory)?;
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}

/// Every access would wait for its server.
#[test]
fn f1_5_memory_of_a_file_server_is_refused_with_the_option_for_disks() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    for mut target in Target::all_with(&ALLOWED)? {
        let shared = tempfile::tempdir()?;
        let options = MountOptions::default();
        let mut mount = FsMount::start(shared.path(), &["--cache", "never"], &options)?;
        let file = file(mount.path())?;
        // From now on it does not answer.
        mount.back_end_mut().process().signal(Signal::STOP)?;
        let refused = target.refuses(REGION, file.as_fd());
        let refused = refused.and_then(|()| target.serves());
        mount.back_end_mut().process().signal(Signal::CONT)?;
        refused?;
        target.ends()?;
    }
    Ok(())
}
