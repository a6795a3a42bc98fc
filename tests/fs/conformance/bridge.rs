// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vhost-user-fs-mount` itself: how it begins and ends.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::umount;
use ringside_tests::fs_mount::{MOUNT_TOOL, is_mounted};
use ringside_tests::hostile::wait_until;
use ringside_tests::process::back_end_binary;
use rustix::process::Signal;

use super::support::{TestResult, mount, needs_or_skip, scratch, text};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn bridge_unmounts_on_a_signal_and_ends_well() -> TestResult {
    needs_or_skip!();
    for signal in [Signal::TERM, Signal::INT] {
        let share = scratch()?;
        let mut mount = mount(share.path(), &[], 60)?;
        fs::write(mount.join("file"), b"content")?;
        let mountpoint = mount.path().to_path_buf();
        mount.bridge_mut().signal(signal)?;
        let status = mount.bridge_mut().wait_exit(PATIENCE)?;
        assert!(
            status.success(),
            "{status}: {}",
            mount.bridge_mut().stderr()
        );
        assert!(!is_mounted(&mountpoint));
        assert_eq!(fs::read(share.path().join("file"))?, b"content");
    }
    Ok(())
}

#[test]
fn bridge_ends_well_when_somebody_unmounts() -> TestResult {
    needs_or_skip!();
    let share = scratch()?;
    let mut mount = mount(share.path(), &[], 60)?;
    assert_eq!(fs::read_dir(mount.path())?.count(), 0);
    // What other tests start at this moment may have the directory open until it is executed.
    wait_until("the unmount", || match umount(mount.path()) {
        Err(Errno::EBUSY) => Ok(false),
        ended => Ok(ended.map(|()| true)?),
    })?;
    let status = mount.bridge_mut().wait_exit(PATIENCE)?;
    assert!(
        status.success(),
        "{status}: {}",
        mount.bridge_mut().stderr()
    );
    Ok(())
}

#[test]
fn bridge_fails_everything_when_the_back_end_dies() -> TestResult {
    needs_or_skip!();
    let share = scratch()?;
    let mut mount = mount(share.path(), &[], 60)?;
    let open = fs::File::create(mount.join("file"))?;
    let mountpoint = mount.path().to_path_buf();
    mount.back_end_mut().process_mut().kill()?;
    let status = mount.bridge_mut().wait_exit(PATIENCE)?;
    assert_eq!(status.code(), Some(1));
    let said = mount.bridge_mut().stderr();
    assert!(
        said.contains("the back-end has closed the connection"),
        "{said}"
    );
    assert!(!is_mounted(&mountpoint));
    let failed = open.sync_all().map_err(|error| error.raw_os_error());
    assert_eq!(failed, Err(Some(libc::ENOTCONN)));
    Ok(())
}

#[test]
fn bridge_without_a_back_end_says_so() -> TestResult {
    let own = scratch()?;
    let output = Command::new(back_end_binary(MOUNT_TOOL)?)
        .arg("--socket-path")
        .arg(own.path().join("nobody"))
        .arg(own.path())
        .output()?;
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(
        said.starts_with("vhost-user-fs-mount: connect failed: No such file"),
        "{said}"
    );
    Ok(())
}
