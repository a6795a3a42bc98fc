// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a request to its reply, but for the bytes of files.
//!
//! [`serve`] does what a request asks for and appends the reply to a buffer. Its [`Traits`] tell
//! which requests are better served on a thread that may wait; what they do there is the same.

mod traits;

use crate::dax::Mapping;
use crate::error::{Errno, Result};
use crate::passthrough::{Cx, DirScratch, Kind, PassThrough};
pub use crate::server::traits::{KINDS, Traits, Wait};
use crate::wire::operation::Operation;
use crate::wire::reply::{CopiedWide, Lseek, Written};

/// Whether an operation on `node` may wait for a disk for long, so that others would wait with it,
/// although its files are on this machine.
#[must_use]
#[inline]
pub fn is_long(fs: &PassThrough, node: u64, wait: Wait) -> bool {
    match wait {
        Wait::Short => false,
        Wait::Long => true,
        Wait::LongIfMapped => fs.window.is_in_use(),
        Wait::LongIfCut(size_bytes) => fs.is_long_truncation(node, size_bytes),
    }
}

/// Refuses changes of a share that is read-only.
///
/// # Errors
/// EROFS.
#[inline]
pub fn check_read_only(fs: &PassThrough, traits: &Traits) -> Result<()> {
    if fs.config.readonly && traits.changes {
        return Err(Errno::ROFS);
    }
    Ok(())
}

/// Does what `op` asks for, and appends what the reply has behind its header to `out`.
///
/// `READ`, `WRITE` and `SETLKW` are served elsewhere.
///
/// # Errors
/// The errno of the reply; `out` is then of no use.
#[expect(
    clippy::too_many_lines,
    reason = "one line for each operation: the compiler tells of one that is missing"
)]
pub fn serve(
    fs: &PassThrough,
    cx: &mut Cx<'_>,
    op: &Operation<'_>,
    dirs: &mut DirScratch,
    out: &mut Vec<u8>,
) -> Result<()> {
    // Unless the request says that set-user-ID bits are taken off, they stay.
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
        Operation::Create { name, file, with } => {
            put(out, &fs.create(cx, *name, *file, with)?.to_bytes());
        }
        Operation::TmpFile { file, with } => {
            put(out, &fs.create_nameless(cx, *file, with)?.to_bytes());
        }
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
        // Those with data are served beside their buffers, and those without a reply elsewhere.
        Operation::Read(_)
        | Operation::Write(_)
        | Operation::Forget { .. }
        | Operation::BatchForget { .. }
        | Operation::Interrupt { .. }
        | Operation::NotifyReply => return Err(Errno::NOSYS),
    }
    Ok(())
}

#[inline]
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}
