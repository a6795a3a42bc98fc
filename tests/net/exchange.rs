// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames sent in a closed loop: as many under way as agreed, none lost, none damaged.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each suite that includes this file uses some of it"
)]

use std::time::{Duration, Instant};

use ringside_frontend::Result;
use ringside_frontend::net::{Flow, Mac, NetFault, NetHeader, Pair, RxQueue, TxQueue};

/// The address of the driver that tests play.
pub(crate) const OURS: Mac = [2, 0, 0, 0, 0, 0xa1];
/// An address nobody has.
pub(crate) const THEIRS: Mac = [2, 0, 0, 0, 0, 0xb2];

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Frames in all.
    pub(crate) frames: u64,
    /// Length of each.
    pub(crate) bytes: usize,
    /// Under way at a time.
    pub(crate) in_flight: u64,
    /// Between a frame sent and its arrival at most.
    pub(crate) timeout: Duration,
}

/// Sends to something that gives each frame back with its addresses exchanged.
pub(crate) fn exchange_with_reflector(pair: &mut Pair, plan: &Plan) -> Result<()> {
    exchange(
        (&mut pair.tx, &mut pair.rx),
        &Flow::new(OURS, THEIRS, plan.bytes as u64),
        &mut Flow::new(THEIRS, OURS, plan.bytes as u64),
        plan,
    )
}

/// Sends to something that gives each frame back as it is.
pub(crate) fn exchange_with_loop(pair: &mut Pair, plan: &Plan) -> Result<()> {
    exchange(
        (&mut pair.tx, &mut pair.rx),
        &Flow::new(OURS, THEIRS, plan.bytes as u64),
        &mut Flow::new(OURS, THEIRS, plan.bytes as u64),
        plan,
    )
}

/// Sends frames of one flow to `tx` and takes them from `rx` as those of another, in their order.
pub(crate) fn exchange(
    (tx, rx): (&mut TxQueue, &mut RxQueue),
    sent: &Flow,
    arriving: &mut Flow,
    plan: &Plan,
) -> Result<()> {
    let (mut next, mut due) = (0, 0);
    let (mut frame, mut arrived) = (Vec::new(), Vec::new());
    rx.post_all()?;
    // Long chains leave a short ring room for few buffers.
    let in_flight = plan.in_flight.min(rx.posted() as u64);
    while due < plan.frames {
        while next < plan.frames && next < due + in_flight {
            sent.make(next, plan.bytes, &mut frame);
            if !tx.send(&NetHeader::default(), &frame)? {
                // Frames may arrive before their buffers are given back.
                if next > due {
                    break;
                }
                tx.wait_all(plan.timeout)?;
                continue;
            }
            next += 1;
        }
        tx.publish()?;
        rx.wait(&mut arrived, plan.timeout)?;
        loop {
            let found = arriving.check(&arrived, plan.bytes)?;
            if found != due {
                let expected = due;
                return Err(NetFault::Sequence { found, expected }.into());
            }
            due += 1;
            if rx.poll(&mut arrived)?.is_none() {
                break;
            }
        }
        rx.post_all()?;
        tx.reap()?;
    }
    tx.wait_all(plan.timeout)
}

/// Polls until `probe` is true or the time is over; whether it became true.
pub(crate) fn eventually(
    timeout: Duration,
    mut probe: impl FnMut() -> Result<bool>,
) -> Result<bool> {
    let start = Instant::now();
    loop {
        if probe()? {
            return Ok(true);
        }
        if start.elapsed() > timeout {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
