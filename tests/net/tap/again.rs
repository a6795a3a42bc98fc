// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An interface that was deleted and made again is used again.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ringside_frontend::net::{NetConfig, NetPort};
use ringside_net::link::tap::{Tap, TapSpec};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;
use rustix::io::FdFlags;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use crate::kernel::{Host, TAP};
use crate::{
    PATIENCE, Result, SILENCE, TestResult, builder, config, counters, datagram_in, eventually,
    open, plain, to_kernel,
};

/// Where the status of the link is in the configuration space (virtio 1.3 §5.1.4).
const STATUS_AT: u32 = 6;
const LINK_UP: u8 = 1;

/// Makes the tap again, as its operator did.
fn make(host: &Host, queues: u16) -> TestResult {
    host.network.tap(TAP, queues, &[])?;
    host.settle(TAP)
}

/// A frame with this payload goes out by each pair, if need be more than once, and is answered.
fn passes(host: &Host, port: &mut NetPort, payload: &[u8]) -> TestResult {
    let socket = host.socket()?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    for pair in 0..port.pairs.len() {
        let mut answered = false;
        eventually("a frame each way", || {
            answered |= ask(&socket, port, pair, payload)?;
            Ok(answered)
        })?;
    }
    Ok(())
}

/// Sends a frame by a pair and answers it; whether the answer has come, by any pair.
fn ask(socket: &UdpSocket, port: &mut NetPort, pair: usize, payload: &[u8]) -> Result<bool> {
    let frame = to_kernel(
        (1000 + u16::try_from(pair)?, socket.local_addr()?.port()),
        payload,
    );
    port.pairs[pair].tx.send_now(&plain(), &frame, PATIENCE)?;
    let mut arrived = [0; 64];
    let Ok((bytes, from)) = socket.recv_from(&mut arrived) else {
        return Ok(false);
    };
    assert_eq!(&arrived[..bytes], payload);
    socket.send_to(payload, from)?;
    let mut frame = Vec::new();
    let end = std::time::Instant::now() + SILENCE;
    while std::time::Instant::now() < end {
        for pair in &mut port.pairs {
            while pair.rx.poll(&mut frame)?.is_some() {
                pair.rx.post_all()?;
                if datagram_in(&frame)?.is_some_and(|found| found.payload == payload) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// A guest that is told of changes, all its buffers posted.
fn open_told(back_end: &mut NetBackEnd, pairs: usize) -> Result<NetPort> {
    let config = NetConfig {
        pairs,
        ..config(pairs)
    };
    let stream = back_end.connect(0)?;
    let (session, messages) = NetPort::negotiate_with(
        stream,
        builder(),
        &config,
        NetPort::protocol_features() | Protocol::BACKEND_REQ,
    )?;
    let mut port = NetPort::with_queues(session, messages, &config)?;
    port.start(config.start)?;
    for pair in &mut port.pairs {
        pair.rx.post_all()?;
    }
    Ok(port)
}

/// The front-end is told of a change, and the guest's link is up or down then.
fn is_told(port: &mut NetPort, up: bool) -> TestResult {
    eventually("word of the change", || {
        let back_channel = port.session.back_channel().ok_or("no back channel")?;
        back_channel.wait_config_change(PATIENCE)?;
        let status = port.session.config(STATUS_AT, 2)?;
        Ok((status[0] & LINK_UP != 0) == up)
    })
}

#[test]
fn f5_12_tap_that_is_made_again_is_opened_again_and_the_guest_is_told() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let dir = tempfile::tempdir()?;
    let capture = dir.path().join("all.pcapng");
    let host = Host::new(4)?;
    let link = host.link(TAP);
    let capture_arg = format!("--capture={}", capture.display());
    let args = ["--backend", &link, "--queue-pairs=4", &capture_arg];
    let mut back_end = NetBackEnd::start(1, &args)?;
    let mut port = open_told(&mut back_end, 2)?;
    passes(&host, &mut port, b"before")?;
    for (round, payload) in [&b"first"[..], b"second", b"third"].into_iter().enumerate() {
        host.ip("link del tap0")?;
        is_told(&mut port, false)?;
        // It is the operator's to be made.
        std::thread::sleep(2 * SILENCE);
        assert!(host.ip("link show tap0").is_err());
        let frame = to_kernel((1000, 1000), b"lost");
        port.pairs[0].tx.send_now(&plain(), &frame, PATIENCE)?;
        let lost = counters(&back_end, 1)?["drops"]["link_down"].as_u64();
        assert!(lost > Some(0), "round {round}");
        // Also made with another number of queues, and for one.
        make(&host, [4, 1, 4][round])?;
        is_told(&mut port, true)?;
        passes(&host, &mut port, payload)?;
        // What is captured goes on.
        eventually("the capture", || {
            let captured = fs::read(&capture)?;
            Ok(captured
                .windows(payload.len())
                .any(|found| found == payload))
        })?;
    }
    let log = back_end.process().stderr();
    assert!(
        log.contains("the interface of the link was deleted"),
        "{log}"
    );
    assert!(
        log.contains("tap0: there is an interface of that name again"),
        "{log}"
    );
    assert!(back_end.terminate()?.success());
    Ok(())
}

#[test]
fn f5_12_queues_that_the_guest_does_not_use_get_no_flows_of_a_tap_that_is_made_again() -> TestResult
{
    const FLOWS: u16 = 64;
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(4)?;
    let mut back_end = host.back_end(4)?;
    let mut port = open_told(&mut back_end, 1)?;
    host.ip("link del tap0")?;
    is_told(&mut port, false)?;
    make(&host, 4)?;
    is_told(&mut port, true)?;
    passes(&host, &mut port, b"again")?;
    let mut arrived = [false; FLOWS as usize];
    let sockets: Vec<_> = (0..FLOWS).map(|_| host.socket()).collect::<Result<_>>()?;
    let mut frame = Vec::new();
    for (number, socket) in (0..FLOWS).zip(&sockets) {
        socket.send_to(&number.to_be_bytes(), ("10.9.0.2", 9))?;
        let rx = &mut port.pairs[0].rx;
        eventually("each flow", || {
            while rx.poll(&mut frame)?.is_some() {
                if let Some(found) = datagram_in(&frame)?
                    && let Some(flow) = found.payload.first_chunk()
                    && let Some(place) = arrived.get_mut(usize::from(u16::from_be_bytes(*flow)))
                {
                    *place = true;
                }
            }
            rx.post_all()?;
            Ok(arrived[usize::from(number)])
        })?;
    }
    Ok(())
}

#[test]
fn f5_12_uplink_and_a_guest_that_comes_later_find_the_tap_that_is_made_again() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?;
    let link = host.link(TAP);
    for option in ["--uplink", "--backend"] {
        let mut back_end = NetBackEnd::start(1, &[option, &link])?;
        let mut port = open(&mut back_end, 1)?;
        port.pairs[0].rx.post_all()?;
        passes(&host, &mut port, b"before")?;
        // While it serves a guest.
        host.ip("link del tap0")?;
        eventually("the loss", || {
            Ok(back_end.process().stderr().contains("was deleted"))
        })?;
        make(&host, 1)?;
        passes(&host, &mut port, b"after")?;
        // While there is none.
        drop(port);
        host.ip("link del tap0")?;
        make(&host, 1)?;
        let mut port = open(&mut back_end, 1)?;
        port.pairs[0].rx.post_all()?;
        passes(&host, &mut port, b"later")?;
        drop(port);
        assert!(back_end.terminate()?.success());
    }
    Ok(())
}

#[test]
fn f5_12_interface_of_a_packet_socket_that_is_made_again_is_opened_again() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::empty()?;
    let make = || -> TestResult {
        host.ip("link add wire0 type veth peer name peer0")?;
        host.ip("link set wire0 up")?;
        host.ip("link set peer0 up")?;
        host.settle("peer0")
    };
    make()?;
    let link = format!("packet:wire0,netns={}", host.path().display());
    for option in ["--backend", "--uplink"] {
        let mut back_end = NetBackEnd::start(1, &[option, &link, "--queue-pairs=1"])?;
        let mut port = open(&mut back_end, 1)?;
        port.pairs[0].rx.post_all()?;
        passes(&host, &mut port, b"before")?;
        for _ in 0..2 {
            host.ip("link del wire0")?;
            eventually("the loss", || {
                Ok(back_end.process().stderr().contains("was deleted"))
            })?;
            make()?;
            passes(&host, &mut port, b"after")?;
        }
        assert!(back_end.terminate()?.success());
    }
    Ok(())
}

#[test]
fn f5_12_tap_of_passed_descriptors_stays_lost_and_the_log_says_why() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?;
    let spec = TapSpec::Interface {
        name: TAP.to_owned(),
        netns: Some(host.path()),
        shared: false,
    };
    let tap = Tap::open(&spec, 1)?;
    let queue = tap.queue(0).ok_or("no such queue")?;
    rustix::io::fcntl_setfd(queue.descriptor(), FdFlags::empty())?;
    let link = format!("tap:fd={}", queue.descriptor().as_raw_fd());
    let mut back_end = NetBackEnd::start(1, &["--backend", &link])?;
    drop((tap, queue));
    let mut port = open(&mut back_end, 1)?;
    port.pairs[0].rx.post_all()?;
    passes(&host, &mut port, b"before")?;
    host.ip("link del tap0")?;
    make(&host, 1)?;
    eventually("a word of it", || {
        let log = back_end.process().stderr();
        Ok(log.contains("started again with other descriptors"))
    })?;
    assert!(back_end.terminate()?.success());
    Ok(())
}
