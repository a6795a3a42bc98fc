// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Replies as values, laid out as `fuse.h` says.

use crate::fuse::flags::{AttrFlags, InitFlags, OpenOutFlags};
use crate::fuse::types::{Attr, Entry, InitOut, Opened, Timeout};

use super::error::{FuseError, FuseResult};

/// Reads fields one after the other.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// `struct fuse_kstatfs`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

/// `struct fuse_file_lock`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of fuse.h")]
pub struct FileLock {
    pub start: u64,
    pub end: u64,
    pub kind: u32,
    pub pid: u32,
}

/// `struct fuse_dirent`, and in `READDIRPLUS` `struct fuse_direntplus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirEntry {
    /// What `LOOKUP` would answer, in `READDIRPLUS`.
    pub entry: Option<Entry>,
    /// Number of the inode.
    pub ino: u64,
    /// Where the listing goes on behind this entry.
    pub offset: u64,
    /// `DT_*`
    pub kind: u32,
    /// The name.
    pub name: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take<const N: usize>(&mut self) -> FuseResult<[u8; N]> {
        let short = FuseError::Reply {
            what: "length: bytes left for a field",
            found: self.rest.len() as u64,
            expected: N as u64,
        };
        let (field, rest) = self.rest.split_first_chunk().ok_or(short)?;
        self.rest = rest;
        Ok(*field)
    }

    fn bytes(&mut self, bytes: usize) -> FuseResult<&'a [u8]> {
        let short = FuseError::Reply {
            what: "length: bytes left for a name",
            found: self.rest.len() as u64,
            expected: bytes as u64,
        };
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u16(&mut self) -> FuseResult<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> FuseResult<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> FuseResult<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn skip(&mut self, bytes: usize) -> FuseResult<()> {
        self.bytes(bytes).map(|_| ())
    }

    /// Everything that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// `value`, if nothing is left.
    pub(super) fn end<T>(self, value: T) -> FuseResult<T> {
        if self.rest.is_empty() {
            return Ok(value);
        }
        Err(FuseError::Reply {
            what: "length: bytes left over",
            found: self.rest.len() as u64,
            expected: 0,
        })
    }

    /// `struct fuse_attr`
    pub(super) fn attr(&mut self) -> FuseResult<Attr> {
        Ok(Attr {
            ino: self.u64()?,
            size_bytes: self.u64()?,
            blocks: self.u64()?,
            atime_s: self.u64()?,
            mtime_s: self.u64()?,
            ctime_s: self.u64()?,
            atime_ns: self.u32()?,
            mtime_ns: self.u32()?,
            ctime_ns: self.u32()?,
            mode: self.u32()?,
            nlink: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            rdev: self.u32()?,
            block_size_bytes: self.u32()?,
            flags: AttrFlags::from_bits_retain(self.u32()?),
        })
    }

    /// `struct fuse_entry_out`
    pub(super) fn entry(&mut self) -> FuseResult<Entry> {
        let (node, generation) = (self.u64()?, self.u64()?);
        let seconds = [self.u64()?, self.u64()?];
        let nanos = [self.u32()?, self.u32()?];
        let timeout = |which: usize| Timeout {
            seconds: seconds[which],
            nanos: nanos[which],
        };
        Ok(Entry {
            node,
            generation,
            entry_timeout: timeout(0),
            attr_timeout: timeout(1),
            attr: self.attr()?,
        })
    }

    /// `struct fuse_attr_out`
    pub(super) fn attr_out(&mut self) -> FuseResult<(Attr, Timeout)> {
        let timeout = Timeout {
            seconds: self.u64()?,
            nanos: self.u32()?,
        };
        self.skip(4)?;
        Ok((self.attr()?, timeout))
    }

    /// `struct fuse_open_out`
    pub(super) fn opened(&mut self) -> FuseResult<Opened> {
        let handle = self.u64()?;
        let flags = OpenOutFlags::from_bits_retain(self.u32()?);
        self.skip(4)?;
        Ok(Opened { handle, flags })
    }

    /// `struct fuse_kstatfs`
    pub(super) fn statfs(&mut self) -> FuseResult<StatFs> {
        let statfs = StatFs {
            blocks: self.u64()?,
            bfree: self.u64()?,
            bavail: self.u64()?,
            files: self.u64()?,
            ffree: self.u64()?,
            bsize: self.u32()?,
            namelen: self.u32()?,
            frsize: self.u32()?,
        };
        self.skip(28)?;
        Ok(statfs)
    }

    /// `struct fuse_file_lock`
    pub(super) fn lock(&mut self) -> FuseResult<FileLock> {
        Ok(FileLock {
            start: self.u64()?,
            end: self.u64()?,
            kind: self.u32()?,
            pid: self.u32()?,
        })
    }

    /// `struct fuse_init_out`
    pub(super) fn init(&mut self) -> FuseResult<InitOut> {
        let (major, minor, max_readahead_bytes) = (self.u32()?, self.u32()?, self.u32()?);
        let low = self.u32()?;
        let mut init = InitOut {
            major,
            minor,
            max_readahead_bytes,
            max_background: self.u16()?,
            congestion_threshold: self.u16()?,
            max_write_bytes: self.u32()?,
            time_gran_ns: self.u32()?,
            max_pages: self.u16()?,
            map_alignment: self.u16()?,
            ..InitOut::default()
        };
        let high = self.u32()?;
        init.flags = InitFlags::from_bits_retain(u64::from(high) << 32 | u64::from(low));
        init.max_stack_depth = self.u32()?;
        init.request_timeout_s = self.u16()?;
        self.skip(22)?;
        Ok(init)
    }

    /// All of a listing, with entries in front of the names if `plus`.
    pub(super) fn dir_entries(&mut self, plus: bool) -> FuseResult<Vec<DirEntry>> {
        let mut entries = Vec::new();
        while !self.rest.is_empty() {
            let entry = if plus { Some(self.entry()?) } else { None };
            let (ino, offset) = (self.u64()?, self.u64()?);
            let (len, kind) = (self.u32()? as usize, self.u32()?);
            let name = self.bytes(len)?.to_vec();
            self.skip(len.next_multiple_of(8) - len)?;
            entries.push(DirEntry {
                entry,
                ino,
                offset,
                kind,
                name,
            });
        }
        Ok(entries)
    }
}
