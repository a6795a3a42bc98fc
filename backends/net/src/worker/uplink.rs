// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between the uplink of a switch and its ports.

use ringside_common::memory::Buffers;

use super::lan::{Frame, Lan, NO_PAIR, Origin, seconds};
use super::patience::{Awaited, Patience};
use super::receive::destination;
use super::transmit::{Fate, reason_of};
use super::wire::Wire;
use super::{BUDGET_BYTES, BUDGET_FRAMES, NetTurn, NetWorker};
use crate::counters::DropReason;
use crate::frame::{
    ETHERNET_HEADER_BYTES, Ethernet, Membership, VLAN_TAG_BYTES, VlanTag, is_multicast, membership,
};
use crate::header::{GSO_NONE, NetHeader};
use crate::hub::Fabric;
use crate::link::{Received, Room, Sent};

impl NetWorker {
    /// Whether the uplink may have frames.
    pub(super) fn uplink_has_work(&self) -> bool {
        self.hub.fabric() == Fabric::Switch
            && matches!(self.wires.first(), Some(Some(wire)) if wire.is_readable())
    }

    /// Takes what has come by the uplink.
    pub(super) fn serve_uplink(&mut self, turn: &mut NetTurn<'_>) -> bool {
        if !self.uplink_has_work() {
            return false;
        }
        let nowhere = Buffers::default();
        let mut frames = 0;
        let mut moved = 0;
        while frames < BUDGET_FRAMES && moved < BUDGET_BYTES {
            let Some(Some(wire)) = self.wires.first_mut() else {
                break;
            };
            let room = Room {
                window: &nowhere,
                skip_bytes: 0,
                limit_bytes: 0,
                spare: &mut self.spare,
            };
            let Received::Frame { header, bytes } = wire.queue.receive(room) else {
                wire.set_drained();
                break;
            };
            frames += 1;
            moved += bytes;
            let spare = &mut self.spare;
            self.lan
                .send_from_uplink(turn, &mut self.wires, header, spare, bytes);
        }
        frames > 0
    }
}

impl Lan {
    /// Sends a frame that came from the uplink; `bytes` of it are in `spare`.
    pub(super) fn send_from_uplink(
        &mut self,
        turn: &mut NetTurn<'_>,
        wires: &mut [Option<Wire>],
        header: NetHeader,
        spare: &mut [u8],
        bytes: usize,
    ) {
        let Some(mut whole) = spare.get_mut(..bytes) else {
            return self.lost_uplink(DropReason::Malformed);
        };
        let Some(mut ethernet) = Ethernet::parse(whole) else {
            return self.lost_uplink(DropReason::Malformed);
        };
        let mut header = header;
        let Some(member) = membership(whole) else {
            return self.lost_uplink(DropReason::Malformed);
        };
        let vlan = member.tag.and_then(VlanTag::access_vlan);
        let vlan = vlan.filter(|vlan| self.has_port_in(*vlan)).unwrap_or(0);
        if vlan != 0 {
            // The tags go: the addresses move up behind them.
            let Some((bare, moved)) = without_tags(whole, header, member) else {
                return self.lost_uplink(DropReason::Malformed);
            };
            (whole, header) = (bare, moved);
            ethernet.tag = None;
        }
        if is_multicast(ethernet.source) {
            return self.lost_uplink(DropReason::Malformed);
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
        match self.forward(turn, wires, origin, &ethernet, &frame) {
            // Nobody out there is kept waiting.
            Fate::Gone | Fate::Kept { .. } => {
                if let Some((_, from)) = &self.uplink_counters {
                    from.count(bytes, ethernet.destination);
                }
            }
            Fate::Lost(reason) => self.lost_uplink(reason),
        }
    }

    pub(super) fn lost_uplink(&self, reason: DropReason) {
        if let Some((_, from)) = &self.uplink_counters {
            from.count_drop(reason);
        }
    }

    /// Sends a frame out. One that is lost there is counted there.
    pub(super) fn send_out(
        &mut self,
        turn: &mut NetTurn<'_>,
        wires: &mut [Option<Wire>],
        origin: Origin,
        frame: &Frame<'_>,
    ) -> Fate {
        let Some(Some(wire)) = wires.first_mut() else {
            return self.lose_out(DropReason::LinkDown);
        };
        let sent = if wire.is_blocked() {
            Ok(Sent::Blocked)
        } else {
            self.send_on(wire, origin.vlan, frame)
        };
        let now_ns = turn.now_ns();
        match sent {
            Ok(Sent::Done) => {
                if wire.queue.has_unsent() {
                    wire.block(turn.io);
                }
                self.uplink_patience.end(now_ns);
                self.relax(now_ns, origin, self.uplink_patience);
                if let Some((to, _)) = &self.uplink_counters {
                    to.count(frame.bytes, destination(frame.start));
                }
                Fate::Gone
            }
            Ok(Sent::Blocked) => {
                wire.block(turn.io);
                let mut patience = self.uplink_patience;
                let waits = self.waits(now_ns, origin, Awaited::Uplink, &mut patience);
                self.uplink_patience = patience;
                if waits {
                    return Fate::Kept {
                        resume_ns: now_ns + Patience::STEP_NS,
                        waits_for: None,
                    };
                }
                self.lose_out(DropReason::NoBuffer)
            }
            Ok(Sent::Dropped(loss)) => self.lose_out(reason_of(loss)),
            Err(reason) => self.lose_out(reason),
        }
    }

    /// Sends a frame by the link, with the tag of its VLAN.
    fn send_on(
        &mut self,
        wire: &mut Wire,
        vlan: u16,
        frame: &Frame<'_>,
    ) -> Result<Sent, DropReason> {
        let direct = wire.queue.supports_headers() || is_plain(frame.header);
        if direct && vlan == 0 {
            return Ok(wire.queue.send(&frame.header, frame.payload));
        }
        self.bench.send(wire, vlan, frame.header, frame.payload)
    }

    fn lose_out(&self, reason: DropReason) -> Fate {
        if let Some((to, _)) = &self.uplink_counters {
            to.count_drop(reason);
        }
        Fate::Gone
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
