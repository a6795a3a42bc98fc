// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A tap that takes no frames for a while, or for ever.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use ringside_frontend::net::{Mac, NetPort, Pair};
use ringside_net::link::tap::{Tap, TapSpec};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;
use rustix::io::FdFlags;
use serde_json::Value;

use crate::kernel::{Host, TAP};
use crate::{
    PATIENCE, Result, SILENCE, TestResult, counters, datagram, datagram_in, open, plain, sys,
    to_kernel,
};

/// What is behind the port of a bridge that has the tap for another port.
struct Side {
    /// The device, and the number of its network.
    name: &'static str,
    network: u8,
    mac: Mac,
}

const SLOW: Side = Side {
    name: "slow",
    network: 1,
    mac: [2, 0, 0, 0, 1, 1],
};
const FAST: Side = Side {
    name: "fast",
    network: 2,
    mac: [2, 0, 0, 0, 1, 2],
};

impl Side {
    /// A cable to the bridge.
    fn plug(&self, host: &Host) -> TestResult {
        let Self { name, network, mac } = self;
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        host.ip(&format!(
            "link add {name}0 type veth peer name {name}1 address {mac}"
        ))?;
        host.ip(&format!("address add 10.9.{network}.1/24 dev {name}1"))?;
        host.ip(&format!("link set {name}0 master bridge0 up"))?;
        host.ip(&format!("link set {name}1 up"))?;
        host.run(
            "bridge",
            &format!("fdb add {mac} dev {name}0 master static"),
        )
    }

    fn socket(&self, host: &Host) -> Result<UdpSocket> {
        host.socket_at(Ipv4Addr::new(10, 9, self.network, 1))
    }

    /// A numbered datagram for this side.
    fn frame(&self, port: u16, sequence: u32) -> Vec<u8> {
        let mut payload = vec![0; 1400];
        payload[..4].copy_from_slice(&sequence.to_be_bytes());
        let ip = |host| [10, 9, self.network, host];
        datagram((self.mac, ip(1)), ip(2), (1000, port), &payload)
    }
}

fn next_number(socket: &UdpSocket) -> Result<u32> {
    let mut payload = [0; 2048];
    let bytes = socket.recv(&mut payload)?;
    assert_eq!(bytes, 1400);
    Ok(u32::from_be_bytes([
        payload[0], payload[1], payload[2], payload[3],
    ]))
}

/// A frame in 180 ms, and as many as there are at once.
const CRAWL: &str = "dev slow0 root tbf rate 64kbit burst 2000 limit 4000000";
const RUN: &str = "dev slow0 root tbf rate 100mbit burst 20000 limit 4000000";

/// A tap whose frames for one side crawl, and block a queue that has a few under way. It is opened
/// by us, since that is how its limit can be set.
fn crawling_tap(host: &Host) -> Result<Tap> {
    let spec = TapSpec::Interface {
        name: TAP.to_owned(),
        netns: Some(host.path()),
        shared: false,
    };
    let tap = Tap::open(&spec, 2)?;
    // Packet filters would take the frames off the account of the tap, if there are any.
    host.within(|| {
        let _ = fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        Ok(())
    })?;
    host.ip("link add bridge0 type bridge")?;
    host.ip(&format!("link set {TAP} master bridge0 up"))?;
    host.ip("link set bridge0 up")?;
    SLOW.plug(host)?;
    FAST.plug(host)?;
    host.run("tc", &format!("qdisc add {CRAWL}"))?;
    for pair in 0..2 {
        let queue = tap.queue(pair).ok_or("no such queue")?;
        sys::set_send_buffer(queue.descriptor(), 20_000)?;
        rustix::io::fcntl_setfd(queue.descriptor(), FdFlags::empty())?;
    }
    Ok(tap)
}

/// Publishes as many frames as there are slots.
fn publish(pair: &mut Pair, frames: u32, frame: impl Fn(u32) -> Vec<u8>) -> TestResult {
    for sequence in 0..frames {
        assert!(pair.tx.send(&plain(), &frame(sequence))?);
    }
    assert!(pair.tx.publish()?, "nobody waits for a kick");
    Ok(())
}

#[test]
fn f10_full_tap_holds_up_its_queue_only() -> TestResult {
    const FRAMES: u32 = 64;
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::empty()?;
    let tap = crawling_tap(&host)?;
    let number = |pair| -> Result<i32> {
        let queue = tap.queue(pair).ok_or("no such queue")?;
        Ok(queue.descriptor().as_raw_fd())
    };
    let link = format!("tap:fd={}:{}", number(0)?, number(1)?);
    let mut back_end = NetBackEnd::start(1, &["--backend", &link, "--queue-pairs=2"])?;
    let mut port = open(&mut back_end, 2)?;
    host.meet()?;
    for pair in &mut port.pairs {
        pair.rx.post_all()?;
    }
    let (slow, fast) = (SLOW.socket(&host)?, FAST.socket(&host)?);
    let slow_port = slow.local_addr()?.port();
    let fast_port = fast.local_addr()?.port();
    for round in 0..2 {
        publish(&mut port.pairs[0], FRAMES, |sequence| {
            SLOW.frame(slow_port, sequence)
        })?;
        // Meanwhile the other pair goes on.
        for sequence in 0..200 {
            let frame = FAST.frame(fast_port, sequence);
            port.pairs[1].tx.send_now(&plain(), &frame, PATIENCE)?;
            assert_eq!(next_number(&fast)?, sequence);
        }
        port.pairs[0].tx.reap()?;
        let held_up = port.pairs[0].tx.in_flight();
        assert!(held_up > 0, "the tap was never full");
        // All are sent in the end, once and in order, without another kick.
        host.run("tc", &format!("qdisc change {RUN}"))?;
        for sequence in 0..FRAMES {
            assert_eq!(next_number(&slow)?, sequence, "round {round}");
        }
        port.pairs[0].tx.wait_all(PATIENCE)?;
        host.run("tc", &format!("qdisc change {CRAWL}"))?;
    }
    let sent = counters(&back_end, 1)?;
    assert_eq!(sent["good_packets"], 2 * FRAMES, "{sent}");
    // What waits for a tap that is deleted is lost at once.
    publish(&mut port.pairs[0], FRAMES, |sequence| {
        SLOW.frame(slow_port, sequence)
    })?;
    std::thread::sleep(SILENCE);
    host.ip("link del tap0")?;
    port.pairs[0].tx.wait_all(PATIENCE)?;
    let sent = counters(&back_end, 1)?;
    let lost = sent["drops"]["link_down"].as_u64();
    assert!(lost > Some(0), "{sent}");
    is_at_rest(&mut back_end)
}

/// Little processor time is used.
fn is_at_rest(back_end: &mut NetBackEnd) -> TestResult {
    let before = back_end.process().sample()?.cpu;
    std::thread::sleep(2 * SILENCE);
    let cpu = back_end.process().sample()?.cpu.saturating_sub(before);
    assert!(cpu < SILENCE / 2, "{cpu:?} of {:?}: it spins", 2 * SILENCE);
    Ok(())
}

/// Frames go nowhere, are given back, and counted.
fn loses(back_end: &NetBackEnd, port: &mut NetPort, frame: &[u8], frames: u64) -> TestResult {
    // A reason that there never was is not shown.
    let lost = |vring: &Value| vring["drops"]["link_down"].as_u64().unwrap_or(0);
    let before = lost(&counters(back_end, 1)?);
    for _ in 0..frames {
        port.pairs[0].tx.send_now(&plain(), frame, PATIENCE)?;
    }
    let sent = counters(back_end, 1)?;
    assert_eq!(lost(&sent), before + frames, "{sent}");
    Ok(())
}

#[test]
fn rule_21_tap_that_is_down_drops_and_counts_and_works_again() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?;
    let mut back_end = host.back_end(1)?;
    let mut port = open(&mut back_end, 1)?;
    host.meet()?;
    port.pairs[0].rx.post_all()?;
    let socket = host.socket()?;
    let frame = to_kernel((1000, socket.local_addr()?.port()), b"hello");
    let mut arrived = [0; 64];
    for round in 0..3 {
        // The neighbour goes with the link.
        host.ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:a1 dev tap0 nud permanent")?;
        port.pairs[0].tx.send_now(&plain(), &frame, PATIENCE)?;
        let (_, from) = socket.recv_from(&mut arrived)?;
        socket.send_to(b"back", from)?;
        let mut answer = Vec::new();
        port.pairs[0].rx.wait(&mut answer, PATIENCE)?;
        port.pairs[0].rx.post_all()?;
        let answer = datagram_in(&answer)?.ok_or("another frame")?;
        assert_eq!(answer.payload, b"back", "round {round}");
        host.ip("link set tap0 down")?;
        loses(&back_end, &mut port, &frame, 20)?;
        is_at_rest(&mut back_end)?;
        host.ip("link set tap0 up")?;
        host.meet()?;
    }
    Ok(())
}

#[test]
fn rule_21_tap_that_was_deleted_drops_and_the_process_lives() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let frame = to_kernel((1000, 1000), b"hello");
    for buffers in [0, 10] {
        let host = Host::new(2)?;
        let mut back_end = host.back_end(2)?;
        let mut port = open(&mut back_end, 2)?;
        for pair in &mut port.pairs {
            pair.rx.post(buffers)?;
        }
        host.ip("link del tap0")?;
        loses(&back_end, &mut port, &frame, 20)?;
        is_at_rest(&mut back_end)?;
        // Also those that come later.
        for buffers in [0, 10] {
            drop(port);
            port = open(&mut back_end, 2)?;
            for pair in &mut port.pairs {
                pair.rx.post(buffers)?;
            }
            loses(&back_end, &mut port, &frame, 20)?;
            is_at_rest(&mut back_end)?;
        }
        let log = back_end.process().stderr();
        assert!(
            log.contains("the interface of the link was deleted"),
            "{log}"
        );
        assert!(back_end.terminate()?.success());
    }
    Ok(())
}
