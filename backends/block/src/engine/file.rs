// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests on an [`Image`].
//!
//! What the kernel takes as it is goes straight to the data thread's I/O queue: the guest's
//! buffers are the kernel's, nothing is copied. What `O_DIRECT` would refuse (and `SeaBIOS`, OVMF and
//! others send) goes through [`Bounce`] on a blocking thread, with a copy.
//!
//! Where a write may be smaller than a block of the image, rewriting that block must not undo a
//! write beside it, so there every write holds a lock on its range. Other images have no locks.
//! Whoever holds a lock has a thread or the kernel behind it, so that it is let go of.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringside_common::io::{Engine as IoEngine, FileId};
use ringside_common::worker::RequestCx;
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};

use super::{Engine, Ranges, Started, Target};
use crate::storage::{
    Alignment, Bounce, BounceError, CacheMode, Image, ImageError, Layer as _, RangeLocks, Topology,
};

/// The image is the only file.
const IMAGE: FileId = FileId::new(0);
/// What one job on a blocking thread moves at most, so that its result fits; the rest is a short
/// transfer, continued.
const MAX_JOB_BYTES: u64 = 1 << 30;

/// An image as storage.
#[derive(Debug)]
pub struct FileEngine {
    image: Arc<Image>,
    fd: Arc<OwnedFd>,
    io_engine: IoEngine,
    locks: Arc<RangeLocks>,
    alignment: Alignment,
    bounced_bytes: AtomicU64,
}

impl FileEngine {
    /// Serves `image` with `io_engine`.
    ///
    /// # Errors
    /// When no descriptor is left for a second handle of the image.
    pub fn new(image: Image, io_engine: IoEngine) -> io::Result<Self> {
        let fd = Arc::new(image.as_fd().try_clone_to_owned()?);
        let alignment = image.alignment();
        Ok(Self {
            image: Arc::new(image),
            fd,
            io_engine,
            locks: Arc::default(),
            alignment,
            bounced_bytes: AtomicU64::new(0),
        })
    }

    fn is_unsafe(&self) -> bool {
        self.image.cache() == CacheMode::Unsafe
    }

    /// Whether the kernel takes these buffers at this offset.
    #[inline]
    fn fits(&self, offset_bytes: u64, iovecs: &[libc::iovec], len_bytes: u64) -> bool {
        // Without O_DIRECT everything fits.
        if self.alignment.offset_bytes == 1 && self.alignment.memory_bytes == 1 {
            return true;
        }
        self.alignment.fits_range(offset_bytes, len_bytes)
            && iovecs
                .iter()
                .all(|iov| self.alignment.fits_memory(iov.iov_base.addr(), iov.iov_len))
    }

    fn read_bounced(&self, cx: &mut RequestCx<'_>, target: Target) -> Started {
        let Some(buffers) = cx.buffers(target.head) else {
            return Started::Done(-libc::EIO);
        };
        let len_bytes = buffers.writable_bytes().min(MAX_JOB_BYTES);
        let Some(payload) = buffers.writable_payload() else {
            return Started::Done(-libc::EIO);
        };
        self.bounced_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        let (image, locks) = (Arc::clone(&self.image), Arc::clone(&self.locks));
        let job = move || {
            let bounce = Bounce::new(&*image, &locks);
            let done = bounce.read(target.offset_bytes, len_bytes, &mut |at, bytes| {
                put(payload.write_at(position(at)?, bytes), bytes.len())
            });
            result_of(done, len_bytes)
        };
        Started::of(cx.run(target.head, target.tag, Box::new(job)))
    }

    /// Writes what the kernel takes as it is, where it is no data thread that calls it. The lock is
    /// taken by the thread that writes: with one that is held by a job which waits for a thread, all
    /// threads could wait for that lock.
    fn write_on_a_thread(
        &self,
        cx: &mut RequestCx<'_>,
        target: Target,
        range: Range<u64>,
        stable: bool,
    ) -> Started {
        let locks = Arc::clone(&self.locks);
        let what = (target.offset_bytes, stable);
        let guard = move || locks.lock_shared(range);
        Started::of(cx.write_guarded(target.head, target.tag, IMAGE, what, guard))
    }

    fn write_bounced(&self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Started {
        let Some(buffers) = cx.buffers(target.head) else {
            return Started::Done(-libc::EIO);
        };
        let len_bytes = buffers.readable_bytes().min(MAX_JOB_BYTES);
        let Some(payload) = buffers.readable_payload() else {
            return Started::Done(-libc::EIO);
        };
        self.bounced_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        let (image, locks) = (Arc::clone(&self.image), Arc::clone(&self.locks));
        let flags = write_flags(stable);
        let job = move || {
            let bounce = Bounce::new(&*image, &locks);
            let done = bounce.write(target.offset_bytes, len_bytes, flags, &mut |at, bytes| {
                let want = bytes.len();
                put(payload.read_at(position(at)?, bytes), want)
            });
            result_of(done, len_bytes)
        };
        Started::of(cx.run(target.head, target.tag, Box::new(job)))
    }
}

impl Engine for FileEngine {
    fn files(&self) -> Vec<Arc<OwnedFd>> {
        vec![Arc::clone(&self.fd)]
    }

    fn io_engine(&self) -> IoEngine {
        self.io_engine
    }

    fn capacity_sectors(&self) -> u64 {
        self.image.capacity_sectors()
    }

    fn topology(&self) -> Topology {
        self.image.topology()
    }

    fn is_read_only(&self) -> bool {
        self.image.is_read_only()
    }

    fn can_discard(&self) -> bool {
        self.image.can_discard()
    }

    fn caches_writes(&self) -> bool {
        !self.is_unsafe() && !self.is_read_only() && self.image.caches_writes()
    }

    fn bounced_bytes(&self) -> u64 {
        self.bounced_bytes.load(Ordering::Relaxed)
    }

    fn zero_tail_bytes(&self) -> io::Result<Range<u64>> {
        // Not `refresh`: nobody would be told that the capacity is another one.
        self.image.zero_tail_bytes().map_err(host_error)
    }

    #[inline]
    fn read(&self, cx: &mut RequestCx<'_>, target: Target) -> Started {
        let Some(buffers) = cx.buffers(target.head) else {
            return Started::Done(-libc::EIO);
        };
        if self.fits(
            target.offset_bytes,
            buffers.writable(),
            buffers.writable_bytes(),
        ) {
            Started::of(cx.read(target.head, target.tag, IMAGE, target.offset_bytes))
        } else {
            self.read_bounced(cx, target)
        }
    }

    #[inline]
    fn write(&self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Started {
        let stable = stable && !self.is_unsafe();
        let Some(buffers) = cx.buffers(target.head) else {
            return Started::Done(-libc::EIO);
        };
        let len_bytes = buffers.readable_bytes();
        if !self.fits(target.offset_bytes, buffers.readable(), len_bytes) {
            return self.write_bounced(cx, target, stable);
        }
        let guard = if self.alignment.may_rewrite() {
            let range = target.offset_bytes..target.offset_bytes.saturating_add(len_bytes);
            if cx.hands_calls_over() {
                return self.write_on_a_thread(cx, target, range, stable);
            }
            match self.locks.try_lock_shared(range) {
                Some(guard) => Some(guard),
                // Somebody rewrites a block of it; the wait is for a blocking thread.
                None => return self.write_bounced(cx, target, stable),
            }
        } else {
            None
        };
        match Started::of(cx.write(target.head, target.tag, IMAGE, target.offset_bytes, stable)) {
            Started::Pending(_) => Started::Pending(guard),
            done @ Started::Done(_) => done,
        }
    }

    fn flush(&self, cx: &mut RequestCx<'_>, target: Target) -> Started {
        if self.is_unsafe() || self.is_read_only() {
            return Started::Done(0);
        }
        Started::of(cx.fdatasync(target.head, target.tag, IMAGE))
    }

    fn clear(&self, cx: &mut RequestCx<'_>, target: Target, ranges: Ranges) -> Started {
        let (image, locks) = (Arc::clone(&self.image), Arc::clone(&self.locks));
        let stable = ranges.stable && !self.is_unsafe();
        let job = move || {
            let bounce = Bounce::new(&*image, &locks);
            let mut done = Ok(());
            for piece in ranges.pieces() {
                if ranges.stop.load(Ordering::Relaxed) {
                    if ranges.zero {
                        return -libc::ECANCELED;
                    }
                    // A discard may do less.
                    break;
                }
                let (offset, len_bytes) = (piece.offset_bytes, piece.len_bytes);
                done = if ranges.zero {
                    bounce.write_zeroes(offset, len_bytes, piece.unmap, ReadWriteFlags::empty())
                } else {
                    bounce.discard(offset, len_bytes)
                };
                if done.is_err() {
                    break;
                }
            }
            match result_of(done, 0) {
                // A sync that fails is one that has lost something, even for want of space.
                0 if stable => match retry_on_intr(|| rustix::fs::fdatasync(image.as_fd())) {
                    Ok(()) => 0,
                    Err(_errno) => -libc::EIO,
                },
                result => result,
            }
        };
        Started::of(cx.run(target.head, target.tag, Box::new(job)))
    }

    fn flush_now(&self) -> io::Result<()> {
        if self.is_unsafe() || self.is_read_only() {
            return Ok(());
        }
        Ok(retry_on_intr(|| rustix::fs::fdatasync(self.image.as_fd()))?)
    }

    fn refresh(&self) -> io::Result<u64> {
        self.image.refresh().map_err(host_error)
    }

    fn resize(&self, size_bytes: u64) -> io::Result<u64> {
        self.image.resize(size_bytes).map_err(host_error)
    }

    fn announce(&self, size_bytes: u64) -> io::Result<u64> {
        self.image.announce(size_bytes).map_err(host_error)
    }

    fn cut(&self, size_bytes: u64) -> io::Result<u64> {
        self.image.cut(size_bytes).map_err(host_error)
    }
}

fn host_error(error: ImageError) -> io::Error {
    io::Error::other(error)
}

fn write_flags(stable: bool) -> ReadWriteFlags {
    if stable {
        ReadWriteFlags::DSYNC
    } else {
        ReadWriteFlags::empty()
    }
}

/// A position in a job's payload, which is at most [`MAX_JOB_BYTES`] long.
fn position(at: u64) -> Result<usize, BounceError> {
    usize::try_from(at).map_err(|_e| BounceError::GuestMemory)
}

fn put(moved: usize, wanted: usize) -> Result<(), BounceError> {
    if moved == wanted {
        Ok(())
    } else {
        Err(BounceError::GuestMemory)
    }
}

/// The result of a job in the form of a system call's.
fn result_of(done: Result<(), BounceError>, len_bytes: u64) -> i32 {
    let errno = match done {
        Ok(()) => return i32::try_from(len_bytes).unwrap_or(i32::MAX),
        Err(BounceError::Io { source, .. }) => source,
        Err(BounceError::EndOfImage { .. }) => Errno::NXIO,
        Err(BounceError::Range { .. }) => Errno::INVAL,
        Err(BounceError::GuestMemory) => Errno::FAULT,
    };
    -errno.raw_os_error()
}
