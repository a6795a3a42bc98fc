// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device does with a request: its buffers, I/O for it, and its answer.

use super::heads::Heads;
use crate::device::Vring;
use crate::io::{FileId, IoQueue, Job, Promise};
use crate::limited;
use crate::memory::Buffers;

/// What a device does with the requests of one vring.
#[derive(Debug)]
pub struct RequestCx<'a> {
    pub(super) vring: &'a mut Vring,
    pub(super) heads: &'a mut Heads,
    pub(super) io: &'a mut IoQueue,
    /// The vring's place in its thread, for the tokens of I/O.
    pub(super) slot: u16,
    pub(super) now_ns: u64,
}

impl RequestCx<'_> {
    /// The buffers of a request in flight.
    #[inline]
    pub fn buffers(&mut self, head: u16) -> Option<&mut Buffers> {
        self.heads.get_mut(head).map(|head| &mut head.buffers)
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
        let slot = self.heads.get_mut(head)?;
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
        let given_back = self.heads.give_back(head);
        answer(
            self.vring,
            head,
            given_back,
            self.now_ns,
            used_bytes,
            counted,
        );
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
        let Some(slot) = self.heads.get_mut(head) else {
            return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
        };
        start(self.io, &slot.buffers, token)?;
        slot.pending += 1;
        Ok(())
    }
}

/// Gives `head` back to the driver, whose descriptor and time of taking are `given_back`.
#[inline]
pub(super) fn answer(
    vring: &mut Vring,
    head: u16,
    given_back: Option<(u16, u64)>,
    now_ns: u64,
    used_bytes: u32,
    Counted { kind, bytes, ok }: Counted,
) {
    let Some((descriptor, taken_ns)) = given_back else {
        return note_out_of_turn(vring, head);
    };
    vring.push_used(descriptor, used_bytes);
    let latency_ns = now_ns.saturating_sub(taken_ns);
    vring.stats.record(kind, bytes, ok, latency_ns);
}

/// The kernel may still write to the buffers: keeping them is the one safe answer.
#[cold]
fn note_out_of_turn(vring: &Vring, head: u16) {
    limited!(
        error,
        "vring {}: request {head} answered out of turn",
        vring.index()
    );
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

impl Counted {
    /// A request of this kind that has moved `bytes` bytes.
    #[must_use]
    pub const fn new(kind: usize, bytes: u64, ok: bool) -> Self {
        Self { kind, bytes, ok }
    }
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
