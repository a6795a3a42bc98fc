// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a guest's transmit queue to wherever its frames go.

use ringside_common::limit::Admission;
use ringside_common::memory::Buffers;
use ringside_common::worker::{Place, Vring};

use super::lan::Frame;
use super::receive::destination;
use super::wire::Wire;
use super::{
    BUDGET_BYTES, BUDGET_DESCRIPTORS, BUDGET_FRAMES, NetQueue, NetTurn, NetVrings, NetWorker, Side,
    captured,
};
use crate::counters::{Direction, DropReason};
use crate::frame::TAGGED_HEADER_BYTES;
use crate::header::{GSO_NONE, HEADER_BYTES, LEGACY_HEADER_BYTES, NetHeader};
use crate::hub::Fabric;
use crate::link::{Payload, SendLoss, Sent};
use crate::offload::MAX_HEADERS_BYTES;
use crate::port::Negotiated;

/// What is looked at of a frame: enough for the ports of TCP over IPv6 in a VLAN.
pub(super) const PEEK_BYTES: usize = 80;

/// What is kept for a transmit queue.
#[derive(Debug)]
pub(super) struct TxQueue {
    pub(super) pair: u16,
    pub(super) negotiated: Negotiated,
    /// The link that its frames go to.
    pub(super) wire: Option<usize>,
    /// Nothing is taken before: a rate limit, or a receiver without buffers.
    resume_ns: u64,
    /// The slot of that receiver; its buffers end the wait.
    waits_for: Option<usize>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// It is on its way.
    Gone,
    /// It is lost.
    Lost(DropReason),
    /// It is to be taken again when the link is writable, or at the latest then, or when the
    /// receiver in this slot has buffers.
    Kept {
        /// On the monotonic clock; 0 for when the link is writable.
        resume_ns: u64,
        /// The receiver.
        waits_for: Option<usize>,
    },
}

/// A frame that was taken from a ring.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// Of the ring.
    slot: usize,
    /// Of its chain.
    head: u16,
    header: NetHeader,
    bytes: usize,
    /// How many of its first bytes are in [`NetWorker::front`]. They are taken out of guest memory
    /// once, and what is checked of them is what is delivered, whatever the driver does meanwhile.
    seen: usize,
}

impl TxQueue {
    pub(super) fn new(pair: u16, negotiated: Negotiated) -> Self {
        Self {
            pair,
            negotiated,
            wire: None,
            resume_ns: 0,
            waits_for: None,
        }
    }

    /// Whether frames may be taken, as far as where they go is concerned.
    #[inline]
    pub(super) fn is_free(&self, wires: &[Option<Wire>]) -> bool {
        self.resume_ns == 0
            && !self
                .wire
                .and_then(|at| wires.get(at)?.as_ref())
                .is_some_and(Wire::is_blocked)
    }

    /// As [`is_free`](Self::is_free), or what was waited for has come.
    pub(super) fn may_take(&self, vrings: &NetVrings, wires: &[Option<Wire>]) -> bool {
        self.is_free(wires) || self.receiver_is_back(vrings)
    }

    fn receiver_is_back(&self, vrings: &NetVrings) -> bool {
        self.waits_for
            .is_some_and(|at| vrings.get(at).is_none_or(|to| to.vring.has_available()))
    }

    /// Takes the virtio header off a frame and checks it.
    #[inline]
    fn open(&self, frame: &mut Buffers) -> Result<NetHeader, DropReason> {
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
            .map_err(|_fault| DropReason::Malformed)
    }
}

/// Bytes of the frame that were not taken.
#[inline]
fn frame_bytes(frame: &Buffers) -> usize {
    usize::try_from(frame.readable_bytes()).unwrap_or(usize::MAX)
}

/// Takes the next frame; its chain is the caller's to give back.
#[inline]
fn take(vring: &mut Vring, frame: &mut Buffers) -> Option<(u16, bool)> {
    let head = vring.next_head()?;
    // Buffers for the device to write have no place in a transmit queue (virtio 1.3 §5.1.6.2).
    let sound = vring.read_chain(head, frame).is_ok() && frame.writable_bytes() == 0;
    Some((head, sound))
}

impl NetWorker {
    /// Serves one transmit queue.
    pub(super) fn transmit(&mut self, turn: &mut NetTurn<'_>, slot: usize) -> bool {
        let now_ns = turn.now_ns();
        let Some(place) = turn.vrings.get(slot) else {
            return false;
        };
        let Side::Transmit(tx) = &place.queue.side else {
            return false;
        };
        if tx.resume_ns > now_ns && !tx.receiver_is_back(turn.vrings) {
            let at_ns = tx.resume_ns;
            self.wake_at(at_ns);
            return false;
        }
        let Some(place) = turn.vrings.get_mut(slot) else {
            return false;
        };
        if !place.vring.is_open() {
            return false;
        }
        if let Side::Transmit(tx) = &mut place.queue.side {
            tx.resume_ns = 0;
            tx.waits_for = None;
        }
        if self.hub.fabric() == Fabric::Switch && self.rest(place, now_ns) {
            return false;
        }
        if !place.vring.is_enabled() || !place.queue.port.is_link_up() {
            return self.discard(turn, slot);
        }
        // A port with many queues has no more of a switch than one with a single one.
        let sharers = match self.hub.fabric() {
            Fabric::Switch => place.queue.port.running_pairs().max(1),
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
        if let Some(place) = turn.vrings.get_mut(slot) {
            place.vring.stats().add_chains(frames as u64);
        }
        frames > 0
    }

    /// Sends one frame on; returns its length, or nothing if there is none to be taken now.
    #[inline]
    fn transmit_one(&mut self, turn: &mut NetTurn<'_>, slot: usize) -> Option<usize> {
        let now_ns = turn.now_ns();
        let place = turn.vrings.get_mut(slot)?;
        let Side::Transmit(tx) = &mut place.queue.side else {
            return None;
        };
        if !tx.is_free(&self.wires) {
            return None;
        }
        if let Admission::Until(at_ns) = place.queue.port.from_guest.admit(now_ns) {
            if place.vring.has_available() {
                tx.resume_ns = at_ns;
                self.wake_at(at_ns);
            }
            return None;
        }
        let is_checked = place.queue.port.options.anti_spoof;
        let (head, sound) = take(&mut place.vring, &mut self.frame)?;
        let opened = if sound {
            tx.open(&mut self.frame)
        } else {
            Err(DropReason::Malformed)
        };
        let header = match opened {
            Ok(header) => header,
            Err(reason) => {
                self.lose(turn, (slot, head), reason);
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
            // Whom it is for is looked at to be counted.
            0 => self.frame.peek().unwrap_or_default(),
            bytes => {
                let front = self.front.get_mut(..bytes).unwrap_or_default();
                frame.seen = self.frame.take_front(front);
                // `open` has seen to it that there is one.
                destination(front)
            }
        };
        match self.pass_on(turn, &frame) {
            Fate::Gone => self.settle(turn, &frame, destination),
            Fate::Lost(reason) => self.lose(turn, (slot, head), reason),
            Fate::Kept {
                resume_ns,
                waits_for,
            } => {
                self.keep(turn, slot, resume_ns, waits_for);
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

    /// Counts a frame that is on its way, and gives its chain back.
    #[inline]
    fn settle(&mut self, turn: &mut NetTurn<'_>, frame: &Taken, destination: [u8; 6]) {
        let now_ns = turn.now_ns();
        let Some(Place { vring, queue }) = turn.vrings.get_mut(frame.slot) else {
            return;
        };
        queue.counters.count(frame.bytes, destination);
        let payload = Payload::Guest {
            head: self.front.get(..frame.seen).unwrap_or_default(),
            rest: &self.frame,
        };
        let segments = || frame.header.segments(frame.bytes, |at| payload.byte(at));
        queue.port.from_guest.charge(now_ns, frame.bytes, segments);
        captured(&self.hub, queue.port.id, Direction::Tx, now_ns, payload);
        vring.push_used(frame.head, 0);
    }

    /// Counts a frame that is lost, and gives its chain back.
    fn lose(&mut self, turn: &mut NetTurn<'_>, (slot, head): (usize, u16), reason: DropReason) {
        let now_ns = turn.now_ns();
        let Some(place) = turn.vrings.get_mut(slot) else {
            return;
        };
        place.queue.counters.count_drop(reason);
        place.vring.push_used(head, 0);
        if self.hub.fabric() == Fabric::Switch {
            let (port, descriptors) = (place.queue.port.id, self.frame.descriptors());
            self.lan.note_loss(port, now_ns, reason, descriptors);
            self.rest(place, now_ns);
        }
    }

    /// Leaves a frame in the ring until it may be tried again.
    fn keep(
        &mut self,
        turn: &mut NetTurn<'_>,
        slot: usize,
        resume_ns: u64,
        waits_for: Option<usize>,
    ) {
        let Some(place) = turn.vrings.get_mut(slot) else {
            return;
        };
        place.vring.undo(1);
        if let Side::Transmit(tx) = &mut place.queue.side {
            tx.resume_ns = resume_ns;
            tx.waits_for = waits_for;
        }
        if resume_ns != 0 {
            self.wake_at(resume_ns);
        }
    }

    /// Takes nothing more from a port of a switch that has sent too much rubbish; returns whether
    /// it rests.
    fn rest(&mut self, place: &mut Place<NetQueue>, now_ns: u64) -> bool {
        let Some(resume_ns) = self.lan.rests_until(place.queue.port.id, now_ns) else {
            return false;
        };
        if let Side::Transmit(tx) = &mut place.queue.side {
            tx.resume_ns = resume_ns;
        }
        self.wake_at(resume_ns);
        true
    }

    #[inline]
    fn pass_on(&mut self, turn: &mut NetTurn<'_>, frame: &Taken) -> Fate {
        let start = self.front.get(..frame.seen).unwrap_or_default();
        let fabric = self.hub.fabric();
        if fabric != Fabric::Switch
            && let Some(place) = turn.vrings.get(frame.slot)
            && place.queue.port.is_spoofed(start)
        {
            return Fate::Lost(DropReason::Spoofed);
        }
        let payload = Payload::Guest {
            head: start,
            rest: &self.frame,
        };
        match fabric {
            Fabric::Wire => {
                let wire = wire_of(turn, frame.slot, &mut self.wires);
                send_to_wire(turn, wire, &frame.header, payload)
            }
            Fabric::Null { .. } => {
                self.frame.read_at(0, &mut self.spare);
                Fate::Gone
            }
            Fabric::Switch | Fabric::Loopback => {
                let passing = Frame {
                    header: frame.header,
                    payload,
                    bytes: frame.bytes,
                    start,
                };
                self.lan
                    .send_from_guest(turn, &mut self.wires, frame.slot, &passing)
            }
        }
    }

    /// Empties a transmit queue whose frames go nowhere (vhost-user.rst "Ring states").
    fn discard(&mut self, turn: &mut NetTurn<'_>, slot: usize) -> bool {
        let Some(place) = turn.vrings.get_mut(slot) else {
            return false;
        };
        let mut frames = 0;
        while frames < BUDGET_FRAMES {
            let Some(head) = place.vring.next_head() else {
                break;
            };
            place.vring.push_used(head, 0);
            place.queue.counters.count_drop(DropReason::LinkDown);
            frames += 1;
        }
        frames > 0
    }
}

#[inline]
fn send_to_wire(
    turn: &mut NetTurn<'_>,
    wire: Option<&mut Wire>,
    header: &NetHeader,
    payload: Payload<'_>,
) -> Fate {
    let Some(wire) = wire else {
        return Fate::Lost(DropReason::LinkDown);
    };
    match wire.queue.send(header, payload) {
        Sent::Done => {
            if wire.queue.has_unsent() {
                wire.block(turn.io);
            }
            Fate::Gone
        }
        Sent::Blocked => {
            wire.block(turn.io);
            Fate::Kept {
                resume_ns: 0,
                waits_for: None,
            }
        }
        Sent::Dropped(loss) => Fate::Lost(reason_of(loss)),
    }
}

/// The link that the transmit vring in `slot` sends to.
pub(super) fn wire_of<'a>(
    turn: &NetTurn<'_>,
    slot: usize,
    wires: &'a mut [Option<Wire>],
) -> Option<&'a mut Wire> {
    let Side::Transmit(tx) = &turn.vrings.get(slot)?.queue.side else {
        return None;
    };
    wires.get_mut(tx.wire?)?.as_mut()
}

pub(super) fn reason_of(loss: SendLoss) -> DropReason {
    match loss {
        SendLoss::Invalid => DropReason::Refused,
        SendLoss::Down => DropReason::LinkDown,
        SendLoss::NoBuffer => DropReason::NoBuffer,
        SendLoss::Failed => DropReason::HostError,
    }
}
