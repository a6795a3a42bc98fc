// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `SEND_RARP` (vhost-user.rst): a front-end has its guest announced, after a migration.
//!
//! What is sent is a frame as if the guest had sent it, on its first pair of queues: the same
//! rules, limits and counters hold, and the data thread that has that transmit vring sends it. An
//! address that is another guest's by configuration, or not the one of this port's, is a spoofed
//! one whether the port is held to its own or not: a guest that wants to be heard under others can
//! say so itself.

use std::sync::Arc;

use ringside_common::limit::Admission;

use super::NetWorker;
use super::passage::{Frame, Passage, captured, destination};
use super::queue::{NetTurn, Slots as _};
use super::slot::{Slot, TxSlot};
use super::transmit::attachment_of;
use crate::counters::{Direction, DropReason};
use crate::frame::{announcement, is_multicast};
use crate::header::NetHeader;
use crate::hub::Fabric;
use crate::link::Payload;
use crate::port::Port;

impl NetWorker {
    /// Sends the announcements of ports whose first transmit vring is here.
    pub(super) fn send_announcements(&mut self, turn: &mut NetTurn<'_>) {
        for slot in 0..turn.vrings.len() {
            if let Some(Slot::Transmit(slot)) = turn.vrings.kind(slot)
                && let Some((_, tx)) = turn.vrings.tx(slot)
                && tx.pair == 0
                && let Some(mac) = tx.port.take_announcement()
            {
                let port = Arc::clone(&tx.port);
                self.announce(turn, slot, &port, mac);
            }
        }
    }

    fn announce(&mut self, turn: &mut NetTurn<'_>, slot: TxSlot, port: &Port, mac: [u8; 6]) {
        let bytes = announcement(mac);
        let now_ns = turn.now_ns();
        let passage = match self.refusal(port, now_ns, mac) {
            Some(reason) => Passage::Lost(reason),
            None => self.send_announcement(turn, slot, port, &bytes),
        };
        let Some((_, tx)) = turn.vrings.tx(slot) else {
            return;
        };
        // One that would have to wait is lost: nothing of it is left here to be sent again.
        if let Some(reason) = passage.loss() {
            return tx.counters.count_drop(reason);
        }
        tx.counters.count(bytes.len(), destination(&bytes));
        port.from_guest.charge(now_ns, bytes.len(), || 1);
        let payload = Payload::Bytes(&bytes);
        captured(&self.hub, port.id, Direction::Tx, now_ns, payload);
    }

    /// Why this address must not be announced for this port, if so.
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
        slot: TxSlot,
        port: &Port,
        bytes: &[u8],
    ) -> Passage {
        let frame = Frame::of(NetHeader::default(), bytes);
        let attachments = &mut self.attachments;
        match self.hub.fabric() {
            Fabric::Wire => {
                let tx = turn.vrings.tx(slot);
                match tx.and_then(|(_, tx)| attachment_of(tx, attachments)) {
                    Some(attachment) => attachment.send(turn.io, &frame.header, frame.payload),
                    None => Passage::Lost(DropReason::LinkDown),
                }
            }
            Fabric::Switch => self.switch.announce(turn, attachments, port.id, &frame),
            Fabric::Null { .. } | Fabric::Loopback => Passage::Passed,
        }
    }
}
