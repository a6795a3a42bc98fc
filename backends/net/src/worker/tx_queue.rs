// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is kept for a transmit queue.

use std::sync::Arc;

use ringside_common::device::Vring;
use ringside_common::memory::Buffers;
use ringside_common::num::usize_of;

use super::attachment::Attachment;
use super::passage::malformed;
use super::slot::RxSlot;
use crate::counters::{DropReason, PacketCounters};
use crate::header::{HEADER_BYTES, LEGACY_HEADER_BYTES, NetHeader};
use crate::port::{Negotiated, Port};

#[derive(Debug)]
pub(super) struct TxQueue {
    pub(super) port: Arc<Port>,
    pub(super) counters: Arc<PacketCounters>,
    pub(super) pair: u16,
    negotiated: Negotiated,
    /// The queue of the link that its frames go to.
    pub(super) link_queue: Option<usize>,
    /// Nothing is taken before: a rate limit, or a receiver without buffers.
    pub(super) resume_ns: u64,
    /// That receiver, whose buffers end the wait.
    pub(super) waits_for: Option<RxSlot>,
}

impl TxQueue {
    pub(super) fn new(
        port: Arc<Port>,
        counters: Arc<PacketCounters>,
        pair: u16,
        negotiated: Negotiated,
    ) -> Self {
        Self {
            port,
            counters,
            pair,
            negotiated,
            link_queue: None,
            resume_ns: 0,
            waits_for: None,
        }
    }

    /// Whether neither a wait nor a full link keeps frames from being taken.
    #[inline]
    pub(super) fn is_free(&self, attachments: &[Option<Attachment>]) -> bool {
        self.resume_ns == 0
            && !self
                .link_queue
                .and_then(|at| attachments.get(at)?.as_ref())
                .is_some_and(Attachment::is_blocked)
    }

    /// Takes the virtio header off a frame and checks it.
    #[inline]
    pub(super) fn open(&self, frame: &mut Buffers) -> Result<NetHeader, DropReason> {
        let bytes = if self.negotiated.header_bytes == HEADER_BYTES {
            frame.take_header::<HEADER_BYTES>()
        } else {
            frame.take_header::<LEGACY_HEADER_BYTES>().map(|legacy| {
                let mut bytes = [0; HEADER_BYTES];
                for (to, from) in bytes.iter_mut().zip(legacy) {
                    *to = from;
                }
                bytes
            })
        };
        let header = NetHeader::decode(bytes.ok_or(DropReason::Malformed)?);
        header
            .check_sent(frame_bytes(frame), self.negotiated.sends)
            .map_err(|fault| malformed(&self.port, &fault))
    }
}

/// Bytes of the frame that were not taken.
#[inline]
pub(super) fn frame_bytes(frame: &Buffers) -> usize {
    usize_of(frame.readable_bytes())
}

/// Takes the next frame; its chain is the caller's to give back. Whether the chain is one that may
/// hold a frame comes with it.
#[inline]
pub(super) fn take(vring: &mut Vring, frame: &mut Buffers) -> Option<(u16, bool)> {
    let head = vring.next_head()?;
    // Buffers for the device to write have no place in a transmit queue (virtio 1.3 §5.1.6.2).
    let sound = vring.read_chain(head, frame).is_ok() && frame.writable_bytes() == 0;
    Some((head, sound))
}
