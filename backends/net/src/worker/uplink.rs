// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between the uplink of a switch and its ports.

use super::attachment::Attachment;
use super::passage::{Frame, NO_PAIR, Origin, Passage, destination};
use super::patience::Awaited;
use super::queue::NetTurn;
use super::switch::Switch;
use crate::counters::DropReason;
use crate::frame::{
    ETHERNET_HEADER_BYTES, Ethernet, Membership, VLAN_TAG_BYTES, VlanTag, is_multicast, membership,
};
use crate::header::{GSO_NONE, NetHeader};
use crate::link::{LinkQueue, Sent};
use crate::mac_table::seconds;

impl Switch {
    /// Sends a frame that came from the uplink; `bytes` of it are in `spare`.
    pub(super) fn send_from_uplink(
        &mut self,
        turn: &mut NetTurn<'_>,
        attachments: &mut [Option<Attachment>],
        header: NetHeader,
        spare: &mut [u8],
        bytes: usize,
    ) {
        let Some(mut whole) = spare.get_mut(..bytes) else {
            return self.lose_from_uplink(DropReason::Malformed);
        };
        let Some(mut ethernet) = Ethernet::parse(whole) else {
            return self.lose_from_uplink(DropReason::Malformed);
        };
        let mut header = header;
        let Some(member) = membership(whole) else {
            return self.lose_from_uplink(DropReason::Malformed);
        };
        let vlan = member.tag.and_then(VlanTag::access_vlan);
        let vlan = vlan.filter(|vlan| self.has_port_in(*vlan)).unwrap_or(0);
        if vlan != 0 {
            // The tags go: the addresses move up behind them.
            let Some((bare, moved)) = without_tags(whole, header, member) else {
                return self.lose_from_uplink(DropReason::Malformed);
            };
            (whole, header) = (bare, moved);
            ethernet.tag = None;
        }
        if is_multicast(ethernet.source) {
            return self.lose_from_uplink(DropReason::Malformed);
        }
        let origin = Origin {
            port: self.uplink,
            pair: NO_PAIR,
            vlan,
            isolated: false,
        };
        self.hub
            .table()
            .learn(vlan, ethernet.source, self.uplink, seconds(turn.now_ns()));
        let frame = Frame::of(header, whole);
        match self.forward(turn, attachments, origin, &ethernet, &frame) {
            // No sender beyond the uplink is kept waiting.
            Passage::Passed | Passage::Waits => {
                if let Some((_, from)) = &self.uplink_counters {
                    from.count(bytes, ethernet.destination);
                }
            }
            Passage::Lost(reason) => self.lose_from_uplink(reason),
        }
    }

    /// A frame from the uplink is lost.
    pub(super) fn lose_from_uplink(&self, reason: DropReason) {
        if let Some((_, from)) = &self.uplink_counters {
            from.count_drop(reason);
        }
    }

    /// Sends a frame out. One that is lost there is counted there.
    pub(super) fn send_out(
        &mut self,
        turn: &mut NetTurn<'_>,
        attachments: &mut [Option<Attachment>],
        origin: Origin,
        frame: &Frame<'_>,
    ) -> Passage {
        let Some(Some(attachment)) = attachments.first_mut() else {
            return self.lose_to_uplink(DropReason::LinkDown);
        };
        let passage = if attachment.is_blocked() {
            Passage::Waits
        } else {
            match self.send_on(&mut attachment.queue, origin.vlan, frame) {
                Ok(sent) => attachment.follow(turn.io, sent),
                Err(reason) => Passage::Lost(reason),
            }
        };
        let now_ns = turn.now_ns();
        match passage {
            Passage::Passed => {
                self.uplink_patience.end(now_ns);
                self.relax(now_ns, origin, self.uplink_patience);
                if let Some((to, _)) = &self.uplink_counters {
                    to.count(frame.bytes, destination(frame.start));
                }
                Passage::Passed
            }
            Passage::Waits => {
                let mut patience = self.uplink_patience;
                let waits = self.waits(now_ns, origin, Awaited::Uplink, &mut patience);
                self.uplink_patience = patience;
                if waits {
                    return Passage::Waits;
                }
                self.lose_to_uplink(DropReason::NoBuffer)
            }
            Passage::Lost(reason) => self.lose_to_uplink(reason),
        }
    }

    /// Sends a frame by the link, with the tag of its VLAN.
    fn send_on(
        &mut self,
        link: &mut LinkQueue,
        vlan: u16,
        frame: &Frame<'_>,
    ) -> Result<Sent, DropReason> {
        let direct = link.supports_headers() || is_plain(frame.header);
        if direct && vlan == 0 {
            return Ok(link.send(&frame.header, frame.payload));
        }
        self.bench.send(link, vlan, frame.header, frame.payload)
    }

    /// A frame for the uplink is lost there, and its sender is done with it.
    fn lose_to_uplink(&self, reason: DropReason) -> Passage {
        if let Some((to, _)) = &self.uplink_counters {
            to.count_drop(reason);
        }
        Passage::Passed
    }
}

/// Takes the tag that decides out of a frame, and those in front of it. `None` if that leaves no
/// frame, or a header that points before it.
fn without_tags(
    frame: &mut [u8],
    header: NetHeader,
    member: Membership,
) -> Option<(&mut [u8], NetHeader)> {
    let bytes = member.tags.checked_mul(VLAN_TAG_BYTES)?;
    let moved = header.moved(i16::try_from(bytes).ok()?.checked_neg()?)?;
    let addresses = member.end().checked_sub(bytes)?;
    frame
        .get_mut(..member.end())?
        .copy_within(..addresses, bytes);
    let bare = frame.get_mut(bytes..)?;
    (bare.len() >= ETHERNET_HEADER_BYTES).then_some((bare, moved))
}

/// Whether a frame is finished.
fn is_plain(header: NetHeader) -> bool {
    header.gso_type == GSO_NONE && !header.needs_checksum()
}
