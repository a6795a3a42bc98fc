// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds that make the thread of the switch wait.

use std::time::{Duration, Instant};

use ringside_frontend::ids::request;
use ringside_frontend::net::{Flow, NetHeader, NetPort};
use ringside_frontend::raw::RawClient;
use ringside_tests::hostile::{PATIENCE, Result, TestResult, Trap};
use rustix::process::Signal;

use crate::scene::{HOSTILE, Scene, builder, config, hears};

/// A port, and a second hand on its connection.
fn port(scene: &mut Scene) -> Result<(NetPort, RawClient)> {
    let stream = scene.back_end.connect(0)?;
    let raw = RawClient::from_stream(stream.try_clone()?)?;
    Ok((NetPort::open(stream, builder(), &config())?, raw))
}

/// Has the back-end signal the port: it gives back what was sent, and frames come.
fn provoke(port: &mut NetPort) -> TestResult {
    let mut frame = Vec::new();
    Flow::new(HOSTILE, HOSTILE, 9).make(0, 100, &mut frame);
    let pair = &mut port.pairs[0];
    pair.rx.post_all()?;
    for ring in [&pair.rx.vring().ring, &pair.tx.vring().ring] {
        ring.set_used_event(ring.used_idx());
    }
    pair.tx.send(&NetHeader::default(), &frame)?;
    pair.tx.publish()?;
    Ok(())
}

/// Goes on so until the back-end has had enough.
fn provoke_to_the_end(port: &mut NetPort, raw: &RawClient) -> TestResult {
    let start = Instant::now();
    while raw.expect_closed(Duration::from_millis(100)).is_err() {
        if start.elapsed() > PATIENCE {
            return Err("the session goes on".into());
        }
        provoke(port)?;
        port.pairs[0].tx.reap()?;
    }
    Ok(())
}

#[test]
fn f1_2_full_eventfd_of_one_port_ends_its_session_and_nothing_else() -> TestResult {
    let mut scene = Scene::start()?;
    for (message, vring) in [
        (request::SET_VRING_CALL, 0),
        (request::SET_VRING_CALL, 1),
        (request::SET_VRING_ERR, 1),
    ] {
        let (mut port, raw) = port(&mut scene)?;
        let trap = Trap::new()?;
        trap.give(&raw, message, vring)?;
        trap.spring()?;
        if message == request::SET_VRING_ERR {
            let tx = port.pairs[0].tx.vring_mut();
            tx.ring
                .set_avail_idx(tx.ring.avail_idx().wrapping_add(3000));
            tx.kick()?;
        }
        provoke_to_the_end(&mut port, &raw)?;
        scene.goes_on()?;
        // It may have what it set up as long as it likes.
        drop((port, raw));
        scene.goes_on()?;
        drop(trap);
    }
    let log = scene.back_end.process().stderr();
    assert!(log.contains("had to be called off"), "{log}");
    scene.check()
}

#[test]
fn f1_2_full_eventfd_that_replaces_a_sound_one_ends_its_session() -> TestResult {
    let mut scene = Scene::start()?;
    let (mut port, raw) = port(&mut scene)?;
    port.pairs[0].rx.post_all()?;
    hears(&mut port)?;
    // The back-end signals a new one at once: a call may have gone to the old one.
    let trap = Trap::new()?;
    trap.give(&raw, request::SET_VRING_CALL, 0)?;
    trap.spring()?;
    let again = trap.give(&raw, request::SET_VRING_CALL, 1);
    assert!(again.is_ok() || raw.expect_closed(PATIENCE).is_ok());
    // The back-end has set `O_NONBLOCK` once more.
    trap.spring()?;
    provoke_to_the_end(&mut port, &raw)?;
    scene.goes_on()?;
    drop((port, raw));
    scene.check()
}

#[test]
fn f1_2_front_end_that_does_it_again_and_again_is_made_to_wait() -> TestResult {
    let mut scene = Scene::start()?;
    let mut waits = Vec::new();
    for _ in 0..4 {
        let began = Instant::now();
        let (mut port, raw) = port(&mut scene)?;
        waits.push(began.elapsed());
        let trap = Trap::new()?;
        trap.give(&raw, request::SET_VRING_CALL, 1)?;
        trap.spring()?;
        provoke_to_the_end(&mut port, &raw)?;
        scene.goes_on()?;
    }
    // 1, 2 and 4 seconds, of which little went by before it came again.
    let seconds = |at: usize| waits[at] > Duration::from_millis(700);
    assert!(seconds(1) && seconds(2) && seconds(3), "{waits:?}");
    assert!(waits[3] > waits[1], "{waits:?}");
    // The others did not wait for it meanwhile.
    scene.goes_on()
}

#[test]
fn f1_2_sigterm_is_followed_while_a_write_waits() -> TestResult {
    let mut scene = Scene::start()?;
    let (mut port, raw) = port(&mut scene)?;
    let trap = Trap::new()?;
    trap.give(&raw, request::SET_VRING_CALL, 1)?;
    trap.spring()?;
    provoke(&mut port)?;
    scene.back_end.process().signal(Signal::TERM)?;
    let status = scene.back_end.process().wait_exit(PATIENCE)?;
    assert!(status.success(), "{status}");
    Ok(())
}
