// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The switch: from a port, or the uplink, to others.
//!
//! A port is an access port of one VLAN, or of none; ports see each other within one. What is
//! tagged on the uplink with the VLAN of a port (IEEE 802.1Q, not 802.1ad) belongs there, and
//! frames of such a port leave by the uplink with the tag. Everything else on the uplink belongs to
//! the ports of no VLAN, tags and all. A frame that a guest has tagged itself passes between ports
//! of no VLAN, unless the tag would make it one of a port's VLAN on the uplink.
//!
//! Which VLAN a frame is in is said by its first tag that says any, with tags of a priority alone
//! in front of it or not. Those are no VLAN's, and pass from access ports, too: the priority is
//! kept in the tag that is put in.
//!
//! A frame goes to the port its destination was last heard from, else to all. A port that has no
//! buffers for a frame of its own, and an uplink that is full, is waited for within the bounds of
//! [`Patience`](super::patience); a frame for several waits for none of them.
//!
//! What a frame's sender is to answer for is counted as lost with its transmit vring, and nothing
//! else: behind the switch there is a copy for each port it goes to, and for the uplink, which
//! arrives there or is counted as lost there.

use std::error::Error;
use std::sync::Arc;

use ringside_common::device::Vring;

use super::attachment::Attachment;
use super::passage::{Frame, NO_PAIR, Origin, Passage, captured, malformed};
use super::patience::{Awaited, Patience};
use super::queue::{NetTurn, NetVrings, Slots as _};
use super::rx_queue::RxQueue;
use super::slot::RxSlot;
use super::switch_port::SwitchPort;
use super::workbench::{Loaded, Workbench};
use crate::counters::{Direction, DropReason, PacketCounters};
use crate::flow::flow_hash;
use crate::frame::{Ethernet, VlanTag, is_multicast, membership};
use crate::header::GSO_NONE;
use crate::hub::{Fabric, Hub};
use crate::mac_table::{PortId, seconds};
use crate::offload::check_long;

/// The ports of a switch, and its uplink, as one data thread sees them.
#[derive(Debug)]
pub(super) struct Switch {
    pub(super) hub: Arc<Hub>,
    pub(super) ports: Vec<SwitchPort>,
    pub(super) uplink: PortId,
    pub(super) uplink_counters: Option<(Arc<PacketCounters>, Arc<PacketCounters>)>,
    pub(super) uplink_patience: Patience,
    pub(super) bench: Workbench,
    /// Until when some receivers count as strained.
    pub(super) strained_until_ns: u64,
}

impl Switch {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        let ports = hub.ports().iter().map(|port| SwitchPort::new(&hub, port));
        Self {
            ports: ports.collect(),
            uplink: hub.uplink_id(),
            uplink_counters: hub
                .uplink_counters()
                .map(|counters| (counters.vring(0), counters.vring(1))),
            hub,
            uplink_patience: Patience::default(),
            bench: Workbench::new(),
            strained_until_ns: 0,
        }
    }

    /// The receive vring of a pair of `port` is in `slot`, or has left.
    pub(super) fn set_receiver(&mut self, port: PortId, pair: u16, slot: Option<RxSlot>) {
        if let Some(port) = self.ports.get_mut(usize::from(port.0)) {
            port.set_receiver(pair, slot);
        }
    }

    /// Whether a port is an access port of this VLAN.
    #[inline]
    pub(super) fn has_port_in(&self, vlan: u16) -> bool {
        self.ports.iter().any(|port| port.vlan == vlan)
    }

    /// Takes note that a frame of `port` went nowhere, whose chain has as many `descriptors`.
    pub(super) fn note_loss(
        &mut self,
        port: PortId,
        now_ns: u64,
        reason: DropReason,
        descriptors: u32,
    ) {
        if let Some(port) = self.ports.get_mut(usize::from(port.0)) {
            port.note_loss(now_ns, reason, descriptors);
        }
    }

    /// Until when nothing is taken from `port`, for its faults.
    #[inline]
    pub(super) fn rests_until(&self, port: PortId, now_ns: u64) -> Option<u64> {
        self.ports.get(usize::from(port.0))?.rests_until(now_ns)
    }

    /// Sends a frame that a guest has sent on a pair of `port`.
    #[inline]
    pub(super) fn send_from_guest(
        &mut self,
        turn: &mut NetTurn<'_>,
        attachments: &mut [Option<Attachment>],
        id: PortId,
        pair: u16,
        frame: &Frame<'_>,
    ) -> Passage {
        if self.hub.fabric() == Fabric::Loopback {
            return self.send_back(turn, id, pair, frame);
        }
        self.account_wait(turn, id, pair);
        match self.admit(turn.now_ns(), id, pair, frame) {
            Ok((origin, ethernet)) => self.forward(turn, attachments, origin, &ethernet, frame),
            Err(reason) => Passage::Lost(reason),
        }
    }

    /// Gives a frame back on the pair it came from: the others may be with another thread.
    fn send_back(
        &mut self,
        turn: &mut NetTurn<'_>,
        port: PortId,
        pair: u16,
        frame: &Frame<'_>,
    ) -> Passage {
        let Some(slot) = self.receiver_of(port, pair) else {
            return Passage::Lost(DropReason::NoReceiver);
        };
        // A guest that talks to itself keeps no other waiting.
        match self.deliver(turn, slot, frame) {
            Passage::Lost(reason) => lose_at(turn.vrings, slot, reason),
            passage => passage,
        }
    }

    /// The receive vring of a pair of `port`.
    fn receiver_of(&self, port: PortId, pair: u16) -> Option<RxSlot> {
        self.ports.get(usize::from(port.0))?.receiver(pair)
    }

    /// The receiver that the transmit queue of a pair waits for, whose buffers end the wait.
    pub(super) fn awaited(&self, port: PortId, pair: u16) -> Option<RxSlot> {
        if self.hub.fabric() == Fabric::Loopback {
            return self.receiver_of(port, pair);
        }
        match self.ports.get(usize::from(port.0))?.awaited(pair)? {
            Awaited::Vring(slot) => Some(slot),
            Awaited::Uplink => None,
        }
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
            check_long(&frame.header, frame.start).map_err(|fault| self.malformed(id, &fault))?;
        }
        // A stack of tags that does not end within what is looked at says nothing.
        let member = membership(frame.start).ok_or(DropReason::Malformed)?;
        let packet_at = member.end().saturating_add(2);
        if frame.header.needs_checksum() && frame.header.checksum_at() < packet_at {
            // Completed on the way, it would make another tag of what was looked at.
            return Err(DropReason::Malformed);
        }
        // A station beyond the uplink may not tell the types of tags apart.
        let tag = member.tag.and_then(VlanTag::id);
        let hops = tag.is_some_and(|tag| self.has_port_in(tag));
        let port = self
            .ports
            .get_mut(usize::from(id.0))
            .ok_or(DropReason::NoReceiver)?;
        if hops || (port.vlan != 0 && tag.is_some()) {
            return Err(DropReason::Filtered);
        }
        let options = &port.port.options;
        if options.anti_spoof && options.mac.is_some_and(|mac| mac != ethernet.source) {
            return Err(DropReason::Spoofed);
        }
        let origin = Origin {
            port: id,
            pair,
            vlan: port.vlan,
            isolated: options.isolated,
        };
        if port.port.running_pairs() > 1 {
            port.flows.learn(flow_hash(frame.start), pair);
        }
        if port.mac != Some(ethernet.source) {
            let table = self.hub.table();
            table.learn(origin.vlan, ethernet.source, id, seconds(now_ns));
        }
        Ok((origin, ethernet))
    }

    #[cold]
    fn malformed(&self, id: PortId, fault: &dyn Error) -> DropReason {
        match self.ports.get(usize::from(id.0)) {
            Some(port) => malformed(&port.port, fault),
            None => DropReason::Malformed,
        }
    }

    /// Sends a frame of ours for the guest behind `port`, which never waits.
    pub(super) fn announce(
        &mut self,
        turn: &mut NetTurn<'_>,
        attachments: &mut [Option<Attachment>],
        port: PortId,
        frame: &Frame<'_>,
    ) -> Passage {
        match self.admit(turn.now_ns(), port, 0, frame) {
            Ok((origin, ethernet)) => {
                let origin = Origin {
                    pair: NO_PAIR,
                    ..origin
                };
                self.forward(turn, attachments, origin, &ethernet, frame)
            }
            Err(reason) => Passage::Lost(reason),
        }
    }

    #[inline]
    pub(super) fn forward(
        &mut self,
        turn: &mut NetTurn<'_>,
        attachments: &mut [Option<Attachment>],
        origin: Origin,
        ethernet: &Ethernet,
        frame: &Frame<'_>,
    ) -> Passage {
        let known = if is_multicast(ethernet.destination) {
            None
        } else {
            self.hub
                .table()
                .find(origin.vlan, ethernet.destination, seconds(turn.now_ns()))
        };
        match known {
            Some(port) if port == origin.port => Passage::Lost(DropReason::NoReceiver),
            Some(port) if port == self.uplink => self.send_out(turn, attachments, origin, frame),
            Some(port) if !self.reaches(origin, port) => Passage::Lost(DropReason::Isolated),
            Some(port) => self.unicast(turn, origin, port, frame),
            None => self.flood(turn, attachments, origin, ethernet.destination, frame),
        }
    }

    /// Whether a frame to a `destination` that is behind no known port goes to `port`. A port with
    /// a configured address gets no such frame: only that address is behind it.
    #[inline]
    fn floods_to(&self, origin: Origin, port: PortId, destination: [u8; 6]) -> bool {
        let configured = |port: &SwitchPort| port.mac.is_some();
        self.reaches(origin, port)
            && (is_multicast(destination)
                || !self.ports.get(usize::from(port.0)).is_some_and(configured))
    }

    /// Whether frames of `origin` may go to `port`.
    #[inline]
    fn reaches(&self, origin: Origin, port: PortId) -> bool {
        self.ports.get(usize::from(port.0)).is_some_and(|to| {
            port != origin.port
                && to.vlan == origin.vlan
                && !(origin.isolated && to.port.options.isolated)
        })
    }

    /// To one port alone.
    #[inline]
    fn unicast(
        &mut self,
        turn: &mut NetTurn<'_>,
        origin: Origin,
        to: PortId,
        frame: &Frame<'_>,
    ) -> Passage {
        let Some(slot) = self.receiver(turn.vrings, to, frame.start) else {
            return self.lose_for(to);
        };
        match self.deliver(turn, slot, frame) {
            Passage::Passed => {
                let now_ns = turn.now_ns();
                if now_ns < self.strained_until_ns
                    && let Some((_, rx)) = turn.vrings.rx(slot)
                {
                    self.relax(now_ns, origin, rx.patience);
                }
                Passage::Passed
            }
            Passage::Waits => self.no_room(turn, origin, slot),
            Passage::Lost(reason) => lose_at(turn.vrings, slot, reason),
        }
    }

    /// A frame for a port without a receive vring is lost there.
    fn lose_for(&self, port: PortId) -> Passage {
        if let Some(port) = self.ports.get(usize::from(port.0)) {
            port.lose();
        }
        Passage::Passed
    }

    /// To all that `origin` reaches; a copy that does not arrive is counted where it was to.
    fn flood(
        &mut self,
        turn: &mut NetTurn<'_>,
        attachments: &mut [Option<Attachment>],
        origin: Origin,
        destination: [u8; 6],
        frame: &Frame<'_>,
    ) -> Passage {
        let uplink = origin.port != self.uplink && !attachments.is_empty();
        let ids = || (0..).map(PortId).take(self.ports.len());
        let goes = |port: &PortId| self.floods_to(origin, *port, destination);
        let guests = ids().filter(goes).count();
        let copies = guests + usize::from(uplink);
        if copies == 0 {
            return Passage::Lost(DropReason::NoReceiver);
        }
        if copies == 1 {
            // What goes to one place is no flood.
            return match ids().find(goes) {
                Some(only) => self.unicast(turn, origin, only, frame),
                None => self.send_out(turn, attachments, origin, frame),
            };
        }
        let now_ns = turn.now_ns();
        if let Some(port) = self.ports.get(usize::from(origin.port.0))
            && !port.may_flood(now_ns, copies, frame.bytes)
        {
            return Passage::Lost(DropReason::RateLimited);
        }
        for port in (0..).map(PortId).take(self.ports.len()) {
            if !self.floods_to(origin, port, destination) {
                continue;
            }
            let Some(slot) = self.receiver(turn.vrings, port, frame.start) else {
                self.lose_for(port);
                continue;
            };
            if let Some(reason) = self.deliver(turn, slot, frame).loss() {
                lose_at(turn.vrings, slot, reason);
            }
        }
        if uplink {
            let hurried = Origin {
                pair: NO_PAIR,
                ..origin
            };
            self.send_out(turn, attachments, hurried, frame);
        }
        Passage::Passed
    }

    /// The slot of the receive vring of `port` that a frame goes to.
    #[inline]
    fn receiver(&self, vrings: &NetVrings, port: PortId, start: &[u8]) -> Option<RxSlot> {
        let port = self.ports.get(usize::from(port.0))?;
        let usable = |pair: u16| {
            let slot = port.receiver(pair)?;
            let (vring, rx) = vrings.rx(slot)?;
            let used = pair == 0 || (rx.used && pair < port.port.active_pairs());
            (used && vring.is_live()).then_some(slot)
        };
        let first = usable(0)?;
        // The driver uses the first ones.
        let count = (1..port.port.pairs)
            .find(|pair| usable(*pair).is_none())
            .unwrap_or(port.port.pairs);
        if count <= 1 {
            return Some(first);
        }
        usable(port.flows.pair_of(flow_hash(start), count))
    }

    /// Gives a frame to the guest whose receive vring is in `slot`, finished as far as that driver
    /// needs it, or keeps it there until the limit of that guest allows it.
    #[inline]
    fn deliver(&mut self, turn: &mut NetTurn<'_>, slot: RxSlot, frame: &Frame<'_>) -> Passage {
        let now_ns = turn.now_ns();
        let Some((vring, rx)) = turn.vrings.rx_mut(slot) else {
            return Passage::Lost(DropReason::LinkDown);
        };
        match rx.hold_back(vring, now_ns, frame) {
            Some(passage) => passage,
            None => self.hand_over(vring, rx, now_ns, frame),
        }
    }

    /// Gives a frame to a guest whose limit allows it.
    #[inline]
    pub(super) fn hand_over(
        &mut self,
        vring: &mut Vring,
        rx: &mut RxQueue,
        now_ns: u64,
        frame: &Frame<'_>,
    ) -> Passage {
        let whole = frame.header.gso_type == GSO_NONE;
        if whole && frame.bytes > rx.port.max_frame_bytes() {
            return Passage::Lost(DropReason::MtuExceeded);
        }
        if let Some(header) = frame.header.for_receiver(rx.negotiated.takes) {
            let passage = rx.give(vring, now_ns, header, frame);
            if passage == Passage::Passed {
                captured(&self.hub, rx.port.id, Direction::Rx, now_ns, frame.payload);
            }
            return passage;
        }
        if let Some(copy) = self.bench.room(frame.bytes) {
            frame.payload.copy_to(0, copy);
        }
        let loaded = Loaded {
            header: frame.header,
            bytes: frame.bytes,
        };
        self.bench.give(&self.hub, vring, rx, now_ns, loaded)
    }
}

/// A frame for the receive vring in `slot` is lost there, and its sender is done with it.
pub(super) fn lose_at(vrings: &NetVrings, slot: RxSlot, reason: DropReason) -> Passage {
    if let Some((_, rx)) = vrings.rx(slot) {
        rx.counters.count_drop(reason);
    }
    Passage::Passed
}
