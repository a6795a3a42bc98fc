// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The listing of a directory (`struct fuse_dirent` and `struct fuse_direntplus`).
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use super::bytes::Put;
use super::reply::Entry;

/// Bytes of `struct fuse_dirent` before the name.
pub const DIRENT_BYTES: usize = 24;
/// Bytes of `struct fuse_direntplus` before the name.
pub const DIRENT_PLUS_BYTES: usize = 152;
/// Each entry is padded to this.
const ALIGN_BYTES: usize = 8;

/// An entry of a directory, as `getdents64(2)` tells it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DirEntry<'a> {
    /// Number of the inode.
    pub ino: u64,
    /// Where the listing goes on behind this entry.
    pub next_offset: u64,
    /// Kind of the file (`DT_*`).
    pub kind: u32,
    /// The name, without a NUL.
    pub name: &'a [u8],
}

/// Appends entries to a reply as long as they fit.
#[derive(Debug)]
pub struct DirEntries<'a> {
    out: &'a mut Vec<u8>,
    left_bytes: usize,
}

impl<'a> DirEntries<'a> {
    /// A listing of at most `limit_bytes`, appended to `out`.
    pub fn new(out: &'a mut Vec<u8>, limit_bytes: usize) -> Self {
        Self {
            out,
            left_bytes: limit_bytes,
        }
    }

    /// Whether an entry with a name of `name_bytes` would still fit; `plus` as
    /// [`add_plus`](Self::add_plus) writes it. So the lookup of one that does not is spared.
    #[must_use]
    pub fn fits(&self, name_bytes: usize, plus: bool) -> bool {
        let fields_bytes = if plus {
            DIRENT_PLUS_BYTES
        } else {
            DIRENT_BYTES
        };
        padded_bytes(fields_bytes, name_bytes).is_some_and(|bytes| bytes <= self.left_bytes)
    }

    /// Appends an entry of `READDIR`. False: it does not fit, and nothing is written.
    #[must_use]
    pub fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        self.append(None, entry)
    }

    /// Appends an entry of `READDIRPLUS`. With a `node` of 0 the guest looks up the name itself if
    /// it wants to. False: it does not fit, and nothing is written.
    #[must_use]
    pub fn add_plus(&mut self, node: &Entry, entry: &DirEntry<'_>) -> bool {
        self.append(Some(node), entry)
    }

    fn append(&mut self, node: Option<&Entry>, entry: &DirEntry<'_>) -> bool {
        let fields_bytes = match node {
            Some(_) => DIRENT_PLUS_BYTES,
            None => DIRENT_BYTES,
        };
        let left_bytes = padded_bytes(fields_bytes, entry.name.len())
            .and_then(|bytes| self.left_bytes.checked_sub(bytes));
        let (Some(left_bytes), Ok(name_bytes)) = (left_bytes, u32::try_from(entry.name.len()))
        else {
            return false;
        };
        self.left_bytes = left_bytes;
        if let Some(node) = node {
            self.out.put(&node.to_bytes());
        }
        self.out.u64(entry.ino);
        self.out.u64(entry.next_offset);
        self.out.u32(name_bytes);
        self.out.u32(entry.kind);
        self.out.put(entry.name);
        let padding = entry.name.len().next_multiple_of(ALIGN_BYTES);
        let padding = padding.saturating_sub(entry.name.len());
        self.out.extend(std::iter::repeat_n(0, padding));
        true
    }
}

/// Bytes of an entry with its padding.
fn padded_bytes(fields_bytes: usize, name_bytes: usize) -> Option<usize> {
    fields_bytes
        .checked_add(name_bytes)?
        .checked_next_multiple_of(ALIGN_BYTES)
}
