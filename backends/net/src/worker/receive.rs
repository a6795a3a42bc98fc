// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Into a guest's receive queue: from its link, from another guest, or made up.

use ringside_common::limit::Admission;
use ringside_common::memory::Buffers;
use ringside_common::worker::{Place, Vring};

use super::held::Held;
use super::lan::Frame;
use super::patience::Patience;
use super::window::{Layout, Window};
use super::wire::Wire;
use super::{BUDGET_BYTES, BUDGET_FRAMES, NetQueue, NetTurn, NetWorker, Side};
use crate::counters::{Direction, DropReason};
use crate::filter::RxFilter;
use crate::frame::{ETHERNET_HEADER_BYTES, Ethernet};
use crate::header::{GSO_NONE, MAX_FRAME_BYTES, NetHeader};
use crate::hub::Fabric;
use crate::link::{Payload, Received, Room};
use crate::port::{Negotiated, Port};

/// Room to begin with when frames have been short: chains taken for a frame that does not come are
/// walked in vain when the memory table changes, and each is a segment for the kernel to look at.
const SHORT_BYTES: usize = 4 << 10;

/// Between two frames made up for a driver that does not take them.
const MADE_UP_PAUSE_NS: u64 = 1_000_000;

/// What is kept for a receive queue.
#[derive(Debug)]
pub(super) struct RxQueue {
    pub(super) pair: u16,
    pub(super) negotiated: Negotiated,
    pub(super) window: Window,
    /// The link that its frames come from.
    pub(super) wire: Option<usize>,
    /// There was no room for a frame that is there.
    pub(super) starved: bool,
    /// The driver has had buffers in it: it uses this queue.
    pub(super) used: bool,
    /// It is started and enabled.
    pub(super) serves: bool,
    /// As many changes of the cable as it has noticed.
    pub(super) cable_changes: u32,
    /// A frame that was read, and for which the chains are still to come.
    pub(super) pending: Option<(NetHeader, Vec<u8>)>,
    /// How long the last frames were.
    expect_bytes: usize,
    /// Nothing is put in before.
    pub(super) resume_ns: u64,
    filter: RxFilter,
    filter_version: u32,
    pub(super) patience: Patience,
    /// What waits for the limit of the port, on a switch.
    pub(super) held: Held,
}

/// What became of a frame for a guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Put {
    /// The guest has it.
    Done,
    /// There are not enough buffers yet.
    NoRoom,
    /// It cannot have it.
    Lost(DropReason),
}

impl Put {
    /// How the loss is counted of a frame that is not tried again; nothing if it has arrived.
    #[inline]
    pub(super) fn loss(self) -> Option<DropReason> {
        match self {
            Self::Done => None,
            Self::NoRoom => Some(DropReason::NoBuffer),
            Self::Lost(reason) => Some(reason),
        }
    }
}

impl RxQueue {
    pub(super) fn new(pair: u16, negotiated: Negotiated) -> Self {
        Self {
            pair,
            negotiated,
            window: Window::new(Layout {
                header_bytes: negotiated.header_bytes,
                mergeable: negotiated.mergeable,
            }),
            wire: None,
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

    /// Puts a frame that this driver takes as it is into its chains.
    #[inline]
    pub(super) fn put(&mut self, vring: &mut Vring, header: NetHeader, frame: &Frame<'_>) -> Put {
        let bytes = frame.bytes;
        if !self.window.make_room(vring, bytes) && !self.window.make_room_behind(vring, bytes) {
            return if self.window.is_hopeless(vring, bytes) {
                Put::Lost(DropReason::NoBuffer)
            } else {
                Put::NoRoom
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
        Put::Done
    }

    /// Copies a frame out that was read into the window, and behind its first `limit_bytes` into
    /// `spare`.
    fn read_back(&self, spare: &[u8], limit_bytes: usize, frame: &mut [u8]) {
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
}

impl NetQueue {
    /// Follows a change of what the driver wants to see.
    #[inline]
    pub(super) fn follow_filter(&mut self) {
        let version = self.port.filter_version();
        if let Side::Receive(rx) = &mut self.side
            && rx.filter_version != version
        {
            rx.filter_version = version;
            rx.filter = self.port.filter();
        }
    }
}

/// Gives a frame to the guest, whose limit allows it; it is as the driver takes it, with `header`.
#[inline]
pub(super) fn give(
    place: &mut Place<NetQueue>,
    now_ns: u64,
    header: NetHeader,
    frame: &Frame<'_>,
) -> Put {
    let Place { vring, queue } = place;
    if !vring.is_live() || !queue.port.is_link_up() {
        return Put::Lost(DropReason::LinkDown);
    }
    queue.follow_filter();
    let Side::Receive(rx) = &mut queue.side else {
        return Put::Lost(DropReason::NoReceiver);
    };
    if !rx.wants(frame.start) {
        return Put::Lost(DropReason::Filtered);
    }
    let put = rx.put(vring, header, frame);
    if put == Put::Done {
        rx.patience.end(now_ns);
        let bytes = frame.bytes;
        let segments = || header.segments(bytes, |at| frame.payload.byte(at));
        queue.port.to_guest.charge(now_ns, bytes, segments);
        queue.counters.count(bytes, destination(frame.start));
    }
    put
}

#[inline]
pub(super) fn destination(start: &[u8]) -> [u8; 6] {
    start.first_chunk().copied().unwrap_or_default()
}

/// What a queue of the link yielded.
enum Got {
    Frame(usize),
    Nothing,
}

impl NetWorker {
    /// Whether a turn would put something into this queue.
    pub(super) fn has_something_for(&self, vring: &Vring, port: &Port, rx: &RxQueue) -> bool {
        if !vring.is_live() {
            return false;
        }
        let wire = self.wire_of(rx);
        if rx.cable_changes != port.cable.changes() {
            return true;
        }
        if !port.is_link_up() {
            return wire.is_some_and(Wire::is_readable);
        }
        if rx.resume_ns != 0 {
            return false;
        }
        match self.hub.fabric() {
            Fabric::Wire => {
                let there = rx.pending.is_some() || wire.is_some_and(Wire::is_readable);
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

    fn wire_of(&self, rx: &RxQueue) -> Option<&Wire> {
        self.wires.get(rx.wire?)?.as_ref()
    }

    /// Serves one receive queue with what comes for it alone.
    pub(super) fn receive(&mut self, turn: &mut NetTurn<'_>, slot: usize) -> bool {
        let now_ns = turn.now_ns();
        self.follow_cable(turn, slot);
        let Some(place) = turn.vrings.get_mut(slot) else {
            return false;
        };
        if !place.vring.is_live() {
            if let Side::Receive(rx) = &mut place.queue.side {
                rx.lose_held(&place.queue.counters);
            }
            return false;
        }
        if !place.queue.port.is_link_up() {
            return self.lose_what_comes(turn, slot);
        }
        place.queue.follow_filter();
        let Side::Receive(rx) = &mut place.queue.side else {
            return false;
        };
        if !rx.used && place.vring.has_available() {
            rx.used = true;
            let pair = rx.pair;
            self.attach(pair);
        }
        match self.hub.fabric() {
            Fabric::Wire => self.receive_from_wire(turn, slot, now_ns),
            Fabric::Null { generate } => {
                generate.is_some_and(|bytes| self.generate(turn, slot, bytes))
            }
            Fabric::Switch | Fabric::Loopback => self.receive_held(turn, slot, now_ns),
        }
    }

    fn receive_from_wire(&mut self, turn: &mut NetTurn<'_>, slot: usize, now_ns: u64) -> bool {
        let mut frames = 0;
        let mut bytes = 0;
        while frames < BUDGET_FRAMES && bytes < BUDGET_BYTES {
            match self.receive_one(turn, slot, now_ns) {
                Got::Frame(moved) => bytes += moved,
                Got::Nothing => break,
            }
            frames += 1;
        }
        if frames > 0
            && let Some(place) = turn.vrings.get_mut(slot)
        {
            place.vring.stats().add_chains(frames as u64);
        }
        frames > 0
    }

    #[inline]
    fn receive_one(&mut self, turn: &mut NetTurn<'_>, slot: usize, now_ns: u64) -> Got {
        let Some(place) = turn.vrings.get_mut(slot) else {
            return Got::Nothing;
        };
        let Side::Receive(rx) = &mut place.queue.side else {
            return Got::Nothing;
        };
        if rx.starved {
            if !place.vring.has_available() {
                return Got::Nothing;
            }
            rx.starved = false;
        }
        if let Admission::Until(at_ns) = place.queue.port.to_guest.admit(now_ns) {
            rx.resume_ns = at_ns;
            self.wake_at(at_ns);
            return Got::Nothing;
        }
        rx.resume_ns = 0;
        if let Some((header, frame)) = rx.pending.take() {
            return finish_pending(place, now_ns, header, frame);
        }
        let Some(wire) = rx
            .wire
            .and_then(|at| self.wires.get_mut(at))
            .and_then(Option::as_mut)
            .filter(|wire| wire.is_readable())
        else {
            return Got::Nothing;
        };
        rx.window.make_room(&mut place.vring, rx.expect_bytes);
        let limit_bytes = rx.window.frame_room();
        if limit_bytes == 0 {
            rx.starved = true;
            place.queue.counters.count_starved();
            return Got::Nothing;
        }
        let room = Room {
            window: rx.window.stream(),
            skip_bytes: rx.negotiated.header_bytes,
            limit_bytes,
            spare: &mut self.spare,
        };
        let received = wire.queue.receive(room);
        let (header, bytes) = match received {
            Received::Frame { header, bytes } => (header, bytes),
            Received::Empty | Received::Down => {
                wire.set_drained();
                return Got::Nothing;
            }
        };
        rx.expect_bytes = if bytes <= SHORT_BYTES {
            SHORT_BYTES
        } else {
            MAX_FRAME_BYTES
        };
        self.accept(place, now_ns, header, bytes, limit_bytes)
    }

    /// A frame is in the window, and in the spare room what did not fit.
    #[inline]
    fn accept(
        &mut self,
        place: &mut Place<NetQueue>,
        now_ns: u64,
        header: NetHeader,
        bytes: usize,
        limit_bytes: usize,
    ) -> Got {
        let Place { vring, queue } = place;
        let Side::Receive(rx) = &mut queue.side else {
            return Got::Nothing;
        };
        let header_bytes = rx.negotiated.header_bytes;
        let mut start = [0; 18];
        let stream = rx.window.stream();
        let seen = stream.written_at(header_bytes, &mut start);
        let start = start.get(..seen.min(bytes)).unwrap_or_default();
        let is_long = header.gso_type == GSO_NONE && bytes > queue.port.max_frame_bytes_of(start);
        let refused = if rx.wants(start) {
            is_long.then_some(DropReason::MtuExceeded)
        } else {
            Some(DropReason::Filtered)
        };
        if let Some(reason) = refused {
            queue.counters.count_drop(reason);
            return Got::Frame(bytes);
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
                    let (capture, port) = (&self.hub.capture, queue.port.id.0);
                    capture.frame(port, Direction::Rx, now_ns, bytes, read);
                }
                let byte_at = |at| byte_of(rx.window.stream(), header_bytes + at);
                let segments = || header.segments(bytes, byte_at);
                queue.port.to_guest.charge(now_ns, bytes, segments);
                rx.window.commit(vring, header, bytes);
                queue.counters.count(bytes, destination(start));
                Got::Frame(bytes)
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
                    queue.counters.count_starved();
                }
                rx.pending = Some((header, frame));
                Got::Frame(bytes)
            }
            Some(_) => {
                queue.counters.count_drop(DropReason::NoBuffer);
                Got::Frame(bytes)
            }
            // A packet socket gets what its interface has, whatever this driver takes.
            None => self.accept_unfinished(place, now_ns, (header, bytes), limit_bytes),
        }
    }

    /// A frame in the window has to be finished for this driver.
    fn accept_unfinished(
        &mut self,
        place: &mut Place<NetQueue>,
        now_ns: u64,
        (header, bytes): (NetHeader, usize),
        limit_bytes: usize,
    ) -> Got {
        let bench = &mut self.lan.bench;
        if let Side::Receive(rx) = &place.queue.side
            && let Some(frame) = bench.load(bytes)
        {
            rx.read_back(&self.spare, limit_bytes, frame);
        }
        let put = bench.give(&self.hub, place, now_ns, (header, bytes));
        if let Some(reason) = put.loss() {
            place.queue.counters.count_drop(reason);
        }
        Got::Frame(bytes)
    }

    /// Fills receive buffers with frames of `bytes`.
    fn generate(&mut self, turn: &mut NetTurn<'_>, slot: usize, bytes: usize) -> bool {
        let now_ns = turn.now_ns();
        let Some(place) = turn.vrings.get_mut(slot) else {
            return false;
        };
        let Some(frame) = self.hub.generated().get(..bytes) else {
            return false;
        };
        let mut frames = 0;
        let mut resume_ns = 0;
        while frames < BUDGET_FRAMES && place.vring.has_available() {
            if let Admission::Until(at_ns) = place.queue.port.to_guest.admit(now_ns) {
                resume_ns = at_ns;
                break;
            }
            let made_up = Frame::of(NetHeader::default(), frame);
            let put = if bytes > place.queue.port.max_frame_bytes() {
                Put::Lost(DropReason::MtuExceeded)
            } else {
                give(place, now_ns, made_up.header, &made_up)
            };
            if let Some(reason) = put.loss() {
                // The next one would fare no better.
                place.queue.counters.count_drop(reason);
                resume_ns = now_ns + MADE_UP_PAUSE_NS;
                break;
            }
            frames += 1;
        }
        if let Side::Receive(rx) = &mut place.queue.side {
            rx.resume_ns = resume_ns;
        }
        if resume_ns != 0 {
            self.wake_at(resume_ns);
        }
        frames > 0
    }
}

/// A frame that waited for chains.
fn finish_pending(
    place: &mut Place<NetQueue>,
    now_ns: u64,
    header: NetHeader,
    frame: Vec<u8>,
) -> Got {
    let bytes = frame.len();
    let put = give(place, now_ns, header, &Frame::of(header, &frame));
    let Side::Receive(rx) = &mut place.queue.side else {
        return Got::Nothing;
    };
    match put {
        Put::Done => Got::Frame(bytes),
        Put::NoRoom => {
            rx.pending = Some((header, frame));
            rx.starved = true;
            Got::Nothing
        }
        Put::Lost(reason) => {
            place.queue.counters.count_drop(reason);
            Got::Frame(bytes)
        }
    }
}

/// The byte at `at` of what was written to a chain.
fn byte_of(written: &Buffers, at: usize) -> Option<u8> {
    let mut byte = [0];
    (written.written_at(at, &mut byte) == 1).then_some(byte[0])
}
