// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other side of the wire: requests as Linux writes them, replies as it reads them.
//!
//! It is the client of the tests; the server itself has no use for it.

mod extensions;
mod replies;

pub(super) use replies::{ReplyBody, parse_dirents, parse_dirents_plus};

use super::super::bytes::Put;
use super::super::flags::{
    FSYNC_FDATASYNC, GETATTR_FH, InitFlags, LK_FLOCK, SETXATTR_ACL_KILL_SGID, opcode,
};
use super::super::header::{IN_HEADER_BYTES, InHeader};
use super::super::name::Name;
use super::super::operation::{
    CopyFileRange, Creation, IoctlIn, LockIn, LookupName, Operation, ReadIn, Release, SetAttr,
    WriteIn,
};

/// Writes a request: header and arguments. Of `WRITE` the data are for the caller to append.
///
/// Of `header`, the number, the node and the caller are taken; lengths and the opcode are those of
/// `operation`. `negotiated` says what the arguments look like, and must be what the server agreed
/// to. A `Rename` without flags is a `RENAME`.
#[must_use]
pub(crate) fn encode_request(
    header: &InHeader,
    operation: &Operation<'_>,
    negotiated: InitFlags,
) -> Vec<u8> {
    let mut args = Vec::new();
    let mut extensions = Vec::new();
    put_file(&mut args, operation);
    put_entry(&mut args, operation);
    put_attribute(&mut args, operation, negotiated);
    if let Some(with) = creation(operation) {
        extensions::put(&mut extensions, with, negotiated);
    }
    let data_bytes = match operation {
        Operation::Write(write) => write.size_bytes,
        _ => 0,
    };
    let bytes = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let header = InHeader {
        len_bytes: bytes(IN_HEADER_BYTES)
            .saturating_add(bytes(args.len()))
            .saturating_add(bytes(extensions.len()))
            .saturating_add(data_bytes),
        opcode: operation.opcode(),
        extensions_bytes: bytes(extensions.len()),
        ..*header
    };
    [&header.to_bytes()[..], &args, &extensions].concat()
}

impl Operation<'_> {
    /// The number of the operation.
    #[must_use]
    pub(crate) const fn opcode(&self) -> u32 {
        match self {
            Self::Lookup { .. } => opcode::LOOKUP,
            Self::Forget { .. } => opcode::FORGET,
            Self::BatchForget { .. } => opcode::BATCH_FORGET,
            Self::GetAttr { .. } => opcode::GETATTR,
            Self::SetAttr(_) => opcode::SETATTR,
            Self::Statx { .. } => opcode::STATX,
            Self::ReadLink => opcode::READLINK,
            Self::Symlink { .. } => opcode::SYMLINK,
            Self::MkNod { .. } => opcode::MKNOD,
            Self::MkDir { .. } => opcode::MKDIR,
            Self::Unlink { .. } => opcode::UNLINK,
            Self::RmDir { .. } => opcode::RMDIR,
            Self::Rename { flags, .. } if flags.is_empty() => opcode::RENAME,
            Self::Rename { .. } => opcode::RENAME2,
            Self::Link { .. } => opcode::LINK,
            Self::Open { .. } => opcode::OPEN,
            Self::Create { .. } => opcode::CREATE,
            Self::TmpFile { .. } => opcode::TMPFILE,
            Self::Read(_) => opcode::READ,
            Self::Write(_) => opcode::WRITE,
            Self::StatFs => opcode::STATFS,
            Self::Release(_) => opcode::RELEASE,
            Self::Fsync { .. } => opcode::FSYNC,
            Self::Flush { .. } => opcode::FLUSH,
            Self::SetXattr { .. } => opcode::SETXATTR,
            Self::GetXattr { .. } => opcode::GETXATTR,
            Self::ListXattr { .. } => opcode::LISTXATTR,
            Self::RemoveXattr { .. } => opcode::REMOVEXATTR,
            _ => self.rarer_opcode(),
        }
    }

    const fn rarer_opcode(&self) -> u32 {
        match self {
            Self::Init(_) => opcode::INIT,
            Self::OpenDir { .. } => opcode::OPENDIR,
            Self::ReadDir(_) => opcode::READDIR,
            Self::ReadDirPlus(_) => opcode::READDIRPLUS,
            Self::ReleaseDir(_) => opcode::RELEASEDIR,
            Self::FsyncDir { .. } => opcode::FSYNCDIR,
            Self::GetLock(_) => opcode::GETLK,
            Self::SetLock { waits: false, .. } => opcode::SETLK,
            Self::SetLock { waits: true, .. } => opcode::SETLKW,
            Self::Access { .. } => opcode::ACCESS,
            Self::Interrupt { .. } => opcode::INTERRUPT,
            Self::Destroy => opcode::DESTROY,
            Self::Ioctl(_) => opcode::IOCTL,
            Self::Fallocate { .. } => opcode::FALLOCATE,
            Self::Lseek { .. } => opcode::LSEEK,
            Self::CopyFileRange(CopyFileRange { wide: false, .. }) => opcode::COPY_FILE_RANGE,
            Self::CopyFileRange(CopyFileRange { wide: true, .. }) => opcode::COPY_FILE_RANGE_64,
            Self::SyncFs => opcode::SYNCFS,
            Self::SetupMapping { .. } => opcode::SETUPMAPPING,
            Self::RemoveMapping { .. } => opcode::REMOVEMAPPING,
            _ => opcode::NOTIFY_REPLY,
        }
    }
}

/// What `operation` has for extensions, if it can have some.
fn creation<'a>(operation: &'a Operation<'a>) -> Option<&'a Creation<'a>> {
    match operation {
        Operation::Create { with, .. }
        | Operation::TmpFile { with, .. }
        | Operation::MkNod { with, .. }
        | Operation::MkDir { with, .. }
        | Operation::Symlink { with, .. } => Some(with),
        _ => None,
    }
}

/// The arguments of operations on open files and directories.
fn put_file(out: &mut Vec<u8>, operation: &Operation<'_>) {
    match *operation {
        Operation::Open { flags, open_flags } => {
            out.u32(flags);
            out.u32(open_flags.bits());
        }
        Operation::OpenDir { flags } => out.u64(u64::from(flags)),
        Operation::Release(ref fields) | Operation::ReleaseDir(ref fields) => {
            put_release(out, fields);
        }
        Operation::Read(ref fields)
        | Operation::ReadDir(ref fields)
        | Operation::ReadDirPlus(ref fields) => put_read(out, fields),
        Operation::Write(ref fields) => put_write(out, fields),
        Operation::Flush { handle, lock_owner } => {
            out.u64(handle);
            out.u64(0);
            out.u64(lock_owner);
        }
        Operation::Fsync { handle, data_only } | Operation::FsyncDir { handle, data_only } => {
            out.u64(handle);
            out.u64(u64::from(if data_only { FSYNC_FDATASYNC } else { 0 }));
        }
        Operation::Lseek {
            handle,
            offset_bytes,
            whence,
        } => {
            out.u64(handle);
            out.u64(offset_bytes);
            out.u64(u64::from(whence));
        }
        Operation::Fallocate {
            handle,
            offset_bytes,
            len_bytes,
            mode,
        } => {
            out.u64(handle);
            out.u64(offset_bytes);
            out.u64(len_bytes);
            out.u64(u64::from(mode.bits()));
        }
        Operation::CopyFileRange(ref fields) => put_copy(out, fields),
        Operation::GetLock(ref lock) | Operation::SetLock { ref lock, .. } => put_lock(out, lock),
        Operation::Ioctl(ref fields) => put_ioctl(out, fields),
        _ => put_mapping(out, operation),
    }
}

fn put_release(out: &mut Vec<u8>, fields: &Release) {
    out.u64(fields.handle);
    out.u32(fields.flags);
    out.u32(fields.release_flags);
    out.u64(fields.lock_owner);
}

fn put_read(out: &mut Vec<u8>, fields: &ReadIn) {
    out.u64(fields.handle);
    out.u64(fields.offset_bytes);
    out.u32(fields.size_bytes);
    out.u32(fields.read_flags);
    out.u64(fields.lock_owner);
    out.u64(u64::from(fields.flags));
}

fn put_write(out: &mut Vec<u8>, fields: &WriteIn) {
    out.u64(fields.handle);
    out.u64(fields.offset_bytes);
    out.u32(fields.size_bytes);
    out.u32(fields.write_flags.bits());
    out.u64(fields.lock_owner);
    out.u64(u64::from(fields.flags));
}

fn put_copy(out: &mut Vec<u8>, fields: &CopyFileRange) {
    out.u64(fields.handle_in);
    out.u64(fields.offset_in_bytes);
    out.u64(fields.node_out);
    out.u64(fields.handle_out);
    out.u64(fields.offset_out_bytes);
    out.u64(fields.len_bytes);
    out.u64(fields.flags);
}

fn put_lock(out: &mut Vec<u8>, lock: &LockIn) {
    out.u64(lock.handle);
    out.u64(lock.owner);
    out.u64(lock.start);
    out.u64(lock.end);
    out.u32(lock.kind);
    out.u32(lock.pid);
    out.u64(u64::from(if lock.flock { LK_FLOCK } else { 0 }));
}

fn put_ioctl(out: &mut Vec<u8>, fields: &IoctlIn<'_>) {
    out.u64(fields.handle);
    out.u32(fields.flags.bits());
    out.u32(fields.command);
    out.u64(fields.argument);
    put_count(out, fields.data.len());
    out.u32(fields.out_size_bytes);
    out.put(fields.data);
}

fn put_mapping(out: &mut Vec<u8>, operation: &Operation<'_>) {
    match operation {
        Operation::SetupMapping {
            handle,
            file_offset_bytes,
            len_bytes,
            flags,
            window_offset_bytes,
        } => {
            for field in [
                handle,
                file_offset_bytes,
                len_bytes,
                flags,
                window_offset_bytes,
            ] {
                out.u64(*field);
            }
        }
        Operation::RemoveMapping { mappings } => {
            put_count(out, mappings.0.len());
            out.put(mappings.0.as_flattened().as_flattened());
        }
        _ => (),
    }
}

/// The arguments of operations with names of directory entries, without extensions.
fn put_entry(out: &mut Vec<u8>, operation: &Operation<'_>) {
    match *operation {
        Operation::Lookup { ref name } => match name {
            LookupName::Child(name) => put_name(out, *name),
            LookupName::Itself => out.put(b".\0"),
            LookupName::Parent => out.put(b"..\0"),
        },
        Operation::Create { .. } | Operation::TmpFile { .. } => put_create(out, operation),
        Operation::MkNod {
            name,
            mode,
            rdev,
            umask,
            ..
        } => {
            for field in [mode, rdev, umask, 0] {
                out.u32(field);
            }
            put_name(out, name);
        }
        Operation::MkDir {
            name, mode, umask, ..
        } => {
            out.u32(mode);
            out.u32(umask);
            put_name(out, name);
        }
        Operation::Symlink { name, target, .. } => {
            put_name(out, name);
            out.put(target.to_bytes_with_nul());
        }
        Operation::Unlink { name } | Operation::RmDir { name } => put_name(out, name),
        Operation::Rename {
            name,
            new_parent,
            new_name,
            flags,
        } => {
            out.u64(new_parent);
            if !flags.is_empty() {
                out.u64(u64::from(flags.bits()));
            }
            put_name(out, name);
            put_name(out, new_name);
        }
        Operation::Link { node, name } => {
            out.u64(node);
            put_name(out, name);
        }
        _ => (),
    }
}

fn put_create(out: &mut Vec<u8>, operation: &Operation<'_>) {
    let (name, file) = match operation {
        Operation::Create { name, file, .. } => (name.as_c_str(), file),
        // As Linux calls what has no name.
        Operation::TmpFile { file, .. } => (c"/", file),
        _ => return,
    };
    for field in [file.flags, file.mode, file.umask, file.open_flags.bits()] {
        out.u32(field);
    }
    out.put(name.to_bytes_with_nul());
}

/// The arguments of the other operations.
fn put_attribute(out: &mut Vec<u8>, operation: &Operation<'_>, negotiated: InitFlags) {
    match *operation {
        Operation::Forget { nlookup: number } | Operation::Interrupt { unique: number } => {
            out.u64(number);
        }
        Operation::BatchForget { ref forgets } => {
            put_count(out, forgets.0.len());
            out.u32(0);
            out.put(forgets.0.as_flattened().as_flattened());
        }
        Operation::GetAttr { handle } => put_handle(out, handle),
        Operation::Statx {
            handle,
            flags,
            mask,
        } => {
            put_handle(out, handle);
            out.u32(flags);
            out.u32(mask);
        }
        Operation::SetAttr(ref fields) => put_set_attr(out, fields),
        Operation::Access { mask } => out.u64(u64::from(mask)),
        Operation::GetXattr { name, size_bytes } => {
            out.u64(u64::from(size_bytes));
            out.put(name.to_bytes_with_nul());
        }
        Operation::ListXattr { size_bytes } => out.u64(u64::from(size_bytes)),
        Operation::RemoveXattr { name } => out.put(name.to_bytes_with_nul()),
        Operation::SetXattr { .. } => put_set_xattr(out, operation, negotiated),
        Operation::Init(ref init) => {
            let [f0, f1, f2, f3, high @ ..] = init.flags.bits().to_le_bytes();
            out.u32(init.major);
            out.u32(init.minor);
            out.u32(init.max_readahead_bytes);
            out.put(&[f0, f1, f2, f3]);
            out.put(&high);
            out.put(&[0; 44]);
        }
        Operation::SyncFs => out.u64(0),
        Operation::NotifyReply => out.put(&[0; 40]),
        _ => (),
    }
}

fn put_set_xattr(out: &mut Vec<u8>, operation: &Operation<'_>, negotiated: InitFlags) {
    if let Operation::SetXattr {
        name,
        value,
        flags,
        kills_sgid,
    } = *operation
    {
        put_count(out, value.len());
        out.u32(flags);
        if negotiated.contains(InitFlags::SETXATTR_EXT) {
            let flags = if kills_sgid {
                SETXATTR_ACL_KILL_SGID
            } else {
                0
            };
            out.u64(u64::from(flags));
        }
        out.put(name.to_bytes_with_nul());
        out.put(value);
    }
}

fn put_set_attr(out: &mut Vec<u8>, fields: &SetAttr) {
    let times = [fields.atime, fields.mtime, fields.ctime];
    out.u64(u64::from(fields.valid.bits()));
    out.u64(fields.handle);
    out.u64(fields.size_bytes);
    out.u64(fields.lock_owner);
    for time in times {
        out.u64(time.seconds);
    }
    for time in times {
        out.u32(time.nanos);
    }
    for field in [fields.mode, 0, fields.uid, fields.gid, 0] {
        out.u32(field);
    }
}

fn put_handle(out: &mut Vec<u8>, handle: Option<u64>) {
    out.u64(u64::from(if handle.is_some() { GETATTR_FH } else { 0 }));
    out.u64(handle.unwrap_or_default());
}

fn put_name(out: &mut Vec<u8>, name: Name<'_>) {
    out.put(name.as_c_str().to_bytes_with_nul());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.u32(u32::try_from(count).unwrap_or(u32::MAX));
}
