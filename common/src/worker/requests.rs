// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices whose work is requests: a chain comes, is served and answered.
//!
//! [`Requests`] takes chains as they come, keeps the buffers of each until it is answered, and
//! bounds how many one vring may have served before the next has its turn. The device is a
//! [`RequestWorker`]: it gets a checked chain and answers it, at once or when the I/O it started
//! is done.
//!
//! Rings may be of any legal size. What is held for one is bounded all the same ([`heads`]), and what
//! is beyond waits in the ring. So a request is known by its place, not by its descriptor head.

mod heads;

use super::vring::Vring;
use super::{DeviceWorker, Place, Turn};
use crate::chain::ChainFault;
use crate::io::{FileId, IoQueue, Job, Promise};
use crate::memory::Buffers;
use heads::Heads;

/// The data side of a device that serves requests, on one data thread.
///
/// `head` is the place of a request among those of its vring that are in flight.
pub trait RequestWorker {
    /// Chains taken from one vring before the driver is told what was done, and the next vring has
    /// its turn: enough for a batch to pay, few enough that the others wait for microseconds. Fewer
    /// where a chain is served while it is taken: the driver works on the last ones meanwhile.
    const BUDGET: usize = 64;

    /// What the device keeps for one started vring.
    type Queue;

    /// A vring has started; `size` requests of it may be in flight, in places below that.
    fn start_queue(&mut self, index: u16, size: u16) -> Self::Queue;

    /// A chain was taken from the vring. It must be answered, now or later, with
    /// [`RequestCx::complete`], whatever is wrong with it.
    fn request(
        &mut self,
        queue: &mut Self::Queue,
        cx: &mut RequestCx<'_>,
        head: u16,
        chain: Result<(), ChainFault>,
    );

    /// I/O that was started for `head` is done: bytes, or a negative errno.
    fn io_done(
        &mut self,
        queue: &mut Self::Queue,
        cx: &mut RequestCx<'_>,
        head: u16,
        tag: u16,
        result: i32,
    );

    /// The vring that has just started was served before, by whatever back-end.
    fn took_over(&mut self, _queue: &mut Self::Queue) {}

    /// The vring is about to stop once its requests are answered: those that might wait for ever
    /// are to be answered now.
    fn stopping(&mut self, _queue: &mut Self::Queue) {}
}

/// Serves the requests of a [`RequestWorker`].
#[derive(Debug)]
pub struct Requests<W>(pub W);

/// A vring's requests in flight, and what the device keeps for it.
#[derive(Debug)]
pub struct RequestQueue<Q> {
    heads: Heads,
    state: Q,
}

impl<W: RequestWorker> DeviceWorker for Requests<W> {
    type Seed = ();
    type Queue = RequestQueue<W::Queue>;

    fn start_queue(&mut self, (): (), vring: &Vring) -> Self::Queue {
        let heads = Heads::new(vring.size());
        let mut state = self.0.start_queue(vring.index(), heads.places());
        if vring.was_served() {
            self.0.took_over(&mut state);
        }
        RequestQueue { heads, state }
    }

    /// Takes chains from every vring that has some, up to the budget of each. As much I/O as
    /// completions can be held for is the most there is; what is left waits in the rings.
    fn turn(&mut self, turn: &mut Turn<'_, Self::Queue>) -> bool {
        if !turn.io.has_room(1) {
            return false;
        }
        let mut served = false;
        for slot in 0..turn.vrings.len() {
            if !turn.vrings.get(slot).is_some_and(has_work) {
                continue;
            }
            if !served {
                turn.tick();
            }
            let now_ns = turn.now_ns();
            let Some(place) = turn.vrings.get_mut(slot) else {
                continue;
            };
            let mut taken = 0;
            while taken < W::BUDGET && turn.io.may_start() && place.vring.is_live() {
                let heads = &mut place.queue.heads;
                let Some((head, chain)) = heads.take(&mut place.vring, now_ns) else {
                    break;
                };
                taken += 1;
                let mut cx = RequestCx {
                    vring: &mut place.vring,
                    heads,
                    io: turn.io,
                    slot: u16::try_from(slot).unwrap_or(u16::MAX),
                    now_ns,
                };
                self.0.request(&mut place.queue.state, &mut cx, head, chain);
            }
            place.vring.stats.add_chains(taken as u64);
            served = true;
        }
        served
    }

    fn has_work(&mut self, turn: &mut Turn<'_, Self::Queue>) -> bool {
        turn.io.has_room(1) && turn.vrings.iter().any(has_work)
    }

    fn wants_kicks(&self, io: &IoQueue, queue: &Self::Queue, vring: &Vring) -> bool {
        io.has_room(1) && queue.heads.has_room() && vring.is_live()
    }

    fn stopping(&mut self, turn: &mut Turn<'_, Self::Queue>, slot: usize) {
        if let Some(place) = turn.vrings.get_mut(slot) {
            self.0.stopping(&mut place.queue.state);
        }
    }

    fn in_flight(&self, queue: &Self::Queue) -> u32 {
        queue.heads.in_flight
    }

    fn parked(&self, queue: &Self::Queue) -> u32 {
        queue.heads.parked
    }

    fn io_done(&mut self, turn: &mut Turn<'_, Self::Queue>, token: u64, result: i32) {
        let Token { slot, head, tag } = Token::unpack(token);
        let now_ns = turn.now_ns();
        let Some(place) = turn.vrings.get_mut(usize::from(slot)) else {
            return;
        };
        let heads = &mut place.queue.heads;
        if let Some(slot) = heads.heads.get_mut(usize::from(head)) {
            slot.pending = slot.pending.saturating_sub(1);
            heads.parked -= u32::from(std::mem::take(&mut slot.parked));
        }
        let mut cx = RequestCx {
            vring: &mut place.vring,
            heads,
            io: turn.io,
            slot,
            now_ns,
        };
        self.0
            .io_done(&mut place.queue.state, &mut cx, head, tag, result);
    }
}

/// Whether there is a chain to take, and a place for it.
#[inline]
fn has_work<Q>(place: &Place<RequestQueue<Q>>) -> bool {
    place.vring.has_work() && place.queue.heads.has_room()
}

/// What a device does with the requests of one vring.
#[derive(Debug)]
pub struct RequestCx<'a> {
    vring: &'a mut Vring,
    heads: &'a mut Heads,
    io: &'a mut IoQueue,
    /// The vring's place in its thread, for the tokens of I/O.
    slot: u16,
    now_ns: u64,
}

impl RequestCx<'_> {
    /// The buffers of a request in flight.
    #[inline]
    pub fn buffers(&mut self, head: u16) -> Option<&mut Buffers> {
        self.heads
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

    /// Whether I/O on files waits for a blocking thread, of which there are few. A lock that is
    /// taken before would have nobody behind it: all threads could come to wait for it.
    #[must_use]
    #[inline]
    pub fn hands_calls_over(&self) -> bool {
        self.io.hands_calls_over()
    }

    /// As [`write`](Self::write) at an offset and with or without `dsync`, on a blocking thread that
    /// first makes a guard, for which it may wait, and keeps it until the write is done.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write_guarded<G>(
        &mut self,
        head: u16,
        tag: u16,
        file: FileId,
        where_and_how: (u64, bool),
        guard: impl FnOnce() -> G + Send + 'static,
    ) -> std::io::Result<()> {
        self.start(head, tag, |io, buffers, token| {
            io.add_bytes(buffers.readable_bytes());
            let from = buffers.readable();
            io.write_guarded(file, from, where_and_how, token, guard)
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

    /// `io_done` will be called for `head` when the promise is kept, on whatever thread. A promise
    /// that is dropped instead keeps the request for ever. It is the only thing that a request
    /// waits for; a pause does not wait for it.
    pub fn promise(&mut self, head: u16, tag: u16) -> Option<Promise> {
        let promise = self.promise_io(head, tag)?;
        let slot = self.heads.heads.get_mut(usize::from(head))?;
        slot.parked = true;
        self.heads.parked += 1;
        Some(promise)
    }

    /// As [`promise`](Self::promise), for what ends when I/O of others does: a pause waits for it.
    pub fn promise_io(&mut self, head: u16, tag: u16) -> Option<Promise> {
        let mut promise = None;
        let started = self.start(head, tag, |io, _buffers, token| {
            promise = Some(io.promise(token));
            Ok(())
        });
        started.ok().and(promise)
    }

    /// As [`promise`](Self::promise), for work that somebody else is at: a pause waits for it.
    pub fn hand_out(&mut self, head: u16, tag: u16) -> Option<Promise> {
        let mut promise = None;
        let started = self.start(head, tag, |io, _buffers, token| {
            promise = Some(io.promise(token));
            Ok(())
        });
        started.ok().and(promise)
    }

    /// Requests of the vring that wait for a [`promise`](Self::promise).
    #[must_use]
    pub fn parked(&self) -> u32 {
        self.heads.parked
    }

    /// Gives `head` back to the driver: `used_bytes` were written to its buffers.
    ///
    /// `kind`, `bytes` and `ok` are what the counters of the vring get.
    #[inline]
    pub fn complete(&mut self, head: u16, used_bytes: u32, counted: Counted) {
        let Some(slot) = self.heads.heads.get(usize::from(head)) else {
            return;
        };
        let pending = slot.pending;
        let given = if pending == 0 {
            self.heads.give_back(head)
        } else {
            None
        };
        let Some((descriptor, taken_ns)) = given else {
            // The kernel may still write to the buffers: keeping them is the one safe answer.
            log::error!(
                "vring {}: request {head} answered out of turn",
                self.vring.index()
            );
            return;
        };
        self.vring.push_used(descriptor, used_bytes);
        let latency_ns = self.now_ns.saturating_sub(taken_ns);
        self.vring
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
        let Some(slot) = self.heads.heads.get_mut(usize::from(head)) else {
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
struct Token {
    slot: u16,
    head: u16,
    tag: u16,
}

impl Token {
    fn pack(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.head) << 16 | u64::from(self.tag)
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    fn unpack(token: u64) -> Self {
        Self {
            slot: (token >> 32) as u16,
            head: (token >> 16) as u16,
            tag: token as u16,
        }
    }
}
