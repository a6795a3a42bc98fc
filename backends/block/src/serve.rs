// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a descriptor chain to its answer: the data side of the device.
//!
//! A request has one operation under way at a time, of as many steps as its engine needs. A
//! transfer that comes back short is continued where it stopped; one that fails is answered as
//! failed. Every chain is answered exactly once: each path below ends in `Serving::finish` or has
//! I/O pending that will lead there.
//!
//! # Durability
//! A write made while the write cache is off is started as a stable one and answered when it is;
//! the mode is read when a request starts and kept with it. A flush is answered by a sync that
//! began after the flush came, hence after every write that was answered before.
//!
//! A sync that fails may have dropped data, and neither the next sync would know nor one that was
//! under way beside it. Those beside it fail with it (`syncs`). Where the host's page cache may
//! have held older writes that were answered, no flush and no stable write succeeds from then on,
//! even if the host reports success.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringside_common::chain::ChainFault;
use ringside_common::io::FileId;
use ringside_common::num::usize_of;
use ringside_common::worker::{Counted, RequestCx, RequestWorker};

use crate::engine::{EngineQueue, LAST_STEP, Ranges, Step, TAGS_END, Target};
use crate::request::{
    HEADER_BYTES, ID_BYTES, KIND_INVALID, Limits, Request, SEGMENT_BYTES, Segment, SegmentKind,
    Status, USED_LEN_STATUS_ONLY,
};
use crate::shared::Shared;
use crate::storage::SECTOR_BYTES;
use crate::syncs::{Ended, Sync, Verdict};

/// The tag of the verdict on the sync of a request.
const VERDICT: u16 = TAGS_END;

/// For the counters: a request that was not understood.
const INVALID: Counted = Counted {
    kind: KIND_INVALID,
    bytes: 0,
    ok: false,
};

/// How often an operation is started again on EAGAIN or EINTR before it counts as failed.
const MAX_RETRIES: u8 = 100;

/// The data side of the device on one data thread.
#[derive(Debug)]
pub struct BlockWorker {
    shared: Arc<Shared>,
}

/// What is kept for one vring: the state of each request in flight, by head.
#[derive(Debug)]
pub struct BlockQueue {
    limits: Limits,
    engine: Box<dyn EngineQueue>,
    requests: Box<[InFlight]>,
    /// The vring must stop: no engine may begin anything long.
    stop: Arc<AtomicBool>,
}

/// A request in flight.
#[derive(Debug)]
struct InFlight {
    request: Request,
    /// Where the next part of a transfer is.
    offset_bytes: u64,
    /// Started with the write cache off.
    stable: bool,
    retries: u8,
    /// For a DISCARD or `WRITE_ZEROES`.
    ranges: Option<Ranges>,
    /// For a request that promises stability, where syncs depend on each other.
    sync: Option<Sync>,
}

impl InFlight {
    const IDLE: Self = Self {
        request: Request::Flush,
        offset_bytes: 0,
        stable: false,
        retries: 0,
        ranges: None,
        sync: None,
    };

    /// Whether success tells the driver that something is stable.
    #[inline]
    fn promises_stability(&self) -> bool {
        match self.request {
            Request::Flush => true,
            Request::Out { .. } | Request::Discard { .. } | Request::WriteZeroes { .. } => {
                self.stable
            }
            Request::In { .. } | Request::GetId => false,
        }
    }
}

impl BlockWorker {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl RequestWorker for BlockWorker {
    type Queue = BlockQueue;
    type Later = ();

    fn start_queue(&mut self, _index: u16, size: u16) -> BlockQueue {
        self.shared.write_cache().ring_started(false);
        BlockQueue {
            limits: self.shared.limits(),
            engine: Arc::clone(self.shared.engine()).start_queue(size, &FileId::new),
            requests: (0..size).map(|_| InFlight::IDLE).collect(),
            stop: Arc::default(),
        }
    }

    fn stopping(&mut self, queue: &mut BlockQueue) {
        queue.stop.store(true, Ordering::Relaxed);
    }

    fn took_over(&mut self, _queue: &mut BlockQueue) {
        self.shared.write_cache().ring_started(true);
    }

    #[inline(always)]
    fn request(
        &mut self,
        queue: &mut BlockQueue,
        cx: &mut RequestCx<'_>,
        head: u16,
        chain: Result<(), ChainFault>,
    ) {
        queue.limits.capacity_sectors = self.shared.engine().capacity_sectors();
        let Some(slot) = queue.requests.get_mut(usize::from(head)) else {
            return;
        };
        let mut serving = Serving {
            shared: &self.shared,
            engine: &mut *queue.engine,
            cx,
            slot,
            head,
        };
        serving.begin(&queue.limits, &queue.stop, chain);
    }

    #[inline]
    fn io_done(
        &mut self,
        queue: &mut BlockQueue,
        cx: &mut RequestCx<'_>,
        head: u16,
        tag: u16,
        result: i32,
    ) {
        let Some(slot) = queue.requests.get_mut(usize::from(head)) else {
            return;
        };
        let mut serving = Serving {
            shared: &self.shared,
            engine: &mut *queue.engine,
            cx,
            slot,
            head,
        };
        if tag == LAST_STEP {
            serving.proceed(result);
        } else {
            serving.step_done(tag, result);
        }
    }
}

/// One request being worked on.
struct Serving<'a, 'c> {
    shared: &'a Shared,
    engine: &'a mut dyn EngineQueue,
    cx: &'a mut RequestCx<'c>,
    slot: &'a mut InFlight,
    head: u16,
}

impl Serving<'_, '_> {
    #[inline(always)]
    fn begin(&mut self, limits: &Limits, stop: &Arc<AtomicBool>, chain: Result<(), ChainFault>) {
        let Some(buffers) = self.cx.buffers(self.head) else {
            return;
        };
        // Without a status byte there is nothing to say and nowhere to say it.
        if !buffers.take_tail() {
            return self.cx.complete(self.head, 0, INVALID);
        }
        if chain.is_err() {
            return self.reject(Status::IoErr);
        }
        let Some(header) = buffers.take_header::<HEADER_BYTES>() else {
            return self.reject(Status::IoErr);
        };
        let (readable, writable) = (buffers.readable_bytes(), buffers.writable_bytes());
        let request = match Request::parse(&header, readable, writable, limits) {
            Ok(request) => request,
            Err(status) => return self.reject(status),
        };
        self.slot.request = request;
        self.slot.retries = 0;
        match request {
            Request::In { sector, .. } => {
                self.slot.offset_bytes = sector * SECTOR_BYTES;
                self.start();
            }
            Request::Out { sector, .. } => {
                self.slot.offset_bytes = sector * SECTOR_BYTES;
                self.note_mode();
                self.start();
            }
            Request::Flush => {
                self.shared.write_cache().flush_came();
                self.start();
            }
            Request::GetId => {
                let serial = self.shared.id();
                let buffers = self.cx.buffers(self.head);
                let written = buffers.map_or(0, |b| b.write_at(0, &serial));
                self.finish(if written == ID_BYTES {
                    Status::Ok
                } else {
                    Status::IoErr
                });
            }
            Request::Discard { num_segments } => {
                self.note_mode();
                self.clear(limits, stop, SegmentKind::Discard, num_segments);
            }
            Request::WriteZeroes { num_segments } => {
                self.note_mode();
                self.clear(limits, stop, SegmentKind::WriteZeroes, num_segments);
            }
        }
    }

    /// What the engine works on: the request, or what is left of it.
    #[inline]
    fn target(&self) -> Target {
        Target {
            head: self.head,
            offset_bytes: self.slot.offset_bytes,
        }
    }

    /// Starts the operation of the request, or what is left of it.
    #[inline]
    fn start(&mut self) {
        let step = if let Request::In { .. } = self.slot.request {
            self.engine.read(self.cx, self.target())
        } else {
            match self.start_change() {
                Some(step) => step,
                None => return self.finish(Status::IoErr),
            }
        };
        if let Step::Done(result) = step {
            self.proceed(result);
        }
    }

    /// Something other than the last step of an operation has ended.
    #[inline(never)]
    fn step_done(&mut self, tag: u16, result: i32) {
        if tag == VERDICT {
            return self.conclude(result == 0);
        }
        if let Step::Done(result) = self.engine.resume(self.cx, self.target(), tag, result) {
            self.proceed(result);
        }
    }

    /// Decides whether the writes of this request must be stable when it is answered.
    #[inline]
    fn note_mode(&mut self) {
        self.slot.stable = !self.shared.write_cache().is_on();
    }

    /// Starts an operation other than a read; or nothing, if the request promises stability and
    /// writes are lost: nothing that is written now makes those stable.
    #[inline]
    fn start_change(&mut self) -> Option<Step> {
        if self.slot.promises_stability() {
            if self.shared.has_lost_writes() {
                return None;
            }
            if self.slot.sync.is_none() {
                self.slot.sync = self.shared.begin_sync();
            }
        } else if self.slot.request.writes() {
            self.shared.write_cache().note_volatile_write();
        }
        let target = self.target();
        Some(match self.slot.request {
            Request::Out { .. } => self.engine.write(self.cx, target, self.slot.stable),
            Request::Flush => self.engine.flush(self.cx, target),
            Request::Discard { .. } | Request::WriteZeroes { .. } => match &self.slot.ranges {
                Some(ranges) => self.engine.clear(self.cx, target, ranges.clone()),
                None => Step::Done(-libc::EIO),
            },
            // Started by the caller, and answered by `begin`.
            Request::In { .. } | Request::GetId => Step::Done(-libc::EIO),
        })
    }

    /// An operation has ended with `result`: bytes, or a negative errno.
    #[inline]
    fn proceed(&mut self, result: i32) {
        let Ok(moved) = usize::try_from(result) else {
            return self.failed(result);
        };
        let Some(buffers) = self.cx.buffers(self.head) else {
            return;
        };
        match self.slot.request {
            Request::In { .. } => {
                if moved as u64 == buffers.writable_bytes() {
                    return self.finish(Status::Ok);
                }
                buffers.consume_writable(moved);
            }
            Request::Out { .. } => {
                if moved as u64 == buffers.readable_bytes() {
                    return self.succeed();
                }
                buffers.consume_readable(moved);
            }
            Request::Flush
            | Request::GetId
            | Request::Discard { .. }
            | Request::WriteZeroes { .. } => return self.succeed(),
        }
        self.continue_after(moved);
    }

    /// The whole operation has succeeded. If it is a sync, it is good only if the syncs beside it
    /// are: the kernel reports a failure to one caller, not to all.
    #[inline]
    fn succeed(&mut self) {
        match self.slot.sync.take() {
            None => self.conclude(true),
            Some(sync) => self.await_verdict(sync),
        }
    }

    fn await_verdict(&mut self, sync: Sync) {
        let verdict = sync.end(Ended::Well, 0, || self.cx.promise_io(self.head, VERDICT));
        match verdict {
            Verdict::Good => self.conclude(true),
            Verdict::Bad => self.conclude(false),
            Verdict::Later => {}
        }
    }

    #[inline]
    fn conclude(&mut self, good: bool) {
        let lost = self.shared.has_lost_writes() && self.slot.promises_stability();
        self.finish(if good && !lost {
            Status::Ok
        } else {
            Status::IoErr
        });
    }

    /// A transfer was short.
    #[cold]
    fn continue_after(&mut self, moved: usize) {
        self.slot.offset_bytes = self.slot.offset_bytes.saturating_add(moved as u64);
        if moved > 0 {
            self.slot.retries = 0;
            return self.start();
        }
        match self.slot.request {
            Request::In { .. } => self.read_past_the_end(),
            // A write that moves nothing without an error: another try would do no better.
            _ => self.finish(Status::IoErr),
        }
    }

    /// A read has found the end of the file. The rest of the file's last block reads as zeroes.
    /// Behind that, the file has shrunk under us; before it, the file was shorter for a moment.
    fn read_past_the_end(&mut self) {
        let start = self.slot.offset_bytes;
        let Some(buffers) = self.cx.buffers(self.head) else {
            return;
        };
        let left = buffers.writable_bytes();
        let end = start.saturating_add(left);
        match self.shared.engine().zero_tail_bytes() {
            Ok(tail) if tail.start <= start && end <= tail.end => {
                buffers.zero_at(0, usize_of(left));
                self.finish(Status::Ok);
            }
            Ok(tail) if start < tail.start && self.slot.retries < MAX_RETRIES => {
                self.slot.retries += 1;
                self.start();
            }
            _ => self.finish(Status::IoErr),
        }
    }

    #[cold]
    fn failed(&mut self, result: i32) {
        let errno = -result;
        if matches!(errno, libc::EAGAIN | libc::EINTR) && self.slot.retries < MAX_RETRIES {
            self.slot.retries += 1;
            return self.start();
        }
        let synced = self.slot.promises_stability();
        let ended = self.shared.note_failure(self.slot.request, errno, synced);
        if let Some(sync) = self.slot.sync.take() {
            sync.end(ended, 0, || None);
        }
        self.finish(Status::IoErr);
    }

    /// DISCARD and `WRITE_ZEROES`. All segments are checked before the first is carried out.
    fn clear(
        &mut self,
        limits: &Limits,
        stop: &Arc<AtomicBool>,
        kind: SegmentKind,
        num_segments: u32,
    ) {
        let Some(buffers) = self.cx.buffers(self.head) else {
            return;
        };
        let mut segments = Vec::with_capacity(usize_of(num_segments.into()));
        for _ in 0..num_segments {
            let Some(bytes) = buffers.take_header::<SEGMENT_BYTES>() else {
                return self.finish(Status::IoErr);
            };
            match Segment::parse(&bytes, kind, limits) {
                Ok(segment) => segments.push(segment),
                Err(status) => return self.finish(status),
            }
        }
        self.slot.offset_bytes = 0;
        self.slot.ranges = Some(Ranges {
            segments,
            zero: kind == SegmentKind::WriteZeroes,
            stable: self.slot.stable,
            stop: Arc::clone(stop),
        });
        self.start();
    }

    /// Answers a request that was understood.
    #[inline]
    fn finish(&mut self, status: Status) {
        let request = self.slot.request;
        if !matches!(request, Request::In { .. }) {
            self.slot.ranges = None;
            self.slot.sync = None;
        }
        let bytes = match (request, status) {
            (Request::In { len_bytes, .. } | Request::Out { len_bytes, .. }, Status::Ok) => {
                len_bytes
            }
            _ => 0,
        };
        let counted = Counted {
            kind: request.kind(),
            bytes,
            ok: status == Status::Ok,
        };
        self.answer(status, request.used_len(status), counted);
    }

    /// Answers a request that was not understood.
    #[cold]
    fn reject(&mut self, status: Status) {
        self.answer(status, USED_LEN_STATUS_ONLY, INVALID);
    }

    #[inline]
    fn answer(&mut self, status: Status, used_bytes: u32, counted: Counted) {
        if let Some(buffers) = self.cx.buffers(self.head) {
            buffers.put_tail(status.to_byte());
        }
        self.cx.complete(self.head, used_bytes, counted);
    }
}
