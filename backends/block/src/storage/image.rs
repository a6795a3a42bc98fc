// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An open image: a raw file, a host block device, or anonymous memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::alignment::Alignment;
use super::options::CacheMode;
use super::topology::Topology;

/// What kind of file an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    RegularFile,
    BlockDevice,
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) read_only: bool,
    pub(super) cache: CacheMode,
    pub(super) can_discard: bool,
    pub(super) topology: Topology,
    pub(super) alignment: Alignment,
    /// What discards and zeroes must be whole multiples of: the blocks of a device, whatever the
    /// driver is shown.
    pub(super) clear_granule_bytes: u32,
    pub(super) capacity_sectors: AtomicU64,
    /// A part of a file system's block was zeroed or discarded.
    pub(super) zeroed_edges: AtomicBool,
    /// Held while the length of the file is changed.
    pub(super) rounding: Mutex<()>,
}

impl Image {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Block sizes to present to the driver.
    #[must_use]
    pub const fn topology(&self) -> Topology {
        self.topology
    }

    /// Whether a discard frees space, and so may be offered.
    #[must_use]
    pub const fn can_discard(&self) -> bool {
        self.can_discard
    }

    /// Whether the image is open for reading only.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether what was written may be in the page cache only, until a sync. It may, unless all I/O
    /// bypasses the page cache: under `O_DIRECT`, until the edge of a block is zeroed, which file
    /// systems do in the page cache.
    pub(crate) fn caches_writes(&self) -> bool {
        self.cache != CacheMode::None || self.zeroed_edges.load(Ordering::Acquire)
    }

    /// The cache mode it was opened with.
    #[must_use]
    pub const fn cache(&self) -> CacheMode {
        self.cache
    }

    /// A range is zeroed or discarded, which may begin or end inside a block of the file system.
    pub(super) fn note_edges(&self, offset: u64, len_bytes: u64) {
        let block_bytes = u64::from(self.topology.physical_block_bytes);
        let is_whole = offset.is_multiple_of(block_bytes) && len_bytes.is_multiple_of(block_bytes);
        if self.kind == Kind::RegularFile && !is_whole {
            self.zeroed_edges.store(true, Ordering::Release);
        }
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
