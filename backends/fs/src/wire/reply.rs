// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What replies carry behind their header.

use super::flags::{AttrFlags, InitFlags, OpenOutFlags};

/// `struct fuse_attr`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
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
    /// Seconds.
    pub seconds: u64,
    /// Nanoseconds.
    pub nanos: u32,
}

/// `struct fuse_entry_out`. Node 0 is a name that does not exist.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct Entry {
    pub node: u64,
    pub generation: u64,
    pub entry_timeout: Timeout,
    pub attr_timeout: Timeout,
    pub attr: Attr,
}

/// `struct fuse_open_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Opened {
    /// The handle.
    pub handle: u64,
    /// What the guest may do with it.
    pub flags: OpenOutFlags,
}

/// `struct fuse_init_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
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
