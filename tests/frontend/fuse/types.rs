// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What requests and replies carry, in values; the layouts are in `request` and `decode`.
#![expect(missing_docs, reason = "the fields are those of fuse.h")]

use super::flags::{AttrFlags, InitFlags, OpenOutFlags, SetAttrValid};

/// A time of a file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Time {
    /// Seconds since the epoch, two's complement.
    pub seconds: u64,
    pub nanos: u32,
}

impl Time {
    /// A time.
    #[must_use]
    pub const fn new(seconds: u64, nanos: u32) -> Self {
        Self { seconds, nanos }
    }
}

/// `struct fuse_setattr_in`; only the fields that `valid` names count.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SetAttr {
    pub valid: SetAttrValid,
    pub handle: u64,
    pub size_bytes: u64,
    pub lock_owner: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// `struct fuse_lk_in`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LockIn {
    pub handle: u64,
    pub owner: u64,
    pub start: u64,
    /// The last byte, not the one behind it; `i64::MAX` for the end of the file.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: u32,
    pub pid: u32,
    /// Whether the lock is one of `flock(2)` instead of `fcntl(2)`.
    pub flock: bool,
}

/// `struct fuse_copy_file_range_in`; the header's node is the source.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CopyFileRange {
    pub handle_in: u64,
    pub offset_in_bytes: u64,
    pub node_out: u64,
    pub handle_out: u64,
    pub offset_out_bytes: u64,
    pub len_bytes: u64,
    pub flags: u64,
    /// Sent as `COPY_FILE_RANGE_64`.
    pub wide: bool,
}

/// `struct fuse_attr`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attr {
    pub ino: u64,
    pub size_bytes: u64,
    pub blocks: u64,
    pub atime_s: u64,
    pub mtime_s: u64,
    pub ctime_s: u64,
    pub atime_ns: u32,
    pub mtime_ns: u32,
    pub ctime_ns: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub block_size_bytes: u32,
    pub flags: AttrFlags,
}

/// How long the guest may believe something.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timeout {
    pub seconds: u64,
    pub nanos: u32,
}

/// `struct fuse_entry_out`. Node 0 is a name that does not exist.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Entry {
    pub node: u64,
    pub generation: u64,
    pub entry_timeout: Timeout,
    pub attr_timeout: Timeout,
    pub attr: Attr,
}

/// `struct fuse_open_out`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Opened {
    pub handle: u64,
    pub flags: OpenOutFlags,
}

/// `struct fuse_init_out`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InitOut {
    pub major: u32,
    pub minor: u32,
    pub max_readahead_bytes: u32,
    pub flags: InitFlags,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write_bytes: u32,
    pub time_gran_ns: u32,
    pub max_pages: u16,
    pub map_alignment: u16,
    pub max_stack_depth: u32,
    pub request_timeout_s: u16,
}
