// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading directories.
//!
//! Offsets are the host's cookies and mean nothing to us. The kernel's own place in an open
//! directory is remembered, so that reading on needs no seek. No more entries are asked for than
//! are sure to fit into the reply.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{MutexGuard, PoisonError};

use rustix::fs::{FileType, OFlags, RawDir, RawDirEntry};

use super::{Cx, Handle, PassThrough};
use crate::error::{Errno, Result};
use crate::sys::file::seek_to_cookie;
use crate::tables::{Node, Place, SlabRef};
use crate::wire::dirents::{DirEntries, DirEntry};
use crate::wire::lengths::NAME_MAX_BYTES;
use crate::wire::name::Name;
use crate::wire::operation::ReadIn;
use crate::wire::reply::Entry;
use ringside_common::num::usize_of;

/// The most that one reply has: Linux asks for no more than this.
const MAX_REPLY_BYTES: u32 = 1 << 20;
/// More than an entry of the host with the longest name has.
const LONGEST_BYTES: usize = 32 + NAME_MAX_BYTES;

/// Space for entries of the host, kept from call to call.
#[derive(Debug, Default)]
pub struct DirScratch(Vec<MaybeUninit<u8>>);

/// An open directory and the kernel's place in it.
enum Reader<'a> {
    Open(&'a Handle, MutexGuard<'a, u64>),
    /// Opened for this call.
    Fresh(OwnedFd),
}

impl AsFd for Reader<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Open(handle, _) => handle.as_fd(),
            Self::Fresh(fd) => fd.as_fd(),
        }
    }
}

impl Reader<'_> {
    /// Goes to `offset`; or to the beginning, where the file system gives out cookies that it does
    /// not take back (NFS, negative ones). The caller must then read past the cookie that is
    /// returned.
    fn seek(&mut self, offset: u64) -> Result<Option<u64>> {
        let place = match self {
            Self::Open(_, place) => **place,
            Self::Fresh(_) => 0,
        };
        if place == offset {
            return Ok(None);
        }
        match seek_to_cookie(self.as_fd(), offset) {
            Ok(()) => {
                self.reached(offset);
                Ok(None)
            }
            Err(Errno::INVAL) => self.rewind().map(|()| Some(offset)),
            Err(error) => Err(error),
        }
    }

    fn rewind(&mut self) -> Result<()> {
        // Until the entries are read, the kernel's place is none that the guest knows.
        self.reached(u64::MAX);
        seek_to_cookie(self.as_fd(), 0)
    }

    /// The kernel's place is `offset` now.
    fn reached(&mut self, offset: u64) {
        if let Self::Open(_, place) = self {
            **place = offset;
        }
    }
}

impl PassThrough {
    /// `READDIR` and `READDIRPLUS`: entries go to `out`.
    pub fn read_dir(
        &self,
        cx: &Cx<'_>,
        read: &ReadIn,
        plus: bool,
        scratch: &mut DirScratch,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let node = self.node(cx)?;
        let limit_bytes = usize_of(read.size_bytes.min(MAX_REPLY_BYTES).into());
        if matches!(node.place(), Place::Virtual) {
            self.read_shares(
                &node,
                read.offset_bytes,
                plus,
                &mut DirEntries::new(out, limit_bytes),
            );
            return Ok(());
        }
        let handle: Option<SlabRef<Handle>> = match self.handles.get(read.handle, node.number()) {
            Ok(handle) => Some(handle),
            Err(_) if read.handle == 0 && self.opens_itself(&node, true) => None,
            Err(error) => return Err(error),
        };
        let mut reader = match &handle {
            Some(handle) => {
                let place = handle.position()?.lock();
                Reader::Open(handle, place.unwrap_or_else(PoisonError::into_inner))
            }
            None => Reader::Fresh(self.open_host(cx, &node, OFlags::RDONLY | OFlags::DIRECTORY)?),
        };
        let behind = reader.seek(read.offset_bytes)?;
        // So many that all of them fit, were their names as short as they can be.
        let host_bytes = if plus {
            limit_bytes / 20 * 3
        } else {
            limit_bytes / 4 * 3
        };
        let buffer = &mut scratch.0;
        buffer.resize(host_bytes.max(LONGEST_BYTES), MaybeUninit::uninit());
        let mut listing = Listing {
            fs: self,
            node: &node,
            dir: reader.as_fd(),
            plus,
            entries: DirEntries::new(out, limit_bytes),
            behind,
        };
        let mut reached = read.offset_bytes;
        let filled = listing.fill(buffer, &mut reached)?;
        // With a part of them, the kernel has gone farther than we did.
        reader.reached(match filled {
            Filled::All => reached,
            Filled::Part => u64::MAX,
        });
        Ok(())
    }

    /// The shares, of which there are few.
    fn read_shares(&self, root: &Node, offset: u64, plus: bool, entries: &mut DirEntries<'_>) {
        let dots = [&b"."[..], &b".."[..]];
        let names = dots.into_iter().map(|name| (name, None));
        let shares = self.shares.iter();
        let shares = shares.map(|share| (share.name.as_bytes(), Some(&share.node)));
        let skip = usize_of(offset);
        for (at, (name, node)) in names.chain(shares).enumerate().skip(skip) {
            let entry = DirEntry {
                ino: node.map_or(1, |node| node.key().inode),
                next_offset: (at as u64).saturating_add(1),
                kind: libc::DT_DIR.into(),
                name,
            };
            let known = node
                .filter(|_| plus)
                .and_then(|node| self.share_entry(root, node));
            let added = if plus {
                entries.add_plus(&known.unwrap_or_default(), &entry)
            } else {
                entries.add(&entry)
            };
            if !added {
                return;
            }
        }
    }

    /// None of one that may not answer: it is listed all the same.
    fn share_entry(&self, root: &Node, share: &std::sync::Arc<Node>) -> Option<Entry> {
        if share.mount().is_slow() {
            return None;
        }
        let stat = crate::sys::statx_of(self.nodes.fd(share).ok()?.as_fd()).ok()?;
        let found = crate::tables::Found {
            node: std::sync::Arc::clone(share),
            stat,
        };
        Some(self.entry(root, &found))
    }
}

/// A listing of one directory that is being made.
pub(super) struct Listing<'a> {
    pub(super) fs: &'a PassThrough,
    pub(super) node: &'a Node,
    pub(super) dir: BorrowedFd<'a>,
    pub(super) plus: bool,
    pub(super) entries: DirEntries<'a>,
    /// The cookie of an entry, if what is wanted begins behind it and the kernel's place does not.
    pub(super) behind: Option<u64>,
}

impl Listing<'_> {
    /// Reads on, and moves what is `reached`.
    ///
    /// # Errors
    /// Errors of the host, and EINVAL where no entry has the cookie.
    pub(super) fn fill(
        &mut self,
        buffer: &mut [MaybeUninit<u8>],
        reached: &mut u64,
    ) -> Result<Filled> {
        let mut host = RawDir::new(self.dir, buffer);
        while let Some(entry) = host.next() {
            let entry = entry?;
            let cookie = entry.next_entry_cookie();
            if let Some(wanted) = self.behind {
                self.behind = (cookie != wanted).then_some(wanted);
                continue;
            }
            if !self.add(&entry) {
                return Ok(Filled::Part);
            }
            *reached = cookie;
            // One call of the kernel for one of the guest.
            if host.is_buffer_empty() {
                break;
            }
        }
        // The guest must not take the end for the end of what it has not seen.
        if self.behind.is_some() {
            return Err(Errno::INVAL);
        }
        Ok(Filled::All)
    }

    /// Adds one entry, with its node if that is asked for; false when there is no room.
    fn add(&mut self, host: &RawDirEntry<'_>) -> bool {
        let name: &CStr = host.file_name();
        let entry = DirEntry {
            ino: host.ino(),
            next_offset: host.next_entry_cookie(),
            kind: kind_number(host.file_type()),
            name: name.to_bytes(),
        };
        if !self.plus {
            return self.entries.add(&entry);
        }
        if !self.entries.fits(entry.name.len(), true) {
            return false;
        }
        // One that cannot be looked up is listed all the same, as are "." and "..".
        let nodes = &self.fs.nodes;
        let found = Name::new(name).ok().and_then(|name| {
            let found = nodes.lookup_entry(self.node, self.dir, name, host.ino());
            found.ok()
        });
        let known = found.as_ref().map(|found| self.fs.entry(self.node, found));
        self.entries.add_plus(&known.unwrap_or_default(), &entry)
    }
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Filled {
    /// All that the kernel gave.
    All,
    /// Less.
    Part,
}

/// `DT_*` of a kind; 0 (`DT_UNKNOWN`) where the file system does not say, as ext4 need not.
pub(super) fn kind_number(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => libc::DT_UNKNOWN.into(),
        known => known.as_raw_mode() >> 12 & 15,
    }
}
