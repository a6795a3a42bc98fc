// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Into a guest's receive queue: from its link, from what its limit has held back, or made up.

use ringside_common::device::Vring;
use ringside_common::limit::Admission;
use ringside_common::memory::Buffers;

use super::attachment::Attachment;
use super::passage::{Frame, Passage, destination};
use super::queue::{NetTurn, Slots as _};
use super::rx_queue::{RxQueue, SHORT_BYTES};
use super::slot::RxSlot;
use super::workbench::Loaded;
use super::{BUDGET_BYTES, BUDGET_FRAMES, NetWorker};
use crate::counters::{Direction, DropReason};
use crate::header::{GSO_NONE, MAX_FRAME_BYTES, NetHeader};
use crate::hub::Fabric;
use crate::link::{Received, Room};

/// Between two frames made up for a driver that does not take them.
const MADE_UP_PAUSE_NS: u64 = 1_000_000;

impl NetWorker {
    /// Whether a turn would put something into this queue.
    pub(super) fn has_something_for(&self, vring: &Vring, rx: &RxQueue) -> bool {
        if !vring.is_live() {
            return false;
        }
        let attachment = self.attachment_of(rx);
        if rx.cable_changes != rx.port.cable.changes() {
            return true;
        }
        if !rx.port.is_link_up() {
            return attachment.is_some_and(Attachment::is_readable);
        }
        if rx.resume_ns != 0 {
            return false;
        }
        match self.hub.fabric() {
            Fabric::Wire => {
                let there = rx.pending.is_some() || attachment.is_some_and(Attachment::is_readable);
                let unused = !rx.used && vring.has_available();
                unused || (there && (!rx.starved || vring.has_available()))
            }
            Fabric::Null { generate } => generate.is_some() && vring.has_available(),
            Fabric::Switch | Fabric::Loopback => {
                let held = !rx.held.is_empty() && (!rx.starved || vring.has_available());
                held || (!rx.used && vring.has_available())
            }
        }
    }

    /// Whether new buffers in this queue would change anything.
    pub(super) fn waits_for_buffers(&self, rx: &RxQueue) -> bool {
        let generates = matches!(self.hub.fabric(), Fabric::Null { generate: Some(_) });
        !rx.used || rx.starved || generates || rx.patience.is_waiting()
    }

    fn attachment_of(&self, rx: &RxQueue) -> Option<&Attachment> {
        self.attachments.get(rx.link_queue?)?.as_ref()
    }

    /// Serves one receive queue with what comes for it alone.
    pub(super) fn receive(&mut self, turn: &mut NetTurn<'_>, slot: RxSlot) -> bool {
        let now_ns = turn.now_ns();
        self.follow_cable(turn, slot);
        let Some((vring, rx)) = turn.vrings.rx_mut(slot) else {
            return false;
        };
        if !vring.is_live() {
            rx.lose_held();
            return false;
        }
        if !rx.port.is_link_up() {
            return self.lose_what_comes(rx);
        }
        rx.follow_filter();
        if !rx.used && vring.has_available() {
            rx.used = true;
            self.attach(rx.pair);
        }
        match self.hub.fabric() {
            Fabric::Wire => self.receive_from_link(vring, rx, now_ns),
            Fabric::Null { generate } => {
                generate.is_some_and(|bytes| self.generate(vring, rx, now_ns, bytes))
            }
            Fabric::Switch | Fabric::Loopback => self.receive_held(vring, rx, now_ns),
        }
    }

    fn receive_from_link(&mut self, vring: &mut Vring, rx: &mut RxQueue, now_ns: u64) -> bool {
        let mut frames = 0;
        let mut bytes = 0;
        while frames < BUDGET_FRAMES && bytes < BUDGET_BYTES {
            let Some(moved) = self.receive_one(vring, rx, now_ns) else {
                break;
            };
            bytes += moved;
            frames += 1;
        }
        if frames > 0 {
            vring.stats().add_chains(frames as u64);
        }
        frames > 0
    }

    /// Whether frames may be put into a queue for which some are there. Where not, says when.
    #[inline]
    fn may_receive(&mut self, vring: &mut Vring, rx: &mut RxQueue, now_ns: u64) -> bool {
        if rx.starved {
            if !vring.has_available() {
                return false;
            }
            rx.starved = false;
        }
        if let Admission::Until(at_ns) = rx.port.to_guest.admit(now_ns) {
            rx.resume_ns = at_ns;
            self.wake_at(at_ns);
            return false;
        }
        rx.resume_ns = 0;
        true
    }

    /// Takes one frame from the link; returns its length, or nothing if none can be taken.
    #[inline]
    fn receive_one(&mut self, vring: &mut Vring, rx: &mut RxQueue, now_ns: u64) -> Option<usize> {
        if !self.may_receive(vring, rx, now_ns) {
            return None;
        }
        if let Some((header, frame)) = rx.pending.take() {
            return finish_pending(vring, rx, now_ns, header, frame);
        }
        let attachment = self
            .attachments
            .get_mut(rx.link_queue?)?
            .as_mut()
            .filter(|attachment| attachment.is_readable())?;
        rx.window.make_room(vring, rx.expect_bytes);
        let limit_bytes = rx.window.frame_room();
        if limit_bytes == 0 {
            rx.starved = true;
            rx.counters.count_starved();
            return None;
        }
        let room = Room {
            window: rx.window.stream(),
            skip_bytes: rx.negotiated.header_bytes,
            limit_bytes,
            spare: &mut self.spare,
        };
        let loaded = match attachment.queue.receive(room) {
            Received::Frame { header, bytes } => Loaded { header, bytes },
            Received::Empty | Received::Down => {
                attachment.set_drained();
                return None;
            }
        };
        rx.expect_bytes = if loaded.bytes <= SHORT_BYTES {
            SHORT_BYTES
        } else {
            MAX_FRAME_BYTES
        };
        self.accept(vring, rx, now_ns, loaded, limit_bytes);
        Some(loaded.bytes)
    }

    /// A frame is in the window, and in the spare room what did not fit.
    #[inline]
    fn accept(
        &mut self,
        vring: &mut Vring,
        rx: &mut RxQueue,
        now_ns: u64,
        loaded: Loaded,
        limit_bytes: usize,
    ) {
        let Loaded { header, bytes } = loaded;
        let header_bytes = rx.negotiated.header_bytes;
        let mut start = [0; 18];
        let stream = rx.window.stream();
        let seen = stream.written_at(header_bytes, &mut start);
        let start = start.get(..seen.min(bytes)).unwrap_or_default();
        let is_long = header.gso_type == GSO_NONE && bytes > rx.port.max_frame_bytes_of(start);
        let refused = if rx.wants(start) {
            is_long.then_some(DropReason::MtuExceeded)
        } else {
            Some(DropReason::Filtered)
        };
        if let Some(reason) = refused {
            return rx.counters.count_drop(reason);
        }
        let over = bytes.saturating_sub(limit_bytes);
        let fits = over == 0 || rx.window.make_room(vring, bytes);
        match header.for_receiver(rx.negotiated.takes) {
            Some(header) if fits => {
                if let Some(rest) = self.spare.get(..over) {
                    let stream = rx.window.stream_mut();
                    stream.write_at(header_bytes + limit_bytes, rest);
                }
                if self.hub.capture.is_on() {
                    let stream = rx.window.stream();
                    let read = |at, to: &mut [u8]| stream.written_at(header_bytes + at, to);
                    let (capture, port) = (&self.hub.capture, rx.port.id.0);
                    capture.frame(port, Direction::Rx, now_ns, bytes, read);
                }
                let byte_at = |at| byte_of(rx.window.stream(), header_bytes + at);
                let segments = || header.segments(bytes, byte_at);
                rx.port.to_guest.charge(now_ns, bytes, segments);
                rx.window.commit(vring, header, bytes);
                rx.counters.count(bytes, destination(start));
            }
            Some(header)
                if rx.window.has_longer(vring, bytes) || !rx.window.is_hopeless(vring, bytes) =>
            {
                // Enough chains will come, or are there behind one that is too short: the frame
                // waits, and nothing else is read meanwhile.
                let mut frame = vec![0; bytes];
                rx.read_back(&self.spare, limit_bytes, &mut frame);
                if rx.window.has_longer(vring, bytes) {
                    rx.window.skip_to_longer(vring, bytes);
                } else {
                    rx.starved = true;
                    rx.counters.count_starved();
                }
                rx.pending = Some((header, frame));
            }
            Some(_) => rx.counters.count_drop(DropReason::NoBuffer),
            // A packet socket gets what its interface has, whatever this driver takes.
            None => self.accept_unfinished(vring, rx, now_ns, loaded, limit_bytes),
        }
    }

    /// A frame in the window has to be finished for this driver.
    fn accept_unfinished(
        &mut self,
        vring: &mut Vring,
        rx: &mut RxQueue,
        now_ns: u64,
        loaded: Loaded,
        limit_bytes: usize,
    ) {
        let bench = &mut self.switch.bench;
        if let Some(frame) = bench.room(loaded.bytes) {
            rx.read_back(&self.spare, limit_bytes, frame);
        }
        let passage = bench.give(&self.hub, vring, rx, now_ns, loaded);
        if let Some(reason) = passage.loss() {
            rx.counters.count_drop(reason);
        }
    }

    /// Fills receive buffers with frames of `bytes`.
    fn generate(&mut self, vring: &mut Vring, rx: &mut RxQueue, now_ns: u64, bytes: usize) -> bool {
        let Some(frame) = self.hub.generated().get(..bytes) else {
            return false;
        };
        let mut frames = 0;
        let mut resume_ns = 0;
        while frames < BUDGET_FRAMES && vring.has_available() {
            if let Admission::Until(at_ns) = rx.port.to_guest.admit(now_ns) {
                resume_ns = at_ns;
                break;
            }
            let made_up = Frame::of(NetHeader::default(), frame);
            let passage = if bytes > rx.port.max_frame_bytes() {
                Passage::Lost(DropReason::MtuExceeded)
            } else {
                rx.give(vring, now_ns, made_up.header, &made_up)
            };
            if let Some(reason) = passage.loss() {
                // The next one would fare no better.
                rx.counters.count_drop(reason);
                resume_ns = now_ns + MADE_UP_PAUSE_NS;
                break;
            }
            frames += 1;
        }
        rx.resume_ns = resume_ns;
        if resume_ns != 0 {
            self.wake_at(resume_ns);
        }
        frames > 0
    }

    /// Passes on what has waited for the limit.
    fn receive_held(&mut self, vring: &mut Vring, rx: &mut RxQueue, now_ns: u64) -> bool {
        let (mut frames, mut moved) = (0, 0);
        rx.resume_ns = 0;
        while frames < BUDGET_FRAMES && moved < BUDGET_BYTES {
            if rx.held.is_empty() || !self.may_receive(vring, rx, now_ns) {
                break;
            }
            let mut held = std::mem::take(&mut rx.held);
            let passage = held.first().map(|(header, bytes)| {
                let frame = Frame::of(header, bytes);
                moved += frame.bytes;
                self.switch.hand_over(vring, rx, now_ns, &frame)
            });
            let waits = passage == Some(Passage::Waits);
            if !waits {
                held.pop();
            }
            rx.held = held;
            if let Some(Passage::Lost(reason)) = passage {
                rx.counters.count_drop(reason);
            }
            if waits {
                rx.starved = true;
                rx.counters.count_starved();
                break;
            }
            frames += 1;
        }
        frames > 0
    }
}

/// A frame that waited for chains.
fn finish_pending(
    vring: &mut Vring,
    rx: &mut RxQueue,
    now_ns: u64,
    header: NetHeader,
    frame: Vec<u8>,
) -> Option<usize> {
    let bytes = frame.len();
    match rx.give(vring, now_ns, header, &Frame::of(header, &frame)) {
        Passage::Passed => {}
        Passage::Waits => {
            rx.pending = Some((header, frame));
            rx.starved = true;
            return None;
        }
        Passage::Lost(reason) => rx.counters.count_drop(reason),
    }
    Some(bytes)
}

/// The byte at `at` of what was written to a chain.
fn byte_of(written: &Buffers, at: usize) -> Option<u8> {
    let mut byte = [0];
    (written.written_at(at, &mut byte) == 1).then_some(byte[0])
}
