// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests on an [`Image`].
//!
//! I/O that the kernel accepts goes straight to the data thread's I/O queue: the kernel works on
//! the guest's buffers, and nothing is copied. I/O that `O_DIRECT` would refuse (`SeaBIOS`, OVMF
//! and others send such) goes through [`Bounce`] on a blocking thread, with a copy.
//!
//! Where a write may be smaller than a block of the image, a rewrite of that block must not undo a
//! write beside it, so there every write holds a lock on its range. Other images have no locks.
//! Every lock is held by a thread or by I/O in the kernel, so that it is released in time.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringside_common::io::{Engine as IoEngine, FileId};
use ringside_common::num::usize_of;
use ringside_common::worker::RequestCx;
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};

use super::{Engine, EngineQueue, LAST_STEP, Ranges, Step, Target};
use crate::storage::{
    Alignment, Bounce, BounceError, CacheMode, Image, ImageError, Layer as _, RangeGuard,
    RangeLocks, Topology,
};

/// The tag of a write whose range is locked until it ends.
const LOCKED_WRITE: u16 = 1;
/// The most that one job on a blocking thread moves, so that its result fits. A longer transfer is
/// a short one, and goes on.
const MAX_JOB_BYTES: u64 = 1 << 30;

/// An image as storage.
#[derive(Debug)]
pub struct FileEngine {
    image: Arc<Image>,
    fd: Arc<OwnedFd>,
    io_engine: IoEngine,
    locks: Arc<RangeLocks>,
    bounced_bytes: AtomicU64,
}

/// Operations on an image for one vring.
#[derive(Debug)]
struct FileQueue {
    engine: Arc<FileEngine>,
    file: FileId,
    alignment: Alignment,
    /// Whether nothing is made stable.
    is_unsafe: bool,
    /// By head: the ranges of writes under way. Empty where no write rewrites a block.
    guards: Box<[Option<RangeGuard>]>,
}

impl FileEngine {
    /// Serves `image` with `io_engine`.
    ///
    /// # Errors
    /// When no descriptor is left for a second handle of the image.
    pub fn new(image: Image, io_engine: IoEngine) -> io::Result<Self> {
        let fd = Arc::new(image.as_fd().try_clone_to_owned()?);
        Ok(Self {
            image: Arc::new(image),
            fd,
            io_engine,
            locks: Arc::default(),
            bounced_bytes: AtomicU64::new(0),
        })
    }

    fn is_unsafe(&self) -> bool {
        self.image.cache() == CacheMode::Unsafe
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
        // Not `refresh`: the driver would not be told if the capacity has changed.
        self.image.zero_tail_bytes().map_err(host_error)
    }

    fn start_queue(
        self: Arc<Self>,
        size: u16,
        file: &dyn Fn(u32) -> FileId,
    ) -> Box<dyn EngineQueue> {
        let alignment = self.image.alignment();
        let places = if alignment.may_rewrite() { size } else { 0 };
        Box::new(FileQueue {
            file: file(0),
            alignment,
            is_unsafe: self.is_unsafe(),
            guards: (0..places).map(|_| None).collect(),
            engine: self,
        })
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

impl FileQueue {
    /// Whether the kernel accepts these buffers at this offset.
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

    /// Counts bytes that go through a buffer; gives what a job on a blocking thread needs for that.
    fn bounces(&self, len_bytes: u64) -> (Arc<Image>, Arc<RangeLocks>) {
        let FileEngine {
            image,
            locks,
            bounced_bytes,
            ..
        } = &*self.engine;
        bounced_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        (Arc::clone(image), Arc::clone(locks))
    }

    fn read_bounced(&self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        let Some(buffers) = cx.buffers(target.head) else {
            return Step::Done(-libc::EIO);
        };
        let len_bytes = buffers.writable_bytes().min(MAX_JOB_BYTES);
        let Some(payload) = buffers.writable_payload() else {
            return Step::Done(-libc::EIO);
        };
        let (image, locks) = self.bounces(len_bytes);
        let job = move || {
            let bounce = Bounce::new(&*image, &locks);
            let done = bounce.read(target.offset_bytes, len_bytes, &mut |at, bytes| {
                put(payload.write_at(usize_of(at), bytes), bytes.len())
            });
            result_of(done, len_bytes)
        };
        Step::from(cx.run(target.head, LAST_STEP, Box::new(job)))
    }

    /// Writes what the kernel accepts, with a lock on the range.
    fn write_locked(
        &mut self,
        cx: &mut RequestCx<'_>,
        target: Target,
        len_bytes: u64,
        stable: bool,
    ) -> Step {
        let Target { head, offset_bytes } = target;
        let range = offset_bytes..offset_bytes.saturating_add(len_bytes);
        if cx.hands_calls_over() {
            // The thread that writes takes the lock: if a job that waits for a thread held it, all
            // threads could wait for that lock.
            let locks = Arc::clone(&self.engine.locks);
            let guard = move || locks.lock_shared(range);
            let what = (offset_bytes, stable);
            return cx
                .write_guarded(head, LAST_STEP, self.file, what, guard)
                .into();
        }
        let Some(guard) = self.engine.locks.try_lock_shared(range) else {
            // A block of it is being rewritten; a blocking thread waits for that.
            return self.write_bounced(cx, target, stable);
        };
        let Some(held) = self.guards.get_mut(usize::from(head)) else {
            return Step::Done(-libc::EIO);
        };
        let started = cx.write(head, LOCKED_WRITE, self.file, offset_bytes, stable);
        if started.is_ok() {
            *held = Some(guard);
        }
        started.into()
    }

    fn write_bounced(&self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Step {
        let Some(buffers) = cx.buffers(target.head) else {
            return Step::Done(-libc::EIO);
        };
        let len_bytes = buffers.readable_bytes().min(MAX_JOB_BYTES);
        let Some(payload) = buffers.readable_payload() else {
            return Step::Done(-libc::EIO);
        };
        let (image, locks) = self.bounces(len_bytes);
        let flags = write_flags(stable);
        let job = move || {
            let bounce = Bounce::new(&*image, &locks);
            let done = bounce.write(target.offset_bytes, len_bytes, flags, &mut |at, bytes| {
                let want = bytes.len();
                put(payload.read_at(usize_of(at), bytes), want)
            });
            result_of(done, len_bytes)
        };
        Step::from(cx.run(target.head, LAST_STEP, Box::new(job)))
    }
}

impl EngineQueue for FileQueue {
    #[inline]
    fn read(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        let Some(buffers) = cx.buffers(target.head) else {
            return Step::Done(-libc::EIO);
        };
        if self.fits(
            target.offset_bytes,
            buffers.writable(),
            buffers.writable_bytes(),
        ) {
            Step::from(cx.read(target.head, LAST_STEP, self.file, target.offset_bytes))
        } else {
            self.read_bounced(cx, target)
        }
    }

    #[inline]
    fn write(&mut self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Step {
        let stable = stable && !self.is_unsafe;
        let Some(buffers) = cx.buffers(target.head) else {
            return Step::Done(-libc::EIO);
        };
        let len_bytes = buffers.readable_bytes();
        if !self.fits(target.offset_bytes, buffers.readable(), len_bytes) {
            return self.write_bounced(cx, target, stable);
        }
        if self.alignment.may_rewrite() {
            return self.write_locked(cx, target, len_bytes, stable);
        }
        cx.write(
            target.head,
            LAST_STEP,
            self.file,
            target.offset_bytes,
            stable,
        )
        .into()
    }

    fn flush(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        if self.is_unsafe || self.engine.is_read_only() {
            return Step::Done(0);
        }
        Step::from(cx.fdatasync(target.head, LAST_STEP, self.file))
    }

    fn clear(&mut self, cx: &mut RequestCx<'_>, target: Target, ranges: Ranges) -> Step {
        let (image, locks) = (
            Arc::clone(&self.engine.image),
            Arc::clone(&self.engine.locks),
        );
        let stable = ranges.stable && !self.is_unsafe;
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
                // If a sync fails, something is lost, even if the reason is a lack of space.
                0 if stable => match retry_on_intr(|| rustix::fs::fdatasync(image.as_fd())) {
                    Ok(()) => 0,
                    Err(_errno) => -libc::EIO,
                },
                result => result,
            }
        };
        Step::from(cx.run(target.head, LAST_STEP, Box::new(job)))
    }

    fn resume(&mut self, _cx: &mut RequestCx<'_>, target: Target, _tag: u16, result: i32) -> Step {
        if let Some(held) = self.guards.get_mut(usize::from(target.head)) {
            *held = None;
        }
        Step::Done(result)
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
        // A job moves at most MAX_JOB_BYTES.
        Ok(()) => return i32::try_from(len_bytes).unwrap_or(i32::MAX),
        Err(BounceError::Io { source, .. }) => source,
        Err(BounceError::EndOfImage { .. }) => Errno::NXIO,
        Err(BounceError::Range { .. }) => Errno::INVAL,
        Err(BounceError::GuestMemory) => Errno::FAULT,
    };
    -errno.raw_os_error()
}
