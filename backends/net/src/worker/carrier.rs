// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a guest is there for its network, and what becomes of frames that came when it was not.
//!
//! A receive queue serves while it is started and enabled; a `drain` of the operator does not end
//! that, since the guest goes on. What waits in the link when it begins to, after a reboot of the
//! guest or for another one, is old, and so is what has come while the cable was out. Old frames
//! are dropped and counted, before the host is shown a carrier again.

use super::queue::{NetTurn, Slots as _};
use super::rx_queue::RxQueue;
use super::slot::{RxSlot, Slot};
use super::{BUDGET_FRAMES, MOST_OLD_FRAMES, NetWorker};
use crate::counters::DropReason;

impl NetWorker {
    /// A receive vring has started, was enabled or disabled.
    pub(super) fn follow_serving(&mut self, turn: &mut NetTurn<'_>, slot: RxSlot) {
        if let Some((vring, _)) = turn.vrings.rx(slot) {
            let serves = vring.is_enabled();
            self.set_serving(turn, slot, serves);
        }
    }

    /// A receive vring begins or ceases to serve.
    pub(super) fn set_serving(&mut self, turn: &mut NetTurn<'_>, slot: RxSlot, serves: bool) {
        let Some((_, rx)) = turn.vrings.rx_mut(slot) else {
            return;
        };
        if rx.serves == serves {
            return;
        }
        rx.serves = serves;
        if serves {
            self.lose_waiting(rx, MOST_OLD_FRAMES);
            rx.cable_changes = rx.port.cable.begin();
        } else {
            rx.port.cable.end(rx.cable_changes);
        }
        self.hub.follow_carrier();
    }

    /// The cables of some guests may have been plugged in or out.
    pub(super) fn follow_cables(&mut self, turn: &mut NetTurn<'_>) {
        for slot in 0..turn.vrings.len() {
            if let Some(Slot::Receive(slot)) = turn.vrings.kind(slot) {
                self.follow_cable(turn, slot);
            }
        }
    }

    /// The cable of a guest may have been plugged in or out.
    #[inline]
    pub(super) fn follow_cable(&mut self, turn: &mut NetTurn<'_>, slot: RxSlot) {
        if let Some((_, rx)) = turn.vrings.rx_mut(slot)
            && rx.serves
            && rx.cable_changes != rx.port.cable.changes()
        {
            self.notice_cable(rx);
        }
    }

    #[cold]
    fn notice_cable(&mut self, rx: &mut RxQueue) {
        self.lose_waiting(rx, MOST_OLD_FRAMES);
        rx.cable_changes = rx.port.cable.notice(rx.cable_changes);
    }

    /// Drops what comes for a guest whose cable is out.
    pub(super) fn lose_what_comes(&mut self, rx: &mut RxQueue) -> bool {
        self.lose_waiting(rx, BUDGET_FRAMES) > 0
    }

    /// Drops frames that wait for a receive vring alone; returns how many.
    fn lose_waiting(&mut self, rx: &mut RxQueue, most: usize) -> usize {
        rx.lose_held();
        let pending = usize::from(rx.pending.take().is_some());
        rx.starved = false;
        let attachment = rx
            .link_queue
            .and_then(|at| self.attachments.get_mut(at)?.as_mut());
        let frames = attachment.map_or(0, |from| from.lose_waiting(&mut self.spare, most));
        for _ in 0..pending + frames {
            rx.counters.count_drop(DropReason::LinkDown);
        }
        frames
    }
}
