// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How to open an image.

use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::ImageError;

/// When a write is stable, and what the host caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// The host's page cache; stable after a flush.
    #[default]
    Writeback,
    /// The host's page cache for reads; a write completes when it is stable.
    Writethrough,
    /// No page cache (`O_DIRECT`); stable after a flush.
    None,
    /// The host's page cache; a flush does nothing, so a host crash loses data.
    Unsafe,
}

/// What a discard by the driver does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiscardMode {
    /// Gives the space back to the host.
    #[default]
    Unmap,
    /// Nothing: it is not offered.
    Ignore,
}

/// How to open an image.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Open it for reading only.
    pub read_only: bool,
    /// Create a sparse file of this size if the image does not exist. An existing image keeps its
    /// size, whatever this says.
    pub size_bytes: Option<u64>,
    /// Cache mode.
    pub cache: CacheMode,
    /// The logical block size to present, instead of the image's own.
    pub block_size_bytes: Option<u32>,
    /// What a discard does.
    pub discard: DiscardMode,
    /// Lock the image against other users. Off for images on file systems without locks, and for
    /// guests that share a disk and know it.
    pub lock: bool,
}

impl ImageOptions {
    /// The flags of `open` that the cache mode needs.
    pub(super) fn cache_flags(&self) -> OFlags {
        if self.cache == CacheMode::None {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        }
    }

    /// The error for an `open` that has failed.
    pub(super) fn open_error(&self, source: Errno) -> ImageError {
        let path = self.path.clone();
        if self.cache == CacheMode::None && source == Errno::INVAL {
            return ImageError::DirectUnsupported { path };
        }
        ImageError::Open { path, source }
    }
}
