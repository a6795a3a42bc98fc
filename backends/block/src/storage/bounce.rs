// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! I/O of any alignment, through a buffer that is aligned.
//!
//! `O_DIRECT` wants file offset, length and memory address aligned, and the requests of firmware,
//! of Windows, and those smaller than a block are not. A [`Bounce`] serves any request of whole
//! bytes through a bounded aligned buffer. It blocks its thread, which must not be a data thread.
//!
//! A write that covers part of a block reads the block, changes that part and writes the whole
//! block. Two such writes to the two halves of a block must not pass each other, nor may an aligned
//! write pass one. So `Bounce` holds an exclusive [`RangeLocks`] lock on the blocks that it
//! rewrites, and *every other write, zeroing or discard* of the layer, by whatever engine, must
//! hold a shared one while it is in flight, unless [`Alignment::may_rewrite`] says that no write
//! ever rewrites. Reads take no lock: a rewrite changes nothing outside its request.

use std::ops::Range;
use std::sync::Arc;

use ringside_common::num::usize_of;
use rustix::io::{Errno, ReadWriteFlags};
use thiserror::Error;

use super::aligned_buf::AlignedBuf;
use super::alignment::{self, Alignment, rounded_in};
use super::layer::{Layer, is_not_supported};
use super::range_locks::{RangeGuard, RangeLocks};

/// Most bytes moved by one system call here, and so the largest buffer.
const CHUNK_BYTES: u64 = 1 << 20;

/// Why an I/O failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BounceError {
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
    /// The bytes could not be taken or given: what a [`Sink`] or [`Source`] returns.
    #[error("guest memory not accessible")]
    GuestMemory,
}

/// Takes bytes read: their position in the request, and them.
pub type Sink<'s> = dyn FnMut(u64, &[u8]) -> Result<(), BounceError> + 's;
/// Sets bytes to write: their position in the request, and them.
pub type Source<'s> = dyn FnMut(u64, &mut [u8]) -> Result<(), BounceError> + 's;

/// I/O of any alignment on one layer.
#[derive(Clone, Copy)]
pub struct Bounce<'a> {
    layer: &'a dyn Layer,
    locks: &'a Arc<RangeLocks>,
    align: Alignment,
}

impl std::fmt::Debug for Bounce<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bounce")
            .field("align", &self.align)
            .finish_non_exhaustive()
    }
}

impl<'a> Bounce<'a> {
    /// I/O on `layer`, whose users all share `locks`.
    pub fn new(layer: &'a dyn Layer, locks: &'a Arc<RangeLocks>) -> Self {
        Self {
            layer,
            locks,
            align: layer.alignment(),
        }
    }

    /// Reads a range and gives its bytes to `sink`, in order.
    ///
    /// # Errors
    ///
    /// The image's failure, or the first of `sink`. Some bytes may have been given to it before.
    pub fn read(
        &self,
        offset: u64,
        len_bytes: u64,
        sink: &mut Sink<'_>,
    ) -> Result<(), BounceError> {
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
                return Err(BounceError::EndOfImage {
                    offset: readable_end,
                });
            }
            sink(wanted.start - offset, within(bytes, &chunk, &wanted)?)?;
        }
        Ok(())
    }

    /// Writes a range, whose bytes it takes from `source` in order.
    ///
    /// `flags` are those of `pwritev2`, such as [`ReadWriteFlags::DSYNC`].
    ///
    /// # Errors
    ///
    /// The image's failure, or the first of `source`. Any part may have been written before.
    pub fn write(
        &self,
        offset: u64,
        len_bytes: u64,
        flags: ReadWriteFlags,
        source: &mut Source<'_>,
    ) -> Result<(), BounceError> {
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

    /// Zeroes a range by one call where the image has such a call, else by writing zeroes. The
    /// parts of blocks at its ends, which the call does not accept, are written too.
    ///
    /// With [`ReadWriteFlags::DSYNC`] in `flags` only the zeroes that were written are stable
    /// afterwards: a caller that needs all of them stable must still sync.
    ///
    /// # Errors
    ///
    /// The image's failure; any part may be zero before.
    pub fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: bool,
        flags: ReadWriteFlags,
    ) -> Result<(), BounceError> {
        let end =
            (offset.checked_add(len_bytes)).ok_or(BounceError::Range { offset, len_bytes })?;
        let whole = rounded_in(offset..end, self.layer.clear_granule_bytes());
        if whole.is_empty() {
            return self.write_zero_bytes(offset..end, flags);
        }
        let zeroed = {
            let _guard = self.lock_shared(whole.start, whole.end - whole.start)?;
            retried(|| (self.layer).zero_range(whole.start, whole.end - whole.start, unmap))
        };
        match zeroed {
            Ok(()) => {
                self.write_zero_bytes(offset..whole.start, flags)?;
                self.write_zero_bytes(whole.end..end, flags)
            }
            Err(errno) if is_not_supported(errno) => self.write_zero_bytes(offset..end, flags),
            Err(source) => Err(BounceError::Io { offset, source }),
        }
    }

    fn write_zero_bytes(
        &self,
        range: Range<u64>,
        flags: ReadWriteFlags,
    ) -> Result<(), BounceError> {
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
    /// The image's failure. It is no failure if the image turns out to be unable to discard: the
    /// range keeps its contents, which a discard permits.
    pub fn discard(&self, offset: u64, len_bytes: u64) -> Result<(), BounceError> {
        let end =
            (offset.checked_add(len_bytes)).ok_or(BounceError::Range { offset, len_bytes })?;
        let whole = rounded_in(offset..end, self.layer.clear_granule_bytes());
        if whole.is_empty() {
            return Ok(());
        }
        let _guard = self.lock_shared(whole.start, whole.end - whole.start)?;
        match retried(|| (self.layer).discard(whole.start, whole.end - whole.start)) {
            Err(errno) if is_not_supported(errno) => Ok(()),
            other => other.map_err(|source| BounceError::Io { offset, source }),
        }
    }

    fn lock_shared(&self, offset: u64, len_bytes: u64) -> Result<RangeGuard, BounceError> {
        Ok(self
            .locks
            .lock_shared(rounded_out(offset, len_bytes, self.align.offset_bytes)?))
    }

    /// Reads those blocks of `chunk` that `wanted` covers in part.
    fn fill_edges(
        &self,
        bytes: &mut [u8],
        chunk: &Range<u64>,
        wanted: &Range<u64>,
    ) -> Result<(), BounceError> {
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

    /// Fills `bytes` from the file, and with zeroes behind its end; returns the bytes before them.
    fn fill(&self, bytes: &mut [u8], offset: u64) -> Result<u64, BounceError> {
        let align = usize_of(self.align.offset_bytes.into());
        let mut num_read = 0;
        while let Some(rest) = bytes.get_mut(num_read..).filter(|rest| !rest.is_empty()) {
            let at = offset + num_read as u64;
            let count = retried(|| self.layer.read_at(rest, at))
                .map_err(|source| BounceError::Io { offset: at, source })?;
            num_read += count;
            // A count that ends inside a block ends at the end of the file.
            if count == 0 || !count.is_multiple_of(align) {
                rest.get_mut(count..).unwrap_or_default().fill(0);
                break;
            }
        }
        Ok(num_read as u64)
    }

    fn write_all(
        &self,
        bytes: &[u8],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> Result<(), BounceError> {
        let align = usize_of(self.align.offset_bytes.into());
        let mut num_written = 0;
        while let Some(rest) = bytes.get(num_written..).filter(|rest| !rest.is_empty()) {
            let at = offset + num_written as u64;
            let count = retried(|| self.layer.write_at(rest, at, flags))
                .map_err(|source| BounceError::Io { offset: at, source })?;
            // Go on from the last whole block; less than one is no progress.
            let count = count - count % align;
            if count == 0 {
                return Err(BounceError::Io {
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

/// The smallest range of whole granules that holds a request.
fn rounded_out(offset: u64, len_bytes: u64, granule: u32) -> Result<Range<u64>, BounceError> {
    alignment::rounded_out(offset, len_bytes, granule)
        .ok_or(BounceError::Range { offset, len_bytes })
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
    usize_of((bounds.end - bounds.start).min(CHUNK_BYTES))
}

/// The bytes at `wanted`, where `bytes` are those at `chunk`.
fn within<'b>(
    bytes: &'b [u8],
    chunk: &Range<u64>,
    wanted: &Range<u64>,
) -> Result<&'b [u8], BounceError> {
    bytes
        .get(relative(chunk, wanted))
        .ok_or(BounceError::EndOfImage {
            offset: wanted.start,
        })
}

fn within_mut<'b>(
    bytes: &'b mut [u8],
    chunk: &Range<u64>,
    wanted: &Range<u64>,
) -> Result<&'b mut [u8], BounceError> {
    bytes
        .get_mut(relative(chunk, wanted))
        .ok_or(BounceError::EndOfImage {
            offset: wanted.start,
        })
}

fn relative(chunk: &Range<u64>, wanted: &Range<u64>) -> Range<usize> {
    usize_of(wanted.start.saturating_sub(chunk.start))
        ..usize_of(wanted.end.saturating_sub(chunk.start))
}

#[cfg(test)]
mod tests;
