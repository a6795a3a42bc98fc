// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What replies carry behind their header. Each `to_bytes` is the structure as it is sent.

use super::bytes::{Put, pack};
use super::flags::{AttrFlags, InitFlags, IoctlFlags, OpenOutFlags};
use super::operation::Time;

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

impl Attr {
    fn put(&self, out: &mut impl Put) {
        out.u64(self.ino);
        out.u64(self.size_bytes);
        out.u64(self.blocks);
        out.u64(self.atime_s);
        out.u64(self.mtime_s);
        out.u64(self.ctime_s);
        out.u32(self.atime_ns);
        out.u32(self.mtime_ns);
        out.u32(self.ctime_ns);
        out.u32(self.mode);
        out.u32(self.nlink);
        out.u32(self.uid);
        out.u32(self.gid);
        out.u32(self.rdev);
        out.u32(self.block_size_bytes);
        out.u32(self.flags.bits());
    }
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

impl Entry {
    /// The reply to `LOOKUP` and to what creates without opening.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 128] {
        pack(|out| {
            out.u64(self.node);
            out.u64(self.generation);
            out.u64(self.entry_timeout.seconds);
            out.u64(self.attr_timeout.seconds);
            out.u32(self.entry_timeout.nanos);
            out.u32(self.attr_timeout.nanos);
            self.attr.put(out);
        })
    }
}

/// `struct fuse_attr_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct AttrOut {
    pub timeout: Timeout,
    pub attr: Attr,
}

impl AttrOut {
    /// The reply to `GETATTR` and `SETATTR`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 104] {
        pack(|out| {
            out.u64(self.timeout.seconds);
            out.u32(self.timeout.nanos);
            out.u32(0);
            self.attr.put(out);
        })
    }
}

/// `struct fuse_statx_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct Statx {
    pub timeout: Timeout,
    pub mask: u32,
    pub block_size_bytes: u32,
    pub attributes: u64,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub mode: u16,
    pub ino: u64,
    pub size_bytes: u64,
    pub blocks: u64,
    pub attributes_mask: u64,
    pub atime: Time,
    pub btime: Time,
    pub ctime: Time,
    pub mtime: Time,
    pub rdev_major: u32,
    pub rdev_minor: u32,
    pub dev_major: u32,
    pub dev_minor: u32,
}

impl Statx {
    /// The reply to `STATX`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 288] {
        pack(|out| {
            out.u64(self.timeout.seconds);
            out.u32(self.timeout.nanos);
            out.put(&[0; 20]); // flags, which are none, and room
            out.u32(self.mask);
            out.u32(self.block_size_bytes);
            out.u64(self.attributes);
            out.u32(self.nlink);
            out.u32(self.uid);
            out.u32(self.gid);
            out.u16(self.mode);
            out.u16(0);
            out.u64(self.ino);
            out.u64(self.size_bytes);
            out.u64(self.blocks);
            out.u64(self.attributes_mask);
            for time in [self.atime, self.btime, self.ctime, self.mtime] {
                out.u64(time.seconds);
                out.u32(time.nanos);
                out.u32(0);
            }
            out.u32(self.rdev_major);
            out.u32(self.rdev_minor);
            out.u32(self.dev_major);
            out.u32(self.dev_minor);
        })
    }
}

/// `struct fuse_open_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Opened {
    /// The handle.
    pub handle: u64,
    /// What the guest may do with it.
    pub flags: OpenOutFlags,
}

impl Opened {
    /// The reply to `OPEN` and `OPENDIR`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 16] {
        pack(|out| {
            out.u64(self.handle);
            out.u32(self.flags.bits());
        })
    }
}

/// `struct fuse_entry_out` and `struct fuse_open_out`, one behind the other.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Created {
    pub entry: Entry,
    pub opened: Opened,
}

impl Created {
    /// The reply to `CREATE` and `TMPFILE`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 144] {
        pack(|out| {
            out.put(&self.entry.to_bytes());
            out.put(&self.opened.to_bytes());
        })
    }
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

impl InitOut {
    /// The reply to `INIT`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 64] {
        let [f0, f1, f2, f3, high @ ..] = self.flags.bits().to_le_bytes();
        pack(|out| {
            out.u32(self.major);
            out.u32(self.minor);
            out.u32(self.max_readahead_bytes);
            out.put(&[f0, f1, f2, f3]);
            out.u16(self.max_background);
            out.u16(self.congestion_threshold);
            out.u32(self.max_write_bytes);
            out.u32(self.time_gran_ns);
            out.u16(self.max_pages);
            out.u16(self.map_alignment);
            out.put(&high);
            out.u32(self.max_stack_depth);
            out.u16(self.request_timeout_s);
        })
    }
}

/// `struct fuse_write_out`: the reply to `WRITE` and to the narrow `COPY_FILE_RANGE`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Written {
    /// Bytes written.
    pub size_bytes: u32,
}

impl Written {
    /// The structure as it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 8] {
        u64::from(self.size_bytes).to_le_bytes()
    }
}

/// `struct fuse_copy_file_range_out`: the reply to `COPY_FILE_RANGE_64`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CopiedWide {
    /// Bytes copied.
    pub size_bytes: u64,
}

impl CopiedWide {
    /// The structure as it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 8] {
        self.size_bytes.to_le_bytes()
    }
}

/// `struct fuse_lseek_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Lseek {
    /// Where the data or the hole is.
    pub offset_bytes: u64,
}

impl Lseek {
    /// The reply to `LSEEK`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 8] {
        self.offset_bytes.to_le_bytes()
    }
}

/// `struct fuse_getxattr_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct XattrSize {
    /// Bytes that the value or the list has.
    pub size_bytes: u32,
}

impl XattrSize {
    /// The reply to `GETXATTR` and `LISTXATTR` that ask for the size.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 8] {
        u64::from(self.size_bytes).to_le_bytes()
    }
}

/// `struct fuse_statfs_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct StatFs {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size_bytes: u32,
    pub name_max_bytes: u32,
    pub fragment_size_bytes: u32,
}

impl StatFs {
    /// The reply to `STATFS`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 80] {
        pack(|out| {
            out.u64(self.blocks);
            out.u64(self.blocks_free);
            out.u64(self.blocks_available);
            out.u64(self.files);
            out.u64(self.files_free);
            out.u32(self.block_size_bytes);
            out.u32(self.name_max_bytes);
            out.u32(self.fragment_size_bytes);
        })
    }
}

/// `struct fuse_lk_out`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct Lock {
    pub start: u64,
    /// The last byte, as in [`LockIn`](super::operation::LockIn).
    pub end: u64,
    pub kind: u32,
    pub pid: u32,
}

impl Lock {
    /// The reply to `GETLK`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 24] {
        pack(|out| {
            out.u64(self.start);
            out.u64(self.end);
            out.u32(self.kind);
            out.u32(self.pid);
        })
    }
}

/// `struct fuse_ioctl_out`, of a well-formed `ioctl(2)`; its data follow.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct IoctlOut {
    /// What the call returned.
    pub result: i32,
    /// Always empty: nothing is to be tried again.
    pub flags: IoctlFlags,
}

impl IoctlOut {
    /// The head of the reply to `IOCTL`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 16] {
        pack(|out| {
            out.put(&self.result.to_le_bytes());
            out.u32(self.flags.bits());
        })
    }
}
