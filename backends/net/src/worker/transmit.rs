// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a guest's transmit queue to wherever its frames go.

use ringside_common::limit::Admission;

use super::attachment::Attachment;
use super::passage::{Frame, PEEK_BYTES, Passage, captured, destination};
use super::patience::Patience;
use super::queue::{NetTurn, NetVrings, Slots as _};
use super::slot::TxSlot;
use super::tx_queue::{TxQueue, frame_bytes, take};
use super::{BUDGET_BYTES, BUDGET_DESCRIPTORS, BUDGET_FRAMES, NetWorker};
use crate::counters::{Direction, DropReason};
use crate::frame::TAGGED_HEADER_BYTES;
use crate::header::{GSO_NONE, NetHeader};
use crate::hub::Fabric;
use crate::link::Payload;
use crate::offload::MAX_HEADERS_BYTES;

/// A frame that was taken from a ring.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// Of the ring.
    slot: TxSlot,
    /// Of its chain.
    head: u16,
    header: NetHeader,
    bytes: usize,
    /// How many of its first bytes are in [`NetWorker::front`]. They are taken out of guest memory
    /// once, and what is checked of them is what is delivered, whatever the driver does meanwhile.
    seen: usize,
}

impl NetWorker {
    /// Whether frames may be taken from this queue, or what was waited for has come.
    pub(super) fn may_take(&self, vrings: &NetVrings, tx: &TxQueue) -> bool {
        tx.is_free(&self.attachments) || receiver_is_back(vrings, tx)
    }

    /// Serves one transmit queue.
    pub(super) fn transmit(&mut self, turn: &mut NetTurn<'_>, slot: TxSlot) -> bool {
        let now_ns = turn.now_ns();
        let Some((_, tx)) = turn.vrings.tx(slot) else {
            return false;
        };
        if tx.resume_ns > now_ns && !receiver_is_back(turn.vrings, tx) {
            self.wake_at(tx.resume_ns);
            return false;
        }
        let Some((vring, tx)) = turn.vrings.tx_mut(slot) else {
            return false;
        };
        if !vring.is_open() {
            return false;
        }
        tx.resume_ns = 0;
        tx.waits_for = None;
        if self.hub.fabric() == Fabric::Switch && self.rest(tx, now_ns) {
            return false;
        }
        if !vring.is_enabled() || !tx.port.is_link_up() {
            return self.discard(turn, slot);
        }
        // A port with many queues has no more of a switch than one with a single one.
        let sharers = match self.hub.fabric() {
            Fabric::Switch => tx.port.running_pairs().max(1),
            Fabric::Wire | Fabric::Null { .. } | Fabric::Loopback => 1,
        };
        let most = (BUDGET_FRAMES / usize::from(sharers)).max(1);
        let mut frames = 0;
        let mut bytes = 0;
        let mut descriptors = 0;
        while frames < most && bytes < BUDGET_BYTES && descriptors < BUDGET_DESCRIPTORS {
            let Some(moved) = self.transmit_one(turn, slot) else {
                break;
            };
            frames += 1;
            bytes += moved;
            descriptors += self.frame.descriptors();
        }
        self.frame.release();
        if let Some((vring, _)) = turn.vrings.tx(slot) {
            vring.stats().add_chains(frames as u64);
        }
        frames > 0
    }

    /// Sends one frame on; returns its length, or nothing if there is none to be taken now.
    #[inline]
    fn transmit_one(&mut self, turn: &mut NetTurn<'_>, slot: TxSlot) -> Option<usize> {
        let now_ns = turn.now_ns();
        let (vring, tx) = turn.vrings.tx_mut(slot)?;
        if !tx.is_free(&self.attachments) {
            return None;
        }
        if let Admission::Until(at_ns) = tx.port.from_guest.admit(now_ns) {
            if vring.has_available() {
                tx.resume_ns = at_ns;
                self.wake_at(at_ns);
            }
            return None;
        }
        let is_checked = tx.port.options.anti_spoof;
        let (head, sound) = take(vring, &mut self.frame)?;
        let opened = if sound {
            tx.open(&mut self.frame)
        } else {
            Err(DropReason::Malformed)
        };
        let header = match opened {
            Ok(header) => header,
            Err(reason) => {
                self.lose(turn, slot, head, reason);
                return Some(0);
            }
        };
        let mut frame = Taken {
            slot,
            head,
            header,
            bytes: frame_bytes(&self.frame),
            seen: 0,
        };
        let destination = match self.looked_at(is_checked, &header) {
            // Its destination is looked at to be counted.
            0 => self.frame.peek().unwrap_or_default(),
            bytes => {
                let front = self.front.get_mut(..bytes).unwrap_or_default();
                frame.seen = self.frame.take_front(front);
                // `open` has made sure that there is one.
                destination(front)
            }
        };
        match self.pass_on(turn, &frame) {
            Passage::Passed => self.settle(turn, &frame, destination),
            Passage::Lost(reason) => self.lose(turn, slot, head, reason),
            Passage::Waits => {
                self.keep(turn, slot);
                return None;
            }
        }
        Some(frame.bytes)
    }

    /// How many bytes of a frame are looked at.
    #[inline]
    fn looked_at(&self, is_checked: bool, header: &NetHeader) -> usize {
        match (self.hub.fabric(), header.gso_type) {
            (Fabric::Wire | Fabric::Null { .. }, _) if is_checked => TAGGED_HEADER_BYTES,
            (Fabric::Wire | Fabric::Null { .. }, _) => 0,
            (Fabric::Switch | Fabric::Loopback, GSO_NONE) => PEEK_BYTES,
            (Fabric::Switch | Fabric::Loopback, _) => MAX_HEADERS_BYTES,
        }
    }

    /// Counts a frame that has passed, and gives its chain back.
    #[inline]
    fn settle(&mut self, turn: &mut NetTurn<'_>, frame: &Taken, destination: [u8; 6]) {
        let now_ns = turn.now_ns();
        let Some((vring, tx)) = turn.vrings.tx_mut(frame.slot) else {
            return;
        };
        tx.counters.count(frame.bytes, destination);
        let payload = Payload::Guest {
            head: self.front.get(..frame.seen).unwrap_or_default(),
            rest: &self.frame,
        };
        let segments = || frame.header.segments(frame.bytes, |at| payload.byte(at));
        tx.port.from_guest.charge(now_ns, frame.bytes, segments);
        captured(&self.hub, tx.port.id, Direction::Tx, now_ns, payload);
        vring.push_used(frame.head, 0);
    }

    /// Counts a frame that is lost, and gives its chain back.
    fn lose(&mut self, turn: &mut NetTurn<'_>, slot: TxSlot, head: u16, reason: DropReason) {
        let now_ns = turn.now_ns();
        let Some((vring, tx)) = turn.vrings.tx_mut(slot) else {
            return;
        };
        tx.counters.count_drop(reason);
        vring.push_used(head, 0);
        if self.hub.fabric() == Fabric::Switch {
            let descriptors = self.frame.descriptors();
            self.switch
                .note_loss(tx.port.id, now_ns, reason, descriptors);
            self.rest(tx, now_ns);
        }
    }

    /// Leaves a frame in the ring until it may be tried again: when the link is writable, or on a
    /// switch when the receiver has buffers, and at the latest after a step of its patience.
    fn keep(&mut self, turn: &mut NetTurn<'_>, slot: TxSlot) {
        let now_ns = turn.now_ns();
        let Some((vring, tx)) = turn.vrings.tx_mut(slot) else {
            return;
        };
        vring.undo(1);
        match self.hub.fabric() {
            Fabric::Wire | Fabric::Null { .. } => {}
            Fabric::Switch | Fabric::Loopback => {
                tx.resume_ns = now_ns + Patience::STEP_NS;
                tx.waits_for = self.switch.awaited(tx.port.id, tx.pair);
                self.wake_at(tx.resume_ns);
            }
        }
    }

    /// Takes nothing more from a port of a switch that has sent too much rubbish; returns whether
    /// it rests.
    fn rest(&mut self, tx: &mut TxQueue, now_ns: u64) -> bool {
        let Some(resume_ns) = self.switch.rests_until(tx.port.id, now_ns) else {
            return false;
        };
        tx.resume_ns = resume_ns;
        self.wake_at(resume_ns);
        true
    }

    #[inline]
    fn pass_on(&mut self, turn: &mut NetTurn<'_>, frame: &Taken) -> Passage {
        let Some((_, tx)) = turn.vrings.tx(frame.slot) else {
            return Passage::Lost(DropReason::LinkDown);
        };
        let start = self.front.get(..frame.seen).unwrap_or_default();
        let fabric = self.hub.fabric();
        if fabric != Fabric::Switch && tx.port.is_spoofed(start) {
            return Passage::Lost(DropReason::Spoofed);
        }
        let payload = Payload::Guest {
            head: start,
            rest: &self.frame,
        };
        match fabric {
            Fabric::Wire => match attachment_of(tx, &mut self.attachments) {
                Some(attachment) => attachment.send(turn.io, &frame.header, payload),
                None => Passage::Lost(DropReason::LinkDown),
            },
            Fabric::Null { .. } => {
                self.frame.read_at(0, &mut self.spare);
                Passage::Passed
            }
            Fabric::Switch | Fabric::Loopback => {
                let (port, pair) = (tx.port.id, tx.pair);
                let passing = Frame {
                    header: frame.header,
                    payload,
                    bytes: frame.bytes,
                    start,
                };
                let attachments = &mut self.attachments;
                self.switch
                    .send_from_guest(turn, attachments, port, pair, &passing)
            }
        }
    }

    /// Empties a transmit queue whose frames go nowhere (vhost-user.rst "Ring states").
    fn discard(&mut self, turn: &mut NetTurn<'_>, slot: TxSlot) -> bool {
        let Some((vring, tx)) = turn.vrings.tx_mut(slot) else {
            return false;
        };
        let mut frames = 0;
        while frames < BUDGET_FRAMES {
            let Some(head) = vring.next_head() else {
                break;
            };
            vring.push_used(head, 0);
            tx.counters.count_drop(DropReason::LinkDown);
            frames += 1;
        }
        frames > 0
    }
}

/// Whether the receiver that is waited for has buffers, or has left.
fn receiver_is_back(vrings: &NetVrings, tx: &TxQueue) -> bool {
    let has_buffers = |at| vrings.rx(at).is_none_or(|(vring, _)| vring.has_available());
    tx.waits_for.is_some_and(has_buffers)
}

/// The queue of the link that a transmit queue sends to.
pub(super) fn attachment_of<'a>(
    tx: &TxQueue,
    attachments: &'a mut [Option<Attachment>],
) -> Option<&'a mut Attachment> {
    attachments.get_mut(tx.link_queue?)?.as_mut()
}
