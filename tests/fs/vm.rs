// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file system back-end under QEMU: Linux guests mount the share.
//!
//! A boot takes long where processors are emulated, so each test puts as much as it can into one;
//! what happens in the guests is in `vm/*.sh`. `RINGSIDE_FS_BACK_END=virtiofsd` runs the same tests
//! on virtiofsd, as far as it can: with one request queue, and for one guest.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ringside_tests::fs_tools::find_tool;
use ringside_tests::skip;
use ringside_tests::vm::{
    BackEnd, BoxError, Device, Disk, DiskOptions, Guest, Outcome, Share, ShareOptions, ShareServer,
    needs,
};

/// Functions that every guest script here starts with.
const LIB: &str = concat!(
    include_str!("../vm/guest/tree_digest.sh"),
    include_str!("../vm/guest/share.sh")
);

const TAG: &str = "myfs";

/// What the host puts into the share; not a whole number of pages or FUSE requests.
const LARGE_BYTES: usize = (3 << 20) + 4;

/// Why no guest can share a directory here; `None` when everything is there.
fn lacking() -> Option<String> {
    needs().or_else(|| {
        (!rustix::process::geteuid().is_root())
            .then(|| "not root: files of several users are made".to_owned())
    })
}

/// A share with `queues` request queues where the back-end under test can have them, the device for
/// it, and how many queues it has.
fn share(queues: u16, args: &[&str]) -> Result<(Share, Device, u16), BoxError> {
    let server = ShareServer::under_test();
    let queues = match server {
        ShareServer::Ringside => queues,
        ShareServer::Virtiofsd => 1,
    };
    let options = ShareOptions {
        request_queues: Some(queues),
        args: args.iter().copied().map(str::to_owned).collect(),
    };
    let share = Share::start(server, TAG, &options)?;
    let device = Device::fs("share", &share.socket(), TAG).request_queues(queues);
    Ok((share, device, queues))
}

/// Writes [`LARGE_BYTES`] that end in `last` into the share, and gives their digest.
fn add_large_file(share: &Share) -> Result<String, BoxError> {
    let mut bytes = vec![0; LARGE_BYTES];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::try_from(index * 31 / 7 % 251)?;
    }
    bytes.truncate(LARGE_BYTES - 5);
    bytes.extend_from_slice(b"last\n");
    let path = share.path("large");
    fs::write(&path, bytes)?;
    sha256(&path)
}

/// The digest of a file, as this machine finds it.
fn sha256(path: &Path) -> Result<String, BoxError> {
    let output = std::process::Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digest = text.split_whitespace().next();
    Ok(digest.ok_or("sha256sum says nothing")?.to_owned())
}

fn script(text: &str) -> String {
    format!("{LIB}\n{text}")
}

/// Asserts that the script ended well, and shows what it printed if not.
fn assert_passed(outcome: &Outcome) {
    let Outcome {
        exit_code,
        output,
        console,
        log,
        ..
    } = outcome;
    assert_eq!(
        *exit_code, 0,
        "output:\n{output}\nconsole:\n{console}\nQEMU:\n{log}"
    );
}

#[test]
fn source_tree_in_a_share_beside_a_disk_is_the_same_for_guest_and_host() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    let mut disk = Disk::start(BackEnd::under_test(), &DiskOptions::default())?;
    let (share, device, queues) = share(2, &[])?;
    share.add_source_tree()?;
    fs::write(share.path("greeting"), "from the host\n")?;
    add_large_file(&share)?;
    let outcome = ["as", "git", "ld", "mkfs.ext4"]
        .iter()
        .fold(Guest::new(), |guest, program| guest.program(program))
        .cpus(2)
        .memory_mib(768)
        .device(Device::block("disk", &disk.socket()))
        .device(device.queue_size(1024))
        .env("TAG", TAG)
        .env("QUEUES", queues)
        .env("GREETING", "from the host")
        .script(&script(include_str!("vm/tree.sh")))
        .on("look", |_| {
            share.write_findings("tree")?;
            let common = share.path("tree/common");
            fs::write(
                share.path("lines"),
                lines_with("pub fn", &common)?.to_string(),
            )?;
            Ok(())
        })
        .on("hash_random", |_| {
            let digest = sha256(&share.path("random"))?;
            fs::write(share.path("random.sha256"), format!("{digest}  -\n"))?;
            Ok(())
        })
        .run()?;
    assert_passed(&outcome);
    disk.still_serving()?;
    // What the guest made and removed last is so for the host too.
    assert!(share.path("build/program").is_file());
    assert!(!share.path("copy").exists());
    Ok(share.finish()?)
}

/// Counts the lines of all files under `dir` that contain `text`.
fn lines_with(text: &str, dir: &Path) -> Result<usize, BoxError> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        count += if path.is_dir() {
            lines_with(text, &path)?
        } else {
            let content = fs::read_to_string(&path)?;
            content.lines().filter(|line| line.contains(text)).count()
        };
    }
    Ok(count)
}

#[test]
fn next_guest_of_the_same_process_finds_what_the_last_left() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    let (share, device, _) = share(2, &[])?;
    let large = add_large_file(&share)?;
    fs::write(share.path("guests"), "host\n")?;
    let guests: &[&str] = match ShareServer::under_test() {
        ShareServer::Ringside => &["first", "second"],
        ShareServer::Virtiofsd => &["first"],
    };
    let mut before = "host".to_owned();
    for name in guests {
        let outcome = Guest::new()
            .cpus(2)
            .device(device.clone())
            .env("TAG", TAG)
            .env("NAME", name)
            .env("BEFORE", &before)
            .env("LARGE", &large)
            .script(&script(include_str!("vm/next.sh")))
            .run()?;
        assert_passed(&outcome);
        before.push('\n');
        before.push_str(name);
        assert_eq!(fs::read_to_string(share.path("guests"))?.trim_end(), before);
        assert_eq!(
            fs::read_to_string(share.path("left_open"))?.trim_end(),
            *name
        );
    }
    Ok(share.finish()?)
}

#[test]
fn pjdfstest_in_a_guest_finds_no_fault() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    let Some(pjdfstest) = find_tool("pjdfstest") else {
        skip!("no pjdfstest: run tests/fs/install");
    };
    let pjdfstest = fs::canonicalize(pjdfstest)?.display().to_string();
    let (share, device, _) = share(2, &[])?;
    let outcome = Guest::new()
        .cpus(2)
        .program(&pjdfstest)
        // It runs a copy by another name, as which busybox ends at once.
        .program("sleep")
        .device(device)
        .env("TAG", TAG)
        .env("PJDFSTEST", &pjdfstest)
        .timeout(Duration::from_secs(480))
        .script(&script(include_str!("vm/pjdfstest.sh")))
        .run()?;
    assert_passed(&outcome);
    let no_program = outcome.output.contains("applet not found");
    assert!(!no_program, "{}", outcome.output);
    // Skipped are the 13 that would mount the share anew, and one that asks glibc for the most links
    // of a file system it does not know.
    let summary = outcome
        .output
        .lines()
        .find(|line| line.starts_with("Summary:"));
    let summary = summary.ok_or("pjdfstest printed no summary")?;
    assert!(
        summary.contains(" 0 failed, 14 skipped, 384 passed,"),
        "{}",
        outcome.output
    );
    Ok(share.finish()?)
}
