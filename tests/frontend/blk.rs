// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-blk driver on one vring.
//!
//! [`BlkDriver`] owns preallocated request slots. The asynchronous way is `acquire` a slot, fill
//! its data, `submit` (several times), `publish`, `poll` or `wait` for completions, and `release`
//! or `submit` the slot again; none of it allocates. The synchronous helpers in `blk::sync` do all
//! of it for one request.

mod request;
mod shape;
mod slot;
mod sync;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use request::{
    BlkRequest, Completion, Direction, HEADER_BYTES, ID_BYTES, Place, Range, SECTOR_BYTES, Slot,
    blk_feature, kind, status,
};
pub use shape::{HeaderShape, RequestShape, StatusShape, TableShape};

use super::error::{FrontendError, Result};
use super::memory::{GuestMemory, GuestSlice};
use super::ring::{CallMode, Used};
use super::vring::Vring;
use shape::Arrangement;
use slot::{META_BYTES, SlotState};

/// How a driver looks and behaves.
#[derive(Clone, Copy, Debug)]
pub struct BlkConfig {
    /// Number of request slots.
    pub depth: u16,
    /// Room for data in each slot.
    pub slot_bytes: usize,
    /// Arrangement of the requests.
    pub shape: RequestShape,
    /// How long a completion may take.
    pub timeout: Duration,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self {
            depth: 32,
            slot_bytes: 64 << 10,
            shape: RequestShape::default(),
            timeout: Duration::from_secs(10),
        }
    }
}

/// A virtio-blk driver on one vring, for one thread.
#[derive(Debug)]
pub struct BlkDriver {
    vring: Vring,
    memory: Arc<GuestMemory>,
    config: BlkConfig,
    slots: Vec<SlotState>,
    free: Vec<Slot>,
    /// Per head of the ring: the slot in flight with it.
    by_head: Vec<Slot>,
    arrangement: Arrangement,
    in_flight: usize,
}

impl BlkDriver {
    /// Allocates the slots in guest memory.
    ///
    /// # Errors
    ///
    /// When guest memory runs out.
    pub fn new(vring: Vring, config: BlkConfig) -> Result<Self> {
        let memory = Arc::clone(vring.memory());
        let ring_size = usize::from(vring.ring.config().size);
        let depth = usize::from(config.depth);
        let meta_gpa = memory.alloc(depth * META_BYTES, META_BYTES)?;
        let slots = (0..depth)
            .map(|index| (index * META_BYTES) as u64)
            .map(|offset| SlotState::new(&memory, &config, meta_gpa + offset))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            vring,
            memory,
            config,
            slots,
            // The lowest slot is used first: at depth 1 always the same cache lines.
            free: (0..config.depth).rev().map(Slot).collect(),
            by_head: vec![Slot(0); ring_size],
            arrangement: Arrangement::with_room(ring_size),
            in_flight: 0,
        })
    }

    /// Takes a free slot.
    ///
    /// # Errors
    ///
    /// When all are taken.
    #[inline]
    pub fn acquire(&mut self) -> Result<Slot> {
        let slots = self.slots.len();
        self.free.pop().ok_or(FrontendError::NoFreeSlot { slots })
    }

    /// Gives a slot back that is not in flight.
    #[inline]
    pub fn release(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// The data buffer of a slot.
    #[inline]
    #[must_use]
    pub fn data(&self, slot: Slot) -> &GuestSlice {
        self.slots[slot.index()].data()
    }

    /// Guest-physical address of the data buffer of a slot.
    #[must_use]
    pub fn data_gpa(&self, slot: Slot) -> u64 {
        self.slots[slot.index()].places().data_gpa
    }

    /// Puts ranges into a slot, for [`BlkRequest::ranges`].
    pub fn fill_ranges(&self, slot: Slot, ranges: &[Range]) {
        for (range, at) in ranges.iter().zip((0..).step_by(16)) {
            self.data(slot).write(at, &range.to_bytes());
        }
    }

    /// Adds a request to the available ring, unpublished.
    ///
    /// # Errors
    ///
    /// When the ring is full or the shape does not fit the request; the slot stays the caller's.
    #[inline]
    pub fn submit(&mut self, slot: Slot, request: &BlkRequest) -> Result<()> {
        let state = &mut self.slots[slot.index()];
        if request.place == Place::Slot && request.data_bytes as usize > self.config.slot_bytes {
            return Err(FrontendError::OutOfGuestMemory {
                bytes: request.data_bytes as usize,
            });
        }
        self.arrangement
            .arrange(request, &self.config.shape, state.places())?;
        state.prepare(request, &self.arrangement);
        let (direct, indirect) = self.arrangement.segments.split_at(self.arrangement.direct);
        let head = self.vring.ring.add(direct, indirect)?;
        self.by_head[usize::from(head)] = slot;
        self.in_flight += 1;
        Ok(())
    }

    /// Publishes the submitted requests and kicks if the device wants it.
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
        Ok(Some(self.completion(used)))
    }

    /// Waits for the next completion, busily or for a call, as the ring's [`CallMode`] says.
    ///
    /// # Errors
    ///
    /// When none comes in time or the back-end has broken the used ring.
    #[inline]
    pub fn wait(&mut self) -> Result<Completion> {
        if let Some(completion) = self.poll()? {
            return Ok(completion);
        }
        match self.vring.ring.config().calls {
            CallMode::Wanted => self.wait_called(),
            CallMode::Never => self.wait_busily(),
        }
    }

    /// Requests submitted and not yet polled.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How the driver looks and behaves.
    #[must_use]
    pub fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// Changes the arrangement of later requests. A merged shape must have been configured at the
    /// start if one is to be used later, for the slots to have room next to the data.
    pub fn set_shape(&mut self, shape: RequestShape) {
        self.config.shape = shape;
    }

    /// Changes how long a completion may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.config.timeout = timeout;
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

    /// The guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Forgets everything in flight and starts the ring at `base`, while the vring is stopped.
    pub fn reset(&mut self, base: u16) {
        self.vring.ring.reset(base);
        self.in_flight = 0;
        self.free.clear();
        self.free.extend((0..self.config.depth).rev().map(Slot));
    }

    #[inline]
    fn completion(&self, used: Used) -> Completion {
        let slot = self.by_head[usize::from(used.head)];
        let state = &self.slots[slot.index()];
        Completion {
            slot,
            request: state.request(),
            status: state.status(),
            used_len: used.len,
        }
    }

    fn wait_called(&mut self) -> Result<Completion> {
        let deadline = Instant::now() + self.config.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.vring.wait_used(left) {
                Err(FrontendError::Timeout { .. }) => return Err(self.no_completion()),
                other => other?,
            }
            if let Some(completion) = self.poll()? {
                return Ok(completion);
            }
        }
    }

    fn wait_busily(&mut self) -> Result<Completion> {
        /// Between two looks at the clock.
        const SPINS: u32 = 1000;
        let deadline = Instant::now() + self.config.timeout;
        loop {
            for _ in 0..SPINS {
                if let Some(completion) = self.poll()? {
                    return Ok(completion);
                }
                std::hint::spin_loop();
            }
            if Instant::now() > deadline {
                return Err(self.no_completion());
            }
            // On a machine with fewer cores than spinners the device has to get its turn.
            std::thread::yield_now();
        }
    }

    fn no_completion(&self) -> FrontendError {
        FrontendError::Timeout {
            event: "completion",
            timeout: self.config.timeout,
        }
    }
}
