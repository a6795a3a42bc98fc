// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cables that are out, and guests that are not there: what comes meanwhile is lost and counted, on
//! every link.

use std::time::Duration;

use ringside_frontend::net::NetPort;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;
use serde_json::{Value, json};

use crate::outside::{Kind, Outside};
use crate::{Result, TestResult, counted, eventually, frame, mac, open_listening, receive, send};

const STATION: [u8; 6] = [2, 0, 0, 0, 0xff, 1];
/// As many as a Unix datagram socket holds.
const FRAMES: u64 = 10;

/// A numbered frame from outside to the guest.
fn numbered(number: u8) -> Vec<u8> {
    let mut bytes = frame(STATION, mac(1), 100);
    bytes[99] = number;
    bytes
}

/// The numbers of frames of the station among these.
fn numbers(frames: &[Vec<u8>]) -> Vec<u8> {
    let ours = frames.iter().filter(|frame| frame[6..12] == STATION);
    ours.map(|frame| frame[99]).collect()
}

/// Until a frame with `number` has come, which comes first.
fn first_is(port: &mut NetPort, number: u8) -> TestResult {
    let mut got = Vec::new();
    eventually("the frame", || {
        got.extend(numbers(&receive(port)?));
        Ok(!got.is_empty())
    })?;
    assert_eq!(got, [number]);
    Ok(())
}

fn set_link(back_end: &NetBackEnd, state: &str) -> TestResult {
    back_end.control("link", &json!({"port": "port0", "state": state}))?;
    Ok(())
}

fn lost(back_end: &NetBackEnd) -> Result<u64> {
    Ok(counted(back_end, 0, 0)?.lost("link_down"))
}

/// While the cable is out frames are lost both ways, and counted; before and after they pass.
fn cable_is_plugged_out_and_in(kind: Kind) -> TestResult {
    let mut outside = Outside::new(kind)?;
    let mut back_end = NetBackEnd::start(1, &["--backend", &outside.spec])?;
    let mut port = open_listening(&mut back_end, 0)?;
    outside.meet()?;
    outside.send(&numbered(0))?;
    first_is(&mut port, 0)?;
    for round in 1..4 {
        let before = lost(&back_end)?;
        set_link(&back_end, "down")?;
        for _ in 0..FRAMES {
            outside.send(&numbered(100))?;
        }
        if kind == Kind::Tap {
            // The kernel drops there, too.
            eventually("the carrier", || Ok(!outside.is_up("tap0")?))?;
            for _ in 0..FRAMES {
                outside.send(&numbered(100))?;
            }
        } else {
            eventually("what is lost", || Ok(lost(&back_end)? >= before + FRAMES))?;
        }
        outside.frames()?;
        for _ in 0..FRAMES {
            send(&mut port, &frame(mac(1), STATION, 100))?;
        }
        let out = outside.frames()?;
        assert!(out.iter().all(|frame| frame[6..12] != mac(1)), "{kind:?}");
        // A paused guest changes nothing.
        if round == 2 {
            back_end.control("drain", &Value::Null)?;
            back_end.control("resume", &Value::Null)?;
        }
        set_link(&back_end, "up")?;
        outside.meet()?;
        outside.send(&numbered(round))?;
        first_is(&mut port, round)?;
        send(&mut port, &frame(mac(1), STATION, 100))?;
        eventually("the frame outside", || {
            let out = outside.frames()?;
            Ok(out.iter().any(|frame| frame[6..12] == mac(1)))
        })?;
        let sent = counted(&back_end, 0, 1)?;
        assert_eq!(sent.lost("link_down"), FRAMES * u64::from(round));
    }
    Ok(())
}

#[test]
fn f5_11_frames_of_a_link_that_is_down_are_lost_and_counted_on_every_socket() -> TestResult {
    for kind in Kind::SOCKETS {
        cable_is_plugged_out_and_in(kind)?;
    }
    Ok(())
}

#[test]
fn f5_11_frames_of_a_link_that_is_down_are_lost_and_counted_on_every_interface() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    for kind in Kind::INTERFACES {
        cable_is_plugged_out_and_in(kind)?;
    }
    Ok(())
}

/// What has come while nobody was there is not for the next one.
fn guest_comes_late(kind: Kind) -> TestResult {
    let mut outside = Outside::new(kind)?;
    let mut back_end = NetBackEnd::start(1, &["--backend", &outside.spec])?;
    for round in 1..4 {
        let before = lost(&back_end)?;
        if kind == Kind::Tap {
            // Without a carrier the kernel drops all itself.
            outside.ip("link set tap0 carrier on")?;
        }
        if kind == Kind::Tap || kind == Kind::Macvtap {
            outside.meet()?;
        }
        for _ in 0..FRAMES {
            outside.send(&numbered(100))?;
        }
        let mut port = open_listening(&mut back_end, 0)?;
        outside.meet()?;
        outside.send(&numbered(round))?;
        first_is(&mut port, round)?;
        assert_eq!(lost(&back_end)?, before + FRAMES, "{kind:?}");
        // As when the guest boots anew: the rings stop, and start.
        let base = port.session.stop(0)?;
        if kind == Kind::Tap {
            outside.ip("link set tap0 carrier on")?;
            outside.meet()?;
        }
        for _ in 0..FRAMES {
            outside.send(&numbered(100))?;
        }
        let vring = port.pairs[0].rx.vring();
        port.session.start(vring, base)?;
        outside.meet()?;
        outside.send(&numbered(round))?;
        first_is(&mut port, round)?;
        assert_eq!(lost(&back_end)?, before + 2 * FRAMES, "{kind:?}");
        drop(port);
        eventually("the end of the session", || {
            let ports = back_end.control("ports", &Value::Null)?;
            Ok(ports[0]["connected"] == false)
        })?;
    }
    Ok(())
}

#[test]
fn f5_11_what_came_while_nobody_was_there_is_not_for_the_next_guest() -> TestResult {
    guest_comes_late(Kind::Dgram)
}

#[test]
fn f5_11_what_an_interface_got_while_nobody_was_there_is_not_for_the_next_guest() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    for kind in Kind::INTERFACES {
        guest_comes_late(kind)?;
    }
    Ok(())
}

#[test]
fn f5_11_uplink_has_a_carrier_while_a_guest_is_there() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let mut outside = Outside::new(Kind::Tap)?;
    let args = ["--backend", "switch", "--uplink", &outside.spec];
    let mut back_end = NetBackEnd::start(2, &args)?;
    let carrier = |outside: &Outside, expected: bool| {
        eventually("the carrier", || {
            Ok(outside.ip("-o link show dev tap0")?.contains("LOWER_UP") == expected)
        })
    };
    carrier(&outside, false)?;
    outside.ip("link set tap0 carrier on")?;
    outside.meet()?;
    for _ in 0..FRAMES {
        outside.send(&numbered(100))?;
    }
    let mut port = open_listening(&mut back_end, 0)?;
    outside.meet()?;
    outside.send(&numbered(1))?;
    first_is(&mut port, 1)?;
    let came = counted(&back_end, 2, 1)?;
    assert_eq!(
        (came.lost("link_down"), came.passed()),
        (FRAMES, 1),
        "{}",
        came.0
    );
    set_link(&back_end, "down")?;
    carrier(&outside, false)?;
    // The other guest is enough.
    let other = open_listening(&mut back_end, 1)?;
    carrier(&outside, true)?;
    drop(other);
    carrier(&outside, false)?;
    set_link(&back_end, "up")?;
    carrier(&outside, true)?;
    // An operator's pause is not the end of a guest.
    back_end.control("drain", &Value::Null)?;
    std::thread::sleep(Duration::from_millis(200));
    carrier(&outside, true)?;
    back_end.control("resume", &Value::Null)?;
    outside.meet()?;
    outside.send(&numbered(2))?;
    first_is(&mut port, 2)?;
    back_end.terminate()?;
    carrier(&outside, false)
}
