// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests the fast engine cannot hand to the kernel as they stand.
//!
//! `O_DIRECT` wants file offset, length and memory address aligned, and firmware, Windows and
//! sub-block requests are not. A [`SlowPath`] serves any request of whole bytes through a bounded
//! aligned buffer, blocking its thread: it is meant for a pool, not for a data thread.
//!
//! A write that covers part of a block reads the block, changes its part and writes it all. Two
//! such writes to the two halves of a block must not pass each other, nor may an aligned write
//! pass one: so this module holds an exclusive [`RangeLocks`] lock over the blocks it rewrites,
//! and *every other write, zeroing or discard* of the image, by whatever engine, a shared one for
//! as long as it is in flight, unless [`Alignment::may_rewrite`] says no write ever rewrites.
//! Reads take no lock: what a rewrite changes outside its request is nothing.

mod aligned_buf;
mod range_locks;

use std::ops::Range;
use std::sync::Arc;

use rustix::io::{Errno, ReadWriteFlags};
use thiserror::Error;

pub use aligned_buf::AlignedBuf;
pub use range_locks::{RangeGuard, RangeLocks};

/// Most bytes moved by one system call here, and so the largest buffer.
const CHUNK_BYTES: u64 = 1 << 20;

/// What an image demands of the addresses of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Alignment of memory addresses; 1 unless `O_DIRECT`.
    pub memory_bytes: u32,
    /// Alignment of offsets and lengths, at least `memory_bytes`; 1 unless `O_DIRECT`.
    pub offset_bytes: u32,
    /// Granule in which the slow path reads, at least `offset_bytes` and the blocks of the capacity:
    /// the end of the file may fall inside the last one, whose rest reads as zeroes.
    pub block_bytes: u32,
}

impl Alignment {
    /// Whether a write of whole sectors may have to read and rewrite a block.
    #[must_use]
    pub const fn may_rewrite(&self) -> bool {
        self.offset_bytes > 512
    }

    /// Whether an I/O on this range of the image needs no rounding.
    #[must_use]
    pub fn fits_range(&self, offset: u64, len_bytes: u64) -> bool {
        let align = u64::from(self.offset_bytes);
        offset.is_multiple_of(align) && len_bytes.is_multiple_of(align)
    }

    /// Whether an I/O may use this buffer, one of a vector.
    #[must_use]
    pub fn fits_memory(&self, address: usize, len_bytes: usize) -> bool {
        // The kernel wants the length of each buffer to keep to the blocks of the device too.
        address.is_multiple_of(usize_from(self.memory_bytes.into()))
            && len_bytes.is_multiple_of(usize_from(self.offset_bytes.into()))
    }
}

/// Why a request on the slow path failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SlowPathError {
    /// The image failed.
    #[error("image i/o at byte {offset}")]
    Io {
        /// First byte of the failed call.
        offset: u64,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The image ends before the range: it shrank.
    #[error("image ends before byte {offset}")]
    EndOfImage {
        /// First byte that is missing.
        offset: u64,
    },
    /// The range exceeds what a file can address.
    #[error("{len_bytes} bytes at {offset} are beyond any file")]
    Range {
        /// First byte of the request.
        offset: u64,
        /// Length of the request.
        len_bytes: u64,
    },
    /// The caller's buffer could not be reached; for callers' callbacks.
    #[error("guest memory not accessible")]
    GuestMemory,
}

/// Takes bytes read: their position in the request, and them.
pub type Sink<'s> = dyn FnMut(u64, &[u8]) -> Result<(), SlowPathError> + 's;
/// Sets bytes to write: their position in the request, and them.
pub type Source<'s> = dyn FnMut(u64, &mut [u8]) -> Result<(), SlowPathError> + 's;

/// Blocking access to an image; a seam for tests.
pub trait Storage: Send + Sync {
    /// The demands on every other call but `discard`.
    fn alignment(&self) -> Alignment;
    /// `pread`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize, Errno>;
    /// `pwritev2`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn write_at(&self, bytes: &[u8], offset: u64, flags: ReadWriteFlags) -> Result<usize, Errno>;
    /// What the ranges of `zero_range` and `discard` must be whole multiples of.
    fn clear_granule_bytes(&self) -> u32;
    /// Zeroes a range without writing it, deallocating it on `unmap` if that is possible.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn zero_range(&self, offset: u64, len_bytes: u64, unmap: bool) -> Result<(), Errno>;
    /// Deallocates a range as far as possible.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn discard(&self, offset: u64, len_bytes: u64) -> Result<(), Errno>;
}

/// Requests of any alignment on one image.
#[derive(Clone, Copy)]
pub struct SlowPath<'a> {
    storage: &'a dyn Storage,
    locks: &'a Arc<RangeLocks>,
    align: Alignment,
}

impl std::fmt::Debug for SlowPath<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlowPath")
            .field("align", &self.align)
            .finish_non_exhaustive()
    }
}

impl<'a> SlowPath<'a> {
    /// A slow path to `storage`, whose every user shares `locks`.
    pub fn new(storage: &'a dyn Storage, locks: &'a Arc<RangeLocks>) -> Self {
        Self {
            storage,
            locks,
            align: storage.alignment(),
        }
    }

    /// Reads a range and hands it on in order.
    ///
    /// # Errors
    ///
    /// The image's failure, or the first of `sink`. Bytes may have been handed on by then.
    pub fn read(
        &self,
        offset: u64,
        len_bytes: u64,
        sink: &mut Sink<'_>,
    ) -> Result<(), SlowPathError> {
        // By blocks of the capacity, so that each chunk begins where a file may not end inside.
        let bounds = rounded_out(offset, len_bytes, self.align.block_bytes)?;
        let mut buffer = AlignedBuf::new(longest_chunk(&bounds), self.align.memory_bytes);
        for chunk in chunks(&bounds) {
            let bytes = within_mut(buffer.as_mut_slice(), &chunk, &chunk)?;
            let num_read = self.fill(bytes, chunk.start)?;
            let wanted = chunk.start.max(offset)..chunk.end.min(offset + len_bytes);
            let end_of_file = chunk.start + num_read;
            let readable_end = end_of_file.next_multiple_of(self.align.block_bytes.into());
            if wanted.end > readable_end {
                return Err(SlowPathError::EndOfImage {
                    offset: readable_end,
                });
            }
            sink(wanted.start - offset, within(bytes, &chunk, &wanted)?)?;
        }
        Ok(())
    }

    /// Writes a range that it asks for in order.
    ///
    /// `flags` are those of `pwritev2`, such as [`ReadWriteFlags::DSYNC`].
    ///
    /// # Errors
    ///
    /// The image's failure, or the first of `source`. Any part may have been written by then.
    pub fn write(
        &self,
        offset: u64,
        len_bytes: u64,
        flags: ReadWriteFlags,
        source: &mut Source<'_>,
    ) -> Result<(), SlowPathError> {
        let bounds = rounded_out(offset, len_bytes, self.align.offset_bytes)?;
        let _guard = if self.align.fits_range(offset, len_bytes) {
            self.locks.lock_shared(bounds.clone())
        } else {
            self.locks.lock_exclusive(bounds.clone())
        };
        let mut buffer = AlignedBuf::new(longest_chunk(&bounds), self.align.memory_bytes);
        for chunk in chunks(&bounds) {
            let wanted = chunk.start.max(offset)..chunk.end.min(offset + len_bytes);
            let bytes = within_mut(buffer.as_mut_slice(), &chunk, &chunk)?;
            self.fill_edges(bytes, &chunk, &wanted)?;
            source(wanted.start - offset, within_mut(bytes, &chunk, &wanted)?)?;
            self.write_all(bytes, chunk.start, flags)?;
        }
        Ok(())
    }

    /// Zeroes a range: by one call where the image can, else by writing; so are the parts of blocks
    /// at its ends that no call takes.
    ///
    /// With `flags` of [`ReadWriteFlags::DSYNC`] only written zeroes are stable afterwards: a
    /// caller that needs them to be must still sync.
    ///
    /// # Errors
    ///
    /// The image's failure; any part may be zero by then.
    pub fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: bool,
        flags: ReadWriteFlags,
    ) -> Result<(), SlowPathError> {
        let end =
            (offset.checked_add(len_bytes)).ok_or(SlowPathError::Range { offset, len_bytes })?;
        let whole = rounded_in(offset..end, self.storage.clear_granule_bytes());
        if whole.is_empty() {
            return self.write_zero_bytes(offset..end, flags);
        }
        let zeroed = {
            let _guard = self.lock_shared(whole.start, whole.end - whole.start)?;
            retried(|| (self.storage).zero_range(whole.start, whole.end - whole.start, unmap))
        };
        match zeroed {
            Ok(()) => {
                self.write_zero_bytes(offset..whole.start, flags)?;
                self.write_zero_bytes(whole.end..end, flags)
            }
            Err(errno) if is_not_supported(errno) => self.write_zero_bytes(offset..end, flags),
            Err(source) => Err(SlowPathError::Io { offset, source }),
        }
    }

    fn write_zero_bytes(
        &self,
        range: Range<u64>,
        flags: ReadWriteFlags,
    ) -> Result<(), SlowPathError> {
        if range.is_empty() {
            return Ok(());
        }
        let len_bytes = range.end - range.start;
        self.write(range.start, len_bytes, flags, &mut |_, bytes| {
            bytes.fill(0);
            Ok(())
        })
    }

    /// Discards a range, or the whole blocks in it.
    ///
    /// # Errors
    ///
    /// The image's failure. An image that cannot discard after all is none: the range keeps its
    /// contents, which a discard permits.
    pub fn discard(&self, offset: u64, len_bytes: u64) -> Result<(), SlowPathError> {
        let end =
            (offset.checked_add(len_bytes)).ok_or(SlowPathError::Range { offset, len_bytes })?;
        let whole = rounded_in(offset..end, self.storage.clear_granule_bytes());
        if whole.is_empty() {
            return Ok(());
        }
        let _guard = self.lock_shared(whole.start, whole.end - whole.start)?;
        match retried(|| (self.storage).discard(whole.start, whole.end - whole.start)) {
            Err(errno) if is_not_supported(errno) => Ok(()),
            other => other.map_err(|source| SlowPathError::Io { offset, source }),
        }
    }

    fn lock_shared(&self, offset: u64, len_bytes: u64) -> Result<RangeGuard, SlowPathError> {
        Ok(self
            .locks
            .lock_shared(rounded_out(offset, len_bytes, self.align.offset_bytes)?))
    }

    /// Reads those blocks of `chunk` of which `wanted` leaves a part as it is.
    fn fill_edges(
        &self,
        bytes: &mut [u8],
        chunk: &Range<u64>,
        wanted: &Range<u64>,
    ) -> Result<(), SlowPathError> {
        let block_bytes = u64::from(self.align.offset_bytes);
        if wanted.start > chunk.start {
            let first = chunk.start..chunk.start + block_bytes;
            self.fill(within_mut(bytes, chunk, &first)?, first.start)?;
        }
        let last = chunk.end.saturating_sub(block_bytes)..chunk.end;
        let is_read = wanted.start > chunk.start && last.start == chunk.start;
        if wanted.end < chunk.end && !is_read {
            self.fill(within_mut(bytes, chunk, &last)?, last.start)?;
        }
        Ok(())
    }

    /// Reads `bytes` full, zeroes behind the end of the file included; returns the count before.
    fn fill(&self, bytes: &mut [u8], offset: u64) -> Result<u64, SlowPathError> {
        let align = usize_from(self.align.offset_bytes.into());
        let mut num_read = 0;
        while let Some(rest) = bytes.get_mut(num_read..).filter(|rest| !rest.is_empty()) {
            let at = offset + u64_from(num_read);
            let count = retried(|| self.storage.read_at(rest, at))
                .map_err(|source| SlowPathError::Io { offset: at, source })?;
            num_read += count;
            // A count that ends inside a block ends at the end of the file.
            if count == 0 || !count.is_multiple_of(align) {
                rest.get_mut(count..).unwrap_or_default().fill(0);
                break;
            }
        }
        Ok(u64_from(num_read))
    }

    fn write_all(
        &self,
        bytes: &[u8],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> Result<(), SlowPathError> {
        let align = usize_from(self.align.offset_bytes.into());
        let mut num_written = 0;
        while let Some(rest) = bytes.get(num_written..).filter(|rest| !rest.is_empty()) {
            let at = offset + u64_from(num_written);
            let count = retried(|| self.storage.write_at(rest, at, flags))
                .map_err(|source| SlowPathError::Io { offset: at, source })?;
            // Go on from the last whole block; less than one is no progress.
            let count = count - count % align;
            if count == 0 {
                return Err(SlowPathError::Io {
                    offset: at,
                    source: Errno::IO,
                });
            }
            num_written += count;
        }
        Ok(())
    }
}

fn retried<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => std::thread::yield_now(),
            other => return other,
        }
    }
}

/// Whether an errno of fallocate(2), or of an ioctl in its place, says that this image has no such
/// call, at least not for this range. File systems do not agree on one: FUSE and GPFS say EINVAL,
/// filters of system calls ENOSYS or EPERM. If there is more to it, writing will fail likewise.
#[must_use]
pub const fn is_not_supported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::NODEV | Errno::NOTTY | Errno::PERM
    )
}

/// The whole granules in a range.
fn rounded_in(range: Range<u64>, granule: u32) -> Range<u64> {
    let granule = u64::from(granule.max(1));
    let start = range.start.checked_next_multiple_of(granule);
    start.unwrap_or(u64::MAX)..range.end - range.end % granule
}

/// The smallest range of whole granules that holds a request.
fn rounded_out(offset: u64, len_bytes: u64, granule: u32) -> Result<Range<u64>, SlowPathError> {
    let granule = u64::from(granule);
    offset
        .checked_add(len_bytes)
        .and_then(|end| end.checked_next_multiple_of(granule))
        .filter(|end| i64::try_from(*end).is_ok())
        .map(|end| offset - offset % granule..end)
        .ok_or(SlowPathError::Range { offset, len_bytes })
}

/// The ranges of at most [`CHUNK_BYTES`] that make up one of whole granules.
fn chunks(bounds: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = bounds.end;
    let mut start = bounds.start;
    std::iter::from_fn(move || {
        let chunk = start..end.min(start + CHUNK_BYTES);
        start = chunk.end;
        (!chunk.is_empty()).then_some(chunk)
    })
}

fn longest_chunk(bounds: &Range<u64>) -> usize {
    usize_from((bounds.end - bounds.start).min(CHUNK_BYTES))
}

/// The part of `bytes`, which hold `chunk`, that holds `wanted`.
fn within<'b>(
    bytes: &'b [u8],
    chunk: &Range<u64>,
    wanted: &Range<u64>,
) -> Result<&'b [u8], SlowPathError> {
    bytes
        .get(relative(chunk, wanted))
        .ok_or(SlowPathError::EndOfImage {
            offset: wanted.start,
        })
}

fn within_mut<'b>(
    bytes: &'b mut [u8],
    chunk: &Range<u64>,
    wanted: &Range<u64>,
) -> Result<&'b mut [u8], SlowPathError> {
    bytes
        .get_mut(relative(chunk, wanted))
        .ok_or(SlowPathError::EndOfImage {
            offset: wanted.start,
        })
}

fn relative(chunk: &Range<u64>, wanted: &Range<u64>) -> Range<usize> {
    usize_from(wanted.start.saturating_sub(chunk.start))
        ..usize_from(wanted.end.saturating_sub(chunk.start))
}

/// For lengths of at most [`CHUNK_BYTES`].
fn usize_from(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn u64_from(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
