// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How large an image is, and how it becomes larger or smaller.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use ringside_common::limited;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::error::ImageError;
use super::image::{Image, Kind};
use super::topology::{SECTOR_BYTES, check_size};

impl Image {
    /// Asks for the size anew: after a resize by someone else. Returns the capacity in sectors.
    ///
    /// # Errors
    ///
    /// [`ImageError::Probe`], with the capacity left as it was.
    pub fn refresh(&self) -> Result<u64, ImageError> {
        let capacity_sectors = self.zero_tail_bytes()?.end / SECTOR_BYTES;
        self.capacity_sectors
            .store(capacity_sectors, Ordering::Release);
        Ok(capacity_sectors)
    }

    /// What reads as zeroes behind the end that the file has at this moment: the rest of a last
    /// block. The capacity stays what the driver was told.
    ///
    /// # Errors
    ///
    /// [`ImageError::Probe`].
    pub fn zero_tail_bytes(&self) -> Result<Range<u64>, ImageError> {
        let len_bytes = self.len_bytes()?;
        // Those that the driver sees, and not what O_DIRECT asks for: the size of a disk must not
        // depend on the cache mode.
        let block_bytes = u64::from(self.topology.logical_block_bytes);
        Ok(match self.kind {
            Kind::RegularFile => len_bytes..len_bytes.next_multiple_of(block_bytes),
            Kind::BlockDevice => {
                let end = len_bytes - len_bytes % block_bytes;
                end..end
            }
        })
    }

    /// Makes a file longer. Returns the capacity in sectors.
    ///
    /// # Errors
    ///
    /// The image is not to be resized, or not to that size; it is longer than that.
    pub fn resize(&self, size_bytes: u64) -> Result<u64, ImageError> {
        self.check_new_size(size_bytes)?;
        if self.len_bytes()? > size_bytes {
            return Err(ImageError::Shrink {
                path: self.path.clone(),
                size_bytes,
            });
        }
        self.set_len(size_bytes)
    }

    /// Shows a smaller capacity; the file stays as it is.
    ///
    /// # Errors
    ///
    /// As [`resize`](Self::resize), or the capacity is not larger.
    pub fn announce(&self, size_bytes: u64) -> Result<u64, ImageError> {
        self.check_new_size(size_bytes)?;
        let sectors = size_bytes / SECTOR_BYTES;
        let (order, update) = (Ordering::AcqRel, |now| (sectors < now).then_some(sectors));
        match self
            .capacity_sectors
            .fetch_update(order, Ordering::Acquire, update)
        {
            Ok(_) => Ok(sectors),
            Err(_) => Err(ImageError::Shrink {
                path: self.path.clone(),
                size_bytes,
            }),
        }
    }

    /// Cuts a file off. Nothing may be under way behind the new end: it would be there again.
    ///
    /// # Errors
    ///
    /// As [`resize`](Self::resize).
    pub fn cut(&self, size_bytes: u64) -> Result<u64, ImageError> {
        self.check_new_size(size_bytes)?;
        self.set_len(size_bytes)
    }

    fn check_new_size(&self, size_bytes: u64) -> Result<(), ImageError> {
        if self.read_only || self.kind == Kind::BlockDevice {
            return Err(ImageError::NotResizable {
                path: self.path.clone(),
            });
        }
        if size_bytes == 0 {
            return Err(ImageError::Empty {
                path: self.path.clone(),
            });
        }
        check_size(size_bytes, self.topology.logical_block_bytes)
    }

    fn set_len(&self, size_bytes: u64) -> Result<u64, ImageError> {
        let _no_rounding = self.rounding.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::ftruncate(&self.fd, size_bytes).map_err(|source| ImageError::Resize {
            path: self.path.clone(),
            size_bytes,
            source,
        })?;
        self.refresh()
    }

    fn len_bytes(&self) -> Result<u64, ImageError> {
        len_bytes(&self.fd, self.kind).map_err(|source| ImageError::Probe {
            path: self.path.clone(),
            what: "size",
            source,
        })
    }

    /// Says what may surprise about the size of an existing image.
    pub(super) fn say_if_not(&self, size_bytes: Option<u64>) {
        let (path, capacity_bytes) = (self.path.display(), self.capacity_sectors() * SECTOR_BYTES);
        let Ok(len_bytes) = self.len_bytes() else {
            return;
        };
        if let Some(size_bytes) = size_bytes.filter(|size_bytes| *size_bytes != len_bytes) {
            log::warn!(
                "{path}: the image is there already and keeps its {len_bytes} bytes; --size \
                 {size_bytes} is for a new one"
            );
        }
        if capacity_bytes < len_bytes {
            let left = len_bytes - capacity_bytes;
            log::warn!("{path}: the last {left} bytes are less than a block, and not served");
        } else if capacity_bytes > len_bytes {
            let more = capacity_bytes - len_bytes;
            log::info!("{path}: the last block is filled up with {more} zeroes");
        }
    }

    /// A write has ended at `end`. Under `O_DIRECT` it wrote whole blocks, and so perhaps more of
    /// the last one than the disk has: what it has made the file longer by is cut off again.
    pub(super) fn cut_rounding(&self, end: u64) {
        let granule = u64::from(self.alignment.offset_bytes);
        let is_rounded =
            |capacity_bytes: u64| end > capacity_bytes && end - capacity_bytes < granule;
        if self.kind != Kind::RegularFile || !is_rounded(self.capacity_sectors() * SECTOR_BYTES) {
            return;
        }
        let _no_resize = self.rounding.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity_bytes = self.capacity_sectors() * SECTOR_BYTES;
        if is_rounded(capacity_bytes) && len_bytes(&self.fd, self.kind) == Ok(end) {
            // The kernel zeroes the rest of the block in the page cache.
            self.zeroed_edges.store(true, Ordering::Release);
            if let Err(error) = rustix::fs::ftruncate(&self.fd, capacity_bytes) {
                limited!(debug, "{}: stays rounded up: {error}", self.path.display());
            }
        }
    }

    /// The size, in sectors, when last asked for.
    pub fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors.load(Ordering::Acquire)
    }
}

pub(super) fn len_bytes(fd: &OwnedFd, kind: Kind) -> Result<u64, Errno> {
    match kind {
        Kind::RegularFile => {
            let stat = rustix::fs::fstat(fd)?;
            u64::try_from(stat.st_size).or(Err(Errno::OVERFLOW))
        }
        // What BLKGETSIZE64 says; nothing here uses the file position.
        Kind::BlockDevice => rustix::fs::seek(fd, SeekFrom::End(0)),
    }
}
