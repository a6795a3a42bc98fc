// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The root directory of the process: an empty one with nothing but the shares in it.
//!
//! In a mount namespace of its own the process gets a small tmpfs as its root, read-only, in which
//! each share is bound to an entry named by its number, without devices and set-user-ID bits, and
//! with what is mounted below it on the host. The old root is then unmounted; `..` of a share leads
//! to the empty root and no further. A share that is a file is bound to a file.
//!
//! `/proc/self/fd` is kept as a mount of its own that is in no tree: the one way from a descriptor
//! that only names a file to one that opens it, and no way to anything else of `/proc`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::error::SandboxError;
use super::sys;

const PROC_SELF_FD: &str = "/proc/self/fd";

/// What the serving process sees of the file system.
#[derive(Debug)]
pub(super) struct Root {
    /// The shares, in their order, by `O_PATH`.
    pub(super) shares: Vec<OwnedFd>,
    /// `/proc/self/fd`, by `O_PATH`.
    pub(super) proc_self_fd: OwnedFd,
}

/// Opens the shares where they are.
pub(super) fn unchanged(shares: &[PathBuf]) -> Result<Root, SandboxError> {
    Ok(Root {
        shares: shares
            .iter()
            .map(|path| open_share(path))
            .collect::<Result<_, _>>()?,
        proc_self_fd: open_path(Path::new(PROC_SELF_FD))
            .map_err(SandboxError::system("open /proc/self/fd"))?,
    })
}

/// Makes the only share the root with `chroot(2)`, which root may do without any namespace.
pub(super) fn change(share: &Path) -> Result<Root, SandboxError> {
    let mut root = unchanged(&[])?;
    chroot(share).map_err(failed_on(share, "chroot"))?;
    chdir("/").map_err(SandboxError::system("go to the new root"))?;
    root.shares.push(open_share(Path::new("/"))?);
    Ok(root)
}

/// Makes a root of the shares, to be read only if it is so; to be called in a new mount namespace.
pub(super) fn pivot(shares: &[PathBuf], read_only: bool) -> Result<Root, SandboxError> {
    // What is mounted on the host goes on to appear below the shares, nothing goes back.
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", propagation).map_err(SandboxError::system("separate the mounts"))?;
    let proc_self_fd = clone_tree(Path::new(PROC_SELF_FD), OpenTreeFlags::empty())
        .map_err(SandboxError::system("clone /proc/self/fd"))?;
    let trees = shares
        .iter()
        .map(|path| share_tree(path, read_only))
        .collect::<Result<Vec<_>, _>>()?;
    let root = make_root(&trees)?;
    switch_to(&root)?;
    let shares = (0..trees.len())
        .map(|number| open_share(&Path::new("/").join(number.to_string())))
        .collect::<Result<_, _>>()?;
    Ok(Root {
        shares,
        proc_self_fd,
    })
}

fn open_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn open_share(path: &Path) -> Result<OwnedFd, SandboxError> {
    open_path(path).map_err(failed_on(path, "open"))
}

fn failed_on(path: &Path, action: &'static str) -> impl FnOnce(rustix::io::Errno) -> SandboxError {
    move |errno| SandboxError::Share {
        path: path.to_owned(),
        action,
        source: errno.into(),
    }
}

/// The mount that `path` is in, from `path` on, as one of its own in no tree.
fn clone_tree(path: &Path, more: OpenTreeFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags | more)
}

/// A share with what is mounted below it.
fn share_tree(path: &Path, read_only: bool) -> Result<OwnedFd, SandboxError> {
    let tree = clone_tree(path, OpenTreeFlags::AT_RECURSIVE).map_err(failed_on(path, "clone"))?;
    // Neither is of use here. Without execution access(2) would say so to a guest, which may well
    // execute; here it is seccomp that forbids it.
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    if read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    sys::set_mount_attributes(tree.as_fd(), attributes.bits().into()).map_err(|source| {
        SandboxError::Share {
            path: path.to_owned(),
            action: "mount without devices",
            source,
        }
    })?;
    Ok(tree)
}

/// An empty root on top of the present one, with the shares bound in it.
fn make_root(trees: &[OwnedFd]) -> Result<OwnedFd, SandboxError> {
    let root = empty_root().map_err(SandboxError::system("make an empty root"))?;
    for (number, tree) in trees.iter().enumerate() {
        make_entry(&root, &number.to_string(), tree)
            .map_err(SandboxError::system("make an entry for a share"))?;
    }
    // Before anything is bound to it: the attributes reach what is below.
    sys::set_mount_attributes(
        root.as_fd(),
        MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
    )
    .map_err(SandboxError::system("make the root read-only"))?;
    attach(&root, CWD, "/").map_err(SandboxError::system("mount the root"))?;
    for (number, tree) in trees.iter().enumerate() {
        attach(tree, root.as_fd(), &number.to_string())
            .map_err(SandboxError::system("bind a share"))?;
    }
    Ok(root)
}

fn empty_root() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "mode", "0555")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Something of the same kind as `tree`, for it to be bound to.
fn make_entry(root: &OwnedFd, name: &str, tree: &OwnedFd) -> rustix::io::Result<()> {
    if FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory {
        return mkdirat(root, name, Mode::RUSR);
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(root, name, flags, Mode::RUSR).map(drop)
}

fn attach(tree: &OwnedFd, at: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", at, name, flags)
}

/// `pivot_root(2)` with `.` for both: the old root ends up on top of the new one.
fn switch_to(root: &OwnedFd) -> Result<(), SandboxError> {
    fchdir(root).map_err(SandboxError::system("go to the new root"))?;
    pivot_root(".", ".").map_err(SandboxError::system("switch to the new root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(SandboxError::system("unmount the old root"))?;
    chdir("/").map_err(SandboxError::system("go to the new root"))
}
