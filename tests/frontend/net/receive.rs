// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver side of a receive queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::fault::NetFault;
use super::header::{HEADER_MODERN_BYTES, NetHeader};
use super::net_feature::MRG_RXBUF;
use super::shape::Shape;
use crate::error::{FrontendError, Result};
use crate::ids::feature;
use crate::memory::GuestSlice;
use crate::ring::{CallMode, Segment, Used};
use crate::vring::Vring;

/// How a receive queue looks.
#[derive(Clone, Copy, Debug)]
pub struct RxConfig {
    /// Buffers there are.
    pub buffers: u16,
    /// Length of each, the room for a header included.
    pub buffer_bytes: u32,
    /// The layout of their chains.
    pub shape: Shape,
    /// Whether `num_buffers` has to be 1 without merging (virtio 1.3 §5.1.6.4.1): DPDK leaves it 0.
    pub strict: bool,
}

impl Default for RxConfig {
    fn default() -> Self {
        Self {
            buffers: 64,
            buffer_bytes: 2048,
            shape: Shape::WHOLE,
            strict: true,
        }
    }
}

/// A received frame; its bytes are in the caller's vector.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Received {
    /// The header the device wrote.
    pub header: NetHeader,
    /// Length of the frame.
    pub bytes: usize,
    /// Chains it took.
    pub chains: u16,
}

/// A receive queue, for one thread.
#[derive(Debug)]
pub struct RxQueue {
    vring: Vring,
    config: RxConfig,
    header_bytes: usize,
    merges: bool,
    is_modern: bool,
    buffers: Vec<(u64, GuestSlice)>,
    free: Vec<u16>,
    by_head: Vec<u16>,
    order: Option<VecDeque<u16>>,
    segments: Vec<Segment>,
    posted: usize,
}

/// The record of heads that `IN_ORDER` calls for.
pub(super) fn order_of(features: u64, size: usize) -> Option<VecDeque<u16>> {
    (features & feature::IN_ORDER != 0).then(|| VecDeque::with_capacity(size))
}

#[inline]
pub(super) fn check_order(order: &mut Option<VecDeque<u16>>, found: u16) -> Result<()> {
    match order.as_mut().map(VecDeque::pop_front) {
        Some(Some(expected)) if expected != found => {
            Err(NetFault::OutOfOrder { expected, found }.into())
        }
        _ => Ok(()),
    }
}

impl RxQueue {
    /// Allocates the buffers in guest memory; none is posted.
    ///
    /// # Errors
    ///
    /// When guest memory runs out.
    pub fn new(vring: Vring, config: RxConfig, features: u64) -> Result<Self> {
        let memory = vring.memory();
        let bytes = config.buffer_bytes as usize;
        let buffers = (0..config.buffers)
            .map(|_| {
                let gpa = memory.alloc(bytes, 64)?;
                Ok((gpa, memory.slice(gpa, bytes)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let size = usize::from(vring.ring.config().size);
        Ok(Self {
            header_bytes: NetHeader::bytes_under(features),
            merges: features & MRG_RXBUF != 0,
            is_modern: features & feature::VERSION_1 != 0,
            buffers,
            free: (0..config.buffers).rev().collect(),
            by_head: vec![0; size],
            order: order_of(features, size),
            segments: Vec::with_capacity(size.max(64)),
            posted: 0,
            vring,
            config,
        })
    }

    /// Adds up to `count` free buffers to the available ring and publishes them; returns how many
    /// fitted.
    ///
    /// # Errors
    ///
    /// When the shape does not fit the ring at all, or the kick fails.
    pub fn post(&mut self, count: usize) -> Result<usize> {
        let mut posted = 0;
        while posted < count && self.add()? {
            posted += 1;
        }
        if posted > 0 {
            self.vring.publish()?;
        }
        Ok(posted)
    }

    /// Posts all free buffers, as far as the ring takes them.
    ///
    /// # Errors
    ///
    /// As [`RxQueue::post`].
    pub fn post_all(&mut self) -> Result<usize> {
        self.post(usize::MAX)
    }

    /// The next frame, if there is one. Its buffers are free again, and not posted.
    ///
    /// # Errors
    ///
    /// When the device breaks a rule for buffers; see [`NetFault`].
    #[inline]
    pub fn poll(&mut self, frame: &mut Vec<u8>) -> Result<Option<Received>> {
        frame.clear();
        let Some(used) = self.vring.ring.pop_used()? else {
            return Ok(None);
        };
        let header = self.header_of(used)?;
        let chains = if self.merges { header.num_buffers } else { 1 };
        let claims = if self.config.strict && self.is_modern {
            header.num_buffers
        } else {
            chains
        };
        if chains == 0 || claims != chains {
            let found = header.num_buffers;
            return Err(NetFault::NumBuffers { found }.into());
        }
        self.take(used, self.header_bytes, frame)?;
        let mut before = used;
        for at in 1..chains {
            if before.len != self.config.buffer_bytes {
                return Err(NetFault::NotFull {
                    at: at - 1,
                    used_len: before.len,
                    capacity: self.config.buffer_bytes,
                }
                .into());
            }
            before = self
                .vring
                .ring
                .pop_used()?
                .ok_or(NetFault::SplitPublication {
                    wanted: chains,
                    published: at,
                })?;
            self.take(before, 0, frame)?;
        }
        Ok(Some(Received {
            header,
            bytes: frame.len(),
            chains,
        }))
    }

    /// Waits for the next frame, busily or for a call, as the ring's [`CallMode`] says.
    ///
    /// # Errors
    ///
    /// When none comes in time, and as [`RxQueue::poll`].
    pub fn wait(&mut self, frame: &mut Vec<u8>, timeout: Duration) -> Result<Received> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(received) = self.poll(frame)? {
                return Ok(received);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let event = "frame";
                return Err(FrontendError::Timeout { event, timeout });
            }
            match self.vring.ring.config().calls {
                CallMode::Wanted => self.vring.wait_used(left)?,
                CallMode::Never => std::thread::yield_now(),
            }
        }
    }

    /// Buffers the device has.
    #[must_use]
    pub fn posted(&self) -> usize {
        self.posted
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

    /// Every buffer as it stands, to see what the device wrote where it should not have.
    pub fn buffers(&self) -> impl Iterator<Item = &GuestSlice> {
        self.buffers.iter().map(|(_, window)| window)
    }

    /// Forgets everything posted and starts the ring at `base`, while the vring is stopped.
    pub fn reset(&mut self, base: u16) {
        self.vring.ring.reset(base);
        self.posted = 0;
        self.free.clear();
        self.free.extend((0..self.config.buffers).rev());
        if let Some(order) = &mut self.order {
            order.clear();
        }
    }

    fn add(&mut self) -> Result<bool> {
        let Some(buffer) = self.free.last().copied() else {
            return Ok(false);
        };
        let (shape, bytes) = (self.config.shape, self.config.buffer_bytes);
        let gpa = self.buffers[usize::from(buffer)].0;
        shape.arrange((gpa, bytes), Segment::writable, &mut self.segments);
        let direct = if shape.indirect {
            0
        } else {
            self.segments.len()
        };
        let (direct, indirect) = self.segments.split_at(direct);
        if direct.len().max(1) > usize::from(self.vring.ring.free_len()) && self.posted > 0 {
            return Ok(false);
        }
        let head = self.vring.ring.add(direct, indirect)?;
        self.free.pop();
        self.by_head[usize::from(head)] = buffer;
        if let Some(order) = &mut self.order {
            order.push_back(head);
        }
        self.posted += 1;
        Ok(true)
    }

    fn header_of(&self, used: Used) -> Result<NetHeader> {
        let used_len = used.len;
        if (used_len as usize) < self.header_bytes {
            return Err(NetFault::NoHeader { used_len }.into());
        }
        let mut bytes = [0; HEADER_MODERN_BYTES];
        let buffer = self.by_head[usize::from(used.head)];
        self.buffers[usize::from(buffer)]
            .1
            .read(0, &mut bytes[..self.header_bytes]);
        Ok(NetHeader::from_bytes(bytes))
    }

    /// Appends what a used buffer holds after `skip` bytes, and frees it.
    fn take(&mut self, used: Used, skip: usize, frame: &mut Vec<u8>) -> Result<()> {
        let capacity = self.config.buffer_bytes;
        if used.len > capacity || used.len == 0 {
            let used_len = used.len;
            return Err(NetFault::UsedLen { used_len, capacity }.into());
        }
        check_order(&mut self.order, used.head)?;
        let buffer = self.by_head[usize::from(used.head)];
        let start = frame.len();
        frame.resize(start + used.len as usize - skip, 0);
        self.buffers[usize::from(buffer)]
            .1
            .read(skip, &mut frame[start..]);
        self.free.push(buffer);
        self.posted -= 1;
        Ok(())
    }
}
