// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Replies as a guest reads them.

use super::super::super::bytes::Reader;
use super::super::super::dirents::DirEntry;
use super::super::super::error::ParseError;
use super::super::super::flags::{AttrFlags, InitFlags, IoctlFlags, OpenOutFlags};
use super::super::super::operation::Time;
use super::super::super::reply::{
    Attr, AttrOut, CopiedWide, Created, Entry, InitOut, IoctlOut, Lock, Lseek, Opened, StatFs,
    Statx, Timeout, Written, XattrSize,
};

/// What a reply carries, out of its bytes.
pub(crate) trait ReplyBody: Sized {
    /// Takes the bytes behind the header of a reply apart.
    ///
    /// # Errors
    /// There are more or fewer than the structure has.
    fn parse(bytes: &[u8]) -> Result<Self, ParseError>;
}

impl ReplyBody for Entry {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<128, _>(bytes, entry)
    }
}

impl ReplyBody for AttrOut {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<104, _>(bytes, |fields| {
            let seconds = fields.u64()?;
            let nanos = fields.u32()?;
            fields.u32()?;
            Ok(Self {
                timeout: Timeout { seconds, nanos },
                attr: attr(fields)?,
            })
        })
    }
}

impl ReplyBody for Opened {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<16, _>(bytes, opened)
    }
}

impl ReplyBody for Created {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<144, _>(bytes, |fields| {
            Ok(Self {
                entry: entry(fields)?,
                opened: opened(fields)?,
            })
        })
    }
}

impl ReplyBody for Statx {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<288, _>(bytes, statx)
    }
}

impl ReplyBody for InitOut {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<64, _>(bytes, init_out)
    }
}

impl ReplyBody for Written {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<8, _>(bytes, |fields| {
            let size_bytes = fields.u32()?;
            Ok(Self { size_bytes })
        })
    }
}

impl ReplyBody for CopiedWide {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<8, _>(bytes, |fields| {
            let size_bytes = fields.u64()?;
            Ok(Self { size_bytes })
        })
    }
}

impl ReplyBody for Lseek {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<8, _>(bytes, |fields| {
            let offset_bytes = fields.u64()?;
            Ok(Self { offset_bytes })
        })
    }
}

impl ReplyBody for XattrSize {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<8, _>(bytes, |fields| {
            let size_bytes = fields.u32()?;
            Ok(Self { size_bytes })
        })
    }
}

impl ReplyBody for StatFs {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<80, _>(bytes, |fields| {
            Ok(Self {
                blocks: fields.u64()?,
                blocks_free: fields.u64()?,
                blocks_available: fields.u64()?,
                files: fields.u64()?,
                files_free: fields.u64()?,
                block_size_bytes: fields.u32()?,
                name_max_bytes: fields.u32()?,
                fragment_size_bytes: fields.u32()?,
            })
        })
    }
}

impl ReplyBody for Lock {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<24, _>(bytes, |fields| {
            Ok(Self {
                start: fields.u64()?,
                end: fields.u64()?,
                kind: fields.u32()?,
                pid: fields.u32()?,
            })
        })
    }
}

impl ReplyBody for IoctlOut {
    /// The head alone; data of the reply follow it.
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Reader::exact::<16, _>(bytes, |fields| {
            Ok(Self {
                result: i32::from_le_bytes(fields.array()?),
                flags: IoctlFlags::from_bits_retain(fields.u32()?),
            })
        })
    }
}

/// The entries of a reply to `READDIR`.
///
/// # Errors
/// An entry is cut short.
pub(crate) fn parse_dirents(bytes: &[u8]) -> Result<Vec<DirEntry<'_>>, ParseError> {
    let mut rest = Reader::new(bytes);
    let mut entries = Vec::new();
    while rest.end().is_err() {
        entries.push(dirent(&mut rest)?);
    }
    Ok(entries)
}

/// The entries of a reply to `READDIRPLUS`.
///
/// # Errors
/// An entry is cut short.
pub(crate) fn parse_dirents_plus(bytes: &[u8]) -> Result<Vec<(Entry, DirEntry<'_>)>, ParseError> {
    let mut rest = Reader::new(bytes);
    let mut entries = Vec::new();
    while rest.end().is_err() {
        entries.push((entry(&mut rest)?, dirent(&mut rest)?));
    }
    Ok(entries)
}

fn dirent<'a>(fields: &mut Reader<'a>) -> Result<DirEntry<'a>, ParseError> {
    let ino = fields.u64()?;
    let next_offset = fields.u64()?;
    let name_bytes = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
    let kind = fields.u32()?;
    let name = fields.bytes(name_bytes)?;
    fields.bytes(name_bytes.next_multiple_of(8).saturating_sub(name_bytes))?;
    Ok(DirEntry {
        ino,
        next_offset,
        kind,
        name,
    })
}

fn entry(fields: &mut Reader<'_>) -> Result<Entry, ParseError> {
    let node = fields.u64()?;
    let generation = fields.u64()?;
    let (entry_s, attr_s) = (fields.u64()?, fields.u64()?);
    let (entry_ns, attr_ns) = (fields.u32()?, fields.u32()?);
    let timeout = |seconds, nanos| Timeout { seconds, nanos };
    Ok(Entry {
        node,
        generation,
        entry_timeout: timeout(entry_s, entry_ns),
        attr_timeout: timeout(attr_s, attr_ns),
        attr: attr(fields)?,
    })
}

fn attr(fields: &mut Reader<'_>) -> Result<Attr, ParseError> {
    Ok(Attr {
        ino: fields.u64()?,
        size_bytes: fields.u64()?,
        blocks: fields.u64()?,
        atime_s: fields.u64()?,
        mtime_s: fields.u64()?,
        ctime_s: fields.u64()?,
        atime_ns: fields.u32()?,
        mtime_ns: fields.u32()?,
        ctime_ns: fields.u32()?,
        mode: fields.u32()?,
        nlink: fields.u32()?,
        uid: fields.u32()?,
        gid: fields.u32()?,
        rdev: fields.u32()?,
        block_size_bytes: fields.u32()?,
        flags: AttrFlags::from_bits_retain(fields.u32()?),
    })
}

fn opened(fields: &mut Reader<'_>) -> Result<Opened, ParseError> {
    let handle = fields.u64()?;
    let flags = OpenOutFlags::from_bits_retain(fields.u32()?);
    fields.u32()?;
    Ok(Opened { handle, flags })
}

fn statx(fields: &mut Reader<'_>) -> Result<Statx, ParseError> {
    let seconds = fields.u64()?;
    let nanos = fields.u32()?;
    fields.bytes(20)?;
    Ok(Statx {
        timeout: Timeout { seconds, nanos },
        mask: fields.u32()?,
        block_size_bytes: fields.u32()?,
        attributes: fields.u64()?,
        nlink: fields.u32()?,
        uid: fields.u32()?,
        gid: fields.u32()?,
        mode: {
            let mode = fields.u16()?;
            fields.u16()?;
            mode
        },
        ino: fields.u64()?,
        size_bytes: fields.u64()?,
        blocks: fields.u64()?,
        attributes_mask: fields.u64()?,
        atime: sx_time(fields)?,
        btime: sx_time(fields)?,
        ctime: sx_time(fields)?,
        mtime: sx_time(fields)?,
        rdev_major: fields.u32()?,
        rdev_minor: fields.u32()?,
        dev_major: fields.u32()?,
        dev_minor: fields.u32()?,
    })
}

fn sx_time(fields: &mut Reader<'_>) -> Result<Time, ParseError> {
    let time = Time::new(fields.u64()?, fields.u32()?);
    fields.u32()?;
    Ok(time)
}

fn init_out(fields: &mut Reader<'_>) -> Result<InitOut, ParseError> {
    let mut init = InitOut {
        major: fields.u32()?,
        minor: fields.u32()?,
        max_readahead_bytes: fields.u32()?,
        flags: InitFlags::from_bits_retain(u64::from(fields.u32()?)),
        max_background: fields.u16()?,
        congestion_threshold: fields.u16()?,
        max_write_bytes: fields.u32()?,
        time_gran_ns: fields.u32()?,
        max_pages: fields.u16()?,
        map_alignment: fields.u16()?,
        ..InitOut::default()
    };
    init.flags |= InitFlags::from_bits_retain(u64::from(fields.u32()?) << 32);
    init.max_stack_depth = fields.u32()?;
    init.request_timeout_s = fields.u16()?;
    Ok(init)
}
