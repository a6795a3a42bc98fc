// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A started vring, as its data thread sees it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::chain::ChainFault;
use crate::error::RingError;
use crate::io::WatchId;
use crate::limited;
use crate::memory::{Buffers, Memory};
use crate::ring::{Ring as _, RingAddresses, SplitRing};
use crate::stats::QueueStats;
use crate::watchdog::{Pulse, Stuck};

/// Which vring of which session.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct VringId {
    pub(crate) session: u32,
    pub(crate) index: u16,
}

/// What all vrings of a session have in common, and the control thread with them.
#[derive(Debug, Default)]
pub(crate) struct Health {
    stuck: AtomicBool,
}

impl Health {
    /// Whether the watchdog had to interrupt a write to an eventfd of the session. The next write
    /// would wait, too: nothing is written to them any more.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
    }

    fn give_up(&self) {
        self.stuck.store(true, Ordering::Release);
        crate::sys::signal::tell_control_threads();
    }
}

/// Why nothing is taken from a vring. All reasons are bits of one byte, which is read twice for
/// each request.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Closed {
    /// The front-end has not enabled it.
    Disabled = 1,
    /// Told to take no more for a while.
    Paused = 2,
    /// The driver broke the ring: nothing more is taken from it.
    Broken = 4,
    /// The memory table does not have the ring: it waits for one that has.
    Lost = 8,
    /// Asked to stop: nothing more is taken, and what is in flight is completed.
    Stopping = 16,
}

/// Ring and descriptors of one started vring.
#[derive(Debug)]
pub struct Vring {
    pub(crate) id: VringId,
    pub(crate) ring: SplitRing,
    memory: Rc<Memory>,
    pub(crate) kick: Option<WatchId>,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) err: Option<OwnedFd>,
    /// Bits of [`Closed`].
    closed: u8,
    pub(crate) stats: Arc<QueueStats>,
    health: Arc<Health>,
    pulse: Arc<Pulse>,
}

/// What a vring reports to, beside its front-end.
#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) stats: Arc<QueueStats>,
    pub(crate) health: Arc<Health>,
    /// Of the thread that serves it.
    pub(crate) pulse: Arc<Pulse>,
}

impl Vring {
    pub(crate) fn new(id: VringId, ring: SplitRing, around: Around) -> Self {
        let memory = Rc::clone(ring.memory());
        Self {
            id,
            ring,
            memory,
            kick: None,
            call: None,
            err: None,
            closed: Closed::Disabled as u8,
            stats: around.stats,
            health: around.health,
            pulse: around.pulse,
        }
    }

    #[inline]
    fn is_closed(&self, why: Closed) -> bool {
        self.closed & why as u8 != 0
    }

    /// Sets whether one of the reasons holds to take nothing from it.
    pub(crate) fn close(&mut self, why: Closed, closed: bool) {
        if closed {
            self.closed |= why as u8;
        } else {
            self.closed &= !(why as u8);
        }
    }

    /// Another thread serves it, whose pulse this is.
    pub(crate) fn move_to(&mut self, pulse: &Arc<Pulse>) {
        self.pulse = Arc::clone(pulse);
    }

    /// Its index in the device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.id.index
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.addresses().size
    }

    /// Whether something was given back on it before it started here.
    #[must_use]
    pub(crate) fn was_served(&self) -> bool {
        self.ring.was_served()
    }

    /// The memory table that it is in.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> &QueueStats {
        &self.stats
    }

    /// Whether the front-end has enabled it (vhost-user.rst "Ring states").
    #[must_use]
    #[inline]
    pub fn is_enabled(&self) -> bool {
        !self.is_closed(Closed::Disabled)
    }

    /// Whether chains may be taken, were it enabled.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        self.closed & !(Closed::Disabled as u8) == 0
    }

    /// Whether chains may be taken and served.
    #[must_use]
    #[inline]
    pub fn is_live(&self) -> bool {
        self.closed == 0
    }

    /// Whether there is a chain to take and serve.
    #[must_use]
    #[inline]
    pub fn has_work(&self) -> bool {
        self.is_live() && self.ring.has_available()
    }

    /// Whether the driver has made chains available that were not taken.
    #[must_use]
    #[inline]
    pub fn has_available(&self) -> bool {
        !self.is_closed(Closed::Lost) && self.ring.has_available()
    }

    /// Takes the next head from the available ring; it is below the [`size`](Self::size). A ring
    /// that the driver broke is closed.
    #[inline]
    pub fn next_head(&mut self) -> Option<u16> {
        match self.ring.next() {
            Ok(head) => head,
            Err(error) => {
                self.break_ring(error);
                None
            }
        }
    }

    /// Reads the chain of a head taken into `out`.
    ///
    /// # Errors
    /// What is wrong with it. It is counted, and must be given back like any other.
    #[inline]
    pub fn read_chain(&mut self, head: u16, out: &mut Buffers) -> Result<(), ChainFault> {
        let chain = self.ring.chain(head, &self.memory, out);
        if let Err(fault) = chain {
            self.note_fault(fault);
        }
        chain
    }

    /// Reads the chain of a head taken into `out`, behind the device-writable bytes left there.
    ///
    /// # Errors
    /// As [`read_chain`](Self::read_chain), also for a chain with device-readable buffers; `out` is
    /// as before then.
    #[inline]
    pub fn read_chain_on(&mut self, head: u16, out: &mut Buffers) -> Result<(), ChainFault> {
        let chain = self.ring.chain_on(head, &self.memory, out);
        if let Err(fault) = chain {
            self.note_fault(fault);
        }
        chain
    }

    /// The heads taken last are available again. They must not have been given back.
    pub fn undo(&mut self, heads: u16) {
        self.ring.undo(heads);
    }

    /// Gives a head back to the driver: `used_bytes` were written to its buffers. The driver sees
    /// it at the end of the turn.
    #[inline]
    pub fn push_used(&mut self, head: u16, used_bytes: u32) {
        self.ring.push_used(head, used_bytes);
    }

    #[cold]
    fn note_fault(&mut self, fault: ChainFault) {
        self.stats.add_malformed_chain();
        limited!(debug, "vring {}: {fault}", self.id.index);
    }

    /// Stops serving the ring and tells the front-end, where it gave us a way to.
    pub(crate) fn break_ring(&mut self, error: RingError) {
        self.close(Closed::Broken, true);
        limited!(warn, "vring {} stopped: {error}", self.id.index);
        self.signal(self.err.as_ref());
    }

    /// Goes over to a new memory table. Requests in flight keep the one they were taken with, and
    /// so does a ring that the table does not have: nothing is taken from it until a table has it
    /// again.
    pub(crate) fn set_memory(&mut self, memory: &Rc<Memory>) {
        self.memory = Rc::clone(memory);
        self.relocate(self.ring.addresses());
    }

    /// Finds the ring in the memory table, at `addresses`.
    pub(crate) fn relocate(&mut self, addresses: RingAddresses) {
        let lost = self.ring.relocate(&self.memory, addresses).is_err();
        let (index, changed) = (self.id.index, self.is_closed(Closed::Lost) != lost);
        self.close(Closed::Lost, lost);
        if changed {
            let now = if lost {
                "waits for its memory"
            } else {
                "has its memory again"
            };
            limited!(info, "vring {index} {now}");
        }
    }

    /// Asks the driver for kicks; returns whether chains came in the meantime.
    pub(crate) fn allow_kicks(&mut self) -> bool {
        !self.is_closed(Closed::Lost) && self.ring.allow_kicks()
    }

    /// Asks the driver for no kicks.
    pub(crate) fn suppress_kicks(&mut self) {
        if !self.is_closed(Closed::Lost) {
            self.ring.suppress_kicks();
        }
    }

    /// Whether the driver does not tell us of new chains (vhost-user.rst: `SET_VRING_KICK` without
    /// a descriptor).
    pub(crate) fn is_polled(&self) -> bool {
        self.kick.is_none() && self.is_open()
    }

    /// Makes completions visible and calls the driver if it wants that.
    #[inline]
    pub(crate) fn publish(&mut self, in_flight: u32) {
        if !self.ring.has_unpublished() {
            return;
        }
        self.stats.set_in_flight(u64::from(in_flight));
        if self.ring.publish() {
            if self.call.is_some() {
                self.stats.add_call();
                self.signal(self.call.as_ref());
            }
        } else {
            self.stats.add_call_suppressed();
        }
    }

    /// Calls the driver without a reason of ours: one may have been lost before we came.
    pub(crate) fn call_anyway(&self) {
        self.signal(self.call.as_ref());
    }

    /// Writes to an eventfd of the front-end's, unless one of the session's has made us wait.
    #[inline]
    fn signal(&self, fd: Option<&OwnedFd>) {
        if let Some(fd) = fd
            && !self.health.is_stuck()
            && self.pulse.signal(fd) == Err(Stuck)
        {
            self.health.give_up();
        }
    }
}
