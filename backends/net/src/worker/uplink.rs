// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the uplink of a switch to its ports.

use ringside_common::memory::Buffers;

use super::{BUDGET_BYTES, BUDGET_FRAMES, NetTurn, NetWorker};
use crate::hub::Fabric;
use crate::link::{Received, Room};

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
