// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a request to its reply, but for the bytes of files.
//!
//! [`serve`] does what a request asks for and appends the reply to a buffer. [`is_long`] tells
//! which requests are better served on a thread that may wait; what they do there is the same.

use crate::dax::Mapping;
use crate::error::{Errno, Result};
use crate::passthrough::{Cx, DirScratch, Kind, NewFile, PassThrough};
use crate::pool::Work;
use crate::wire::flags::MappingFlags;
use crate::wire::operation::{LookupName, Operation};
use crate::wire::reply::{CopiedWide, Lseek, Written};

/// The kinds of operations that are counted apart.
pub const KINDS: &[&str] = &[
    "lookup",
    "metadata",
    "open",
    "read",
    "write",
    "directory",
    "sync",
    "other",
];

/// Which of [`KINDS`] an operation is.
#[must_use]
pub fn kind_of(op: &Operation<'_>) -> usize {
    match op {
        Operation::Lookup { .. } | Operation::Forget { .. } | Operation::BatchForget { .. } => 0,
        Operation::Open { .. } | Operation::Create { .. } | Operation::TmpFile { .. } => 2,
        Operation::Release(_) | Operation::Flush { .. } => 2,
        Operation::Read(_) => 3,
        Operation::Write(_) => 4,
        Operation::OpenDir { .. }
        | Operation::ReadDir(_)
        | Operation::ReadDirPlus(_)
        | Operation::ReleaseDir(_) => 5,
        Operation::Fsync { .. } | Operation::FsyncDir { .. } | Operation::SyncFs => 6,
        Operation::GetAttr { .. }
        | Operation::SetAttr(_)
        | Operation::Statx { .. }
        | Operation::ReadLink
        | Operation::Symlink { .. }
        | Operation::MkNod { .. }
        | Operation::MkDir { .. }
        | Operation::Unlink { .. }
        | Operation::RmDir { .. }
        | Operation::Rename { .. }
        | Operation::Link { .. }
        | Operation::SetXattr { .. }
        | Operation::GetXattr { .. }
        | Operation::ListXattr { .. }
        | Operation::RemoveXattr { .. } => 1,
        _ => 7,
    }
}

/// Whether a request may wait for a disk for long, so that others would wait with it, although its
/// files are on this machine.
#[must_use]
pub fn is_long(fs: &PassThrough, node: u64, op: &Operation<'_>) -> bool {
    use crate::wire::flags::SetAttrValid;
    match op {
        Operation::Fsync { .. }
        | Operation::FsyncDir { .. }
        | Operation::SyncFs
        | Operation::Fallocate { .. }
        | Operation::CopyFileRange(_)
        | Operation::SetupMapping { .. }
        | Operation::RemoveMapping { .. }
        // It goes all the way up, over whatever mounts there are.
        | Operation::Lookup {
            name: LookupName::Parent,
        } => true,
        // What is mapped is taken away.
        Operation::Init(_) | Operation::Destroy => fs.window.is_in_use(),
        Operation::Open { flags, .. }
            if flags & libc::O_TRUNC.cast_unsigned() != 0 && fs.is_long_truncation(node, 0) =>
        {
            true
        }
        Operation::SetAttr(set)
            if set.valid.contains(SetAttrValid::SIZE)
                && fs.is_long_truncation(node, set.size_bytes) =>
        {
            true
        }
        _ => false,
    }
}

/// What kind of work a request is for who has it done.
#[must_use]
pub fn work_of(op: &Operation<'_>) -> Work {
    match op {
        Operation::Fsync { .. }
        | Operation::FsyncDir { .. }
        | Operation::SyncFs
        | Operation::Flush { .. }
        | Operation::Release(_)
        | Operation::ReleaseDir(_)
        | Operation::SetLock { .. }
        | Operation::SetupMapping { .. }
        | Operation::RemoveMapping { .. } => Work::Changes,
        op if changes(op) => Work::Changes,
        _ => Work::Reads,
    }
}

/// Whether a request that is not long opens a file of the host. If the answer to that is EAGAIN,
/// somebody has a lease on the file, and it is for a thread that may wait.
#[must_use]
pub fn may_open(op: &Operation<'_>) -> bool {
    matches!(
        op,
        Operation::Open { .. } | Operation::Ioctl(_) | Operation::Lseek { .. }
    )
}

/// Whether a request changes something, which a share that is read-only has none of.
fn changes(op: &Operation<'_>) -> bool {
    const WRITES: u32 = (libc::O_ACCMODE | libc::O_TRUNC).cast_unsigned();
    match op {
        Operation::SetAttr(_)
        | Operation::Symlink { .. }
        | Operation::MkNod { .. }
        | Operation::MkDir { .. }
        | Operation::Unlink { .. }
        | Operation::RmDir { .. }
        | Operation::Rename { .. }
        | Operation::Link { .. }
        | Operation::Create { .. }
        | Operation::TmpFile { .. }
        | Operation::Write(_)
        | Operation::SetXattr { .. }
        | Operation::RemoveXattr { .. }
        | Operation::Fallocate { .. }
        | Operation::CopyFileRange(_) => true,
        Operation::Open { flags, .. } => flags & WRITES != 0,
        Operation::SetupMapping { flags, .. } => flags & MappingFlags::WRITE.bits() != 0,
        _ => false,
    }
}

/// Refuses what changes something on a share that is read-only.
///
/// # Errors
/// EROFS.
pub fn check_read_only(fs: &PassThrough, op: &Operation<'_>) -> Result<()> {
    if fs.config.readonly && changes(op) {
        return Err(Errno::ROFS);
    }
    Ok(())
}

/// Does what `op` asks for, and appends what the reply has behind its header to `out`.
///
/// `READ`, `WRITE` and `SETLKW` are not for here.
///
/// # Errors
/// The errno of the reply; `out` is then of no use.
pub fn serve(
    fs: &PassThrough,
    cx: &mut Cx<'_>,
    op: &Operation<'_>,
    dirs: &mut DirScratch,
    out: &mut Vec<u8>,
) -> Result<()> {
    // Whatever is not said to take set-user-ID bits off does not.
    cx.thread.use_fsetid(true)?;
    match op {
        Operation::Lookup { name } => put(out, &fs.lookup(cx, *name)?.to_bytes()),
        Operation::GetAttr { handle } => put(out, &fs.get_attr(cx, *handle)?.to_bytes()),
        Operation::Open { flags, open_flags } => {
            put(out, &fs.open(cx, *flags, *open_flags)?.to_bytes());
        }
        Operation::Release(release) | Operation::ReleaseDir(release) => fs.release(cx, release)?,
        Operation::Flush { handle, lock_owner } => fs.flush(cx, *handle, *lock_owner)?,
        Operation::OpenDir { .. } => put(out, &fs.open_dir(cx)?.to_bytes()),
        Operation::ReadDir(read) => fs.read_dir(cx, read, false, dirs, out)?,
        Operation::ReadDirPlus(read) => fs.read_dir(cx, read, true, dirs, out)?,
        Operation::Init(init) => put(out, &fs.init(init)?.to_bytes()),
        Operation::Destroy => fs.end(),
        _ => return serve_names(fs, cx, op, out),
    }
    Ok(())
}

/// What makes, moves and takes names, and what is about nodes.
fn serve_names(
    fs: &PassThrough,
    cx: &mut Cx<'_>,
    op: &Operation<'_>,
    out: &mut Vec<u8>,
) -> Result<()> {
    match op {
        Operation::Create { .. } | Operation::TmpFile { .. } => return create(fs, cx, op, out),
        Operation::MkDir {
            name,
            mode,
            umask,
            with,
        } => {
            let kind = Kind::Directory { mode: *mode };
            put(out, &fs.make(cx, *name, kind, *umask, with)?.to_bytes());
        }
        Operation::MkNod {
            name,
            mode,
            rdev,
            umask,
            with,
        } => {
            let (mode, rdev) = (*mode, *rdev);
            let kind = Kind::Node { mode, rdev };
            put(out, &fs.make(cx, *name, kind, *umask, with)?.to_bytes());
        }
        Operation::Symlink { name, target, with } => {
            let kind = Kind::Symlink { target };
            put(out, &fs.make(cx, *name, kind, 0, with)?.to_bytes());
        }
        Operation::Unlink { name } => fs.unlink(cx, *name, false)?,
        Operation::RmDir { name } => fs.unlink(cx, *name, true)?,
        Operation::Rename {
            name,
            new_parent,
            new_name,
            flags,
        } => fs.rename(cx, *name, *new_parent, *new_name, *flags)?,
        Operation::Link { node, name } => put(out, &fs.link(cx, *node, *name)?.to_bytes()),
        Operation::ReadLink => fs.read_link(cx, out)?,
        Operation::SetAttr(set) => put(out, &fs.set_attr(cx, set)?.to_bytes()),
        Operation::Statx { handle, .. } => put(out, &fs.statx(cx, *handle)?.to_bytes()),
        Operation::StatFs => put(out, &fs.stat_fs(cx)?.to_bytes()),
        Operation::Access { mask } => fs.access(cx, *mask)?,
        _ => return serve_rest(fs, cx, op, out),
    }
    Ok(())
}

/// Extended attributes, what is done to open files, and locks.
fn serve_rest(
    fs: &PassThrough,
    cx: &mut Cx<'_>,
    op: &Operation<'_>,
    out: &mut Vec<u8>,
) -> Result<()> {
    match op {
        Operation::GetXattr { name, size_bytes } => fs.get_xattr(cx, name, *size_bytes, out)?,
        Operation::ListXattr { size_bytes } => fs.list_xattr(cx, *size_bytes, out)?,
        Operation::SetXattr {
            name,
            value,
            flags,
            kills_sgid,
        } => fs.set_xattr(cx, name, value, *flags, *kills_sgid)?,
        Operation::RemoveXattr { name } => fs.remove_xattr(cx, name)?,
        Operation::Fsync { handle, data_only } => fs.fsync(cx, *handle, *data_only, false)?,
        Operation::FsyncDir { handle, data_only } => fs.fsync(cx, *handle, *data_only, true)?,
        Operation::SyncFs => fs.sync_fs(cx)?,
        Operation::Fallocate {
            handle,
            offset_bytes,
            len_bytes,
            mode,
        } => fs.fallocate(cx, *handle, *offset_bytes, *len_bytes, *mode)?,
        Operation::Lseek {
            handle,
            offset_bytes,
            whence,
        } => {
            let offset_bytes = fs.lseek(cx, *handle, *offset_bytes, *whence)?;
            put(out, &Lseek { offset_bytes }.to_bytes());
        }
        Operation::CopyFileRange(copy) => {
            let size_bytes = fs.copy_file_range(cx, copy)?;
            if copy.wide {
                put(out, &CopiedWide { size_bytes }.to_bytes());
            } else {
                let size_bytes = u32::try_from(size_bytes).map_err(|_e| Errno::OVERFLOW)?;
                put(out, &Written { size_bytes }.to_bytes());
            }
        }
        Operation::GetLock(lock) => put(out, &fs.get_lock(cx, lock)?.to_bytes()),
        Operation::SetLock { lock, .. } => fs.set_lock(cx, lock)?,
        Operation::Ioctl(request) => fs.ioctl(cx, request, out)?,
        Operation::SetupMapping {
            handle,
            file_offset_bytes,
            len_bytes,
            flags,
            window_offset_bytes,
        } => {
            let mapping = Mapping {
                node: cx.header.node,
                window_offset_bytes: *window_offset_bytes,
                file_offset_bytes: *file_offset_bytes,
                len_bytes: *len_bytes,
                writable: false,
            };
            fs.set_up_mapping(cx, *handle, *flags, mapping)?;
        }
        Operation::RemoveMapping { mappings } => fs.remove_mappings(mappings)?,
        _ => return Err(Errno::NOSYS),
    }
    Ok(())
}

fn create(fs: &PassThrough, cx: &mut Cx<'_>, op: &Operation<'_>, out: &mut Vec<u8>) -> Result<()> {
    let (Operation::Create {
        flags,
        mode,
        umask,
        open_flags,
        with,
        ..
    }
    | Operation::TmpFile {
        flags,
        mode,
        umask,
        open_flags,
        with,
    }) = *op
    else {
        return Err(Errno::NOSYS);
    };
    let file = NewFile {
        flags,
        mode,
        umask,
        open_flags,
    };
    let created = match *op {
        Operation::Create { name, .. } => fs.create(cx, name, file, &with)?,
        _ => fs.create_nameless(cx, file, &with)?,
    };
    put(out, &created.to_bytes());
    Ok(())
}

#[inline]
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}
