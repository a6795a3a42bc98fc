// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `SEND_RARP` (vhost-user.rst): a front-end has its guest announced, after a migration.
//!
//! What is sent is a frame as if the guest had sent it, on its first pair of queues: the same rules,
//! limits and counters hold, and the data thread that has that transmit vring sends it. An address
//! that is another guest's by configuration, or not the one of this port's, is a spoofed one
//! whether the port is held to its own or not: a guest that wants to be heard under others can say
//! so itself.

use std::sync::Arc;

use ringside_common::limit::Admission;

use super::lan::Frame;
use super::receive::destination;
use super::transmit::{Fate, reason_of, wire_of};
use super::{NetTurn, NetWorker, Side, captured};
use crate::counters::{Direction, DropReason};
use crate::frame::{announcement, is_multicast};
use crate::header::NetHeader;
use crate::hub::Fabric;
use crate::link::{Payload, Sent};
use crate::port::Port;

impl NetWorker {
    /// Sends what is to be announced of ports whose first transmit vring is here.
    pub(super) fn send_announcements(&mut self, turn: &mut NetTurn<'_>) {
        for slot in 0..turn.vrings.len() {
            let Some(place) = turn.vrings.get(slot) else {
                continue;
            };
            let is_first = matches!(&place.queue.side, Side::Transmit(tx) if tx.pair == 0);
            if is_first && place.queue.port.has_announcement() {
                let port = Arc::clone(&place.queue.port);
                if let Some(mac) = port.take_announcement() {
                    self.announce(turn, slot, &port, mac);
                }
            }
        }
    }

    fn announce(&mut self, turn: &mut NetTurn<'_>, slot: usize, port: &Port, mac: [u8; 6]) {
        let bytes = announcement(mac);
        let now_ns = turn.now_ns();
        let fate = match self.refusal(port, now_ns, mac) {
            Some(reason) => Fate::Lost(reason),
            None => self.send_announcement(turn, slot, port, &bytes),
        };
        let Some(place) = turn.vrings.get(slot) else {
            return;
        };
        let counters = &place.queue.counters;
        match fate {
            Fate::Gone => {
                counters.count(bytes.len(), destination(&bytes));
                port.from_guest.charge(now_ns, bytes.len(), || 1);
                let payload = Payload::Bytes(&bytes);
                captured(&self.hub, port.id, Direction::Tx, now_ns, payload);
            }
            Fate::Lost(reason) => counters.count_drop(reason),
            // Nothing of it is left here to be sent again.
            Fate::Kept { .. } => counters.count_drop(DropReason::NoBuffer),
        }
    }

    /// Why this address is not to be announced for this port, if it is not.
    fn refusal(&self, port: &Port, now_ns: u64, mac: [u8; 6]) -> Option<DropReason> {
        let options = &port.options;
        let vlan = options.vlan.unwrap_or(0);
        let pinned = self.hub.table().pinned(vlan, mac);
        if !port.is_link_up() {
            Some(DropReason::LinkDown)
        } else if is_multicast(mac) || mac == [0; 6] {
            Some(DropReason::Malformed)
        } else if options.mac.is_some_and(|own| own != mac)
            || pinned.is_some_and(|owner| owner != port.id)
        {
            Some(DropReason::Spoofed)
        } else if port.from_guest.admit(now_ns) != Admission::Now {
            Some(DropReason::RateLimited)
        } else {
            None
        }
    }

    fn send_announcement(
        &mut self,
        turn: &mut NetTurn<'_>,
        slot: usize,
        port: &Port,
        bytes: &[u8],
    ) -> Fate {
        let frame = Frame::of(NetHeader::default(), bytes);
        match self.hub.fabric() {
            Fabric::Wire => {
                let Some(wire) = wire_of(turn, slot, &mut self.wires) else {
                    return Fate::Lost(DropReason::LinkDown);
                };
                let sent = wire.queue.send(&frame.header, frame.payload);
                if sent == Sent::Blocked || wire.queue.has_unsent() {
                    wire.block(turn.io);
                }
                match sent {
                    Sent::Done => Fate::Gone,
                    Sent::Blocked => Fate::Lost(DropReason::NoBuffer),
                    Sent::Dropped(loss) => Fate::Lost(reason_of(loss)),
                }
            }
            Fabric::Switch => self.lan.announce(turn, &mut self.wires, port.id, &frame),
            Fabric::Null { .. } | Fabric::Loopback => Fate::Gone,
        }
    }
}
