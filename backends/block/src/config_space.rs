// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space, `struct virtio_blk_config` of virtio 1.3 §5.2.4, byte by byte.
//!
//! Front-ends read prefixes of it of many sizes (QEMU 36, 48 or 57 bytes, Firecracker 60) and take
//! an answer of any other size than the one asked for as an error, so it is kept zero-padded to
//! the [`CONFIG_SPACE_BYTES`] a vhost-user message can carry. Of all its bytes only `writeback`
//! may be written.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use thiserror::Error;

use crate::request::SegmentLimits;
use crate::storage::Topology;

/// What can be read: `VHOST_USER_MAX_CONFIG_SIZE`.
pub const CONFIG_SPACE_BYTES: usize = 256;
/// Where the only writable field lies.
const WRITEBACK_OFFSET: u32 = 32;

/// Every field of the configuration space that is not constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    /// Size of the device, in sectors.
    pub capacity_sectors: u64,
    /// Longest segment of a read or write; not 0, which Linux takes at its word.
    pub size_max_bytes: u32,
    /// Most segments of a read or write.
    pub seg_max: u32,
    /// Block sizes.
    pub topology: Topology,
    /// The write cache is on.
    pub writeback: bool,
    /// Virtqueues, at least 1.
    pub num_queues: u16,
    /// Bounds of a discard; `None` if not offered.
    pub discard: Option<SegmentLimits>,
    /// Bounds of a write zeroes; `None` if not offered.
    pub write_zeroes: Option<SegmentLimits>,
    /// A write zeroes may deallocate.
    pub write_zeroes_may_unmap: bool,
}

/// What a write to the configuration space did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WceChange {
    /// The cache mode was that already.
    Unchanged,
    /// Requests from now on may be cached until a flush.
    Writeback,
    /// Requests from now on complete when they are stable.
    Writethrough,
}

/// A write that the configuration space refuses; nothing was changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConfigSpaceError {
    /// Another range than the one byte `writeback`.
    #[error("config space: {len_bytes} bytes at {offset} are read-only")]
    ReadOnly {
        /// First byte of the write.
        offset: u32,
        /// Length of the write.
        len_bytes: usize,
    },
    /// Neither 0 nor 1.
    #[error("config space: writeback {value} is neither 0 nor 1")]
    BadWriteback {
        /// The byte written.
        value: u8,
    },
}

impl ConfigSpace {
    /// Applies a write by the driver.
    ///
    /// Whether the driver may write at all is the caller's to know: only with
    /// `VIRTIO_BLK_F_CONFIG_WCE` acknowledged.
    ///
    /// # Errors
    ///
    /// Anything but 0 or 1 to the one byte `writeback`.
    pub fn write(&mut self, offset: u32, payload: &[u8]) -> Result<WceChange, ConfigSpaceError> {
        let &[value] = payload else {
            return Err(ConfigSpaceError::ReadOnly {
                offset,
                len_bytes: payload.len(),
            });
        };
        if offset != WRITEBACK_OFFSET {
            return Err(ConfigSpaceError::ReadOnly {
                offset,
                len_bytes: payload.len(),
            });
        }
        let writeback = match value {
            0 => false,
            1 => true,
            _ => return Err(ConfigSpaceError::BadWriteback { value }),
        };
        let was = std::mem::replace(&mut self.writeback, writeback);
        Ok(match (was, writeback) {
            (false, true) => WceChange::Writeback,
            (true, false) => WceChange::Writethrough,
            _ => WceChange::Unchanged,
        })
    }

    /// Exactly `size` bytes from `offset` on, or `None` for an empty range or one beyond
    /// [`CONFIG_SPACE_BYTES`].
    #[must_use]
    pub fn read(&self, offset: u32, size: u32) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        let size = usize::try_from(size).ok().filter(|size| *size > 0)?;
        let end = start.checked_add(size)?;
        Some(self.to_bytes().get(start..end)?.to_vec())
    }

    fn to_bytes(self) -> Vec<u8> {
        let block_bytes = self.topology.logical_block_bytes.max(512);
        let in_blocks = |bytes: u32| bytes.checked_div(block_bytes).unwrap_or(0);
        let min_io_blocks = in_blocks(self.topology.min_io_bytes).max(1);
        let alignment_blocks = in_blocks(self.topology.alignment_offset_bytes);
        let ratio = in_blocks(self.topology.physical_block_bytes).max(1);
        let [physical_block_exp, ..] = ratio.ilog2().to_le_bytes();

        let mut bytes = Vec::with_capacity(CONFIG_SPACE_BYTES);
        bytes.extend(self.capacity_sectors.to_le_bytes());
        bytes.extend(self.size_max_bytes.to_le_bytes());
        bytes.extend(self.seg_max.to_le_bytes());
        bytes.extend([0; 4]); // geometry: cylinders, heads, sectors; never offered
        bytes.extend(block_bytes.to_le_bytes());
        bytes.push(physical_block_exp);
        // A hint; 0, which is none, where the field is too narrow for it.
        bytes.push(u8::try_from(alignment_blocks).unwrap_or(0));
        // Another hint: as large as the field allows.
        bytes.extend(
            u16::try_from(min_io_blocks)
                .unwrap_or(u16::MAX)
                .to_le_bytes(),
        );
        bytes.extend(in_blocks(self.topology.opt_io_bytes).to_le_bytes());
        bytes.push(self.writeback.into());
        bytes.push(0); // unused0
        bytes.extend(self.num_queues.to_le_bytes());
        self.extend_with_segment_limits(&mut bytes);
        bytes.extend([0; 12]); // max_secure_erase_sectors, _seg and alignment; never offered
        bytes.resize(CONFIG_SPACE_BYTES, 0);
        bytes
    }

    fn extend_with_segment_limits(&self, bytes: &mut Vec<u8>) {
        const NONE: SegmentLimits = SegmentLimits {
            max_sectors: 0,
            max_segments: 0,
        };
        let granularity_sectors = self.topology.discard_granularity_bytes / 512;
        let discard = self.discard.unwrap_or(NONE);
        let discard_sector_alignment = match self.discard {
            // Linux refuses a device that offers discards with an alignment of 0.
            Some(_) => granularity_sectors.max(1),
            None => 0,
        };
        let write_zeroes = self.write_zeroes.unwrap_or(NONE);
        let may_unmap = self.write_zeroes.is_some() && self.write_zeroes_may_unmap;
        bytes.extend(discard.max_sectors.to_le_bytes());
        bytes.extend(discard.max_segments.to_le_bytes());
        bytes.extend(discard_sector_alignment.to_le_bytes());
        bytes.extend(write_zeroes.max_sectors.to_le_bytes());
        bytes.extend(write_zeroes.max_segments.to_le_bytes());
        bytes.push(may_unmap.into());
        bytes.extend([0; 3]); // unused1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_space() -> ConfigSpace {
        ConfigSpace {
            capacity_sectors: 0x0102_0304_0506_0708,
            size_max_bytes: 0x0010_0000,
            seg_max: 254,
            topology: Topology {
                logical_block_bytes: 512,
                physical_block_bytes: 4096,
                alignment_offset_bytes: 3 * 512,
                min_io_bytes: 8192,
                opt_io_bytes: 1 << 20,
                discard_granularity_bytes: 65536,
            },
            writeback: true,
            num_queues: 0x0102,
            discard: Some(SegmentLimits {
                max_sectors: 0x11,
                max_segments: 0x12,
            }),
            write_zeroes: Some(SegmentLimits {
                max_sectors: 0x21,
                max_segments: 0x22,
            }),
            write_zeroes_may_unmap: true,
        }
    }

    #[test]
    fn layout_is_exact_to_the_byte() {
        let expected: [u8; 72] = [
            8, 7, 6, 5, 4, 3, 2, 1, // 0 capacity
            0, 0, 16, 0, // 8 size_max
            254, 0, 0, 0, // 12 seg_max
            0, 0, 0, 0, // 16 geometry
            0, 2, 0, 0, // 20 blk_size
            3, 3, // 24 physical_block_exp, alignment_offset
            16, 0, // 26 min_io_size
            0, 8, 0, 0, // 28 opt_io_size
            1, 0, // 32 writeback, unused0
            2, 1, // 34 num_queues
            0x11, 0, 0, 0, // 36 max_discard_sectors
            0x12, 0, 0, 0, // 40 max_discard_seg
            128, 0, 0, 0, // 44 discard_sector_alignment
            0x21, 0, 0, 0, // 48 max_write_zeroes_sectors
            0x22, 0, 0, 0, // 52 max_write_zeroes_seg
            1, 0, 0, 0, // 56 write_zeroes_may_unmap, unused1
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 60 secure erase
        ];
        let bytes = config_space().read(0, 256).unwrap();
        assert_eq!(bytes[..72], expected);
        assert_eq!(bytes[72..], [0; 184]);
    }

    #[test]
    fn read_of_any_range_inside_gives_exactly_that_range() {
        let config_space = config_space();
        let all = config_space.read(0, 256).unwrap();
        for offset in 0..=260_u16 {
            for size in 0..=260_u16 {
                let expected = (size > 0 && offset + size <= 256)
                    .then(|| all[offset.into()..(offset + size).into()].to_vec());
                let read = config_space.read(offset.into(), size.into());
                assert_eq!(read, expected, "{offset} {size}");
            }
        }
    }

    #[test]
    fn read_of_an_overflowing_range_gives_none() {
        for (offset, size) in [(u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX), (256, 1)] {
            assert_eq!(config_space().read(offset, size), None);
        }
    }

    #[test]
    fn write_of_writeback_changes_the_mode_once() {
        let mut config_space = config_space();
        assert_eq!(config_space.write(32, &[1]), Ok(WceChange::Unchanged));
        assert_eq!(config_space.write(32, &[0]), Ok(WceChange::Writethrough));
        assert_eq!(config_space.read(32, 1), Some(vec![0]));
        assert_eq!(config_space.write(32, &[0]), Ok(WceChange::Unchanged));
        assert_eq!(config_space.write(32, &[1]), Ok(WceChange::Writeback));
        assert_eq!(config_space.read(32, 1), Some(vec![1]));
    }

    #[test]
    fn write_of_anything_else_is_refused_without_change() {
        let before = config_space();
        let mut config_space = before;
        for offset in (0..300).chain([u32::MAX]) {
            for payload in [&[][..], &[0], &[0, 0], &[0; 60], &[0; 256]] {
                if offset == 32 && payload.len() == 1 {
                    continue;
                }
                let refused = ConfigSpaceError::ReadOnly {
                    offset,
                    len_bytes: payload.len(),
                };
                assert_eq!(config_space.write(offset, payload), Err(refused));
            }
        }
        for value in 2..=255 {
            let refused = ConfigSpaceError::BadWriteback { value };
            assert_eq!(config_space.write(32, &[value]), Err(refused));
        }
        assert_eq!(config_space, before);
    }

    #[test]
    fn absent_features_have_zero_fields() {
        let config_space = ConfigSpace {
            discard: None,
            write_zeroes: None,
            ..config_space()
        };
        assert_eq!(config_space.read(36, 36), Some(vec![0; 36]));
    }

    #[test]
    fn offered_discard_never_has_an_alignment_of_zero() {
        let mut config_space = config_space();
        config_space.topology.discard_granularity_bytes = 0;
        assert_eq!(config_space.read(44, 4), Some(vec![1, 0, 0, 0]));
    }

    #[test]
    fn sizes_are_counted_in_logical_blocks() {
        let mut config_space = config_space();
        config_space.topology.logical_block_bytes = 4096;
        config_space.topology.min_io_bytes = 0;
        let expected = [0, 16, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0];
        assert_eq!(config_space.read(20, 12), Some(expected.to_vec()));
    }
}
