// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hostile port of a switch takes nothing from two others: every frame they send arrives.
//!
//! How fast is part g of the benchmark `net`; here are counts only.

#[path = "fairness/hostile.rs"]
mod hostile;
#[path = "fairness/pair.rs"]
mod pair;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringside_tests::hostile::{PATIENCE, Result, TestResult};
use ringside_tests::net_back_end::NetBackEnd;

use hostile::{Hostile, Malice};
use pair::GoodPair;

/// In each direction.
const FRAMES: u64 = 20_000;
const BYTES: usize = 200;
const IN_FLIGHT: u64 = 32;
/// For all frames on a busy machine, whose processors the hostile thread does not leave idle.
const LIMIT: Duration = Duration::from_secs(120);

/// Exchanges all frames while another thread is hostile, and returns how many were lost.
fn exchange_beside(malice: Malice, hostile_port: &str) -> Result<u64> {
    let ports = [hostile_port, "", ""];
    let mut back_end = NetBackEnd::start_ports(&ports, &["--backend", "switch"])?;
    let mut pair = GoodPair::open([back_end.connect(1)?, back_end.connect(2)?], BYTES)?;
    let mut hostile = Hostile::open(back_end.connect(0)?, malice)?;
    let (stop, given) = (AtomicBool::new(false), AtomicU64::new(0));
    let (exchanged, acted) = std::thread::scope(|scope| {
        let (stop, given) = (&stop, &given);
        let thread = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match hostile.act() {
                    Ok(count) => given.fetch_add(count as u64, Ordering::Relaxed),
                    Err(error) => return Err(format!("{malice:?}: {error}")),
                };
            }
            Ok(())
        });
        let exchanged = exchange(&mut pair, given);
        stop.store(true, Ordering::Relaxed);
        (exchanged, thread.join())
    });
    exchanged.map_err(|e| format!("{malice:?}: {e}"))?;
    acted.map_err(|_panic| "a panic of the hostile thread")??;
    let status = back_end.terminate()?;
    assert!(status.success(), "{malice:?}: {status}");
    Ok(pair.lost())
}

/// Until all frames have arrived and the hostile port was heard meanwhile.
fn exchange(pair: &mut GoodPair, given: &AtomicU64) -> Result<()> {
    let (start, before) = (Instant::now(), given.load(Ordering::Relaxed));
    let hostile_for = || given.load(Ordering::Relaxed) - before;
    while pair.arrived().iter().any(|count| *count < FRAMES) || hostile_for() < 1000 {
        pair.turn(IN_FLIGHT)?;
        if start.elapsed() > LIMIT {
            let (arrived, acts) = (pair.arrived(), hostile_for());
            return Err(format!("{arrived:?} frames beside {acts} hostile acts").into());
        }
    }
    // And those still under way.
    let (goal, start) = (pair.sent(), Instant::now());
    while pair.arrived().iter().sum::<u64>() + pair.lost() < goal.iter().sum() {
        pair.advance(goal)?;
        if start.elapsed() > PATIENCE {
            return Err(format!("{:?} of {goal:?} frames", pair.arrived()).into());
        }
    }
    Ok(())
}

#[test]
fn frames_of_others_all_arrive_beside_a_hostile_port() -> TestResult {
    for malice in Malice::ALL {
        // Broadcasts take the receivers' own buffers; kept out of their VLAN, only the switch's
        // time.
        let port = if malice == Malice::Broadcasts {
            ",vlan=7"
        } else {
            ""
        };
        assert_eq!(exchange_beside(malice, port)?, 0, "{malice:?}");
    }
    Ok(())
}

#[test]
fn frames_of_others_arrive_among_the_broadcasts_of_a_hostile_port() -> TestResult {
    exchange_beside(Malice::Broadcasts, "").map(drop)
}
