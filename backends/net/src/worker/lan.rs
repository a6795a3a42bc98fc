// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The switch: from a port, or the uplink, to others.
//!
//! A port is an access port of one VLAN, or of none; ports see each other within one. What is
//! tagged on the uplink with the VLAN of a port belongs there, and frames of such a port leave by
//! the uplink with the tag. All else on the uplink belongs to the ports of no VLAN, tags and all.
//! A frame that a guest has tagged itself passes between ports of no VLAN, unless the tag would
//! make it one of a port's VLAN on the uplink.
//!
//! A frame goes to the port its destination was last heard from, else to all. A port that has no
//! buffers for a frame of its own is waited for within the bounds of [`Patience`]; a frame for
//! several waits for nobody.

use std::sync::Arc;

use super::patience::Patience;
use super::receive::{Put, give};
use super::transmit::Fate;
use super::wire::Wire;
use super::workbench::Workbench;
use super::{NetQueue, NetTurn, NetVrings, Side, captured};
use crate::counters::{Direction, DropReason, PacketCounters};
use crate::flow::{FlowTable, flow_hash};
use crate::frame::{Ethernet, is_multicast};
use crate::header::{GSO_NONE, NetHeader};
use crate::hub::{Fabric, Hub};
use crate::limit::{Admission, Limits, Rate, RateLimit};
use crate::link::Payload;
use crate::mac_table::PortId;
use crate::offload::check_long;
use crate::port::Port;

/// Frames a second that one port may have sent to several others.
const FLOOD_PER_S: u64 = 50_000;
/// What a frame that goes nowhere costs its port in time: no more than 100 000 a second, so that
/// those who send nothing but rubbish do not take the switch's time from others.
const FAULT_NS: u64 = 10_000;
/// Descriptors that cost as much to read as a frame.
const FAULT_DESCRIPTORS: u64 = 16;
/// How far a port may be in debt.
const FAULT_BURST_NS: u64 = 64 * FAULT_NS;
const SECOND_NS: u64 = 1_000_000_000;

/// A frame on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) header: NetHeader,
    pub(super) payload: Payload<'a>,
    pub(super) bytes: usize,
    /// Its first bytes.
    pub(super) start: &'a [u8],
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) port: PortId,
    pub(super) vlan: u16,
    pub(super) isolated: bool,
}

/// A port, as the data thread that serves it sees it.
#[derive(Debug)]
struct LanPort {
    port: Arc<Port>,
    vlan: u16,
    /// Slots of its receive vrings, by pair.
    receive: Vec<Option<usize>>,
    flows: FlowTable,
    flood: RateLimit,
    /// Until when its faults have taken the time that it has for them.
    faulty_until_ns: u64,
}

/// See above.
#[derive(Debug)]
pub(super) struct Lan {
    pub(super) hub: Arc<Hub>,
    ports: Vec<LanPort>,
    pub(super) uplink: PortId,
    pub(super) uplink_counters: Option<(Arc<PacketCounters>, Arc<PacketCounters>)>,
    pub(super) bench: Workbench,
}

impl Lan {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        let flood = Limits {
            bytes: None,
            packets: std::num::NonZeroU64::new(FLOOD_PER_S)
                .map(|per_s| Rate { per_s, burst: None }),
        };
        let ports = hub.ports().iter().map(|port| LanPort {
            port: Arc::clone(port),
            vlan: port.options.vlan.unwrap_or(0),
            receive: vec![None; usize::from(port.pairs)],
            flows: FlowTable::default(),
            flood: RateLimit::new(0, flood),
            faulty_until_ns: 0,
        });
        Self {
            ports: ports.collect(),
            uplink: hub.uplink_id(),
            uplink_counters: hub
                .uplink_counters()
                .map(|counters| (counters.vring(0), counters.vring(1))),
            hub,
            bench: Workbench::new(),
        }
    }

    /// A vring has started.
    pub(super) fn add(&mut self, slot: usize, queue: &NetQueue) {
        self.set(queue, Some(slot));
    }

    /// A vring leaves.
    pub(super) fn remove(&mut self, queue: &NetQueue) {
        self.set(queue, None);
    }

    fn set(&mut self, queue: &NetQueue, slot: Option<usize>) {
        let Side::Receive(rx) = &queue.side else {
            return;
        };
        if let Some(port) = self.ports.get_mut(usize::from(queue.port.id.0))
            && let Some(place) = port.receive.get_mut(usize::from(rx.pair))
        {
            *place = slot;
        }
    }

    /// Whether a port is an access port of this VLAN.
    #[inline]
    pub(super) fn has_port_in(&self, vlan: u16) -> bool {
        self.ports.iter().any(|port| port.vlan == vlan)
    }

    /// Takes note that a frame of `port`, of so many descriptors, went nowhere.
    pub(super) fn note_fault(&mut self, port: PortId, now_ns: u64, descriptors: u32) {
        if let Some(lan) = self.ports.get_mut(usize::from(port.0)) {
            let weight = 1 + u64::from(descriptors) / FAULT_DESCRIPTORS;
            lan.faulty_until_ns = lan.faulty_until_ns.max(now_ns) + weight * FAULT_NS;
        }
    }

    /// Until when nothing is taken from `port`, for its faults.
    #[inline]
    pub(super) fn rests_until(&self, port: PortId, now_ns: u64) -> Option<u64> {
        let lan = self.ports.get(usize::from(port.0))?;
        let debt_ns = lan.faulty_until_ns.saturating_sub(now_ns);
        (debt_ns > FAULT_BURST_NS).then(|| lan.faulty_until_ns - FAULT_BURST_NS / 2)
    }

    /// Sends a frame of the guest whose transmit vring is in `slot`.
    #[inline]
    pub(super) fn send_from_guest(
        &mut self,
        turn: &mut NetTurn<'_>,
        wires: &mut [Option<Wire>],
        slot: usize,
        frame: &Frame<'_>,
    ) -> Fate {
        let Some(place) = turn.vrings.get(slot) else {
            return Fate::Lost(DropReason::NoReceiver);
        };
        let Side::Transmit(tx) = &place.queue.side else {
            return Fate::Lost(DropReason::NoReceiver);
        };
        let (id, pair) = (place.queue.port.id, tx.pair);
        if self.hub.fabric() == Fabric::Loopback {
            return self.send_back(turn, id, pair, frame);
        }
        match self.admit(turn.now_ns(), id, pair, frame) {
            Ok((origin, ethernet)) => self.forward(turn, wires, origin, &ethernet, frame),
            Err(reason) => Fate::Lost(reason),
        }
    }

    /// Gives a frame back on the pair it came from: the others may be with another thread.
    fn send_back(
        &mut self,
        turn: &mut NetTurn<'_>,
        port: PortId,
        pair: u16,
        frame: &Frame<'_>,
    ) -> Fate {
        let lan = self.ports.get(usize::from(port.0));
        let slot = lan.and_then(|lan| *lan.receive.get(usize::from(pair))?);
        self.give_one(turn, slot, port, frame, DropReason::NoReceiver)
    }

    /// Whether a guest may send such a frame; and what it is, if so.
    #[inline]
    fn admit(
        &mut self,
        now_ns: u64,
        id: PortId,
        pair: u16,
        frame: &Frame<'_>,
    ) -> Result<(Origin, Ethernet), DropReason> {
        let ethernet = Ethernet::parse(frame.start).ok_or(DropReason::Malformed)?;
        if is_multicast(ethernet.source) {
            return Err(DropReason::Malformed);
        }
        if frame.header.gso_type != GSO_NONE {
            check_long(&frame.header, frame.start).map_err(|_fault| DropReason::Malformed)?;
        }
        let tag = ethernet.vlan();
        let hops = tag.is_some_and(|tag| self.has_port_in(tag));
        let lan = self
            .ports
            .get_mut(usize::from(id.0))
            .ok_or(DropReason::NoReceiver)?;
        if hops || (lan.vlan != 0 && ethernet.tag.is_some()) {
            return Err(DropReason::Filtered);
        }
        let options = &lan.port.options;
        if options.anti_spoof && options.mac.is_some_and(|mac| mac != ethernet.source) {
            return Err(DropReason::Spoofed);
        }
        let origin = Origin {
            port: id,
            vlan: lan.vlan,
            isolated: options.isolated,
        };
        if lan.port.running_pairs() > 1 {
            lan.flows.learn(flow_hash(frame.start), pair);
        }
        self.hub
            .table()
            .learn(origin.vlan, ethernet.source, id, seconds(now_ns));
        Ok((origin, ethernet))
    }

    /// Tells everybody in its VLAN about the guest behind `port`.
    pub(super) fn announce(
        &mut self,
        turn: &mut NetTurn<'_>,
        wires: &mut [Option<Wire>],
        port: PortId,
        bytes: &[u8],
    ) {
        let Some(lan) = self.ports.get(usize::from(port.0)) else {
            return;
        };
        let origin = Origin {
            port,
            vlan: lan.vlan,
            isolated: lan.port.options.isolated,
        };
        let Some(ethernet) = Ethernet::parse(bytes) else {
            return;
        };
        self.hub
            .table()
            .learn(origin.vlan, ethernet.source, port, seconds(turn.now_ns()));
        let frame = Frame {
            header: NetHeader::default(),
            payload: Payload::Bytes(bytes),
            bytes: bytes.len(),
            start: bytes,
        };
        self.flood(turn, wires, origin, &frame);
    }

    #[inline]
    pub(super) fn forward(
        &mut self,
        turn: &mut NetTurn<'_>,
        wires: &mut [Option<Wire>],
        origin: Origin,
        ethernet: &Ethernet,
        frame: &Frame<'_>,
    ) -> Fate {
        let known = if is_multicast(ethernet.destination) {
            None
        } else {
            self.hub
                .table()
                .find(origin.vlan, ethernet.destination, seconds(turn.now_ns()))
        };
        match known {
            Some(port) if port == origin.port => Fate::Lost(DropReason::NoReceiver),
            Some(port) if port == self.uplink => self.send_out(turn, wires, origin, frame),
            Some(port) if !self.reaches(origin, port) => Fate::Lost(DropReason::Isolated),
            Some(port) => self.unicast(turn, port, frame),
            None => self.flood(turn, wires, origin, frame),
        }
    }

    /// Whether frames of `origin` may go to `port`.
    #[inline]
    fn reaches(&self, origin: Origin, port: PortId) -> bool {
        self.ports.get(usize::from(port.0)).is_some_and(|lan| {
            port != origin.port
                && lan.vlan == origin.vlan
                && !(origin.isolated && lan.port.options.isolated)
        })
    }

    /// To one port alone.
    #[inline]
    fn unicast(&mut self, turn: &mut NetTurn<'_>, to: PortId, frame: &Frame<'_>) -> Fate {
        let slot = self.receiver(turn.vrings, to, frame.start);
        self.give_one(turn, slot, to, frame, DropReason::LinkDown)
    }

    /// To the receive vring in `slot`; without one the frame is lost for the reason `missing`.
    #[inline]
    fn give_one(
        &mut self,
        turn: &mut NetTurn<'_>,
        slot: Option<usize>,
        to: PortId,
        frame: &Frame<'_>,
        missing: DropReason,
    ) -> Fate {
        match slot {
            Some(slot) => {
                let put = self.deliver(turn, slot, to, frame);
                self.fate_at(turn, slot, put)
            }
            // The loss is the sender's to count.
            None => Fate::Lost(missing),
        }
    }

    /// What a frame for one receive vring means for its sender.
    #[inline]
    fn fate_at(&self, turn: &mut NetTurn<'_>, slot: usize, put: Put) -> Fate {
        let now_ns = turn.now_ns();
        let Some(reason) = put.loss() else {
            return Fate::Gone;
        };
        let Some(place) = turn.vrings.get_mut(slot) else {
            return Fate::Lost(reason);
        };
        // A guest that talks to itself keeps nobody else waiting.
        let patient = self.hub.fabric() == Fabric::Loopback;
        if put == Put::NoRoom
            && let Side::Receive(rx) = &mut place.queue.side
            && (rx.patience.wait(now_ns) || patient)
        {
            return Fate::Kept {
                resume_ns: now_ns + Patience::STEP_NS,
                waits_for: Some(slot),
            };
        }
        place.queue.counters.count_drop(reason);
        Fate::Gone
    }

    /// To all that `origin` reaches.
    fn flood(
        &mut self,
        turn: &mut NetTurn<'_>,
        wires: &mut [Option<Wire>],
        origin: Origin,
        frame: &Frame<'_>,
    ) -> Fate {
        let uplink = origin.port != self.uplink && !wires.is_empty();
        let ids = || (0..).map(PortId).take(self.ports.len());
        let guests = ids().filter(|port| self.reaches(origin, *port)).count();
        if guests + usize::from(uplink) == 0 {
            return Fate::Lost(DropReason::NoReceiver);
        }
        if guests == 1 && !uplink {
            let only = ids().find(|port| self.reaches(origin, *port));
            let only = only.unwrap_or(origin.port);
            return self.unicast(turn, only, frame);
        }
        let now_ns = turn.now_ns();
        if guests > 1
            && let Some(lan) = self.ports.get(usize::from(origin.port.0))
        {
            if let Admission::Until(resume_ns) = lan.flood.admit(now_ns) {
                return Fate::Kept {
                    resume_ns,
                    waits_for: None,
                };
            }
            lan.flood.charge(now_ns, frame.bytes);
        }
        for port in (0..).map(PortId).take(self.ports.len()) {
            if self.reaches(origin, port)
                && let Some(slot) = self.receiver(turn.vrings, port, frame.start)
                && let Some(reason) = self.deliver(turn, slot, port, frame).loss()
                && let Some(place) = turn.vrings.get(slot)
            {
                place.queue.counters.count_drop(reason);
            }
        }
        if uplink {
            self.send_out(turn, wires, origin, frame);
        }
        Fate::Gone
    }

    /// The slot of the receive vring of `port` that a frame goes to.
    #[inline]
    fn receiver(&self, vrings: &NetVrings, port: PortId, start: &[u8]) -> Option<usize> {
        let lan = self.ports.get(usize::from(port.0))?;
        let usable = |pair: u16| {
            let slot = (*lan.receive.get(usize::from(pair))?)?;
            let place = vrings.get(slot)?;
            let Side::Receive(rx) = &place.queue.side else {
                return None;
            };
            let used = pair == 0 || (rx.used && pair < lan.port.active_pairs());
            (used && place.vring.is_live()).then_some(slot)
        };
        let first = usable(0)?;
        // The driver uses the first ones.
        let count = (1..lan.port.pairs)
            .take_while(|pair| usable(*pair).is_some())
            .count();
        if count == 0 {
            return Some(first);
        }
        let count = u16::try_from(count).unwrap_or(0) + 1;
        usable(lan.flows.pair_of(flow_hash(start), count))
    }

    /// Gives a frame to the guest behind `port`, whose receive vring is in `slot`, finished as far
    /// as that driver needs it.
    #[inline]
    fn deliver(
        &mut self,
        turn: &mut NetTurn<'_>,
        slot: usize,
        port: PortId,
        frame: &Frame<'_>,
    ) -> Put {
        let now_ns = turn.now_ns();
        let Some(place) = turn.vrings.get_mut(slot) else {
            return Put::Lost(DropReason::LinkDown);
        };
        let Side::Receive(rx) = &place.queue.side else {
            return Put::Lost(DropReason::LinkDown);
        };
        let takes = rx.negotiated.takes;
        let max_frame_bytes = place.queue.port.max_frame_bytes();
        let whole = frame.header.gso_type == GSO_NONE;
        if whole && frame.bytes > max_frame_bytes {
            return Put::Lost(DropReason::MtuExceeded);
        }
        if let Some(header) = frame.header.for_receiver(takes) {
            let put = give(
                place,
                now_ns,
                header,
                frame.payload,
                frame.bytes,
                frame.start,
            );
            if put == Put::Done {
                captured(&self.hub, port, Direction::Rx, now_ns, frame.payload);
            }
            return put;
        }
        if let Some(copy) = self.bench.load(frame.bytes) {
            frame.payload.copy_to(0, copy);
        }
        let header = (frame.header, frame.bytes);
        self.bench.give(&self.hub, place, now_ns, header)
    }
}

#[inline]
pub(super) fn seconds(now_ns: u64) -> u32 {
    u32::try_from(now_ns / SECOND_NS).unwrap_or(u32::MAX)
}
