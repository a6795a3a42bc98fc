// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Senders of a switch that wait for a receiver, or for the uplink.

use super::passage::{Origin, Passage};
use super::patience::{Awaited, Patience};
use super::queue::{NetTurn, Slots as _};
use super::slot::RxSlot;
use super::switch::{Switch, lose_at};
use crate::counters::DropReason;
use crate::mac_table::PortId;

/// How long after a wait receivers are looked at for whether they were waited for.
const STRAIN_NS: u64 = 1_000_000_000;

impl Switch {
    /// A queue that waited for a receiver looks again.
    #[inline]
    pub(super) fn account_wait(&mut self, turn: &NetTurn<'_>, port: PortId, pair: u16) {
        let port = self.ports.get_mut(usize::from(port.0));
        let Some(sender) = port.and_then(|port| port.patience(pair)) else {
            return;
        };
        let taken = match sender.awaited() {
            None => return,
            Some(Awaited::Vring(slot)) => turn.vrings.rx(slot).map(|(_, rx)| rx.patience.taken()),
            Some(Awaited::Uplink) => Some(self.uplink_patience.taken()),
        };
        sender.account(turn.now_ns(), taken);
    }

    /// Whether `origin` waits on for a receiver that has no room; it does from now on, if so.
    pub(super) fn waits(
        &mut self,
        now_ns: u64,
        origin: Origin,
        awaited: Awaited,
        patience: &mut Patience,
    ) -> bool {
        let port = self.ports.get_mut(usize::from(origin.port.0));
        let Some(sender) = port.and_then(|port| port.patience(origin.pair)) else {
            return false;
        };
        if !sender.may_wait(now_ns) {
            patience.give_up(now_ns);
            return false;
        }
        self.strained_until_ns = now_ns + STRAIN_NS;
        let waits = patience.wait(now_ns);
        if waits {
            sender.wait(now_ns, awaited, patience.taken());
        }
        waits
    }

    /// A receiver has taken a frame of `origin`.
    #[inline]
    pub(super) fn relax(&mut self, now_ns: u64, origin: Origin, patience: Patience) {
        if now_ns < self.strained_until_ns
            && patience.is_strained()
            && let Some(port) = self.ports.get_mut(usize::from(origin.port.0))
            && let Some(sender) = port.patience(origin.pair)
        {
            sender.relax();
        }
    }

    /// A frame for the receive vring in `slot` has no room there.
    pub(super) fn no_room(
        &mut self,
        turn: &mut NetTurn<'_>,
        origin: Origin,
        slot: RxSlot,
    ) -> Passage {
        let now_ns = turn.now_ns();
        if let Some((_, rx)) = turn.vrings.rx_mut(slot)
            && self.waits(now_ns, origin, Awaited::Vring(slot), &mut rx.patience)
        {
            return Passage::Waits;
        }
        lose_at(turn.vrings, slot, DropReason::NoBuffer)
    }
}
