// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Part g: what a hostile port of a switch takes from two others.
//!
//! One thread is all guests. It gives the hostile port its turn after each turn of the others, so
//! that there is always something hostile to do; in turns without it, it waits for as long as that
//! took. What is left of the difference is the switch's.

use std::time::{Duration, Instant};

use ringside_tests::net_back_end::NetBackEnd;

use crate::Result;
use crate::contender::bind;
use crate::contest::{BACK_END_CPU, FRONT_END_CPU, bind_self, ratios, series};
use crate::figures::say;
use crate::hostile::{Hostile, Malice};
use crate::pair::GoodPair;

const FRAME_BYTES: usize = 64;

/// How the two send.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// So many frames under way in each direction.
    Loop(u64),
    /// So many frames per second in each direction.
    Clock(u32),
}

const PACES: [Pace; 2] = [Pace::Clock(100_000), Pace::Loop(32)];

/// Everybody.
struct Scene {
    pair: GoodPair,
    hostile: Hostile,
    /// What a turn of the hostile port took when it last had one.
    act: Duration,
    back_end: NetBackEnd,
}

impl Scene {
    fn start(malice: Malice) -> Result<Self> {
        bind_self(FRONT_END_CPU)?;
        let mut back_end = NetBackEnd::start(3, &["--backend", "switch"])?;
        let streams = [back_end.connect(1)?, back_end.connect(2)?];
        let scene = Self {
            pair: GoodPair::open(streams, FRAME_BYTES)?,
            hostile: Hostile::open(back_end.connect(0)?, malice)?,
            act: Duration::ZERO,
            back_end,
        };
        Ok(scene)
    }

    fn bind(&mut self) -> Result<()> {
        bind(self.back_end.process().id(), BACK_END_CPU)
    }

    /// Frames per second that have arrived, in millions.
    fn turn(&mut self, pace: Pace, is_hostile: bool, slice: Duration) -> Result<f64> {
        let (start, base) = (Instant::now(), self.pair.sent());
        let count = |pair: &GoodPair| pair.arrived().iter().sum::<u64>();
        let already = count(&self.pair);
        let (mut acts, mut acting) = (0, Duration::ZERO);
        while start.elapsed() < slice {
            match pace {
                Pace::Loop(in_flight) => self.pair.turn(in_flight)?,
                Pace::Clock(rate) => {
                    let due = start.elapsed().as_micros() * u128::from(rate) / 1_000_000;
                    let due = u64::try_from(due)?;
                    self.pair.advance(base.map(|base| base + due))?;
                }
            }
            let before = Instant::now();
            if is_hostile {
                self.hostile.act()?;
                acting += before.elapsed();
                acts += 1;
            } else {
                while before.elapsed() < self.act {
                    std::hint::spin_loop();
                }
            }
        }
        if is_hostile {
            self.act = acting / acts;
        }
        let arrived = u32::try_from(count(&self.pair) - already)?;
        Ok(f64::from(arrived) / start.elapsed().as_secs_f64() / 1e6)
    }
}

/// Part g.
pub(crate) fn hostile_port(rounds: usize, slice: Duration) -> Result<()> {
    say("\ng: frames between two ports of a switch, million per second; wanted: 0.9");
    for pace in PACES {
        for malice in Malice::ALL {
            let mut scene = Scene::start(malice)?;
            let mut rates = [Vec::new(), Vec::new()];
            for round in 0..=rounds {
                // The first turn of all is hostile, to learn what that takes.
                for is_hostile in [round % 2 == 0, round % 2 != 0] {
                    let rate = scene.turn(pace, is_hostile, slice)?;
                    if round == 0 {
                        scene.bind()?;
                    } else {
                        rates[usize::from(is_hostile)].push(rate);
                    }
                }
            }
            let [without, with] = rates;
            say(format_args!(
                "  {:16} {:14} without {:>18}   with {:>18}   ratio {:>18}   lost {}",
                format!("{malice:?}"),
                format!("{pace:?}"),
                series(&without).to_string(),
                series(&with).to_string(),
                ratios(&with, &without).to_string(),
                scene.pair.lost(),
            ));
        }
    }
    Ok(())
}
