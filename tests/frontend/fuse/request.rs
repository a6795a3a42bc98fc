// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests as bytes, laid out as `fuse.h` says.

use crate::fuse::flags::IN_HEADER_BYTES;
use crate::fuse::flags::{InitFlags, MAJOR, MINOR, opcode};
use crate::fuse::types::{CopyFileRange, LockIn, SetAttr};

use super::queue::Caller;

/// Bytes of `struct fuse_entry_out`.
pub(super) const ENTRY_BYTES: u32 = 128;
/// Bytes of `struct fuse_attr_out`.
const ATTR_BYTES: u32 = 104;
/// Bytes of `struct fuse_open_out`.
pub(super) const OPEN_BYTES: u32 = 16;
/// `FUSE_LK_FLOCK`
const LK_FLOCK: u32 = 1;
/// `FUSE_GETATTR_FH`
const GETATTR_FH: u32 = 1;

/// A request; it can be kept and sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub opcode: u32,
    /// The node it is about.
    pub node: u64,
    /// What follows the header.
    pub args: Vec<u8>,
    /// Bytes that follow the arguments, from the data of the slot.
    pub data_bytes: u32,
    /// Bytes of the reply behind its header that are no data.
    pub reply_args_bytes: u32,
    /// Bytes of the reply behind those, which go to the data of the slot.
    pub reply_data_bytes: u32,
    /// Bytes of extensions at the end of the arguments, in units of 8.
    pub extensions: u16,
}

/// Appends fields.
trait Put: Sized {
    fn u32(self, value: u32) -> Self;
    fn u64(self, value: u64) -> Self;
    fn bytes(self, bytes: &[u8]) -> Self;
    fn name(self, name: impl AsRef<[u8]>) -> Self {
        self.bytes(name.as_ref()).bytes(&[0])
    }
}

impl Put for Vec<u8> {
    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.extend_from_slice(bytes);
        self
    }
}

fn args() -> Vec<u8> {
    Vec::new()
}

/// What some request says in one word.
fn word(value: u32) -> Vec<u8> {
    args().u32(value).u32(0)
}

#[expect(
    missing_docs,
    reason = "one constructor per operation, with the fields of fuse.h"
)]
impl Request {
    /// Any request without data; `reply_args_bytes` of room behind the header of the reply.
    #[must_use]
    pub fn new(opcode: u32, node: u64, args: Vec<u8>, reply_args_bytes: u32) -> Self {
        Self {
            opcode,
            node,
            args,
            reply_args_bytes,
            ..Self::default()
        }
    }

    /// The same with room for data in the reply.
    #[must_use]
    pub fn reply_data(mut self, bytes: u32) -> Self {
        self.reply_data_bytes = bytes;
        self
    }

    /// Whether there is a reply.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        !matches!(
            self.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT
        )
    }

    /// `struct fuse_in_header`
    #[inline]
    #[must_use]
    pub fn header(&self, len_bytes: u32, unique: u64, caller: Caller) -> [u8; IN_HEADER_BYTES] {
        let mut header = [0; IN_HEADER_BYTES];
        header[..4].copy_from_slice(&len_bytes.to_le_bytes());
        header[4..8].copy_from_slice(&self.opcode.to_le_bytes());
        header[8..16].copy_from_slice(&unique.to_le_bytes());
        header[16..24].copy_from_slice(&self.node.to_le_bytes());
        header[24..28].copy_from_slice(&caller.uid.to_le_bytes());
        header[28..32].copy_from_slice(&caller.gid.to_le_bytes());
        header[32..36].copy_from_slice(&caller.pid.to_le_bytes());
        header[36..38].copy_from_slice(&self.extensions.to_le_bytes());
        header
    }

    #[must_use]
    pub fn init(flags: InitFlags) -> Self {
        const READAHEAD_BYTES: u32 = 128 << 10;
        const REST_BYTES: usize = 44;
        let [low, high] = halves(flags.bits());
        let args = args().u32(MAJOR).u32(MINOR).u32(READAHEAD_BYTES);
        let args = args.u32(low).u32(high).bytes(&[0; REST_BYTES]);
        Self::new(opcode::INIT, 0, args, 64)
    }

    #[must_use]
    pub fn destroy() -> Self {
        Self::new(opcode::DESTROY, 0, args(), 0)
    }

    pub fn lookup(parent: u64, name: impl AsRef<[u8]>) -> Self {
        Self::new(opcode::LOOKUP, parent, args().name(name), ENTRY_BYTES)
    }

    #[must_use]
    pub fn forget(node: u64, nlookup: u64) -> Self {
        Self::new(opcode::FORGET, node, args().u64(nlookup), 0)
    }

    #[must_use]
    pub fn batch_forget(forgets: &[(u64, u64)]) -> Self {
        let count = u32::try_from(forgets.len()).unwrap_or(u32::MAX);
        let args = forgets.iter().fold(word(count), |args, (node, nlookup)| {
            args.u64(*node).u64(*nlookup)
        });
        Self::new(opcode::BATCH_FORGET, 0, args, 0)
    }

    /// `handle` is `u64::MAX` for none; `flags` are 1 to write and 2 to read.
    #[must_use]
    pub fn set_up_mapping(
        node: u64,
        handle: u64,
        flags: u64,
        (file_offset, len, window_offset): (u64, u64, u64),
    ) -> Self {
        let args = args().u64(handle).u64(file_offset).u64(len);
        let args = args.u64(flags).u64(window_offset);
        Self::new(opcode::SETUPMAPPING, node, args, 0)
    }

    /// Offsets and lengths.
    #[must_use]
    pub fn remove_mapping(node: u64, mappings: &[(u64, u64)]) -> Self {
        let count = u32::try_from(mappings.len()).unwrap_or(u32::MAX);
        let args = mappings
            .iter()
            .fold(args().u32(count), |args, (offset, len)| {
                args.u64(*offset).u64(*len)
            });
        Self::new(opcode::REMOVEMAPPING, node, args, 0)
    }

    #[must_use]
    pub fn interrupt(unique: u64) -> Self {
        Self::new(opcode::INTERRUPT, 0, args().u64(unique), 0)
    }

    #[must_use]
    pub fn getattr(node: u64, handle: Option<u64>) -> Self {
        let flags = if handle.is_some() { GETATTR_FH } else { 0 };
        let args = word(flags).u64(handle.unwrap_or(0));
        Self::new(opcode::GETATTR, node, args, ATTR_BYTES)
    }

    #[must_use]
    pub fn setattr(node: u64, set: &SetAttr) -> Self {
        let args = word(set.valid.bits())
            .u64(set.handle)
            .u64(set.size_bytes)
            .u64(set.lock_owner)
            .u64(set.atime.seconds)
            .u64(set.mtime.seconds)
            .u64(set.ctime.seconds)
            .u32(set.atime.nanos)
            .u32(set.mtime.nanos)
            .u32(set.ctime.nanos)
            .u32(set.mode)
            .u32(0)
            .u32(set.uid)
            .u32(set.gid)
            .u32(0);
        Self::new(opcode::SETATTR, node, args, ATTR_BYTES)
    }

    #[must_use]
    pub fn statx(node: u64, handle: Option<u64>, flags: u32, mask: u32) -> Self {
        let by_handle = if handle.is_some() { GETATTR_FH } else { 0 };
        let args = word(by_handle).u64(handle.unwrap_or(0));
        Self::new(opcode::STATX, node, args.u32(flags).u32(mask), 288)
    }

    #[must_use]
    pub fn readlink(node: u64) -> Self {
        Self::new(opcode::READLINK, node, args(), 0).reply_data(4096)
    }

    pub fn symlink(parent: u64, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let args = args().name(name).name(target);
        Self::new(opcode::SYMLINK, parent, args, ENTRY_BYTES)
    }

    pub fn mknod(parent: u64, name: impl AsRef<[u8]>, mode: u32, rdev: u32, umask: u32) -> Self {
        let args = args().u32(mode).u32(rdev).u32(umask).u32(0).name(name);
        Self::new(opcode::MKNOD, parent, args, ENTRY_BYTES)
    }

    pub fn mkdir(parent: u64, name: impl AsRef<[u8]>, mode: u32, umask: u32) -> Self {
        let args = args().u32(mode).u32(umask).name(name);
        Self::new(opcode::MKDIR, parent, args, ENTRY_BYTES)
    }

    pub fn unlink(parent: u64, name: impl AsRef<[u8]>) -> Self {
        Self::new(opcode::UNLINK, parent, args().name(name), 0)
    }

    pub fn rmdir(parent: u64, name: impl AsRef<[u8]>) -> Self {
        Self::new(opcode::RMDIR, parent, args().name(name), 0)
    }

    /// `FUSE_RENAME2`; `from` and `to` are a directory and a name in it.
    pub fn rename(from: (u64, impl AsRef<[u8]>), to: (u64, impl AsRef<[u8]>), flags: u32) -> Self {
        let args = args().u64(to.0).u32(flags).u32(0).name(from.1).name(to.1);
        Self::new(opcode::RENAME2, from.0, args, 0)
    }

    pub fn link(node: u64, parent: u64, name: impl AsRef<[u8]>) -> Self {
        let args = args().u64(node).name(name);
        Self::new(opcode::LINK, parent, args, ENTRY_BYTES)
    }

    #[must_use]
    pub fn open(node: u64, flags: u32) -> Self {
        Self::new(opcode::OPEN, node, word(flags), OPEN_BYTES)
    }

    pub fn create(parent: u64, name: impl AsRef<[u8]>, flags: u32, mode: u32, umask: u32) -> Self {
        let args = args().u32(flags).u32(mode).u32(umask).u32(0).name(name);
        Self::new(opcode::CREATE, parent, args, ENTRY_BYTES + OPEN_BYTES)
    }

    #[must_use]
    pub fn tmpfile(parent: u64, flags: u32, mode: u32, umask: u32) -> Self {
        let mut request = Self::create(parent, "/", flags, mode, umask);
        request.opcode = opcode::TMPFILE;
        request
    }

    #[must_use]
    pub fn read(node: u64, handle: u64, offset_bytes: u64, size_bytes: u32) -> Self {
        Self::reading(opcode::READ, node, handle, offset_bytes, size_bytes)
    }

    /// The data are those of the slot.
    #[must_use]
    pub fn write(node: u64, handle: u64, offset_bytes: u64, size_bytes: u32) -> Self {
        let args = args().u64(handle).u64(offset_bytes).u32(size_bytes).u32(0);
        Self {
            data_bytes: size_bytes,
            ..Self::new(opcode::WRITE, node, args.u64(0).u32(0).u32(0), 8)
        }
    }

    #[must_use]
    pub fn statfs(node: u64) -> Self {
        Self::new(opcode::STATFS, node, args(), 80)
    }

    #[must_use]
    pub fn release(node: u64, handle: u64, flags: u32) -> Self {
        let args = args().u64(handle).u32(flags).u32(0).u64(0);
        Self::new(opcode::RELEASE, node, args, 0)
    }

    #[must_use]
    pub fn fsync(node: u64, handle: u64, data_only: bool) -> Self {
        let args = args().u64(handle).u32(data_only.into()).u32(0);
        Self::new(opcode::FSYNC, node, args, 0)
    }

    #[must_use]
    pub fn flush(node: u64, handle: u64, lock_owner: u64) -> Self {
        let args = args().u64(handle).u64(0).u64(lock_owner);
        Self::new(opcode::FLUSH, node, args, 0)
    }

    /// In the longer form with `ext` (`FUSE_SETXATTR_EXT`).
    pub fn setxattr(
        node: u64,
        name: impl AsRef<[u8]>,
        value: &[u8],
        flags: u32,
        ext: bool,
    ) -> Self {
        let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
        let mut args = args().u32(size).u32(flags);
        if ext {
            args = args.u64(0);
        }
        Self::new(opcode::SETXATTR, node, args.name(name).bytes(value), 0)
    }

    /// With size 0 the reply is the size.
    pub fn getxattr(node: u64, name: impl AsRef<[u8]>, size_bytes: u32) -> Self {
        let args = word(size_bytes).name(name);
        let reply_bytes = if size_bytes == 0 { 8 } else { size_bytes };
        Self::new(opcode::GETXATTR, node, args, reply_bytes)
    }

    /// With size 0 the reply is the size.
    #[must_use]
    pub fn listxattr(node: u64, size_bytes: u32) -> Self {
        let reply_bytes = if size_bytes == 0 { 8 } else { size_bytes };
        Self::new(opcode::LISTXATTR, node, word(size_bytes), reply_bytes)
    }

    pub fn removexattr(node: u64, name: impl AsRef<[u8]>) -> Self {
        Self::new(opcode::REMOVEXATTR, node, args().name(name), 0)
    }

    #[must_use]
    pub fn opendir(node: u64, flags: u32) -> Self {
        Self::new(opcode::OPENDIR, node, word(flags), OPEN_BYTES)
    }

    #[must_use]
    pub fn readdir(node: u64, handle: u64, offset: u64, size_bytes: u32) -> Self {
        Self::reading(opcode::READDIR, node, handle, offset, size_bytes)
    }

    #[must_use]
    pub fn readdirplus(node: u64, handle: u64, offset: u64, size_bytes: u32) -> Self {
        Self::reading(opcode::READDIRPLUS, node, handle, offset, size_bytes)
    }

    #[must_use]
    pub fn releasedir(node: u64, handle: u64) -> Self {
        let mut request = Self::release(node, handle, 0);
        request.opcode = opcode::RELEASEDIR;
        request
    }

    #[must_use]
    pub fn fsyncdir(node: u64, handle: u64, data_only: bool) -> Self {
        let mut request = Self::fsync(node, handle, data_only);
        request.opcode = opcode::FSYNCDIR;
        request
    }

    #[must_use]
    pub fn getlk(node: u64, lock: &LockIn) -> Self {
        Self::locking(opcode::GETLK, node, lock, 24)
    }

    /// `FUSE_SETLKW` if it waits.
    #[must_use]
    pub fn setlk(node: u64, lock: &LockIn, waits: bool) -> Self {
        let opcode = if waits { opcode::SETLKW } else { opcode::SETLK };
        Self::locking(opcode, node, lock, 0)
    }

    #[must_use]
    pub fn access(node: u64, mask: u32) -> Self {
        Self::new(opcode::ACCESS, node, word(mask), 0)
    }

    #[must_use]
    pub fn ioctl(node: u64, handle: u64, command: u32, data: &[u8], out_bytes: u32) -> Self {
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let args = args().u64(handle).u32(0).u32(command).u64(0);
        let args = args.u32(size).u32(out_bytes).bytes(data);
        Self::new(opcode::IOCTL, node, args, 16).reply_data(out_bytes)
    }

    #[must_use]
    pub fn fallocate(node: u64, handle: u64, offset: u64, len_bytes: u64, mode: u32) -> Self {
        let args = args().u64(handle).u64(offset).u64(len_bytes);
        Self::new(opcode::FALLOCATE, node, args.u32(mode).u32(0), 0)
    }

    #[must_use]
    pub fn lseek(node: u64, handle: u64, offset: u64, whence: u32) -> Self {
        let args = args().u64(handle).u64(offset).u32(whence).u32(0);
        Self::new(opcode::LSEEK, node, args, 8)
    }

    #[must_use]
    pub fn copy_file_range(node: u64, copy: &CopyFileRange) -> Self {
        let args = args()
            .u64(copy.handle_in)
            .u64(copy.offset_in_bytes)
            .u64(copy.node_out)
            .u64(copy.handle_out)
            .u64(copy.offset_out_bytes)
            .u64(copy.len_bytes)
            .u64(copy.flags);
        let opcode = if copy.wide {
            opcode::COPY_FILE_RANGE_64
        } else {
            opcode::COPY_FILE_RANGE
        };
        Self::new(opcode, node, args, 8)
    }

    #[must_use]
    pub fn syncfs(node: u64) -> Self {
        Self::new(opcode::SYNCFS, node, args().u64(0), 0)
    }

    fn reading(opcode: u32, node: u64, handle: u64, offset: u64, size: u32) -> Self {
        let args = args().u64(handle).u64(offset).u32(size).u32(0);
        Self::new(opcode, node, args.u64(0).u32(0).u32(0), 0).reply_data(size)
    }

    fn locking(opcode: u32, node: u64, lock: &LockIn, reply_args_bytes: u32) -> Self {
        let flags = if lock.flock { LK_FLOCK } else { 0 };
        let args = args().u64(lock.handle).u64(lock.owner);
        let args = args.u64(lock.start).u64(lock.end);
        let args = args.u32(lock.kind).u32(lock.pid).u32(flags).u32(0);
        Self::new(opcode, node, args, reply_args_bytes)
    }
}

/// The low and the high word.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, high @ ..] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(high)]
}
