// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is kept for a receive queue, and how a frame is put into it.

use std::sync::Arc;

use ringside_common::device::Vring;
use ringside_common::limit::Admission;

use super::held::Held;
use super::passage::{Frame, Passage, destination};
use super::patience::Patience;
use super::window::{Layout, Window};
use crate::counters::{DropReason, PacketCounters};
use crate::filter::RxFilter;
use crate::frame::{ETHERNET_HEADER_BYTES, Ethernet};
use crate::header::NetHeader;
use crate::link::Payload;
use crate::port::{Negotiated, Port};

/// Room to begin with when frames have been short: chains taken for a frame that does not come are
/// walked in vain when the memory table changes, and each is a segment for the kernel to look at.
pub(super) const SHORT_BYTES: usize = 4 << 10;

/// Room for what waits for a limit at least: for the longest frame.
const LEAST_HELD_BYTES: usize = 68 << 10;

#[derive(Debug)]
pub(super) struct RxQueue {
    pub(super) port: Arc<Port>,
    pub(super) counters: Arc<PacketCounters>,
    pub(super) pair: u16,
    pub(super) negotiated: Negotiated,
    pub(super) window: Window,
    /// The queue of the link that its frames come from.
    pub(super) link_queue: Option<usize>,
    /// A frame is there for which there was no room.
    pub(super) starved: bool,
    /// The driver has had buffers in it: it uses this queue.
    pub(super) used: bool,
    /// It is started and enabled.
    pub(super) serves: bool,
    /// As many changes of the cable as it has noticed.
    pub(super) cable_changes: u32,
    /// A frame that was read, and for which the chains are still to come.
    pub(super) pending: Option<(NetHeader, Vec<u8>)>,
    /// The room to ask for before the next frame is read, after the length of the last one.
    pub(super) expect_bytes: usize,
    /// Nothing is put in before.
    pub(super) resume_ns: u64,
    filter: RxFilter,
    filter_version: u32,
    pub(super) patience: Patience,
    /// What waits for the limit of the port, on a switch.
    pub(super) held: Held,
}

impl RxQueue {
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
            window: Window::new(Layout {
                header_bytes: negotiated.header_bytes,
                mergeable: negotiated.mergeable,
            }),
            link_queue: None,
            starved: false,
            used: false,
            serves: false,
            cable_changes: 0,
            pending: None,
            expect_bytes: SHORT_BYTES,
            resume_ns: 0,
            filter: RxFilter::new(None),
            filter_version: 0,
            patience: Patience::default(),
            held: Held::default(),
        }
    }

    /// Gives the guest a frame, which its limit allows and its driver takes as it is, with
    /// `header`.
    #[inline]
    pub(super) fn give(
        &mut self,
        vring: &mut Vring,
        now_ns: u64,
        header: NetHeader,
        frame: &Frame<'_>,
    ) -> Passage {
        if !vring.is_live() || !self.port.is_link_up() {
            return Passage::Lost(DropReason::LinkDown);
        }
        self.follow_filter();
        if !self.wants(frame.start) {
            return Passage::Lost(DropReason::Filtered);
        }
        let passage = self.put(vring, header, frame);
        if passage == Passage::Passed {
            self.patience.end(now_ns);
            let bytes = frame.bytes;
            let segments = || header.segments(bytes, |at| frame.payload.byte(at));
            self.port.to_guest.charge(now_ns, bytes, segments);
            self.counters.count(bytes, destination(frame.start));
        }
        passage
    }

    /// Puts a frame that this driver takes as it is into its chains.
    #[inline]
    fn put(&mut self, vring: &mut Vring, header: NetHeader, frame: &Frame<'_>) -> Passage {
        let bytes = frame.bytes;
        if !self.window.make_room(vring, bytes) && !self.window.make_room_behind(vring, bytes) {
            return if self.window.is_hopeless(vring, bytes) {
                Passage::Lost(DropReason::NoBuffer)
            } else {
                Passage::Waits
            };
        }
        let header_bytes = self.negotiated.header_bytes;
        let stream = self.window.stream_mut();
        match frame.payload {
            Payload::Guest { head, rest } => {
                stream.write_at(header_bytes, head);
                if let Some(left @ 1..) = bytes.checked_sub(head.len()) {
                    stream.copy_from(header_bytes + head.len(), rest, 0, left);
                }
            }
            Payload::Bytes(from) => {
                stream.write_at(header_bytes, from);
            }
        }
        self.window.commit(vring, header, bytes);
        Passage::Passed
    }

    /// Copies a frame out that was read into the window, and behind its first `limit_bytes` into
    /// `spare`.
    pub(super) fn read_back(&self, spare: &[u8], limit_bytes: usize, frame: &mut [u8]) {
        let header_bytes = self.negotiated.header_bytes;
        let (here, there) = frame.split_at_mut(limit_bytes.min(frame.len()));
        self.window.stream().written_at(header_bytes, here);
        if let Some(rest) = spare.get(..there.len()) {
            there.copy_from_slice(rest);
        }
    }

    /// Whether the driver wants to see a frame that begins with `start`.
    #[inline]
    pub(super) fn wants(&self, start: &[u8]) -> bool {
        if self.filter.is_promiscuous() {
            return start.len() >= ETHERNET_HEADER_BYTES;
        }
        Ethernet::parse(start)
            .is_some_and(|frame| self.filter.accepts(frame.destination, frame.vlan()))
    }

    /// Follows a change of what the driver wants to see.
    #[inline]
    pub(super) fn follow_filter(&mut self) {
        let version = self.port.filter_version();
        if self.filter_version != version {
            self.filter_version = version;
            self.filter = self.port.filter();
        }
    }

    /// Keeps a frame that the limit of the port does not let pass yet, or that comes after such a
    /// frame. Nothing if it may pass.
    #[inline]
    pub(super) fn hold_back(
        &mut self,
        vring: &Vring,
        now_ns: u64,
        frame: &Frame<'_>,
    ) -> Option<Passage> {
        let admission = self.port.to_guest.admit(now_ns);
        if admission == Admission::Now && self.held.is_empty() {
            return None;
        }
        self.hold(vring, frame)
    }

    #[cold]
    fn hold(&mut self, vring: &Vring, frame: &Frame<'_>) -> Option<Passage> {
        if !vring.is_live() || !self.port.is_link_up() {
            return None;
        }
        self.follow_filter();
        if !self.wants(frame.start) {
            return Some(Passage::Lost(DropReason::Filtered));
        }
        // A guest with many pairs has no more room than one with a single one.
        let sharers = usize::from(self.port.running_pairs().max(1));
        let most_bytes = self.port.to_guest.backlog_bytes() / sharers;
        let kept = self.held.push(most_bytes.max(LEAST_HELD_BYTES), frame);
        Some(if kept {
            Passage::Passed
        } else if self.starved {
            // Those in front of it find no buffers.
            Passage::Lost(DropReason::NoBuffer)
        } else {
            Passage::Lost(DropReason::RateLimited)
        })
    }

    /// Loses what waits for the limit.
    pub(super) fn lose_held(&mut self) {
        for _ in 0..self.held.clear() {
            self.counters.count_drop(DropReason::LinkDown);
            self.starved = false;
        }
    }
}
