// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control queue (virtio 1.3 §5.1.6.5), where a front-end hands it on.
//!
//! What a command says is kept with the port: receive queues look there when it has changed.

use ringside_common::limited;

use super::queue::{NetTurn, Slots as _};
use super::slot::ControlSlot;
use crate::control::{Command, Context, ERR, HEADER_BYTES, OK};
use crate::port::Port;

/// Commands carried out before others have their turn.
const BUDGET: usize = 16;

/// Carries out what the driver asks for.
pub(super) fn serve(turn: &mut NetTurn<'_>, slot: ControlSlot) -> bool {
    let Some((vring, queue)) = turn.vrings.control_mut(slot) else {
        return false;
    };
    let buffers = &mut queue.buffers;
    let mut served = 0;
    while served < BUDGET && vring.is_live() {
        let Some(head) = vring.next_head() else {
            break;
        };
        served += 1;
        let sound = vring.read_chain(head, buffers).is_ok();
        buffers.keep_front();
        // The answer is the first writable byte; without room for it there is nothing to be done.
        if buffers.writable_bytes() == 0 {
            buffers.release();
            vring.push_used(head, 0);
            continue;
        }
        let answer = match buffers.take_header::<HEADER_BYTES>() {
            Some(header) if sound => {
                let context = Context {
                    features: queue.port.acked_features(),
                    max_pairs: queue.port.pairs,
                    announcing: false,
                };
                let read_at = |offset, to: &mut [u8]| buffers.read_at(offset, to);
                match Command::parse(header, read_at, &context) {
                    Ok(command) => carry_out(&queue.port, command),
                    Err(fault) => {
                        limited!(debug, "port {}: {fault}", queue.port.options.name);
                        ERR
                    }
                }
            }
            _ => ERR,
        };
        buffers.write_at(0, &[answer]);
        buffers.release();
        vring.push_used(head, 1);
    }
    vring.stats().add_chains(served as u64);
    served > 0
}

fn carry_out(port: &Port, command: Command) -> u8 {
    match command {
        Command::Filter(change) => port.change_filter(|filter| filter.apply(change)),
        Command::Pairs(pairs) => port.set_active_pairs(pairs),
        // The device never asks for an announcement, and the feature of the other command is not
        // offered: front-ends that have a use for it keep it to themselves.
        Command::Announced | Command::GuestOffloads(_) => return ERR,
    }
    OK
}
