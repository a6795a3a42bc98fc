// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The arguments of each operation, field by field, in the order of `fuse.h`.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use std::ffi::CStr;

use super::super::bytes::Reader;
use super::super::error::{NameError, ParseError};
use super::super::extension;
use super::super::flags::{
    FSYNC_FDATASYNC, FallocateFlags, GETATTR_FH, InitFlags, IoctlFlags, LK_FLOCK, MAJOR,
    OpenInFlags, RenameFlags, SETXATTR_ACL_KILL_SGID, SetAttrValid, WriteFlags,
};
use super::super::header::InHeader;
use super::super::lengths::{NAME_MAX_BYTES, TARGET_MAX_BYTES, XATTR_VALUE_MAX_BYTES};
use super::super::name::{Name, xattr_name};
use super::super::operation::{
    CopyFileRange, Creation, Forgets, InitIn, IoctlIn, LockIn, LookupName, Mappings, NewFile,
    Operation, ReadIn, Release, SetAttr, Time, WriteIn,
};
use ringside_common::num::usize_of;

/// As [`xattr_name`], with nothing behind it.
#[inline]
pub(super) fn last_xattr_name<'a>(fields: &mut Reader<'a>) -> Result<&'a CStr, ParseError> {
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
pub(super) fn last_name<'a>(fields: &mut Reader<'a>) -> Result<Name<'a>, ParseError> {
    let name = name(fields)?;
    fields.end()?;
    Ok(name)
}

pub(super) fn lookup(args: &[u8]) -> Result<Operation<'_>, ParseError> {
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

#[inline]
pub(super) fn get_attr<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    let handle = optional_handle(fields)?;
    Ok(Operation::GetAttr { handle })
}

pub(super) fn statx<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Statx {
        handle: optional_handle(fields)?,
        flags: fields.u32()?,
        mask: fields.u32()?,
    })
}

/// `struct fuse_getattr_in`, and the head of `struct fuse_statx_in`.
#[inline]
fn optional_handle(fields: &mut Reader<'_>) -> Result<Option<u64>, ParseError> {
    let flags = fields.u32()?;
    fields.u32()?;
    let handle = fields.u64()?;
    Ok((flags & GETATTR_FH != 0).then_some(handle))
}

#[inline]
pub(super) fn read_in(fields: &mut Reader<'_>) -> Result<ReadIn, ParseError> {
    Ok(ReadIn {
        handle: fields.u64()?,
        offset_bytes: fields.u64()?,
        size_bytes: fields.u32()?,
        read_flags: fields.u32()?,
        lock_owner: fields.u64()?,
        flags: fields.u32()?,
    })
}

#[inline]
pub(super) fn write_in(fields: &mut Reader<'_>) -> Result<WriteIn, ParseError> {
    Ok(WriteIn {
        handle: fields.u64()?,
        offset_bytes: fields.u64()?,
        size_bytes: fields.u32()?,
        write_flags: WriteFlags::from_bits_retain(fields.u32()?),
        lock_owner: fields.u64()?,
        flags: fields.u32()?,
    })
}

#[inline]
pub(super) fn release(fields: &mut Reader<'_>) -> Result<Release, ParseError> {
    Ok(Release {
        handle: fields.u64()?,
        flags: fields.u32()?,
        release_flags: fields.u32()?,
        lock_owner: fields.u64()?,
    })
}

#[inline]
pub(super) fn flush<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    let handle = fields.u64()?;
    fields.u64()?;
    let lock_owner = fields.u64()?;
    Ok(Operation::Flush { handle, lock_owner })
}

pub(super) fn fsync(fields: &mut Reader<'_>) -> Result<(u64, bool), ParseError> {
    Ok((fields.u64()?, fields.u32()? & FSYNC_FDATASYNC != 0))
}

pub(super) fn lseek<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Lseek {
        handle: fields.u64()?,
        offset_bytes: fields.u64()?,
        whence: fields.u32()?,
    })
}

pub(super) fn fallocate<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Fallocate {
        handle: fields.u64()?,
        offset_bytes: fields.u64()?,
        len_bytes: fields.u64()?,
        mode: FallocateFlags::from_bits_retain(fields.u32()?),
    })
}

pub(super) fn copy_file_range<'a>(
    fields: &mut Reader<'_>,
    wide: bool,
) -> Result<Operation<'a>, ParseError> {
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

pub(super) fn lock_in(fields: &mut Reader<'_>) -> Result<LockIn, ParseError> {
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

pub(super) fn ioctl(args: &[u8]) -> Result<Operation<'_>, ParseError> {
    let mut fields = Reader::new(args);
    let handle = fields.u64()?;
    let flags = IoctlFlags::from_bits_retain(fields.u32()?);
    let command = fields.u32()?;
    let argument = fields.u64()?;
    let in_size_bytes = fields.u32()?;
    let out_size_bytes = fields.u32()?;
    let data = fields.bytes(usize_of(in_size_bytes.into()))?;
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

pub(super) fn setup_mapping<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::SetupMapping {
        handle: fields.u64()?,
        file_offset_bytes: fields.u64()?,
        len_bytes: fields.u64()?,
        flags: fields.u64()?,
        window_offset_bytes: fields.u64()?,
    })
}

pub(super) fn remove_mapping(args: &[u8]) -> Result<Operation<'_>, ParseError> {
    let mut fields = Reader::new(args);
    let count = fields.u32()?;
    let mappings = Mappings(pairs(count, fields.rest())?);
    Ok(Operation::RemoveMapping { mappings })
}

pub(super) fn batch_forget(args: &[u8]) -> Result<Operation<'_>, ParseError> {
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
    let claimed = usize_of(count.into());
    if odd.is_empty() && single.is_empty() && pairs.len() == claimed {
        return Ok(pairs);
    }
    let len_bytes = bytes.len();
    Err(ParseError::Count { count, len_bytes })
}

pub(super) fn create<'a>(
    header: &InHeader,
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    Ok(Operation::Create {
        file: new_file(fields)?,
        name: name(fields)?,
        with: creation(header, fields, negotiated)?,
    })
}

/// As [`create`]; Linux sends "/" as the name.
pub(super) fn tmp_file<'a>(
    header: &InHeader,
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    let file = new_file(fields)?;
    raw_name(fields)?;
    let with = creation(header, fields, negotiated)?;
    Ok(Operation::TmpFile { file, with })
}

/// `struct fuse_create_in`.
fn new_file(fields: &mut Reader<'_>) -> Result<NewFile, ParseError> {
    Ok(NewFile {
        flags: fields.u32()?,
        mode: fields.u32()?,
        umask: fields.u32()?,
        open_flags: OpenInFlags::from_bits_retain(fields.u32()?),
    })
}

pub(super) fn mknod<'a>(
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

pub(super) fn mkdir<'a>(
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

pub(super) fn symlink<'a>(
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

pub(super) fn rename<'a>(
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

pub(super) fn set_attr<'a>(fields: &mut Reader<'_>) -> Result<Operation<'a>, ParseError> {
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

pub(super) fn set_xattr<'a>(
    fields: &mut Reader<'a>,
    negotiated: InitFlags,
) -> Result<Operation<'a>, ParseError> {
    let size_bytes = usize_of(fields.u32()?.into());
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
pub(super) fn init<'a>(args: &[u8]) -> Result<Operation<'a>, ParseError> {
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
