// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several contenders for one load, each in its turn.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Result;
use crate::figures::{Series, say};

/// Where back-ends run, and those that need none.
pub(crate) const BACK_END_CPU: usize = 0;
/// Where front-ends run, and so the bench between its turns.
pub(crate) const FRONT_END_CPU: usize = 1;

/// What one turn has shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Frames, or whatever is counted.
    pub(crate) count: f64,
    pub(crate) seconds: f64,
    /// Of the back-end's processor.
    pub(crate) cpu_seconds: f64,
}

/// Somebody who can carry the load.
pub(crate) trait Contender {
    /// Carries it for about as long.
    fn turn(&mut self, slice: Duration) -> Result<Turn>;
}

/// What is compared. The first contender is ours.
pub(crate) struct Contest<'a> {
    pub(crate) name: String,
    /// What is counted, and how much of it makes one of the unit.
    pub(crate) unit: (&'static str, f64),
    pub(crate) contenders: Vec<(&'static str, Box<dyn Contender + 'a>)>,
    /// By contender: which ratio is wanted.
    pub(crate) wanted: Vec<Option<f64>>,
}

/// One contender's figures, by round.
#[derive(Default)]
struct Figures {
    rate: Vec<f64>,
    per_cpu: Vec<f64>,
}

impl Contest<'_> {
    /// Runs and reports.
    pub(crate) fn run(mut self, rounds: usize, slice: Duration) -> Result<()> {
        let count = self.contenders.len();
        let mut figures: Vec<_> = (0..count).map(|_| Figures::default()).collect();
        // The first round warms up. Each starts a round in turn.
        for round in 0..=rounds {
            for at in (0..count).map(|turn| (round + turn) % count) {
                let turn = self.contenders[at].1.turn(slice)?;
                if round > 0 {
                    let units = turn.count / self.unit.1;
                    figures[at].rate.push(units / turn.seconds);
                    figures[at].per_cpu.push(units / turn.cpu_seconds);
                }
            }
        }
        self.report(&figures);
        Ok(())
    }

    fn report(&self, figures: &[Figures]) {
        say(format_args!("\n{}, {}", self.name, self.unit.0));
        let ours = &figures[0];
        for (at, ((name, _), theirs)) in self.contenders.iter().zip(figures).enumerate() {
            say(format_args!(
                "  {name:22} {:>24} per second   {:>24} per CPU-second",
                series(&theirs.rate).to_string(),
                series(&theirs.per_cpu).to_string(),
            ));
            if at > 0 {
                let wanted = self.wanted.get(at).copied().flatten();
                say(format_args!(
                    "    ours to that         {:>24}              {:>24}{}",
                    ratios(&ours.rate, &theirs.rate).to_string(),
                    ratios(&ours.per_cpu, &theirs.per_cpu).to_string(),
                    wanted.map_or_else(String::new, |ratio| format!("   wanted: {ratio}")),
                ));
            }
        }
    }
}

/// All values of a vector.
pub(crate) fn series(values: &[f64]) -> Series {
    let mut series = Series::default();
    values.iter().for_each(|value| series.push(*value));
    series
}

/// Ratios taken round by round.
pub(crate) fn ratios(ours: &[f64], theirs: &[f64]) -> Series {
    let each: Vec<_> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
    series(&each)
}

/// Binds the calling thread to a processor.
pub(crate) fn bind_self(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Calls `step` until the time is over, and returns how long that was.
pub(crate) fn for_a_while(
    slice: Duration,
    mut step: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let start = Instant::now();
    while start.elapsed() < slice {
        step()?;
    }
    Ok(start.elapsed())
}
