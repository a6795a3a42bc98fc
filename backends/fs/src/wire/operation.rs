// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a request asks for.

use std::ffi::CStr;

use super::flags::{FallocateFlags, InitFlags, IoctlFlags, OpenInFlags, RenameFlags, SetAttrValid};
use super::name::Name;

/// A parsed request. Handles, offsets and sizes are the guest's and unchecked.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub enum Operation<'a> {
    /// `FUSE_LOOKUP`
    Lookup { name: LookupName<'a> },
    /// `FUSE_FORGET`: no reply.
    Forget { nlookup: u64 },
    /// `FUSE_BATCH_FORGET`: no reply.
    BatchForget { forgets: Forgets<'a> },
    /// `FUSE_GETATTR`
    GetAttr { handle: Option<u64> },
    /// `FUSE_SETATTR`
    SetAttr(SetAttr),
    /// `FUSE_STATX`
    Statx {
        handle: Option<u64>,
        flags: u32,
        mask: u32,
    },
    /// `FUSE_READLINK`
    ReadLink,
    /// `FUSE_SYMLINK`
    Symlink {
        name: Name<'a>,
        target: &'a CStr,
        with: Creation<'a>,
    },
    /// `FUSE_MKNOD`
    MkNod {
        name: Name<'a>,
        mode: u32,
        rdev: u32,
        umask: u32,
        with: Creation<'a>,
    },
    /// `FUSE_MKDIR`
    MkDir {
        name: Name<'a>,
        mode: u32,
        umask: u32,
        with: Creation<'a>,
    },
    /// `FUSE_UNLINK`
    Unlink { name: Name<'a> },
    /// `FUSE_RMDIR`
    RmDir { name: Name<'a> },
    /// `FUSE_RENAME` and `FUSE_RENAME2`
    Rename {
        name: Name<'a>,
        new_parent: u64,
        new_name: Name<'a>,
        flags: RenameFlags,
    },
    /// `FUSE_LINK`: the header's node is the directory.
    Link { node: u64, name: Name<'a> },
    /// `FUSE_OPEN`; `flags` are `open(2)`'s as Linux numbers them.
    Open { flags: u32, open_flags: OpenInFlags },
    /// `FUSE_CREATE`
    Create {
        name: Name<'a>,
        file: NewFile,
        with: Creation<'a>,
    },
    /// `FUSE_TMPFILE`: as `Create`, of a file without a name; `name` is ignored.
    TmpFile { file: NewFile, with: Creation<'a> },
    /// `FUSE_READ`
    Read(ReadIn),
    /// `FUSE_WRITE`: the data follow the arguments and are not part of them.
    Write(WriteIn),
    /// `FUSE_STATFS`
    StatFs,
    /// `FUSE_RELEASE`
    Release(Release),
    /// `FUSE_FSYNC`
    Fsync { handle: u64, data_only: bool },
    /// `FUSE_FLUSH`
    Flush { handle: u64, lock_owner: u64 },
    /// `FUSE_SETXATTR`
    SetXattr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
        kills_sgid: bool,
    },
    /// `FUSE_GETXATTR`; with size 0 the reply is the size.
    GetXattr { name: &'a CStr, size_bytes: u32 },
    /// `FUSE_LISTXATTR`; as `GetXattr`.
    ListXattr { size_bytes: u32 },
    /// `FUSE_REMOVEXATTR`
    RemoveXattr { name: &'a CStr },
    /// `FUSE_INIT`
    Init(InitIn),
    /// `FUSE_OPENDIR`
    OpenDir { flags: u32 },
    /// `FUSE_READDIR`
    ReadDir(ReadIn),
    /// `FUSE_READDIRPLUS`
    ReadDirPlus(ReadIn),
    /// `FUSE_RELEASEDIR`
    ReleaseDir(Release),
    /// `FUSE_FSYNCDIR`
    FsyncDir { handle: u64, data_only: bool },
    /// `FUSE_GETLK`
    GetLock(LockIn),
    /// `FUSE_SETLK` and `FUSE_SETLKW`, with `waits`.
    SetLock { lock: LockIn, waits: bool },
    /// `FUSE_ACCESS`
    Access { mask: u32 },
    /// `FUSE_INTERRUPT`: no reply.
    Interrupt { unique: u64 },
    /// `FUSE_DESTROY`
    Destroy,
    /// `FUSE_IOCTL`
    Ioctl(IoctlIn<'a>),
    /// `FUSE_FALLOCATE`
    Fallocate {
        handle: u64,
        offset_bytes: u64,
        len_bytes: u64,
        mode: FallocateFlags,
    },
    /// `FUSE_LSEEK`
    Lseek {
        handle: u64,
        offset_bytes: u64,
        whence: u32,
    },
    /// `FUSE_COPY_FILE_RANGE`, and with `wide` `FUSE_COPY_FILE_RANGE_64`, whose reply has 64 bits.
    CopyFileRange(CopyFileRange),
    /// `FUSE_SYNCFS`
    SyncFs,
    /// `FUSE_SETUPMAPPING`
    SetupMapping {
        handle: u64,
        file_offset_bytes: u64,
        len_bytes: u64,
        flags: u64,
        window_offset_bytes: u64,
    },
    /// `FUSE_REMOVEMAPPING`
    RemoveMapping { mappings: Mappings<'a> },
    /// `FUSE_NOTIFY_REPLY`: no reply.
    NotifyReply,
}

/// The name of `FUSE_LOOKUP`, which may be one that NFS servers use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LookupName<'a> {
    /// An entry.
    Child(Name<'a>),
    /// "."
    Itself,
    /// ".."
    Parent,
}

/// How a new file is made and opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NewFile {
    /// `open(2)`'s, of the guest.
    pub flags: u32,
    /// Its permissions.
    pub mode: u32,
    /// The permissions that the guest masks, where it leaves that to us.
    pub umask: u32,
    /// What else the guest wants.
    pub open_flags: OpenInFlags,
}

/// What requests that create something carry at their end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Creation<'a> {
    /// A security label for what is created: name of the extended attribute, and value.
    pub security: Option<(&'a CStr, &'a [u8])>,
    /// The supplementary group of the caller that matters: that of the directory.
    pub group: Option<u32>,
}

/// `struct fuse_setattr_in`; only what `valid` names counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
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

/// A time of a file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Time {
    /// Seconds since the epoch, two's complement.
    pub seconds: u64,
    /// Nanoseconds.
    pub nanos: u32,
}

impl Time {
    /// A time.
    #[must_use]
    pub const fn new(seconds: u64, nanos: u32) -> Self {
        Self { seconds, nanos }
    }
}

/// `struct fuse_read_in`, of files and directories.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct ReadIn {
    pub handle: u64,
    pub offset_bytes: u64,
    pub size_bytes: u32,
    pub read_flags: u32,
    pub lock_owner: u64,
    pub flags: u32,
}

/// `struct fuse_write_in`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct WriteIn {
    pub handle: u64,
    pub offset_bytes: u64,
    pub size_bytes: u32,
    pub write_flags: super::flags::WriteFlags,
    pub lock_owner: u64,
    pub flags: u32,
}

/// `struct fuse_release_in`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct Release {
    pub handle: u64,
    pub flags: u32,
    pub release_flags: u32,
    pub lock_owner: u64,
}

/// `struct fuse_lk_in`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct LockIn {
    pub handle: u64,
    pub owner: u64,
    pub start: u64,
    /// The last byte, not the one behind it; `i64::MAX` for the end of the file.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: u32,
    pub pid: u32,
    /// Whether it is `flock(2)`'s instead of `fcntl(2)`'s.
    pub flock: bool,
}

/// `struct fuse_init_in`, the extension included.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct InitIn {
    pub major: u32,
    pub minor: u32,
    pub max_readahead_bytes: u32,
    pub flags: InitFlags,
}

/// `struct fuse_ioctl_in` and the data behind it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct IoctlIn<'a> {
    pub handle: u64,
    pub flags: IoctlFlags,
    pub command: u32,
    pub argument: u64,
    pub data: &'a [u8],
    pub out_size_bytes: u32,
}

/// `struct fuse_copy_file_range_in`; the header's node is the source.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct CopyFileRange {
    pub handle_in: u64,
    pub offset_in_bytes: u64,
    pub node_out: u64,
    pub handle_out: u64,
    pub offset_out_bytes: u64,
    pub len_bytes: u64,
    pub flags: u64,
    pub wide: bool,
}

/// The entries of `FUSE_BATCH_FORGET`: nodes and how many lookups of each are forgotten.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Forgets<'a>(pub(super) &'a [[[u8; 8]; 2]]);

impl Forgets<'_> {
    /// The node and the number of its lookups, of each entry.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + use<'_> {
        numbers(self.0)
    }
}

/// The entries of `FUSE_REMOVEMAPPING`: offsets into the window and lengths, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mappings<'a>(pub(super) &'a [[[u8; 8]; 2]]);

impl Mappings<'_> {
    /// Offset and length of each entry, in bytes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + use<'_> {
        numbers(self.0)
    }
}

fn numbers(pairs: &[[[u8; 8]; 2]]) -> impl ExactSizeIterator<Item = (u64, u64)> + use<'_> {
    pairs
        .iter()
        .map(|&[first, second]| (u64::from_le_bytes(first), u64::from_le_bytes(second)))
}
