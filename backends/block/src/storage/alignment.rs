// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a file demands of the addresses of an I/O.

use std::ops::Range;

use ringside_common::num::usize_of;

/// What a file demands of the addresses of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Alignment of memory addresses; 1 unless `O_DIRECT`.
    pub memory_bytes: u32,
    /// Alignment of offsets and lengths, at least `memory_bytes`; 1 unless `O_DIRECT`.
    pub offset_bytes: u32,
    /// Granule in which [`Bounce`](super::Bounce) reads, at least `offset_bytes` and the blocks of
    /// the capacity: the end of the file may fall inside the last one, whose rest reads as zeroes.
    pub block_bytes: u32,
}

impl Alignment {
    /// Whether a write of whole sectors may have to read and rewrite a block.
    #[must_use]
    pub const fn may_rewrite(&self) -> bool {
        self.offset_bytes > 512
    }

    /// Whether an I/O on this range of the file needs no rounding.
    #[must_use]
    pub fn fits_range(&self, offset: u64, len_bytes: u64) -> bool {
        let align = u64::from(self.offset_bytes);
        offset.is_multiple_of(align) && len_bytes.is_multiple_of(align)
    }

    /// Whether an I/O may use this buffer, one of a vector.
    #[must_use]
    pub fn fits_memory(&self, address: usize, len_bytes: usize) -> bool {
        // The kernel wants the length of each buffer to keep to the blocks of the device too.
        address.is_multiple_of(usize_of(self.memory_bytes.into()))
            && len_bytes.is_multiple_of(usize_of(self.offset_bytes.into()))
    }
}

/// The whole granules in a range.
pub(super) fn rounded_in(range: Range<u64>, granule: u32) -> Range<u64> {
    let granule = u64::from(granule.max(1));
    let start = range.start.checked_next_multiple_of(granule);
    start.unwrap_or(u64::MAX)..range.end - range.end % granule
}

/// The smallest range of whole granules that holds `len_bytes` from `offset` on; `None` where no
/// file has such a range.
pub(super) fn rounded_out(offset: u64, len_bytes: u64, granule: u32) -> Option<Range<u64>> {
    let granule = u64::from(granule);
    offset
        .checked_add(len_bytes)
        .and_then(|end| end.checked_next_multiple_of(granule))
        .filter(|end| i64::try_from(*end).is_ok())
        .map(|end| offset - offset % granule..end)
}
