// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block sizes of a disk.

use super::error::ImageError;

/// Bytes in a sector, the unit in which sizes of disks are counted.
pub const SECTOR_BYTES: u64 = 512;
/// Smallest block size: a sector.
pub(super) const MIN_BLOCK_BYTES: u32 = 512;
/// Largest block size: the largest that Linux accepts as a logical block.
pub(super) const MAX_BLOCK_BYTES: u32 = 1 << 16;

/// Block sizes, which the driver of the disk uses as hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Block in which the driver is asked to do its I/O: a power of two, 512 or more.
    pub logical_block_bytes: u32,
    /// Block below which the storage reads, modifies and writes.
    pub physical_block_bytes: u32,
    /// First byte that begins a physical block.
    pub alignment_offset_bytes: u32,
    /// Smallest transfer that is not slow.
    pub min_io_bytes: u32,
    /// Best transfer, or 0 if unknown.
    pub opt_io_bytes: u32,
    /// Unit in which a discard frees space.
    pub discard_granularity_bytes: u32,
}

impl Topology {
    /// Storage without blocks of its own.
    pub const SECTORS: Self = Self {
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        alignment_offset_bytes: 0,
        min_io_bytes: 512,
        opt_io_bytes: 0,
        discard_granularity_bytes: 512,
    };
}

pub(super) fn check_block_size(block_size_bytes: u32) -> Result<(), ImageError> {
    let is_good = block_size_bytes.is_power_of_two()
        && (MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&block_size_bytes);
    if is_good {
        Ok(())
    } else {
        Err(ImageError::BlockSize { block_size_bytes })
    }
}

/// Whether blocks of `block_size_bytes` divide a disk of `size_bytes`.
pub(super) fn check_size(size_bytes: u64, block_size_bytes: u32) -> Result<(), ImageError> {
    if size_bytes.is_multiple_of(block_size_bytes.into()) {
        Ok(())
    } else {
        Err(ImageError::Size {
            size_bytes,
            block_size_bytes,
        })
    }
}
