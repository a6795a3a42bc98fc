// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Senders that others would have wait: guests without buffers, guests that start anew, an uplink
//! whose peer does not read.

use std::io::Write as _;
use std::time::{Duration, Instant};

use ringside_frontend::net::NetPort;
use ringside_tests::net_back_end::NetBackEnd;
use serde_json::json;

use crate::uplink::Uplink;
use crate::{
    PATIENCE, Result, TestResult, counted, frame, mac, open, open_listening, plain, receive, send,
};

/// How long frames are sent.
const TIME: Duration = Duration::from_secs(1);
pub(crate) const BYTES: usize = 100;

/// For some time, sends a frame to `good` and one of `others`, in turn, and waits until the first
/// has arrived; returns how many have.
pub(crate) fn rounds(
    sender: &mut NetPort,
    good: &mut NetPort,
    others: &[Vec<u8>],
) -> Result<usize> {
    let (mut arrived, mut got) = (0, Vec::new());
    let to_good = frame(mac(0), mac(1), BYTES);
    let start = Instant::now();
    while start.elapsed() < TIME {
        let (tx, rx) = (&mut sender.pairs[0].tx, &mut good.pairs[0].rx);
        tx.reap()?;
        for bytes in [&to_good, &others[arrived % others.len()]] {
            while !tx.send(&plain(), bytes)? {
                tx.reap()?;
                std::thread::yield_now();
            }
        }
        tx.publish()?;
        rx.wait(&mut got, PATIENCE)?;
        rx.post_all()?;
        arrived += 1;
    }
    sender.pairs[0].tx.wait_all(PATIENCE)?;
    Ok(arrived)
}

/// Whether at least four fifths of the undisturbed frames pass beside a disturbance, in one of some
/// turns: on a busy machine one half may have had less of the processor. It was a hundredth.
pub(crate) fn goes_on(what: &str, rounds: impl FnMut(bool) -> Result<usize>) -> TestResult {
    goes_on_at(80, what, rounds)
}

/// As [`goes_on`], with at least so many of a hundred.
pub(crate) fn goes_on_at(
    percent: usize,
    what: &str,
    mut rounds: impl FnMut(bool) -> Result<usize>,
) -> TestResult {
    const TURNS: usize = 5;
    let mut seen = Vec::new();
    for _ in 0..TURNS {
        let (disturbed, undisturbed) = (rounds(true)?, rounds(false)?);
        seen.push((disturbed, undisturbed));
        // Past libtest's capture.
        let line = format!("net switch: {what}: {disturbed} of {undisturbed} frames");
        let _ = writeln!(std::io::stderr(), "{line}");
        if disturbed * 100 >= undisturbed * percent {
            return Ok(());
        }
    }
    Err(format!("{what}: {seen:?} frames").into())
}

/// As much work for the switch, and no more.
pub(crate) fn to_itself() -> Vec<u8> {
    frame(mac(0), mac(0), BYTES)
}

/// The switch knows where the guest at each port is.
pub(crate) fn introduce(ports: &mut [NetPort], first: u8) -> TestResult {
    for (number, port) in (first..).zip(ports) {
        send(port, &frame(mac(number), [0xff; 6], BYTES))?;
    }
    Ok(())
}

#[test]
fn f2_2_receivers_without_buffers_leave_a_sender_its_other_receivers() -> TestResult {
    let _one = crate::alone();
    const DEAD: u8 = 32;
    let mut back_end = NetBackEnd::start(usize::from(DEAD) + 2, &["--backend", "switch"])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut good = open_listening(&mut back_end, 1)?;
    let mut dead = (0..usize::from(DEAD))
        .map(|at| open(&mut back_end, 2 + at))
        .collect::<Result<Vec<_>>>()?;
    introduce(std::slice::from_mut(&mut good), 1)?;
    introduce(&mut dead, 2)?;
    let to_dead: Vec<_> = (2..2 + DEAD)
        .map(|number| frame(mac(0), mac(number), BYTES))
        .collect();
    goes_on("beside receivers without buffers", |disturbed| {
        let others = if disturbed {
            &to_dead[..]
        } else {
            &[to_itself()]
        };
        rounds(&mut sender, &mut good, others)
    })
}

#[test]
fn f2_3_peer_that_does_not_read_costs_uplink_frames_only_and_each_is_counted() -> TestResult {
    let _one = crate::alone();
    let (mut back_end, listener) = Uplink::start(&["", ""], &[])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut good = open_listening(&mut back_end, 1)?;
    introduce(std::slice::from_mut(&mut good), 1)?;
    let mut peer = Uplink::accept(&listener)?;
    let outside = [2, 0, 0, 0, 0xff, 1];
    peer.send(&frame(outside, [0xff; 6], BYTES))?;
    crate::eventually(
        "the station outside",
        || Ok(!receive(&mut good)?.is_empty()),
    )?;
    let out_of_here = [frame(mac(0), outside, 1500)];
    goes_on("beside a peer that does not read", |disturbed| {
        let others = if disturbed {
            &out_of_here
        } else {
            &[to_itself()]
        };
        rounds(&mut sender, &mut good, others)
    })?;
    let (sent, out) = (counted(&back_end, 0, 1)?, counted(&back_end, 2, 0)?);
    let inside = counted(&back_end, 1, 0)?;
    assert!(out.lost("no_buffer") > 1000, "{}", out.0);
    // One broadcast went out from the good port; one came in by the peer.
    let arrived = inside.passed() + inside.all_lost() + out.passed() + out.all_lost();
    assert_eq!(sent.all_lost(), sent.lost("no_receiver"), "{}", sent.0);
    assert_eq!(sent.passed() + 2, arrived);
    Ok(())
}

#[test]
fn f2_5_frames_for_a_guest_that_is_not_there_are_its_loss_and_no_fault() -> TestResult {
    // More than may be lost at the pace of faults while the test may take.
    const FRAMES: u64 = 3000;
    let mut back_end = NetBackEnd::start(3, &["--backend", "switch"])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut absent = open(&mut back_end, 1)?;
    introduce(std::slice::from_mut(&mut absent), 1)?;
    let to_absent = frame(mac(0), mac(1), BYTES);
    let mut expected = 0;
    for state in ["link down", "no receive ring", "no front-end"] {
        match state {
            "link down" => {
                back_end.control("link", &json!({"port": "port1", "state": "down"}))?;
            }
            "no receive ring" => {
                back_end.control("link", &json!({"port": "port1", "state": "up"}))?;
                absent.session.stop(0)?;
            }
            _ => {
                // Known to be there still.
                drop(absent);
                absent = open(&mut back_end, 2)?;
            }
        }
        let mut left = FRAMES;
        while left > 0 {
            let tx = &mut sender.pairs[0].tx;
            while left > 0 && tx.send(&plain(), &to_absent)? {
                left -= 1;
            }
            tx.publish()?;
            tx.reap()?;
        }
        sender.pairs[0].tx.wait_all(PATIENCE)?;
        expected += FRAMES;
        let (sent, lost) = (counted(&back_end, 0, 1)?, counted(&back_end, 1, 0)?);
        assert_eq!(sent.all_lost(), 0, "{state}: {}", sent.0);
        assert_eq!(lost.lost("link_down"), expected, "{state}: {}", lost.0);
    }
    drop(absent);
    Ok(())
}
