// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue with its slots.

use std::time::{Duration, Instant};

use crate::fuse::flags::{IN_HEADER_BYTES, OUT_HEADER_BYTES};

use super::framing::{Framing, Parts, arrange};
use super::request::Request;
use super::slot::{Area, FuseSlot, ReplyHeader};
use crate::error::{FrontendError, Result};
use crate::memory::GuestSlice;
use crate::ring::{CallMode, Segment};
use crate::vring::Vring;

/// How a queue looks and behaves.
#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    /// Number of request slots.
    pub depth: u16,
    /// Room for data in each slot, in the request and in the reply alike.
    pub data_bytes: usize,
    /// How requests and replies are spread over descriptors.
    pub framing: Framing,
    /// Whether descriptors lie in an indirect table, where that was agreed on.
    pub indirect: bool,
    /// How long a completion may take.
    pub timeout: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            depth: 16,
            data_bytes: 128 << 10,
            framing: Framing::Kernel,
            indirect: true,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of fuse_in_header")]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// A request that has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot, whose reply stays until it is released or submitted again.
    pub slot: FuseSlot,
    /// Length in the used element.
    pub used_len: u32,
}

#[derive(Debug)]
struct SlotState {
    request: Area,
    reply: Area,
    unique: u64,
}

/// One queue, for one thread.
#[derive(Debug)]
pub struct FuseQueue {
    vring: Vring,
    config: QueueConfig,
    /// Who asks from now on.
    pub caller: Caller,
    /// Whether `SETXATTR` has its longer form, as `INIT` agreed.
    pub setxattr_ext: bool,
    slots: Vec<SlotState>,
    free: Vec<FuseSlot>,
    /// Per head of the ring: the slot in flight with it.
    by_head: Vec<FuseSlot>,
    segments: Vec<Segment>,
    next_unique: u64,
    in_flight: usize,
}

impl FuseQueue {
    /// Allocates the slots in guest memory.
    ///
    /// # Errors
    ///
    /// When guest memory runs out.
    pub fn new(vring: Vring, config: QueueConfig) -> Result<Self> {
        let memory = vring.memory();
        let ring_size = usize::from(vring.ring.config().size);
        let slots = (0..config.depth)
            .map(|_| {
                Ok(SlotState {
                    request: Area::new(memory, config.data_bytes)?,
                    reply: Area::new(memory, config.data_bytes)?,
                    unique: 0,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        // Unique numbers of different queues differ, as those of one guest do.
        let next_unique = (vring.index as u64) << 48 | 2;
        Ok(Self {
            vring,
            config,
            caller: Caller::default(),
            setxattr_ext: false,
            slots,
            free: (0..config.depth).rev().map(FuseSlot).collect(),
            by_head: vec![FuseSlot(0); ring_size],
            segments: Vec::with_capacity(2 * ring_size),
            next_unique,
            in_flight: 0,
        })
    }

    /// Takes a free slot.
    ///
    /// # Errors
    ///
    /// When all are taken.
    #[inline]
    pub fn acquire(&mut self) -> Result<FuseSlot> {
        let slots = self.slots.len();
        self.free.pop().ok_or(FrontendError::NoFreeSlot { slots })
    }

    /// Gives a slot back that is not in flight.
    #[inline]
    pub fn release(&mut self, slot: FuseSlot) {
        self.free.push(slot);
    }

    /// Where the data of a slot's request go before it is submitted; page-aligned.
    #[inline]
    #[must_use]
    pub fn request_data(&self, slot: FuseSlot) -> &GuestSlice {
        self.slots[slot.index()].request.data()
    }

    /// Where the data of a slot's reply are, those behind [`Request::reply_args_bytes`].
    #[inline]
    #[must_use]
    pub fn reply_data(&self, slot: FuseSlot) -> &GuestSlice {
        self.slots[slot.index()].reply.data()
    }

    /// The header of a slot's reply.
    #[inline]
    #[must_use]
    pub fn reply_header(&self, slot: FuseSlot) -> ReplyHeader {
        self.slots[slot.index()].reply.reply_header()
    }

    /// Copies out what lies behind the header of a slot's reply.
    #[inline]
    pub fn read_reply(&self, slot: FuseSlot, into: &mut [u8]) {
        self.slots[slot.index()].reply.read_payload(into);
    }

    /// The number of the request last submitted from a slot.
    #[must_use]
    pub fn unique(&self, slot: FuseSlot) -> u64 {
        self.slots[slot.index()].unique
    }

    /// Adds a request to the available ring, unpublished.
    ///
    /// # Errors
    ///
    /// When the ring is full or the slot too small; the slot stays the caller's.
    #[inline]
    pub fn submit(&mut self, slot: FuseSlot, request: &Request) -> Result<()> {
        let unique = self.next_unique;
        let readable = Parts {
            header: IN_HEADER_BYTES,
            args: request.args.len(),
            data: request.data_bytes as usize,
        };
        let writable = Parts {
            header: if request.wants_reply() {
                OUT_HEADER_BYTES
            } else {
                0
            },
            args: request.reply_args_bytes as usize,
            data: request.reply_data_bytes as usize,
        };
        let state = &mut self.slots[slot.index()];
        state.request.set(readable, self.config.framing)?;
        state.reply.set(writable, self.config.framing)?;
        state.unique = unique;
        let len_bytes = u32::try_from(readable.total()).unwrap_or(u32::MAX);
        let header = request.header(len_bytes, unique, self.caller);
        state.request.write_header(&header);
        state.request.write_args(&request.args);
        self.next_unique += 2;
        self.add(slot)
    }

    /// Adds any bytes, with room for any number of bytes in reply, unpublished. The room is filled
    /// with 0xa5 before, so that it shows what the device wrote.
    ///
    /// # Errors
    ///
    /// When the ring is full or the slot too small; the slot stays the caller's.
    pub fn submit_bytes(&mut self, slot: FuseSlot, bytes: &[u8], reply_bytes: usize) -> Result<()> {
        /// What no reply begins with.
        const UNTOUCHED: u8 = 0xa5;
        let framing = self.config.framing;
        let readable = Parts::of_bytes(bytes.len(), IN_HEADER_BYTES);
        let state = &mut self.slots[slot.index()];
        state.request.set(readable, framing)?;
        let writable = Parts::of_bytes(reply_bytes, OUT_HEADER_BYTES);
        state.reply.set(writable, framing)?;
        state.reply.fill(UNTOUCHED);
        let (header, rest) = bytes.split_at(readable.header);
        let (args, data) = rest.split_at(readable.args);
        state.request.write_header(header);
        state.request.write_args(args);
        state.request.data().write(0, data);
        self.add(slot)
    }

    /// Publishes what was submitted and kicks if the device wants it; `true` when it was kicked.
    ///
    /// # Errors
    ///
    /// When the kick fails.
    #[inline]
    pub fn publish(&mut self) -> Result<bool> {
        self.vring.publish()
    }

    /// The next completion, if there is one. Its slot stays taken.
    ///
    /// # Errors
    ///
    /// When the back-end has broken the used ring.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Completion>> {
        let Some(used) = self.vring.ring.pop_used()? else {
            return Ok(None);
        };
        self.in_flight -= 1;
        Ok(Some(Completion {
            slot: self.by_head[usize::from(used.head)],
            used_len: used.len,
        }))
    }

    /// Waits for the next completion, busily or for a call, as the ring's [`CallMode`] says.
    ///
    /// # Errors
    ///
    /// When none comes in time or the back-end has broken the used ring.
    #[inline]
    pub fn wait(&mut self) -> Result<Completion> {
        let deadline = Instant::now() + self.config.timeout;
        loop {
            if let Some(completion) = self.poll()? {
                return Ok(completion);
            }
            match self.vring.ring.config().calls {
                CallMode::Wanted => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    self.vring.wait_used(left)?;
                }
                CallMode::Never => self.spin(deadline)?,
            }
        }
    }

    /// Requests submitted and not yet polled.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How the queue looks and behaves.
    #[must_use]
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// How the queue looks and behaves from now on; depth and room are fixed.
    pub fn config_mut(&mut self) -> &mut QueueConfig {
        &mut self.config
    }

    /// The vring.
    #[must_use]
    pub fn vring(&self) -> &Vring {
        &self.vring
    }

    /// The vring, for raw access.
    pub fn vring_mut(&mut self) -> &mut Vring {
        &mut self.vring
    }

    /// Forgets everything in flight and starts the ring at `base`, while the vring is stopped.
    pub fn reset(&mut self, base: u16) {
        self.vring.ring.reset(base);
        self.in_flight = 0;
        self.free.clear();
        self.free.extend((0..self.config.depth).rev().map(FuseSlot));
    }

    #[inline]
    fn add(&mut self, slot: FuseSlot) -> Result<()> {
        let state = &self.slots[slot.index()];
        let framing = self.config.framing;
        self.segments.clear();
        for (area, segment) in [
            (&state.request, Segment::readable as fn(u64, u32) -> Segment),
            (&state.reply, Segment::writable),
        ] {
            arrange(&mut self.segments, area.gpa, area.parts, framing, segment);
        }
        let fits = self.segments.len() <= usize::from(self.vring.ring.config().indirect_len);
        let (direct, indirect) = if self.config.indirect && fits {
            (&[][..], &self.segments[..])
        } else {
            (&self.segments[..], &[][..])
        };
        let head = self.vring.ring.add(direct, indirect)?;
        self.by_head[usize::from(head)] = slot;
        self.in_flight += 1;
        Ok(())
    }

    fn spin(&mut self, deadline: Instant) -> Result<()> {
        /// Between two looks at the clock.
        const SPINS: u32 = 1000;
        for _ in 0..SPINS {
            if self.vring.ring.peek_used()?.is_some() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        if Instant::now() > deadline {
            return Err(FrontendError::Timeout {
                event: "completion",
                timeout: self.config.timeout,
            });
        }
        // On a machine with fewer cores than spinners the device has to get its turn.
        std::thread::yield_now();
        Ok(())
    }
}
