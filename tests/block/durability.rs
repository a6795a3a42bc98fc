// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Durability: what was acknowledged as stable survives, and what was lost is owned up to.
//!
//! The real request path runs in this process, on a disk with a volatile cache
//! ([`ringside_tests::block_engine`]). The random runs are numbered; one that fails says how to
//! run it alone.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of sectors, widened for the engine and narrowed for the driver"
)]

#[path = "durability/cuts.rs"]
mod cuts;
#[path = "durability/faults.rs"]
mod faults;
#[path = "durability/modes.rs"]
mod modes;
#[path = "durability/oracle.rs"]
mod oracle;
#[path = "durability/overlap.rs"]
mod overlap;

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringside_frontend::load::Rng;
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::session::{Session, SessionBuilder};

use cuts::{Counts, MODES, Run};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Of the `writeback` field in the configuration space (virtio 1.3 §5.2.4).
pub(crate) const WCE_OFFSET: u32 = 32;

/// Repeats one run: `<mode>:<seed>`.
const RUN_VARIABLE: &str = "RINGSIDE_DURABILITY_RUN";
/// Of all runs together.
const CUTS: u64 = 10_000;
/// Of one run.
const CUTS_PER_RUN: u64 = 100;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// A session on little memory: there are many of them.
pub(crate) fn builder(queues: usize) -> SessionBuilder {
    Session::builder()
        .queues(queues)
        .queue_size(64)
        .memory(MemoryLayout::single(4 << 20))
        .timeout(PATIENCE)
}

fn run(mode: usize, seed: u64) -> Result<Counts, Box<dyn std::error::Error>> {
    let attempt = || {
        let mut run = Run::new(MODES[mode], seed)?;
        run.cut_often(CUTS_PER_RUN)?;
        run.finish()
    };
    attempt().map_err(|error: Box<dyn std::error::Error>| {
        let name = MODES[mode].name;
        format!("{name}: {error}\nonce more: {RUN_VARIABLE}={mode}:{seed}").into()
    })
}

#[test]
fn ten_thousand_power_cuts_lose_nothing_that_was_acknowledged_as_stable() -> TestResult {
    if let Ok(only) = std::env::var(RUN_VARIABLE) {
        let (mode, seed) = only.split_once(':').ok_or("not <mode>:<seed>")?;
        run(mode.parse()?, seed.parse()?)?;
        return Ok(());
    }
    let first = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut seeds = Rng::new(first);
    let mut total = Counts::default();
    for number in 0..CUTS / CUTS_PER_RUN {
        let counts = run(number as usize % MODES.len(), seeds.next_u64())?;
        total.cuts += counts.cuts;
        total.busy_cuts += counts.busy_cuts;
        total.writes += counts.writes;
        total.flushes += counts.flushes;
        total.reads += counts.reads;
        total.switches += counts.switches;
    }
    // Past libtest's capture, which keeps the figures of a test that passes to itself.
    writeln!(std::io::stderr(), "durability, seed {first}: {total:?}")?;
    assert_eq!(total.cuts, CUTS);
    let least = CUTS / 10;
    assert!(total.busy_cuts > least && total.writes > least, "{total:?}");
    assert!(total.flushes > least / 5 && total.reads > least / 5);
    assert!(total.switches > 100, "{total:?}");
    Ok(())
}
