// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Namespaces of our own: mounts, processes, network, System V objects, and without privilege
//! users (namespaces(7)).

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};

use rustix::process::{Gid, Pid, Uid, WaitOptions, getegid, geteuid, getpid, waitpid};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::error::SandboxError;
use super::idmap::Maps;
use super::sys;

const NAMESPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC);

/// Leaves for new namespaces, the process namespace being that of the next child.
pub(super) fn leave() -> Result<(), SandboxError> {
    sys::unshare(NAMESPACES).map_err(SandboxError::system("make namespaces"))
}

/// The same with a user namespace, in which this process has all capabilities.
pub(super) fn leave_with_users(maps: &Maps) -> Result<(), SandboxError> {
    let failed = SandboxError::system::<io::Error>;
    let (wait_unshared, unshared) = io::pipe().map_err(failed("make a pipe"))?;
    let ourselves = getpid();
    let Some(helper) = sys::fork().map_err(failed("fork"))? else {
        drop(unshared);
        sys::exit_now(u8::from(!write_maps(maps, wait_unshared, ourselves)));
    };
    drop(wait_unshared);
    let left = sys::unshare(NAMESPACES | UnshareFlags::NEWUSER);
    let written = finish(helper, unshared, left.is_ok());
    left.map_err(failed("make namespaces"))?;
    if !written {
        return Err(SandboxError::MapsRefused);
    }
    if maps.have_root() {
        become_root().map_err(SandboxError::system("become root inside"))?;
    }
    Ok(())
}

/// The helper's part; it has stayed in the outer user namespace.
fn write_maps(maps: &Maps, mut unshared: PipeReader, of: Pid) -> bool {
    if unshared.read_exact(&mut [0]).is_err() {
        // There is no new namespace.
        return false;
    }
    match maps.write(of) {
        Ok(()) => true,
        Err(error) => {
            log::error!("sandbox: {error}");
            false
        }
    }
}

/// Has the helper write the maps, if there is a use for them, and sees it end.
fn finish(helper: Pid, mut unshared: PipeWriter, left: bool) -> bool {
    let told = left && unshared.write_all(&[1]).is_ok();
    drop(unshared);
    let status = loop {
        match waitpid(Some(helper), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    };
    told && status.exit_status() == Some(0)
}

fn become_root() -> rustix::io::Result<()> {
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

/// Leaves the supplementary groups of whoever has started us: a guest's user must not be let in
/// where only they are.
///
/// Without privilege, or where only one number is mapped and setgroups(2) is denied, they cannot be
/// left, and neither can anybody else's identity be taken.
pub(super) fn leave_groups() -> Result<(), SandboxError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    match set_thread_groups(&[]) {
        Err(rustix::io::Errno::PERM) if setgroups_is_denied() => {
            log::debug!("the supplementary groups of {:?} stay", getegid());
            Ok(())
        }
        left => left.map_err(SandboxError::system("leave the supplementary groups")),
    }
}

fn setgroups_is_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}
