// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What works on a local file system and did not on shared ones: virtiofsd 1.14 fails each of these
//! but the overlay.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount as mount_fs, umount2};
use ringside_frontend::memory::GuestSlice;
use ringside_tests::fs_back_end::FsProgram;
use rustix::fs::{AtFlags, FlockOperation, StatxFlags, flock, linkat, statx};
use rustix::io::Errno;

use super::support::{TestResult, alone, command, mount, needs_or_skip, run, scratch};

#[test]
fn file_without_a_name_is_written_and_linked() -> TestResult {
    needs_or_skip!();
    let _alone = alone();
    let share = scratch()?;
    let mount = mount(share.path(), &[], 60)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o640)
        .custom_flags(libc::O_TMPFILE)
        .open(mount.path())?;
    file.write_all(b"content")?;
    assert_eq!(fs::read_dir(mount.path())?.count(), 0);
    let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    linkat(
        rustix::fs::CWD,
        proc,
        rustix::fs::CWD,
        mount.join("named"),
        AtFlags::SYMLINK_FOLLOW,
    )?;
    file.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    assert_eq!(text, "content");
    assert_eq!(fs::read(share.path().join("named"))?, b"content");
    Ok(())
}

#[test]
fn time_of_birth_is_that_of_the_host() -> TestResult {
    needs_or_skip!();
    let _alone = alone();
    let share = scratch()?;
    let mount = mount(share.path(), &[], 60)?;
    fs::write(mount.join("file"), b"")?;
    let birth = |path: &Path| -> TestResult<_> {
        let found = statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::BTIME)?;
        let known = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        Ok(known.then_some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec)))
    };
    let on_host = birth(&share.path().join("file"))?;
    assert!(
        on_host.is_some(),
        "the file system of the test has no times of birth"
    );
    assert_eq!(birth(&mount.join("file"))?, on_host);
    Ok(())
}

#[test]
fn attributes_of_chattr_hold_on_host_and_mount() -> TestResult {
    needs_or_skip!("chattr", "lsattr");
    let _alone = alone();
    let share = scratch()?;
    let mount = mount(share.path(), &[], 60)?;
    let (file, on_host) = (mount.join("file"), share.path().join("file"));
    fs::write(&file, b"before")?;
    let chattr =
        |flag: &str| -> TestResult<String> { run(command("chattr")?.arg(flag).arg(&file)) };
    chattr("+i")?;
    let refused = fs::write(&on_host, b"after").map_err(|error| error.raw_os_error());
    assert_eq!(refused, Err(Some(libc::EPERM)));
    let listed = run(command("lsattr")?.arg(&file))?;
    assert!(listed.starts_with("----i"), "{listed}");
    chattr("-i")?;
    chattr("+a")?;
    let mut appending = OpenOptions::new().append(true).open(&file)?;
    appending.write_all(b" and after")?;
    let refused = File::create(&file).map_err(|error| error.raw_os_error());
    assert_eq!(refused.err(), Some(Some(libc::EPERM)));
    chattr("-a")?;
    assert_eq!(fs::read(&on_host)?, b"before and after");
    Ok(())
}

/// An overlay; unmounted on drop.
struct Overlay(std::path::PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        // A test that has got as far as failing cannot do better.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn overlay_writes_to_an_upper_directory_on_the_mount() -> TestResult {
    needs_or_skip!();
    let _alone = alone();
    let (own, share) = (scratch()?, scratch()?);
    let mount = mount(share.path(), &[], 60)?;
    let lower = own.path().join("lower");
    let merged = own.path().join("merged");
    let (upper, work) = (mount.join("upper"), mount.join("work"));
    for dir in [&lower, &merged, &upper, &work] {
        fs::create_dir(dir)?;
    }
    fs::write(lower.join("old"), b"old")?;
    fs::write(lower.join("gone"), b"gone")?;
    fs::create_dir(lower.join("dir"))?;
    let data = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount_fs(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(data.as_str()),
    )?;
    let _overlay = Overlay(merged.clone());
    fs::write(merged.join("old"), b"new")?;
    fs::remove_file(merged.join("gone"))?;
    fs::remove_dir(merged.join("dir"))?;
    fs::create_dir(merged.join("dir"))?;
    fs::rename(merged.join("old"), merged.join("dir/moved"))?;
    assert_eq!(fs::read(merged.join("dir/moved"))?, b"new");
    assert!(!merged.join("gone").exists() && !merged.join("old").exists());
    assert_eq!(fs::read(share.path().join("upper/dir/moved"))?, b"new");
    Ok(())
}

#[test]
fn flock_of_one_back_end_is_seen_by_another() -> TestResult {
    needs_or_skip!();
    let _alone = alone();
    let share = scratch()?;
    // It has no such option, and fails the test as it is.
    let args: &[&str] = match FsProgram::chosen() {
        FsProgram::Ringside | FsProgram::Old => &["--flock"],
        FsProgram::Virtiofsd => &[],
    };
    let (one, other) = (
        mount(share.path(), args, 60)?,
        mount(share.path(), args, 60)?,
    );
    let mine = File::create(one.join("lock"))?;
    let theirs = OpenOptions::new().write(true).open(other.join("lock"))?;
    flock(mine.as_fd(), FlockOperation::LockExclusive)?;
    let refused = flock(theirs.as_fd(), FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(Errno::WOULDBLOCK));
    let waiting = std::thread::spawn(move || flock(theirs.as_fd(), FlockOperation::LockExclusive));
    // The one that waits holds nothing up.
    for number in 0..100 {
        fs::write(other.join("beside"), [number])?;
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(!waiting.is_finished());
    flock(mine.as_fd(), FlockOperation::Unlock)?;
    waiting
        .join()
        .map_err(|_panic| "the waiting thread panicked")??;
    Ok(())
}

/// What a program writes to a mapping and then closes is on the host, though it is still mapped:
/// other programs of the host look at the file then.
#[test]
fn f3_7_what_is_written_to_a_mapping_is_on_the_host_after_close() -> TestResult {
    /// What of virtiofsd's options has to do with who keeps data, and when it goes.
    const ARGS: [&[&str]; 5] = [
        &[],
        &["--cache=always"],
        &["--cache=always", "--writeback"],
        &["--cache=always", "--no-open"],
        &["--cache=never", "--allow-mmap"],
    ];
    const BYTES: usize = 4 << 12;
    needs_or_skip!();
    let _alone = alone();
    for args in ARGS {
        // virtiofsd has no such option.
        if args.contains(&"--no-open") && FsProgram::chosen() == FsProgram::Virtiofsd {
            continue;
        }
        let share = scratch()?;
        let on_host = |name: &str| fs::read(share.path().join(name));
        fs::write(share.path().join("old"), [b'-'; BYTES])?;
        let mount = mount(share.path(), args, 60)?;
        for (name, creates) in [("old", false), ("new", true)] {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(creates)
                .open(mount.join(name))?;
            file.set_len(BYTES as u64)?;
            let mapping = GuestSlice::map(file.as_fd(), 0, BYTES, false)?;
            mapping.write(4096, b"mapped");
            drop(file);
            let seen = on_host(name)?;
            assert_eq!(&seen[4096..4102], b"mapped", "{name} {args:?}");
            // Once more, and closed by somebody who did not map it.
            mapping.write(4096, b"anew");
            drop(OpenOptions::new().append(true).open(mount.join(name))?);
            let seen = on_host(name)?;
            assert_eq!(&seen[4096..4102], b"anewed", "{name} {args:?}");
        }
    }
    Ok(())
}
