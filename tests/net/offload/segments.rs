// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Long packets to a guest that takes none.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use ringside_frontend::net::NetHeader;
use ringside_frontend::net::net_feature::MRG_RXBUF;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;

use crate::connection::{Relay, converse};
use crate::guest::{Guest, SENDS_LONG, drops, hello, pair};
use crate::kernel::{Host, eventually};
use crate::sample::{PORTS, Sample, THEIR_IP, THEIR_IP6, tcp};
use crate::tcpdump;
use crate::{OURS, PATIENCE, Result, THEIRS, TestResult};

/// The most payload of an IP packet of 65535 bytes, by IPv6 and UDP, of a frame that is no longer
/// than any with IPv4.
fn most_payload(v6: bool, udp: bool) -> usize {
    let network_bytes = if v6 { 40 } else { 20 };
    let transport_bytes = if udp { 8 } else { 20 };
    65_535 - network_bytes - transport_bytes
}

/// Long packets of each kind: the longest, some that end with a full segment or with one byte, and
/// one of a single segment.
fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let most = most_payload(v6, udp);
        for (payload_bytes, gso_bytes) in [
            (most, 1400),
            (14_000, 1400),
            (14_001, 1400),
            (999, 333),
            (100, 1400),
        ] {
            samples.push(Sample::new(v6, udp, payload_bytes, gso_bytes));
        }
    }
    // What only the first, and only the last segment says.
    let mut last_words = Sample::new(false, false, 5000, 1400);
    last_words.packet.flags |= tcp::CWR | tcp::FIN;
    // Time stamps (RFC 7323), which every segment repeats.
    last_words.options = vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    samples.push(last_words);
    // A tag of the sender's own is repeated, too.
    samples.push(Sample::new(false, false, 5000, 1400).tagged(77));
    samples.push(Sample::new(true, true, 5000, 1400).tagged(78));
    samples
}

/// Sends each sample; what has become of it, found right.
fn cut(merging: u64) -> Result<Vec<(Sample, Vec<Vec<u8>>)>> {
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let [mut sender, mut receiver] = pair(&mut back_end, [SENDS_LONG, merging])?;
    let mut cut = Vec::new();
    for sample in samples() {
        sender.send(&sample.unfinished())?;
        let frames = receiver.receive_finished(sample.segments())?;
        sample.check(&frames)?;
        cut.push((sample, frames));
    }
    receiver.receives_nothing()?;
    Ok(cut)
}

#[test]
fn long_packets_to_a_guest_without_offloads_arrive_as_valid_segments() -> TestResult {
    cut(0).map(|_| ())
}

#[test]
fn long_packets_to_a_guest_that_only_merges_buffers_arrive_as_valid_segments() -> TestResult {
    cut(MRG_RXBUF).map(|_| ())
}

/// In the time for which a sender is held up at all: a few milliseconds, so that a busy machine
/// gets more than one chance.
#[test]
fn long_packet_to_a_guest_without_buffers_waits_for_some() -> TestResult {
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let [mut sender, mut receiver] = pair(&mut back_end, [SENDS_LONG, 0])?;
    let sample = Sample::new(false, false, 60_000, 1400);
    let (header, frame) = sample.unfinished();
    for _ in 0..20 {
        let mut ignored = Vec::new();
        while receiver.port.pairs[0].rx.posted() > 0 {
            sender.send(&(NetHeader::default(), hello(THEIRS, OURS)))?;
            receiver.port.pairs[0].rx.wait(&mut ignored, PATIENCE)?;
        }
        let lost = drops(&back_end, "no_buffer")?;
        let tx = &mut sender.port.pairs[0].tx;
        assert!(tx.send(&header, &frame)?);
        tx.publish()?;
        thread::sleep(Duration::from_millis(1));
        receiver.port.pairs[0].rx.post_all()?;
        tx.wait_all(PATIENCE)?;
        if drops(&back_end, "no_buffer")? == lost {
            return sample.check(&receiver.receive_finished(sample.segments())?);
        }
    }
    Err("it never waits".into())
}

#[test]
fn segments_are_called_correct_by_tcpdump() -> TestResult {
    if let Some(reason) = tcpdump::needs() {
        skip!("{reason}");
    }
    let frames: Vec<_> = cut(0)?.into_iter().flat_map(|(_, frames)| frames).collect();
    tcpdump::check(&frames)
}

#[test]
fn segments_are_taken_by_the_kernel_without_a_checksum_error() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::with_tap("raw0")?;
    let mut wire = host.back_end("tap", "raw0")?;
    let mut wire = Guest::open(&mut wire, 0, 0)?;
    let bind = |ip: IpAddr| host.within(|| UdpSocket::bind(SocketAddr::new(ip, PORTS.1)));
    let (socket, socket6) = (bind(THEIR_IP.into())?, bind(THEIR_IP6.into())?);
    let mut datagram = vec![0; 1 << 16];
    let (mut tcp_segments, mut tcp6_segments, mut udp_segments, mut udp6_segments) = (0, 0, 0, 0);
    let untagged = |(sample, _): &(Sample, _)| sample.packet.vlan.is_none();
    for (sample, frames) in cut(0)?.into_iter().filter(untagged) {
        for frame in &frames {
            wire.send(&(NetHeader::default(), frame.clone()))?;
        }
        let packet = &sample.packet;
        let count = u64::try_from(frames.len())?;
        match (packet.udp, packet.v6) {
            (true, true) => udp6_segments += count,
            (true, false) => udp_segments += count,
            (false, true) => tcp6_segments += count,
            (false, false) => tcp_segments += count,
        }
        if packet.udp {
            let socket = if packet.v6 { &socket6 } else { &socket };
            socket.set_read_timeout(Some(PATIENCE))?;
            for piece in packet.payload.chunks(sample.gso_bytes.into()) {
                let bytes = socket.recv(&mut datagram)?;
                assert!(datagram[..bytes] == *piece, "another datagram");
            }
        }
    }
    // A port that nobody listens on answers each segment whose checksum is right.
    let all_tcp = tcp_segments + tcp6_segments;
    eventually("answers", || Ok(host.counter("Tcp", "OutRsts")? == all_tcp))?;
    for (group, name, expected) in [
        ("Tcp", "InSegs", all_tcp),
        ("Tcp", "InErrs", 0),
        ("Tcp", "InCsumErrors", 0),
        ("Udp", "InDatagrams", udp_segments),
        ("Udp", "InCsumErrors", 0),
        ("Ip", "InHdrErrors", 0),
        ("Ip", "InDelivers", tcp_segments + udp_segments),
        ("6", "Udp6InDatagrams", udp6_segments),
        ("6", "Udp6InCsumErrors", 0),
        ("6", "Ip6InHdrErrors", 0),
        ("6", "Ip6InTruncatedPkts", 0),
    ] {
        assert_eq!(host.counter(group, name)?, expected, "{group} {name}");
    }
    Ok(())
}

/// The receiver puts what it gets on a tap, and so the other end of the connection is a kernel.
#[test]
fn connection_through_a_guest_without_offloads_carries_every_byte() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::with_tap("raw0")?;
    let mut wire = host.back_end("tap", "raw0")?;
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let [sender, receiver] = pair(&mut back_end, [SENDS_LONG, 0])?;
    let relay = Relay {
        sender,
        receiver,
        wire: Guest::open(&mut wire, 0, 0)?,
    };
    converse(&host, relay)?;
    assert_eq!(host.counter("Tcp", "InCsumErrors")?, 0);
    Ok(())
}
