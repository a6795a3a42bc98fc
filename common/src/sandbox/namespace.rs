// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The identity of the serving process: the namespaces it gets (`namespaces(7)`), and the groups it
//! leaves.

use rustix::process::{Gid, Uid};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::error::SandboxError;

/// Mounts, processes, network and System V objects.
pub(super) const NAMESPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC);

/// Becomes group 0 of a user namespace that has one.
pub(super) fn become_root_group() -> Result<(), SandboxError> {
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(SandboxError::system("become the group root inside"))
}

/// Becomes user 0 of a user namespace that has one.
pub(super) fn become_root_user() -> Result<(), SandboxError> {
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(SandboxError::system("become the user root inside"))
}

/// Leaves the supplementary groups of whoever has started us: a guest's user must not be let in
/// where only they are.
///
/// A process that may not do that (of a user other than root, without `CAP_SETGID`, or in a user
/// namespace with a single number) cannot take another identity either, so its user stays the same.
pub(super) fn leave_groups() -> Result<(), SandboxError> {
    match set_thread_groups(&[]) {
        Ok(()) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(error) => Err(SandboxError::system("leave the supplementary groups")(
            error,
        )),
    }
}
