// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ringside-net beside DPDK's vhost back-end.

#[path = "net/contender.rs"]
mod contender;
#[path = "figures.rs"]
mod figures;

use std::error::Error;
use std::time::Duration;

use ringside_tests::testpmd;

use contender::{Contender, Load, Side};
use figures::{Series, has_option, say};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HELP: &str = "\
net: ringside-net beside DPDK's net_vhost, both with DPDK's virtio_user front-end, without huge
pages. The back-end has processor 0, the front-end processor 1. Both back-ends run all the time;
each round gives each its turn.

Printed are medians over rounds (and the middle 80 %) of million frames per second, and the ratio of
ours to theirs, taken round by round. DPDK's side never sleeps; ours does when there is nothing to do.

  transmit   64-byte frames of the guest, taken out of its memory and dropped (null / rxonly)
  receive    64-byte frames into the guest's buffers (null:64 / txonly)
  switch     frames between two guests and back, by their addresses (switch / io, which looks at none)

  cargo bench -p ringside-tests --bench net              about a minute
  cargo bench -p ringside-tests --bench net -- --full    more and longer rounds
  cargo bench -p ringside-tests --bench net -- --noise   DPDK on both sides: what the machine adds
";

/// Measures both sides in turn.
fn measure(load: &Load, sides: [Side; 2], rounds: usize, slice: Duration) -> Result<()> {
    let mut contenders = [
        Contender::start(load, sides[0])?,
        Contender::start(load, sides[1])?,
    ];
    let mut rates = [Vec::new(), Vec::new()];
    // The first round warms up.
    for round in 0..=rounds {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let rate = contenders[at].round(load, slice)?;
            if round > 0 {
                rates[at].push(rate / 1e6);
            }
        }
    }
    let mut ratio = Series::default();
    rates[0]
        .iter()
        .zip(&rates[1])
        .for_each(|(ours, theirs)| ratio.push(ours / theirs));
    let [ours, theirs] = rates.map(|values| {
        let mut series = Series::default();
        values.iter().for_each(|value| series.push(*value));
        series
    });
    say(format_args!(
        "{:22} ours {:>20}   DPDK {:>20}   ratio {ratio}",
        load.name,
        ours.to_string(),
        theirs.to_string()
    ));
    Ok(())
}

fn main() -> Result<()> {
    say(HELP);
    if has_option("--help") {
        return Ok(());
    }
    if let Err(reason) = testpmd::available() {
        say(format_args!("RINGSIDE-SKIP bench net: {reason}"));
        return Ok(());
    }
    let sides = if has_option("--noise") {
        [Side::Theirs, Side::Theirs]
    } else {
        [Side::Ours, Side::Theirs]
    };
    let (rounds, slice) = if has_option("--full") {
        (15, Duration::from_secs(1))
    } else {
        (7, Duration::from_millis(500))
    };
    for load in &Load::ALL {
        measure(load, sides, rounds, slice)?;
    }
    Ok(())
}
