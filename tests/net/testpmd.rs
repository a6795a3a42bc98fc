// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DPDK's `virtio_user` front-end on `ringside-net`: every frame sent arrives, in a closed loop, for
//! combinations of merged buffers, order, queues, ring lengths and frame lengths.
//!
//! By default so few combinations are run that every pair of values meets;
//! `RINGSIDE_FULL_MATRIX=1` runs all. `RINGSIDE_NET_BACK_END=dpdk` runs the same on DPDK's own
//! back-end, which shows what the cases themselves are worth.

#[path = "testpmd/target.rs"]
mod target;

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringside_tests::covering;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::testpmd::{self, PortStats, Testpmd, TestpmdBuilder};

use target::{Case, Target};

type TestResult = Result<(), Box<dyn Error>>;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Frames that have to come round in each case, at least.
const FRAMES: u64 = 20_000;

/// Both sides poll: two such pairs at once are more than two processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits until what the ports have counted satisfies `enough`.
fn wait_stats(
    front: &mut Testpmd,
    ports: usize,
    enough: impl Fn(&[PortStats]) -> bool,
) -> Result<Vec<PortStats>, Box<dyn Error>> {
    let start = Instant::now();
    loop {
        let stats = (0..ports)
            .map(|port| front.stats(port))
            .collect::<Result<Vec<_>, _>>()?;
        if enough(&stats) {
            return Ok(stats);
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("stuck at {stats:?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sum(stats: &[PortStats], of: impl Fn(&PortStats) -> u64) -> u64 {
    stats.iter().map(of).sum()
}

/// Lets a first burst go round, then takes everything out again and counts.
fn closed_loop(front: &mut Testpmd, ports: usize, case: &Case) -> TestResult {
    front.start_tx_first(1)?;
    wait_stats(front, ports, |stats| sum(stats, |s| s.rx_packets) >= FRAMES)?;
    front.stop_forwarding()?;
    front.set_mode("rxonly")?;
    front.start_forwarding()?;
    let stats = wait_stats(front, ports, |stats| {
        sum(stats, |s| s.rx_packets) >= sum(stats, |s| s.tx_packets)
    })
    .map_err(|e| format!("{case:?}: frames are lost: {e}"))?;
    let (sent, received) = (sum(&stats, |s| s.tx_packets), sum(&stats, |s| s.rx_packets));
    assert_eq!(received, sent, "{case:?}: more than was sent");
    let bytes = sent * case.bytes as u64;
    assert_eq!(sum(&stats, |s| s.tx_bytes), bytes, "{case:?}");
    assert_eq!(sum(&stats, |s| s.rx_bytes), bytes, "{case:?}");
    Ok(())
}

fn run(target: &Target, case: &Case) -> TestResult {
    let ports = target.ports();
    let mut running = target.start()?;
    let mut front = case.front(&running.sockets())?.start()?;
    closed_loop(&mut front, ports, case).map_err(|e| format!("{e}{}", running.losses()))?;
    drop(front);
    running.check()
}

#[test]
fn every_frame_comes_back_from_a_loop() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for choice in covering::cases(Case::VALUES) {
        run(&Target::of(1), &Case::of(choice))?;
    }
    Ok(())
}

#[test]
fn every_frame_goes_from_port_to_port_and_back() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for choice in covering::cases(Case::VALUES) {
        run(&Target::of(2), &Case::of(choice))?;
    }
    Ok(())
}

/// A front-end that listens, and a back-end that is killed under traffic and comes back.
#[test]
fn traffic_resumes_after_a_back_end_that_connects_was_killed() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    if Target::is_theirs() {
        skip!("the back-end is not ours to kill");
    }
    let full = std::env::var_os(covering::FULL_VARIABLE).is_some();
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // New frames all the time: those in the rings of a killed back-end are lost.
    let builder = TestpmdBuilder::new("flowgen", 1)?;
    let socket = builder.path("server.sock");
    let mut front = builder
        .virtio_user(&socket, "server=1,queue_size=256")
        .spawn()?;
    let waiting = socket.clone();
    front
        .process()
        .poll_until("listening front-end", PATIENCE, |_| {
            Ok(waiting.exists().then_some(()))
        })?;
    let mut back = NetBackEnd::connecting(&socket, &["--backend", "loopback"])?;
    front.wait_prompt()?;
    front.start_forwarding()?;
    for _ in 0..if full { 50 } else { 5 } {
        let before = front.stats(0)?.rx_packets;
        wait_stats(&mut front, 1, |stats| stats[0].rx_packets > before + 1000)?;
        back.process().kill()?;
        back = NetBackEnd::connecting(&socket, &["--backend", "loopback"])?;
    }
    let before = front.stats(0)?.rx_packets;
    wait_stats(&mut front, 1, |stats| stats[0].rx_packets > before + 1000)?;
    Ok(())
}
