// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parser of requests: what the driver wrote, as an [`Operation`].
//!
//! Nothing is allocated, and nothing that the driver claims is believed beyond the bytes that are
//! there. A request has exactly the bytes that its operation has in `fuse.h`: one byte more or less
//! is an error, because it would mean that the two sides disagree about the layout. There are
//! these exceptions: what has no arguments may bring some all the same (the driver of Windows adds
//! bytes to `READLINK`); `INIT` may be longer than known, for it tells what the two sides agree
//! about; `NOTIFY_REPLY` is never awaited, so nobody looks at it; an extension may end in up to
//! seven bytes of padding. Unknown flags are kept as they come, and fields that only pad ignored.
//!
//! The four most frequent requests are told first, by one comparison each; the others by theme.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use std::ffi::CStr;

use thiserror::Error;

use super::bytes::Reader;
use super::extension;
use super::flags::{
    FSYNC_FDATASYNC, FallocateFlags, GETATTR_FH, InitFlags, IoctlFlags, LK_FLOCK, MAJOR,
    OpenInFlags, RenameFlags, SETXATTR_ACL_KILL_SGID, SetAttrValid, WriteFlags, opcode,
};
use super::header::InHeader;
use super::name::{NAME_MAX_BYTES, Name, NameError};
use super::operation::{
    CopyFileRange, Creation, Forgets, InitIn, IoctlIn, LockIn, LookupName, Mappings, Operation,
    ReadIn, Release, SetAttr, Time, WriteIn,
};

/// The longest target of a symbolic link (`PATH_MAX`, less the NUL).
pub const TARGET_MAX_BYTES: usize = 4095;
/// The longest name of an extended attribute (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX_BYTES: usize = 255;
/// The longest value of an extended attribute (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX_BYTES: usize = 65536;

/// Why a request is not one.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ParseError {
    /// An operation that is not known, or not served: `BMAP`, `POLL`.
    #[error("operation {opcode} is not served")]
    Unsupported {
        /// What was asked for.
        opcode: u32,
    },
    /// Too few bytes, or too many for fields of fixed size.
    #[error("{len_bytes} bytes are not the length of these fields")]
    Length {
        /// Bytes that there are.
        len_bytes: usize,
    },
    /// Bytes behind the end.
    #[error("{len_bytes} bytes behind the end")]
    Trailing {
        /// How many.
        len_bytes: usize,
    },
    /// A string without an end.
    #[error("a string without NUL")]
    NoNul,
    /// A name that no directory entry can have.
    #[error("{0}")]
    Name(#[from] NameError),
    /// A symbolic link to nothing.
    #[error("an empty target")]
    TargetEmpty,
    /// A symbolic link to more than 4095 bytes.
    #[error("a target of more than {TARGET_MAX_BYTES} bytes")]
    TargetTooLong,
    /// A name of an extended attribute that is empty or has more than 255 bytes.
    #[error("a name of an attribute that has not 1 to {XATTR_NAME_MAX_BYTES} bytes")]
    XattrName,
    /// A value of an extended attribute with more than 65536 bytes.
    #[error("a value of more than {XATTR_VALUE_MAX_BYTES} bytes")]
    ValueTooLong,
    /// Another number of entries than there are bytes for.
    #[error("{count} entries claimed in {len_bytes} bytes")]
    Count {
        /// The number claimed.
        count: u32,
        /// Bytes that there are.
        len_bytes: usize,
    },
    /// Extensions that are malformed, unknown, repeated or were not agreed.
    #[error("malformed extensions")]
    Extension,
}

impl ParseError {
    /// The number of the error that the driver gets, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Unsupported { .. } => libc::ENOSYS,
            Self::Name(NameError::TooLong) | Self::TargetTooLong => libc::ENAMETOOLONG,
            Self::XattrName => libc::ERANGE,
            Self::ValueTooLong => libc::E2BIG,
            _ => libc::EINVAL,
        }
    }
}

impl<'a> Operation<'a> {
    /// Parses `args`, all bytes behind `header`, but without the data of `WRITE`.
    ///
    /// `negotiated` is what `INIT` agreed about; some layouts depend on it. The length that the
    /// header claims is not looked at.
    ///
    /// # Errors
    /// What is wrong with the request.
    #[inline]
    pub fn parse(
        header: &InHeader,
        args: &'a [u8],
        negotiated: InitFlags,
    ) -> Result<Self, ParseError> {
        match header.opcode {
            opcode::LOOKUP => lookup(args),
            opcode::GETATTR => Reader::exact::<16, _>(args, get_attr),
            opcode::READ => Reader::exact::<40, _>(args, read_in).map(Self::Read),
            opcode::WRITE => Reader::exact::<40, _>(args, write_in).map(Self::Write),
            _ => Self::parse_file(header, args, negotiated),
        }
    }

    /// The operations on open files and directories.
    fn parse_file(
        header: &InHeader,
        args: &'a [u8],
        negotiated: InitFlags,
    ) -> Result<Self, ParseError> {
        match header.opcode {
            opcode::OPEN => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::Open {
                    flags: fields.u32()?,
                    open_flags: OpenInFlags::from_bits_retain(fields.u32()?),
                })
            }),
            opcode::OPENDIR => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::OpenDir {
                    flags: fields.u32()?,
                })
            }),
            opcode::RELEASE => Reader::exact::<24, _>(args, release).map(Self::Release),
            opcode::RELEASEDIR => Reader::exact::<24, _>(args, release).map(Self::ReleaseDir),
            opcode::READDIR => Reader::exact::<40, _>(args, read_in).map(Self::ReadDir),
            opcode::READDIRPLUS => Reader::exact::<40, _>(args, read_in).map(Self::ReadDirPlus),
            opcode::FLUSH => Reader::exact::<24, _>(args, flush),
            opcode::FSYNC => Reader::exact::<16, _>(args, fsync)
                .map(|(handle, data_only)| Self::Fsync { handle, data_only }),
            opcode::FSYNCDIR => Reader::exact::<16, _>(args, fsync)
                .map(|(handle, data_only)| Self::FsyncDir { handle, data_only }),
            opcode::LSEEK => Reader::exact::<24, _>(args, lseek),
            opcode::FALLOCATE => Reader::exact::<32, _>(args, fallocate),
            opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
                let wide = header.opcode == opcode::COPY_FILE_RANGE_64;
                Reader::exact::<56, _>(args, |fields| copy_file_range(fields, wide))
            }
            opcode::GETLK => Reader::exact::<48, _>(args, lock_in).map(Self::GetLock),
            opcode::SETLK | opcode::SETLKW => {
                let waits = header.opcode == opcode::SETLKW;
                Reader::exact::<48, _>(args, lock_in).map(|lock| Self::SetLock { lock, waits })
            }
            opcode::IOCTL => ioctl(args),
            opcode::SETUPMAPPING => Reader::exact::<40, _>(args, setup_mapping),
            opcode::REMOVEMAPPING => remove_mapping(args),
            _ => Self::parse_entry(header, args, negotiated),
        }
    }

    /// The operations with names of directory entries.
    fn parse_entry(
        header: &InHeader,
        args: &'a [u8],
        negotiated: InitFlags,
    ) -> Result<Self, ParseError> {
        let mut args_left = Reader::new(args);
        let fields = &mut args_left;
        match header.opcode {
            opcode::CREATE => create(header, fields, negotiated),
            opcode::TMPFILE => tmp_file(header, fields, negotiated),
            opcode::MKNOD => mknod(header, fields, negotiated),
            opcode::MKDIR => mkdir(header, fields, negotiated),
            opcode::SYMLINK => symlink(header, fields, negotiated),
            opcode::UNLINK => last_name(fields).map(|name| Self::Unlink { name }),
            opcode::RMDIR => last_name(fields).map(|name| Self::RmDir { name }),
            opcode::RENAME => {
                let new_parent = fields.u64()?;
                rename(fields, new_parent, RenameFlags::empty())
            }
            opcode::RENAME2 => {
                let new_parent = fields.u64()?;
                let flags = RenameFlags::from_bits_retain(fields.u32()?);
                fields.u32()?;
                rename(fields, new_parent, flags)
            }
            opcode::LINK => Ok(Self::Link {
                node: fields.u64()?,
                name: last_name(fields)?,
            }),
            _ => Self::parse_attribute(header, args, negotiated),
        }
    }

    /// The operations on what a file has besides its data.
    fn parse_attribute(
        header: &InHeader,
        args: &'a [u8],
        negotiated: InitFlags,
    ) -> Result<Self, ParseError> {
        let mut args_left = Reader::new(args);
        let fields = &mut args_left;
        match header.opcode {
            opcode::FORGET => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::Forget {
                    nlookup: fields.u64()?,
                })
            }),
            opcode::BATCH_FORGET => batch_forget(args),
            opcode::SETATTR => Reader::exact::<88, _>(args, set_attr),
            opcode::STATX => Reader::exact::<24, _>(args, statx),
            opcode::ACCESS => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::Access {
                    mask: fields.u32()?,
                })
            }),
            opcode::SETXATTR => set_xattr(fields, negotiated),
            opcode::GETXATTR => {
                let size_bytes = fields.u32()?;
                fields.u32()?;
                let name = last_xattr_name(fields)?;
                Ok(Self::GetXattr { name, size_bytes })
            }
            opcode::LISTXATTR => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::ListXattr {
                    size_bytes: fields.u32()?,
                })
            }),
            opcode::REMOVEXATTR => last_xattr_name(fields).map(|name| Self::RemoveXattr { name }),
            opcode::READLINK => Ok(Self::ReadLink),
            _ => Self::parse_connection(header.opcode, args),
        }
    }

    /// The operations on the file system as a whole.
    fn parse_connection(opcode: u32, args: &'a [u8]) -> Result<Self, ParseError> {
        match opcode {
            opcode::STATFS => Ok(Self::StatFs),
            opcode::SYNCFS => Reader::exact::<8, _>(args, |_| Ok(Self::SyncFs)),
            opcode::INTERRUPT => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::Interrupt {
                    unique: fields.u64()?,
                })
            }),
            opcode::INIT => init(args),
            opcode::DESTROY => Ok(Self::Destroy),
            opcode::NOTIFY_REPLY => Ok(Self::NotifyReply),
            _ => Err(ParseError::Unsupported { opcode }),
        }
    }
}

/// Reads the name of an extended attribute, of 1 to 255 bytes.
pub(super) fn xattr_name<'a>(fields: &mut Reader<'a>) -> Result<&'a CStr, ParseError> {
    let name = fields.string(XATTR_NAME_MAX_BYTES, ParseError::XattrName)?;
    if name.is_empty() {
        return Err(ParseError::XattrName);
    }
    Ok(name)
}

/// As [`xattr_name`], with nothing behind it.
fn last_xattr_name<'a>(fields: &mut Reader<'a>) -> Result<&'a CStr, ParseError> {
    let name = xattr_name(fields)?;
    fields.end()?;
    Ok(name)
}

/// Reads the string of a name, whatever it says.
fn raw_name<'a>(fields: &mut Reader<'a>) -> Result<&'a CStr, ParseError> {
    fields.string(NAME_MAX_BYTES, ParseError::Name(NameError::TooLong))
}

/// Reads the name of a directory entry.
fn name<'a>(fields: &mut Reader<'a>) -> Result<Name<'a>, ParseError> {
    Ok(Name::new(raw_name(fields)?)?)
}

/// As [`name`], with nothing behind it.
fn last_name<'a>(fields: &mut Reader<'a>) -> Result<Name<'a>, ParseError> {
    let name = name(fields)?;
    fields.end()?;
    Ok(name)
}

fn lookup(args: &[u8]) -> Result<Operation<'_>, ParseError> {
    let mut fields = Reader::new(args);
    let raw = raw_name(&mut fields)?;
    fields.end()?;
    let name = match raw.to_bytes() {
        b"." => LookupName::Itself,
        b".." => LookupName::Parent,
        _ => LookupName::Child(Name::new(raw)?),
    };
    Ok(Operation::Lookup { name })
}

fn get_attr<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    let handle = optional_handle(fields)?;
    Ok(Operation::GetAttr { handle })
}

fn statx<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Statx {
        handle: optional_handle(fields)?,
        flags: fields.u32()?,
        mask: fields.u32()?,
    })
}

/// `struct fuse_getattr_in`, and the head of `struct fuse_statx_in`.
fn optional_handle(fields: &mut Reader<'_>) -> Result<Option<u64>, ParseError> {
    let flags = fields.u32()?;
    fields.u32()?;
    let handle = fields.u64()?;
    Ok((flags & GETATTR_FH != 0).then_some(handle))
}

fn read_in(fields: &mut Reader<'_>) -> Result<ReadIn, ParseError> {
    Ok(ReadIn {
        handle: fields.u64()?,
        offset_bytes: fields.u64()?,
        size_bytes: fields.u32()?,
        read_flags: fields.u32()?,
        lock_owner: fields.u64()?,
        flags: fields.u32()?,
    })
}

fn write_in(fields: &mut Reader<'_>) -> Result<WriteIn, ParseError> {
    Ok(WriteIn {
        handle: fields.u64()?,
        offset_bytes: fields.u64()?,
        size_bytes: fields.u32()?,
        write_flags: WriteFlags::from_bits_retain(fields.u32()?),
        lock_owner: fields.u64()?,
        flags: fields.u32()?,
    })
}

fn release(fields: &mut Reader<'_>) -> Result<Release, ParseError> {
    Ok(Release {
        handle: fields.u64()?,
        flags: fields.u32()?,
        release_flags: fields.u32()?,
        lock_owner: fields.u64()?,
    })
}

fn flush<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    let handle = fields.u64()?;
    fields.u64()?;
    let lock_owner = fields.u64()?;
    Ok(Operation::Flush { handle, lock_owner })
}

fn fsync(fields: &mut Reader<'_>) -> Result<(u64, bool), ParseError> {
    Ok((fields.u64()?, fields.u32()? & FSYNC_FDATASYNC != 0))
}

fn lseek<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Lseek {
        handle: fields.u64()?,
        offset_bytes: fields.u64()?,
        whence: fields.u32()?,
    })
}

fn fallocate<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Fallocate {
        handle: fields.u64()?,
        offset_bytes: fields.u64()?,
        len_bytes: fields.u64()?,
        mode: FallocateFlags::from_bits_retain(fields.u32()?),
    })
}

fn copy_file_range<'a>(fields: &mut Reader<'_>, wide: bool) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::CopyFileRange(CopyFileRange {
        handle_in: fields.u64()?,
        offset_in_bytes: fields.u64()?,
        node_out: fields.u64()?,
        handle_out: fields.u64()?,
        offset_out_bytes: fields.u64()?,
        len_bytes: fields.u64()?,
        flags: fields.u64()?,
        wide,
    }))
}

fn lock_in(fields: &mut Reader<'_>) -> Result<LockIn, ParseError> {
    Ok(LockIn {
        handle: fields.u64()?,
        owner: fields.u64()?,
        start: fields.u64()?,
        end: fields.u64()?,
        kind: fields.u32()?,
        pid: fields.u32()?,
        flock: fields.u32()? & LK_FLOCK != 0,
    })
}

fn ioctl(args: &[u8]) -> Result<Operation<'_>, ParseError> {
    let mut fields = Reader::new(args);
    let handle = fields.u64()?;
    let flags = IoctlFlags::from_bits_retain(fields.u32()?);
    let command = fields.u32()?;
    let argument = fields.u64()?;
    let in_size_bytes = fields.u32()?;
    let out_size_bytes = fields.u32()?;
    let data = fields.bytes(usize::try_from(in_size_bytes).unwrap_or(usize::MAX))?;
    fields.end()?;
    Ok(Operation::Ioctl(IoctlIn {
        handle,
        flags,
        command,
        argument,
        data,
        out_size_bytes,
    }))
}

fn setup_mapping<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::SetupMapping {
        handle: fields.u64()?,
        file_offset_bytes: fields.u64()?,
        len_bytes: fields.u64()?,
        flags: fields.u64()?,
        window_offset_bytes: fields.u64()?,
    })
}

fn remove_mapping(args: &[u8]) -> Result<Operation<'_>, ParseError> {
    let mut fields = Reader::new(args);
    let count = fields.u32()?;
    let mappings = Mappings(pairs(count, fields.rest())?);
    Ok(Operation::RemoveMapping { mappings })
}

fn batch_forget(args: &[u8]) -> Result<Operation<'_>, ParseError> {
    let mut fields = Reader::new(args);
    let count = fields.u32()?;
    fields.u32()?;
    let forgets = Forgets(pairs(count, fields.rest())?);
    Ok(Operation::BatchForget { forgets })
}

/// `bytes` as `count` pairs of numbers.
fn pairs(count: u32, bytes: &[u8]) -> Result<&[[[u8; 8]; 2]], ParseError> {
    let (numbers, odd) = bytes.as_chunks::<8>();
    let (pairs, single) = numbers.as_chunks::<2>();
    let claimed = usize::try_from(count).unwrap_or(usize::MAX);
    if odd.is_empty() && single.is_empty() && pairs.len() == claimed {
        return Ok(pairs);
    }
    let len_bytes = bytes.len();
    Err(ParseError::Count { count, len_bytes })
}

fn create<'a>(
    header: &InHeader,
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Create {
        flags: fields.u32()?,
        mode: fields.u32()?,
        umask: fields.u32()?,
        open_flags: OpenInFlags::from_bits_retain(fields.u32()?),
        name: name(fields)?,
        with: creation(header, fields, negotiated)?,
    })
}

/// As [`create`]; Linux sends "/" as the name.
fn tmp_file<'a>(
    header: &InHeader,
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    let flags = fields.u32()?;
    let mode = fields.u32()?;
    let umask = fields.u32()?;
    let open_flags = OpenInFlags::from_bits_retain(fields.u32()?);
    raw_name(fields)?;
    let with = creation(header, fields, negotiated)?;
    Ok(Operation::TmpFile {
        flags,
        mode,
        umask,
        open_flags,
        with,
    })
}

fn mknod<'a>(
    header: &InHeader,
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    let mode = fields.u32()?;
    let rdev = fields.u32()?;
    let umask = fields.u32()?;
    fields.u32()?;
    Ok(Operation::MkNod {
        name: name(fields)?,
        mode,
        rdev,
        umask,
        with: creation(header, fields, negotiated)?,
    })
}

fn mkdir<'a>(
    header: &InHeader,
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::MkDir {
        mode: fields.u32()?,
        umask: fields.u32()?,
        name: name(fields)?,
        with: creation(header, fields, negotiated)?,
    })
}

fn symlink<'a>(
    header: &InHeader,
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    let name = name(fields)?;
    let target = fields.string(TARGET_MAX_BYTES, ParseError::TargetTooLong)?;
    if target.is_empty() {
        return Err(ParseError::TargetEmpty);
    }
    Ok(Operation::Symlink {
        name,
        target,
        with: creation(header, fields, negotiated)?,
    })
}

fn creation<'a>(
    header: &InHeader,
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Creation<'a>, ParseError> {
    extension::parse(header, fields.rest(), negotiated)
}

fn rename<'a>(
    fields: &mut Reader<'a>,
    new_parent: u64,
    flags: RenameFlags,
) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Rename {
        name: name(fields)?,
        new_parent,
        new_name: last_name(fields)?,
        flags,
    })
}

fn set_attr<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    let valid = SetAttrValid::from_bits_retain(fields.u32()?);
    fields.u32()?;
    let handle = fields.u64()?;
    let size_bytes = fields.u64()?;
    let lock_owner = fields.u64()?;
    let seconds = [fields.u64()?, fields.u64()?, fields.u64()?];
    let nanos = [fields.u32()?, fields.u32()?, fields.u32()?];
    let mode = fields.u32()?;
    fields.u32()?;
    let uid = fields.u32()?;
    let gid = fields.u32()?;
    let ([atime_s, mtime_s, ctime_s], [atime_ns, mtime_ns, ctime_ns]) = (seconds, nanos);
    Ok(Operation::SetAttr(SetAttr {
        valid,
        handle,
        size_bytes,
        lock_owner,
        atime: Time::new(atime_s, atime_ns),
        mtime: Time::new(mtime_s, mtime_ns),
        ctime: Time::new(ctime_s, ctime_ns),
        mode,
        uid,
        gid,
    }))
}

fn set_xattr<'a>(
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    let size_bytes = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
    let flags = fields.u32()?;
    let mut setxattr_flags = 0;
    if negotiated.contains(InitFlags::SETXATTR_EXT) {
        setxattr_flags = fields.u32()?;
        fields.u32()?;
    }
    let name = xattr_name(fields)?;
    if size_bytes > XATTR_VALUE_MAX_BYTES {
        return Err(ParseError::ValueTooLong);
    }
    let value = fields.bytes(size_bytes)?;
    fields.end()?;
    Ok(Operation::SetXattr {
        name,
        value,
        flags,
        kills_sgid: setxattr_flags & SETXATTR_ACL_KILL_SGID != 0,
    })
}

/// `struct fuse_init_in`: 16 bytes until 7.35, 64 since then. Of another major version only the
/// version is read, for it is asked again then.
fn init<'a>(args: &[u8]) -> Result<Operation<'a>, ParseError> {
    let mut fields = Reader::new(args);
    let mut init = InitIn {
        major: fields.u32()?,
        minor: fields.u32()?,
        ..InitIn::default()
    };
    if init.major == MAJOR {
        init.max_readahead_bytes = fields.u32()?;
        let low = u64::from(fields.u32()?);
        init.flags = InitFlags::from_bits_retain(low);
        if init.flags.contains(InitFlags::INIT_EXT) {
            let high = u64::from(fields.u32()?);
            init.flags = InitFlags::from_bits_retain(low | high.wrapping_shl(32));
            fields.bytes(INIT_UNUSED_BYTES)?;
        }
    }
    Ok(Operation::Init(init))
}

/// Bytes at the end of `struct fuse_init_in`.
const INIT_UNUSED_BYTES: usize = 44;
