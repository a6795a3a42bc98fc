// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A started vring, as its data thread sees it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use crate::chain::ChainFault;
use crate::error::RingError;
use crate::io::{FileId, IoQueue, Job, WatchId};
use crate::logging::LogLimiter;
use crate::memory::{Buffers, Memory};
use crate::ring::{Ring as _, SplitRing};
use crate::stats::QueueStats;

static BROKEN_RING: LogLimiter = LogLimiter::new();
static BAD_CHAIN: LogLimiter = LogLimiter::new();

/// What the device holds of one descriptor head.
#[derive(Debug, Default)]
struct Head {
    buffers: Buffers,
    /// Taken from the available ring, not yet given back.
    busy: bool,
    /// I/O of it that the kernel or a blocking thread works on.
    pending: u16,
    taken_ns: u64,
}

/// Ring, buffers and descriptors of one started vring.
#[derive(Debug)]
pub(super) struct Vring {
    pub(super) index: u16,
    pub(super) ring: SplitRing,
    memory: Rc<Memory>,
    heads: Box<[Head]>,
    in_flight: u32,
    pub(super) kick: Option<WatchId>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) enabled: bool,
    /// The driver broke the ring: nothing more is taken from it.
    broken: bool,
    /// Asked to stop: nothing more is taken, and what is in flight is completed.
    pub(super) stopping: bool,
    pub(super) stats: Arc<QueueStats>,
}

impl Vring {
    pub(super) fn new(index: u16, ring: SplitRing, stats: Arc<QueueStats>) -> Self {
        let memory = Rc::clone(ring.memory());
        let size = usize::from(ring.addresses().size);
        Self {
            index,
            ring,
            memory,
            heads: (0..size).map(|_| Head::default()).collect(),
            in_flight: 0,
            kick: None,
            call: None,
            err: None,
            enabled: false,
            broken: false,
            stopping: false,
            stats,
        }
    }

    /// Whether chains may be taken.
    #[inline]
    pub(super) fn is_live(&self) -> bool {
        self.enabled && !self.broken && !self.stopping
    }

    /// Whether there is a chain to take.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.is_live() && self.ring.has_available()
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Takes the next chain into its head's buffers.
    #[inline]
    pub(super) fn take(&mut self, now_ns: u64) -> Option<(u16, Result<(), ChainFault>)> {
        let head = match self.ring.next() {
            Ok(head) => head?,
            Err(error) => {
                self.break_ring(error);
                return None;
            }
        };
        // `next` has checked the head against the size of the ring, which `heads` has.
        let slot = self.heads.get_mut(usize::from(head))?;
        if slot.busy {
            self.break_ring(RingError::HeadInFlight { head });
            return None;
        }
        slot.busy = true;
        slot.taken_ns = now_ns;
        self.in_flight += 1;
        let chain = self.ring.chain(head, &self.memory, &mut slot.buffers);
        if let Err(fault) = chain {
            self.stats.add_malformed_chain();
            if let Some(suppressed) = BAD_CHAIN.allow() {
                let index = self.index;
                log::debug!("vring {index}: {fault} ({suppressed} more like it not shown)");
            }
        }
        Some((head, chain))
    }

    /// Stops serving the ring and tells the front-end, where it gave us a way to.
    pub(super) fn break_ring(&mut self, error: RingError) {
        self.broken = true;
        if let Some(suppressed) = BROKEN_RING.allow() {
            log::warn!(
                "vring {} stopped: {error} ({suppressed} more not shown)",
                self.index
            );
        }
        signal(self.err.as_ref());
    }

    /// Goes over to a new memory table. Requests in flight keep the one they were taken with.
    pub(super) fn set_memory(&mut self, memory: &Rc<Memory>) {
        let addresses = self.ring.addresses();
        match self.ring.relocate(memory, addresses) {
            Ok(()) => self.memory = Rc::clone(memory),
            Err(error) => self.break_ring(error),
        }
    }

    /// Makes completions visible and calls the driver if it wants that.
    #[inline]
    pub(super) fn publish(&mut self) {
        if !self.ring.has_unpublished() {
            return;
        }
        self.stats.set_in_flight(u64::from(self.in_flight));
        if self.ring.publish() {
            if self.call.is_some() {
                self.stats.add_call();
                signal(self.call.as_ref());
            }
        } else {
            self.stats.add_call_suppressed();
        }
    }

    /// Calls the driver without a reason of ours: one may have been lost before we came.
    pub(super) fn call_anyway(&self) {
        signal(self.call.as_ref());
    }
}

/// Writes to an eventfd. The descriptor does not block; one whose counter is at its end has a
/// wake-up pending anyway.
fn signal(fd: Option<&OwnedFd>) {
    if let Some(fd) = fd {
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }
}

/// What a device does with the requests of one vring.
#[derive(Debug)]
pub struct RequestCx<'a> {
    pub(super) vring: &'a mut Vring,
    pub(super) io: &'a mut IoQueue,
    /// The vring's place in its thread, for the tokens of I/O.
    pub(super) slot: u16,
    pub(super) now_ns: u64,
}

impl RequestCx<'_> {
    /// The buffers of a request in flight.
    #[inline]
    pub fn buffers(&mut self, head: u16) -> Option<&mut Buffers> {
        self.vring
            .heads
            .get_mut(usize::from(head))
            .map(|head| &mut head.buffers)
    }

    /// Starts a read of the file into the writable payload left of `head`.
    ///
    /// # Errors
    /// When it could not be started; `io_done` is not called then.
    #[inline]
    pub fn read(
        &mut self,
        head: u16,
        tag: u16,
        file: FileId,
        offset_bytes: u64,
    ) -> std::io::Result<()> {
        self.start(head, tag, |io, buffers, token| {
            io.add_bytes(buffers.writable_bytes());
            io.read(file, buffers.writable(), offset_bytes, token)
        })
    }

    /// Starts a write of the readable payload left of `head` to the file; with `dsync` it is done
    /// when the data is on stable storage.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    #[inline]
    pub fn write(
        &mut self,
        head: u16,
        tag: u16,
        file: FileId,
        offset_bytes: u64,
        dsync: bool,
    ) -> std::io::Result<()> {
        self.start(head, tag, |io, buffers, token| {
            io.add_bytes(buffers.readable_bytes());
            io.write(file, buffers.readable(), offset_bytes, dsync, token)
        })
    }

    /// Starts an fdatasync of the file.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn fdatasync(&mut self, head: u16, tag: u16, file: FileId) -> std::io::Result<()> {
        self.start(head, tag, |io, _buffers, token| io.fdatasync(file, token))
    }

    /// Runs `job` on a blocking thread.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn run(&mut self, head: u16, tag: u16, job: Job) -> std::io::Result<()> {
        self.start(head, tag, |io, _buffers, token| io.run(job, token))
    }

    /// Gives `head` back to the driver: `used_bytes` were written to its buffers.
    ///
    /// `kind`, `bytes` and `ok` are what the counters of the vring get.
    #[inline]
    pub fn complete(&mut self, head: u16, used_bytes: u32, counted: Counted) {
        let vring = &mut *self.vring;
        let Some(slot) = vring.heads.get_mut(usize::from(head)) else {
            return;
        };
        if !slot.busy || slot.pending != 0 {
            // The kernel may still write to the buffers: keeping them is the one safe answer.
            log::error!(
                "vring {}: descriptor {head} answered out of turn",
                vring.index
            );
            return;
        }
        slot.busy = false;
        slot.buffers.release();
        vring.in_flight -= 1;
        vring.ring.push_used(head, used_bytes);
        let latency_ns = self.now_ns.saturating_sub(slot.taken_ns);
        vring
            .stats
            .record(counted.kind, counted.bytes, counted.ok, latency_ns);
    }

    #[inline]
    fn start(
        &mut self,
        head: u16,
        tag: u16,
        start: impl FnOnce(&mut IoQueue, &Buffers, u64) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let token = Token {
            slot: self.slot,
            head,
            tag,
        }
        .pack();
        let Some(slot) = self.vring.heads.get_mut(usize::from(head)) else {
            return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
        };
        start(self.io, &slot.buffers, token)?;
        slot.pending += 1;
        Ok(())
    }
}

/// What [`RequestCx::complete`] adds to the counters.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Index into the kinds that the device's [`DeviceStats`](crate::stats::DeviceStats) were made
    /// with.
    pub kind: usize,
    /// Payload bytes moved.
    pub bytes: u64,
    /// Whether it succeeded.
    pub ok: bool,
}

/// Who a piece of I/O belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Token {
    pub(super) slot: u16,
    pub(super) head: u16,
    pub(super) tag: u16,
}

impl Token {
    fn pack(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.head) << 16 | u64::from(self.tag)
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    pub(super) fn unpack(token: u64) -> Self {
        Self {
            slot: (token >> 32) as u16,
            head: (token >> 16) as u16,
            tag: token as u16,
        }
    }
}

impl Vring {
    /// I/O of `head` has ended.
    #[inline]
    pub(super) fn io_ended(&mut self, head: u16) {
        if let Some(slot) = self.heads.get_mut(usize::from(head)) {
            slot.pending = slot.pending.saturating_sub(1);
        }
    }
}
