// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a guest is there for its network, and what becomes of frames that came when it was not.
//!
//! A receive queue serves while it is started and enabled; a `drain` of the operator does not end
//! that, since the guest goes on. What waits in the link when it begins to, after a reboot of the
//! guest or for another one, is old, and so is what has come while the cable was out. Old frames are
//! dropped and counted, before the host is shown a carrier again.

use std::sync::Arc;

use super::receive::RxQueue;
use super::{BUDGET_FRAMES, NetQueue, NetTurn, NetWorker, Side};
use crate::counters::DropReason;
use crate::port::Port;

/// More than a queue of the host holds: senders may go on meanwhile.
pub(super) const MOST_FRAMES: usize = 1 << 14;

impl NetWorker {
    /// A receive vring has started, was enabled or disabled.
    pub(super) fn follow_serving(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        if let Some(place) = turn.vrings.get(slot) {
            let serves = place.vring.is_enabled();
            self.set_serving(turn, slot, serves);
        }
    }

    /// A receive vring begins to serve, or no longer does.
    pub(super) fn set_serving(&mut self, turn: &mut NetTurn<'_>, slot: usize, serves: bool) {
        let Some((port, rx)) = receiver(turn, slot) else {
            return;
        };
        if rx.serves == serves {
            return;
        }
        rx.serves = serves;
        if serves {
            self.lose_waiting(turn, slot, MOST_FRAMES);
            if let Some((_, rx)) = receiver(turn, slot) {
                rx.cable_changes = port.cable.begin();
            }
        } else {
            port.cable.end(rx.cable_changes);
        }
        self.hub.follow_carrier();
    }

    /// The cables of some guests may have been plugged in or out.
    pub(super) fn follow_cables(&mut self, turn: &mut NetTurn<'_>) {
        for slot in 0..turn.vrings.len() {
            self.follow_cable(turn, slot);
        }
    }

    /// The cable of a guest may have been plugged in or out.
    #[inline]
    pub(super) fn follow_cable(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        let queue = turn.vrings.get(slot).map(|place| &place.queue);
        if let Some(NetQueue { side, port, .. }) = queue
            && let Side::Receive(rx) = side
            && rx.serves
            && rx.cable_changes != port.cable.changes()
        {
            self.notice_cable(turn, slot);
        }
    }

    #[cold]
    fn notice_cable(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        self.lose_waiting(turn, slot, MOST_FRAMES);
        if let Some((port, rx)) = receiver(turn, slot) {
            rx.cable_changes = port.cable.notice(rx.cable_changes);
        }
    }

    /// Drops what comes for a guest whose cable is out.
    pub(super) fn lose_what_comes(&mut self, turn: &mut NetTurn<'_>, slot: usize) -> bool {
        self.lose_waiting(turn, slot, BUDGET_FRAMES) > 0
    }

    /// Drops frames that wait for a receive vring alone; returns how many.
    fn lose_waiting(&mut self, turn: &mut NetTurn<'_>, slot: usize, most: usize) -> usize {
        let Some(place) = turn.vrings.get_mut(slot) else {
            return 0;
        };
        let Side::Receive(rx) = &mut place.queue.side else {
            return 0;
        };
        rx.lose_held(&place.queue.counters);
        let pending = usize::from(rx.pending.take().is_some());
        rx.starved = false;
        let wire = rx.wire.and_then(|at| self.wires.get_mut(at)?.as_mut());
        let frames = wire.map_or(0, |wire| wire.lose_waiting(&mut self.spare, most));
        for _ in 0..pending + frames {
            place.queue.counters.count_drop(DropReason::LinkDown);
        }
        frames
    }
}

fn receiver<'a>(turn: &'a mut NetTurn<'_>, slot: usize) -> Option<(Arc<Port>, &'a mut RxQueue)> {
    let queue = &mut turn.vrings.get_mut(slot)?.queue;
    match &mut queue.side {
        Side::Receive(rx) => Some((Arc::clone(&queue.port), &mut **rx)),
        Side::Transmit(_) | Side::Control(_) => None,
    }
}
