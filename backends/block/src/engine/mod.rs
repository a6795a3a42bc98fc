// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where requests go once they are checked.
//!
//! An engine starts one operation for one request; it may be done at once, or later, when the
//! data thread reports it. [`FileEngine`] is the real one. The seam is there for tests (an engine
//! that forgets what was not flushed) and for measuring everything but the storage
//! ([`NullEngine`]).

mod file;
mod null;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ringside_common::io::Engine as IoEngine;
use ringside_common::worker::RequestCx;
use rustix::io::Errno;

pub use file::FileEngine;
pub use null::NullEngine;

use crate::request::Segment;
use crate::storage::{RangeGuard, SECTOR_BYTES, Topology};

/// What became of an operation.
#[derive(Debug)]
pub enum Started {
    /// It is done: bytes moved, or a negative errno.
    Done(i32),
    /// The data thread reports its end. The guard is to be held until then.
    Pending(Option<RangeGuard>),
}

impl Started {
    /// The outcome of asking a data thread for I/O.
    #[must_use]
    pub fn of(started: io::Result<()>) -> Self {
        match started {
            Ok(()) => Self::Pending(None),
            Err(error) => Self::Done(-error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

/// One request, for an engine.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its descriptor head, which names its buffers.
    pub head: u16,
    /// To be handed to the data thread with the I/O.
    pub tag: u16,
    /// First byte on the disk.
    pub offset_bytes: u64,
}

/// Ranges to discard or to zero.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Checked segments.
    pub segments: Vec<Segment>,
    /// Zero them; else their contents do not matter any more.
    pub zero: bool,
    /// Be done when the result is stable.
    pub stable: bool,
    /// Set when the vring is to stop: what is not begun by then is left.
    pub stop: Arc<AtomicBool>,
}

/// What is cleared before a vring that stops is looked for: a second's work for a slow disk.
const PIECE_BYTES: u64 = 32 << 20;

/// A part of a segment, small enough to be waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// First byte.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// It may be deallocated.
    pub unmap: bool,
}

impl Ranges {
    /// The segments, in parts that end at whole multiples of their largest size.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.segments.iter().flat_map(|segment| {
            let mut offset_bytes = segment.sector * SECTOR_BYTES;
            let end = offset_bytes + u64::from(segment.num_sectors) * SECTOR_BYTES;
            std::iter::from_fn(move || {
                let piece = Piece {
                    offset_bytes,
                    len_bytes: end.min((offset_bytes / PIECE_BYTES + 1) * PIECE_BYTES)
                        - offset_bytes,
                    unmap: segment.unmap,
                };
                offset_bytes += piece.len_bytes;
                (piece.len_bytes > 0).then_some(piece)
            })
        })
    }
}

/// Storage for a virtio-blk device. Shared by all data threads.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// The files that data threads do I/O on for this engine.
    fn files(&self) -> Vec<Arc<OwnedFd>>;

    /// How they do it.
    fn io_engine(&self) -> IoEngine;

    /// Size of the disk in sectors, which may change at any time.
    fn capacity_sectors(&self) -> u64;

    /// Block sizes to present; sectors, unless the storage has others.
    fn topology(&self) -> Topology {
        Topology::SECTORS
    }

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether a discard frees space.
    fn can_discard(&self) -> bool;

    /// Whether what was written may be in the host's page cache only, until a sync. An error of its
    /// way to the disk is then told to a later sync, and to one of them.
    fn caches_writes(&self) -> bool {
        true
    }

    /// What reads as zeroes now although the file has no such bytes: the rest of the block that
    /// it ends in.
    ///
    /// # Errors
    /// What the host says.
    fn zero_tail_bytes(&self) -> io::Result<Range<u64>> {
        Ok(0..0)
    }

    /// Payload bytes that were copied on their way, because they could not go to the storage as
    /// the guest had them.
    fn bounced_bytes(&self) -> u64 {
        0
    }

    /// Reads into the writable payload left.
    fn read(&self, cx: &mut RequestCx<'_>, target: Target) -> Started;

    /// Writes the readable payload left; with `stable`, it is done when it is on stable storage.
    fn write(&self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Started;

    /// Makes all completed writes stable.
    fn flush(&self, cx: &mut RequestCx<'_>, target: Target) -> Started;

    /// Discards or zeroes ranges.
    fn clear(&self, cx: &mut RequestCx<'_>, target: Target, ranges: Ranges) -> Started;

    /// As [`flush`](Self::flush), waiting for it.
    ///
    /// # Errors
    /// What the host says.
    fn flush_now(&self) -> io::Result<()>;

    /// Looks at the size of the storage again.
    ///
    /// # Errors
    /// What the host says.
    fn refresh(&self) -> io::Result<u64>;

    /// Makes the storage larger.
    ///
    /// # Errors
    /// Where that is not possible.
    fn resize(&self, _size_bytes: u64) -> io::Result<u64> {
        Err(Errno::OPNOTSUPP.into())
    }

    /// Shows less than there is, before it is cut off.
    ///
    /// # Errors
    /// Where that is not possible.
    fn announce(&self, _size_bytes: u64) -> io::Result<u64> {
        Err(Errno::OPNOTSUPP.into())
    }

    /// Makes the storage smaller; nothing is under way behind its new end.
    ///
    /// # Errors
    /// Where that is not possible.
    fn cut(&self, _size_bytes: u64) -> io::Result<u64> {
        Err(Errno::OPNOTSUPP.into())
    }
}
