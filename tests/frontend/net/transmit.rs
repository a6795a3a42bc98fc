// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver side of a transmit queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::fault::NetFault;
use super::header::NetHeader;
use super::shape::Shape;
use crate::error::{FrontendError, Result};
use crate::memory::GuestSlice;
use crate::ring::{CallMode, Segment};
use crate::vring::Vring;

/// How a transmit queue looks.
#[derive(Clone, Copy, Debug)]
pub struct TxConfig {
    /// Frames in flight at most.
    pub slots: u16,
    /// Longest frame with its header.
    pub slot_bytes: usize,
    /// The layout of later chains.
    pub shape: Shape,
}

impl Default for TxConfig {
    fn default() -> Self {
        Self {
            slots: 64,
            slot_bytes: 2048,
            shape: Shape::HEADER_APART,
        }
    }
}

/// A transmit queue, for one thread.
#[derive(Debug)]
pub struct TxQueue {
    vring: Vring,
    config: TxConfig,
    header_bytes: usize,
    slots: Vec<(u64, GuestSlice)>,
    free: Vec<u16>,
    /// Per head: the slot in flight with it.
    by_head: Vec<u16>,
    /// The heads in flight in their order; checked only with `IN_ORDER`.
    order: Option<VecDeque<u16>>,
    segments: Vec<Segment>,
    in_flight: usize,
}

impl TxQueue {
    /// Allocates the slots in guest memory.
    ///
    /// # Errors
    ///
    /// When guest memory runs out.
    pub fn new(vring: Vring, config: TxConfig, features: u64) -> Result<Self> {
        let memory = vring.memory();
        let slots = (0..config.slots)
            .map(|_| {
                let gpa = memory.alloc(config.slot_bytes, 64)?;
                Ok((gpa, memory.slice(gpa, config.slot_bytes)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let size = usize::from(vring.ring.config().size);
        Ok(Self {
            header_bytes: NetHeader::bytes_under(features),
            slots,
            free: (0..config.slots).rev().collect(),
            by_head: vec![0; size],
            order: super::receive::order_of(features, size),
            segments: Vec::with_capacity(size.max(64)),
            in_flight: 0,
            vring,
            config,
        })
    }

    /// Adds a frame to the available ring, unpublished; `false` when ring or slots are full.
    ///
    /// # Errors
    ///
    /// When the frame is longer than a slot.
    #[inline]
    pub fn send(&mut self, header: &NetHeader, frame: &[u8]) -> Result<bool> {
        let Some(slot) = self.free.last().copied() else {
            return Ok(false);
        };
        let bytes = self.header_bytes + frame.len();
        if bytes > self.config.slot_bytes {
            return Err(FrontendError::OutOfGuestMemory { bytes });
        }
        let (_, window) = &self.slots[usize::from(slot)];
        window.write(0, &header.to_bytes()[..self.header_bytes]);
        window.write(self.header_bytes, frame);
        self.submit(bytes)
    }

    /// Puts the same frame into all slots, for [`TxQueue::send_filled`]. Nothing may be in flight.
    ///
    /// # Errors
    ///
    /// When the frame is longer than a slot.
    pub fn fill(&mut self, header: &NetHeader, frame: &[u8]) -> Result<()> {
        let bytes = self.header_bytes + frame.len();
        if bytes > self.config.slot_bytes {
            return Err(FrontendError::OutOfGuestMemory { bytes });
        }
        for (_, window) in &self.slots {
            window.write(0, &header.to_bytes()[..self.header_bytes]);
            window.write(self.header_bytes, frame);
        }
        Ok(())
    }

    /// Adds a slot's content as a frame of `frame_bytes`, unpublished; `false` when full.
    ///
    /// # Errors
    ///
    /// When the shape does not fit the ring at all.
    #[inline]
    pub fn send_filled(&mut self, frame_bytes: usize) -> Result<bool> {
        if self.free.is_empty() {
            return Ok(false);
        }
        self.submit(self.header_bytes + frame_bytes)
    }

    /// Publishes what was added and kicks if the device wants it.
    ///
    /// # Errors
    ///
    /// When the kick fails.
    #[inline]
    pub fn publish(&mut self) -> Result<bool> {
        self.vring.publish()
    }

    /// Takes back all chains the device has used and returns how many.
    ///
    /// # Errors
    ///
    /// When the device claims to have written to one, has broken the used ring, or with `IN_ORDER`
    /// uses them in another order.
    #[inline]
    pub fn reap(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Some(used) = self.vring.ring.pop_used()? {
            if used.len != 0 {
                return Err(NetFault::UsedLen {
                    used_len: used.len,
                    capacity: 0,
                }
                .into());
            }
            super::receive::check_order(&mut self.order, used.head)?;
            self.free.push(self.by_head[usize::from(used.head)]);
            count += 1;
        }
        self.in_flight -= count;
        Ok(count)
    }

    /// Waits until all frames have been used: busily or for calls, as the ring's [`CallMode`] says.
    ///
    /// # Errors
    ///
    /// When they are not in time, and as [`TxQueue::reap`].
    pub fn wait_all(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            self.reap()?;
            if self.in_flight == 0 {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FrontendError::Timeout {
                    event: "used frames",
                    timeout,
                });
            }
            match self.vring.ring.config().calls {
                CallMode::Wanted => self.vring.wait_used(left)?,
                CallMode::Never => std::thread::yield_now(),
            }
        }
    }

    /// Sends one frame and waits until it is used.
    ///
    /// # Errors
    ///
    /// As [`TxQueue::send`] and [`TxQueue::wait_all`].
    pub fn send_now(&mut self, header: &NetHeader, frame: &[u8], timeout: Duration) -> Result<()> {
        if !self.send(header, frame)? {
            return Err(FrontendError::NoFreeSlot {
                slots: self.slots.len(),
            });
        }
        self.publish()?;
        self.wait_all(timeout)
    }

    /// Frames sent and not taken back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Changes the layout of later chains.
    pub fn set_shape(&mut self, shape: Shape) {
        self.config.shape = shape;
    }

    /// Bytes of the header.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        self.header_bytes
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
        self.free.extend((0..self.config.slots).rev());
        if let Some(order) = &mut self.order {
            order.clear();
        }
    }

    fn submit(&mut self, bytes: usize) -> Result<bool> {
        let Some(slot) = self.free.last().copied() else {
            return Ok(false);
        };
        let gpa = self.slots[usize::from(slot)].0;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let shape = self.config.shape;
        shape.arrange((gpa, bytes), Segment::readable, &mut self.segments);
        let direct = if shape.indirect {
            0
        } else {
            self.segments.len()
        };
        let (direct, indirect) = self.segments.split_at(direct);
        if direct.len().max(1) > usize::from(self.vring.ring.free_len()) && self.in_flight > 0 {
            return Ok(false);
        }
        let head = self.vring.ring.add(direct, indirect)?;
        self.free.pop();
        self.by_head[usize::from(head)] = slot;
        if let Some(order) = &mut self.order {
            order.push_back(head);
        }
        self.in_flight += 1;
        Ok(true)
    }
}
