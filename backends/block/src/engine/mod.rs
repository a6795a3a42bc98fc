// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where requests go once they are checked.
//!
//! An [`Engine`] is the disk, shared by all data threads. For each vring that starts it makes an
//! [`EngineQueue`], which lives on the vring's data thread: the state of the vring's operations is
//! there, and needs no lock.
//!
//! An operation has one or more steps. It may be done at once; else the engine starts I/O for it,
//! with a tag. The completion of I/O that was started with [`LAST_STEP`] ends the operation; any
//! other comes back to the engine, which goes on with the next step:
//!
//! ```text
//! read, write, flush, clear ──> Done(result) ──────────────────────────> answer
//!   │                                ^                                      ^
//!   └─> Pending ── another tag ──> resume ──> Pending ── LAST_STEP ─────────┘
//! ```
//!
//! [`FileEngine`] is the real engine. Tests have others, such as one that forgets what was not
//! flushed. [`NullEngine`] is for measuring everything but the storage.

mod file;
mod null;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ringside_common::io::{Engine as IoEngine, FileId};
use ringside_common::worker::RequestCx;
use rustix::io::Errno;

pub use file::FileEngine;
pub use null::NullEngine;

use crate::request::Segment;
use crate::storage::{SECTOR_BYTES, Topology};

/// The tag of I/O whose result is the result of the operation. All other tags below
/// [`TAGS_END`] are the engine's own.
pub const LAST_STEP: u16 = 0;
/// The first tag that an engine must not use.
pub const TAGS_END: u16 = u16::MAX;

/// What became of an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Step {
    /// It is done: bytes moved, or a negative errno.
    Done(i32),
    /// I/O is under way for it.
    Pending,
}

/// The outcome of asking a data thread for I/O.
impl From<io::Result<()>> for Step {
    fn from(started: io::Result<()>) -> Self {
        match started {
            Ok(()) => Self::Pending,
            Err(error) => Self::Done(-error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

/// One request, for an engine.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its place among the requests of the vring, which names its buffers.
    pub head: u16,
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
    /// It is done when the result is stable.
    pub stable: bool,
    /// Set when the vring must stop: ranges that are not begun by then are left as they are.
    pub stop: Arc<AtomicBool>,
}

/// The most that is cleared between two looks at [`Ranges::stop`]: a second's work for a slow disk.
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
pub trait Engine: Send + Sync + Debug {
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

    /// Whether what was written may be in the host's page cache only, until a sync. The kernel then
    /// reports an error on the way to the disk to a later sync, and to one sync only.
    fn caches_writes(&self) -> bool {
        true
    }

    /// The bytes that read as zeroes at this moment although the file does not have them: the rest
    /// of the block in which the file ends.
    ///
    /// # Errors
    /// What the host says.
    fn zero_tail_bytes(&self) -> io::Result<Range<u64>> {
        Ok(0..0)
    }

    /// Payload bytes that were copied, because the guest's buffers were not aligned as the storage
    /// demands.
    fn bounced_bytes(&self) -> u64 {
        0
    }

    /// Makes the engine's part of a vring that starts, with `size` places for requests. `file`
    /// tells by which name the data thread of the vring knows the `n`-th of [`files`](Self::files).
    fn start_queue(
        self: Arc<Self>,
        size: u16,
        file: &dyn Fn(u32) -> FileId,
    ) -> Box<dyn EngineQueue>;

    /// Makes all completed writes stable, waiting for it.
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

/// The operations of an engine on one vring.
pub trait EngineQueue: Send + Debug {
    /// Reads into the writable payload left.
    fn read(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step;

    /// Writes the readable payload left; with `stable`, it is done when it is on stable storage.
    fn write(&mut self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Step;

    /// Makes all completed writes stable.
    fn flush(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step;

    /// Discards or zeroes ranges.
    fn clear(&mut self, cx: &mut RequestCx<'_>, target: Target, ranges: Ranges) -> Step;

    /// I/O that was started with `tag`, which is not [`LAST_STEP`], has ended with `result`: bytes,
    /// or a negative errno. `target` is that of the operation. An operation has ended only when its
    /// last I/O has.
    fn resume(&mut self, _cx: &mut RequestCx<'_>, _target: Target, _tag: u16, result: i32) -> Step {
        Step::Done(result)
    }
}
