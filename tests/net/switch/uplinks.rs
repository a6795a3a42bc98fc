// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Uplinks of every kind that take nothing, or little: only what goes out by them is lost, and all
//! of that is counted.

use std::os::fd::AsRawFd;

use ringside_frontend::net::Mac;
use ringside_net::link::tap::{Tap, TapSpec};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;
use rustix::io::FdFlags;

use crate::outside::{Kind, Outside};
use crate::waits::{goes_on_at, introduce, rounds, to_itself};
use crate::{TestResult, counted, eventually, frame, mac, open, open_listening, receive, sys};

const STATION: Mac = [2, 0, 0, 0, 0xff, 1];
const BYTES: usize = 100;
const TAP_IS_DOWN: &str = "a tap that is down";
/// A frame in 180 ms, and as many under way as there are.
const CRAWL: &str = "root tbf rate 64kbit burst 2000 limit 100000000";

/// Guests go on beside an uplink that is `clogged` once it knows the station outside.
fn others_go_on(
    what: &str,
    uplink: &str,
    outside: &mut Outside,
    reason: &str,
    clog: impl Fn(&Outside) -> TestResult,
) -> TestResult {
    let args = ["--backend", "switch", "--uplink", uplink];
    let mut back_end = NetBackEnd::start(2, &args)?;
    let mut sender = open(&mut back_end, 0)?;
    let mut good = open_listening(&mut back_end, 1)?;
    introduce(std::slice::from_mut(&mut good), 1)?;
    outside.meet()?;
    // A bridge may not pass frames at once.
    eventually("the station outside", || {
        outside.send(&frame(STATION, [0xff; 6], BYTES))?;
        Ok(!receive(&mut good)?.is_empty())
    })?;
    clog(outside)?;
    // A frame that leaves costs the sender a system call, whether the uplink takes it or not. With a
    // tap that is down, that is two thirds of its time; a sender that waits has a hundredth left.
    let percent = if what == TAP_IS_DOWN { 20 } else { 50 };
    let to_station = [frame(mac(0), STATION, 1500)];
    goes_on_at(
        percent,
        &format!("beside {what} that takes nothing"),
        |disturbed| {
            let others = if disturbed {
                &to_station
            } else {
                &[to_itself()]
            };
            rounds(&mut sender, &mut good, others)
        },
    )?;
    let (sent, out) = (counted(&back_end, 0, 1)?, counted(&back_end, 2, 0)?);
    let (inside, came) = (counted(&back_end, 1, 0)?, counted(&back_end, 2, 1)?);
    assert!(out.lost(reason) > 100, "{what}: {}", out.0);
    assert_eq!(
        sent.all_lost(),
        sent.lost("no_receiver"),
        "{what}: {}",
        sent.0
    );
    // One broadcast of the good port went out, those of the station came in.
    let arrived = inside.passed() + inside.all_lost() + out.passed() + out.all_lost();
    assert_eq!(sent.passed() + 1 + came.passed(), arrived, "{what}");
    Ok(())
}

#[test]
fn f2_3_datagram_peer_that_does_not_read_costs_uplink_frames_only() -> TestResult {
    let _one = crate::alone();
    let mut outside = Outside::new(Kind::Dgram)?;
    let uplink = outside.spec.clone();
    others_go_on(
        "a datagram peer",
        &uplink,
        &mut outside,
        "no_buffer",
        |_| Ok(()),
    )
}

#[test]
fn f2_3_interface_that_crawls_or_is_down_costs_uplink_frames_only() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let _one = crate::alone();
    let mut outside = Outside::new(Kind::Packet)?;
    let uplink = outside.spec.clone();
    let what = "an interface";
    others_go_on(what, &uplink, &mut outside, "no_buffer", |outside| {
        let network = outside.network.as_ref().ok_or("no network")?;
        let words = format!("qdisc add dev w0 {CRAWL}");
        network.run("tc", &words.split(' ').collect::<Vec<_>>())?;
        Ok(())
    })?;
    for (kind, device, what) in [
        (Kind::Packet, "w0", "an interface that is down"),
        (Kind::Tap, "tap0", TAP_IS_DOWN),
    ] {
        let mut outside = Outside::new(kind)?;
        let uplink = outside.spec.clone();
        others_go_on(what, &uplink, &mut outside, "link_down", |outside| {
            outside.ip(&format!("link set {device} down"))?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn f2_3_full_tap_costs_uplink_frames_only() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let _one = crate::alone();
    // The station is behind a bridge, and the way there crawls.
    let mut outside = Outside::new(Kind::Packet)?;
    let spec = TapSpec::Interface {
        name: "tap0".to_owned(),
        netns: outside.network.as_ref().map(|network| network.path()),
        shared: false,
    };
    let tap = Tap::open(&spec, 1)?;
    let queue = tap.queue(0).ok_or("no such queue")?;
    sys::set_send_buffer(queue.descriptor(), 20_000)?;
    rustix::io::fcntl_setfd(queue.descriptor(), FdFlags::empty())?;
    for words in [
        "link add bridge0 type bridge",
        "link set tap0 master bridge0 up",
        "link set w0 master bridge0",
        "link set bridge0 up",
    ] {
        outside.ip(words)?;
    }
    let network = outside.network.as_ref().ok_or("no network")?;
    // Packet filters would take the frames off the account of the tap, if there are any.
    let filters = "echo 0 2>/dev/null >/proc/sys/net/bridge/bridge-nf-call-iptables; true";
    network.run("sh", &["-c", filters])?;
    let words = format!("qdisc add dev w0 {CRAWL}");
    network.run("tc", &words.split(' ').collect::<Vec<_>>())?;
    let uplink = format!("tap:fd={}", queue.descriptor().as_raw_fd());
    others_go_on("a tap", &uplink, &mut outside, "no_buffer", |_| Ok(()))
}
