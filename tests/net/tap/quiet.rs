// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What it costs to do nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringside_frontend::net::NetPort;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::process::thread_activity;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;

use crate::kernel::{Host, TAP};
use crate::{PATIENCE, SILENCE, Stop, TestResult, counters, open, plain, report, to_kernel};

#[test]
fn rule_18_flood_for_a_guest_without_buffers_costs_nothing() -> TestResult {
    const TIME: Duration = Duration::from_secs(10);
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?;
    let mut back_end = host.back_end(1)?;
    let mut port = open(&mut back_end, 1)?;
    host.meet()?;
    let rx = &mut port.pairs[0].rx;
    let socket = host.socket()?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // What does not go out has found the tap full.
                let _ = socket.send_to(&[0; 64], ("10.9.0.2", 9));
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _stop = Stop(&stop);
        let mut frame = Vec::new();
        rx.post(10)?;
        for _ in 0..10 {
            rx.wait(&mut frame, PATIENCE)?;
        }
        thread::sleep(SILENCE);
        let before = back_end.process().sample()?;
        thread::sleep(TIME);
        let after = back_end.process().sample()?;
        let cpu = after.cpu.saturating_sub(before.cpu);
        let start = Instant::now();
        rx.post(1)?;
        rx.wait(&mut frame, PATIENCE)?;
        let delay = start.elapsed();
        let frames = sent.load(Ordering::Relaxed);
        let wake_ups = after.voluntary_switches - before.voluntary_switches;
        report(&format!(
            "{frames} frames in {TIME:?} for a guest without buffers: {cpu:?} of processor \
                 time, {wake_ups} wake-ups; a frame {delay:?} after a buffer"
        ));
        assert!(cpu < TIME / 100, "{cpu:?}");
        assert!(frames > 10_000, "no flood: {frames} frames");
        let received = counters(&back_end, 0)?;
        assert!(received["no_buffer_waits"].as_u64() > Some(0), "{received}");
        assert_eq!(received["good_packets"], 11, "{received}");
        Ok(())
    })
}

/// A frame each way.
fn exchange(host: &Host, port: &mut NetPort) -> TestResult {
    let socket = host.socket()?;
    let frame = to_kernel((1000, socket.local_addr()?.port()), b"hello");
    port.pairs[0].tx.send_now(&plain(), &frame, PATIENCE)?;
    let mut arrived = [0; 64];
    let (_, from) = socket.recv_from(&mut arrived)?;
    socket.send_to(b"hello", from)?;
    port.pairs[0].rx.wait(&mut Vec::new(), PATIENCE)?;
    Ok(())
}

#[test]
fn idle_tap_and_uplink_do_not_wake_up() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let hosts = [Host::new(2)?, Host::new(1)?];
    let uplink = hosts[1].link(TAP);
    let mut back_ends = [
        hosts[0].back_end(2)?,
        NetBackEnd::start(2, &["--backend", "switch", "--uplink", &uplink])?,
    ];
    let mut ports = Vec::new();
    for (back_end, pairs) in back_ends.iter_mut().zip([2, 1]) {
        let mut port = open(back_end, pairs)?;
        port.pairs[0].rx.post_all()?;
        ports.push(port);
    }
    for (host, port) in hosts.iter().zip(&mut ports) {
        host.meet()?;
        for _ in 0..10 {
            exchange(host, port)?;
        }
    }
    thread::sleep(Duration::from_secs(1));
    let [first, second] = &mut back_ends;
    let ids = [first.process().id(), second.process().id()];
    let before = [thread_activity(ids[0])?, thread_activity(ids[1])?];
    thread::sleep(Duration::from_secs(5));
    let after = [thread_activity(ids[0])?, thread_activity(ids[1])?];
    assert_eq!(after, before);
    // Idle, not dead.
    for (host, port) in hosts.iter().zip(&mut ports) {
        exchange(host, port)?;
    }
    Ok(())
}
