// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ringside-net beside DPDK's vhost back-end, QEMU's own network device, and the bare kernel.

#[path = "net/contender.rs"]
mod contender;
#[path = "net/contest.rs"]
mod contest;
#[path = "net/fairness.rs"]
mod fairness;
#[path = "figures.rs"]
mod figures;
#[path = "net/frames.rs"]
mod frames;
#[path = "net/guest.rs"]
mod guest;
#[path = "net/host.rs"]
mod host;
#[path = "../net/fairness/hostile.rs"]
mod hostile;
#[path = "../net/fairness/pair.rs"]
mod pair;
#[path = "net/tap.rs"]
mod tap;

use std::error::Error;
use std::time::Duration;

use ringside_tests::process::old_back_end_binary;
use ringside_tests::vm::network_needs;
use ringside_tests::{skip, testpmd};

use contender::{Contender, Load, Side};
use figures::{Series, has_option, say};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HELP: &str = "\
net: ringside-net beside others. Back-ends have processor 0, front-ends processor 1. All contenders
of a part run all the time; each round gives each its turn. Printed are medians over rounds (and the
middle 80 %), and ratios of ours to theirs, taken round by round. DPDK's side never sleeps; ours
does when there is nothing to do.

  a  64-byte frames of the guest, taken out of its memory and dropped (null / DPDK's rxonly)
  b  64-byte frames into the guest's buffers (null:64 / DPDK's txonly)
  c  frames between two guests and back, by their addresses (switch / DPDK's io, which looks at none)
  d  64-byte frames of the guest to a tap (tap / DPDK's net_vhost and net_tap / a loop of writev)
  e  TCP segments of 62 KiB of the guest to a tap (tap / a loop of writev)
  f  TCP of a guest in QEMU, both ways (tap / QEMU's own tap device / passt's own vhost-user device)
  g  frames between two guests, with and without a hostile third one on their switch

In a to d the front-end is DPDK's virtio_user, without huge pages; in e and g it is this project's.

  cargo bench -p ringside-tests --bench net                 all parts, about five minutes
  cargo bench -p ringside-tests --bench net -- d e          these parts
  cargo bench -p ringside-tests --bench net -- --rounds 15  more rounds; 7 by default
  cargo bench -p ringside-tests --bench net -- --full       15 rounds, each twice as long
  cargo bench -p ringside-tests --bench net -- --noise      a to c with DPDK on both sides: what the
                                                            machine adds
  RINGSIDE_BENCH_OLD=DIR  in a to d, DIR/ringside-net takes the place of others: for a change under way
";

/// What to run.
struct Plan {
    /// Letters of the parts; all where none is given.
    parts: Vec<String>,
    rounds: usize,
    slice: Duration,
}

impl Plan {
    fn of_arguments() -> Result<Self> {
        let (rounds, slice) = if has_option("--full") {
            (15, Duration::from_secs(1))
        } else {
            (7, Duration::from_millis(500))
        };
        let mut plan = Self {
            parts: Vec::new(),
            rounds,
            slice,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--rounds" {
                let rounds = arguments.next().ok_or("--rounds of what?")?;
                plan.rounds = rounds.parse()?;
            } else if !argument.starts_with("--") {
                plan.parts.push(argument);
            }
        }
        let known =
            |part: &String| matches!(part.as_str(), "a" | "b" | "c" | "d" | "e" | "f" | "g");
        match plan.parts.iter().find(|part| !known(part)) {
            Some(part) => Err(format!("no part {part}").into()),
            None => Ok(plan),
        }
    }

    fn has(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    /// Whether a part is to run, and can: says so loudly when it cannot.
    fn runs(&self, part: &str, lack: Option<String>) -> bool {
        if !self.has(part) {
            return false;
        }
        match lack {
            None => true,
            Some(reason) => {
                skip::report(&format!("bench net {part}"), &reason);
                false
            }
        }
    }
}

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
        "\n{}: {}, million frames per second\n  ours {:>20}   {} {:>20}   ratio {ratio}",
        load.part,
        load.name,
        ours.to_string(),
        sides[1].name(),
        theirs.to_string()
    ));
    Ok(())
}

fn main() -> Result<()> {
    say(HELP);
    if has_option("--help") {
        return Ok(());
    }
    let plan = Plan::of_arguments()?;
    let (rounds, slice) = (plan.rounds, plan.slice);
    let sides = if has_option("--noise") {
        [Side::Theirs, Side::Theirs]
    } else if old_back_end_binary("ringside-net").is_some() {
        [Side::Ours, Side::Old]
    } else {
        [Side::Ours, Side::Theirs]
    };
    let no_testpmd = || testpmd::available().err();
    for load in &Load::ALL {
        if plan.runs(load.part, no_testpmd()) {
            measure(load, sides, rounds, slice)?;
        }
    }
    if plan.runs("d", no_testpmd().or_else(network_needs)) {
        host::inside(|network| tap::short_frames(network, rounds, slice))?;
    }
    if plan.runs("e", network_needs()) {
        host::inside(|network| tap::long_frames(network, rounds, slice))?;
    }
    if plan.runs("f", network_needs()) {
        host::inside(|network| guest::tcp_of_a_guest(network, rounds))?;
    }
    if plan.runs("g", None) {
        fairness::hostile_port(rounds, slice / 2)?;
    }
    Ok(())
}
