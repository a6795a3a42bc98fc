// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image in anonymous memory.

use std::path::PathBuf;

use rustix::fs::MemfdFlags;

use super::error::ImageError;
use super::image::{Image, Kind};
use super::options::{CacheMode, DiscardMode, ImageOptions};
use super::topology::{MIN_BLOCK_BYTES, check_block_size, check_size};

impl Image {
    /// An image of zeroes in anonymous memory, for scratch disks.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn anonymous(size_bytes: u64, block_size_bytes: Option<u32>) -> Result<Self, ImageError> {
        let path = PathBuf::from("anonymous memory");
        let block_size = block_size_bytes.unwrap_or(MIN_BLOCK_BYTES);
        check_block_size(block_size)?;
        check_size(size_bytes, block_size)?;
        let fd = rustix::fs::memfd_create("ringside-blk", MemfdFlags::CLOEXEC)
            .and_then(|fd| rustix::fs::ftruncate(&fd, size_bytes).map(|()| fd))
            .map_err(|source| ImageError::Create {
                path: path.clone(),
                size_bytes,
                source,
            })?;
        let options = ImageOptions {
            path,
            read_only: false,
            size_bytes: None,
            cache: CacheMode::Unsafe,
            block_size_bytes: Some(block_size),
            discard: DiscardMode::Unmap,
            lock: false,
        };
        Self::from_fd(fd, Kind::RegularFile, &options)
    }
}
