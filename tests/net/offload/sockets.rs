// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests whose other end is behind a stream, a packet socket or a tap.

use std::io::Read;
use std::os::unix::net::UnixListener;

use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;

use crate::connection::converse;
use crate::guest::{Guest, SENDS_LONG};
use crate::kernel::Host;
use crate::sample::Sample;
use crate::tcpdump::{self, Capture};
use crate::{PATIENCE, TestResult};

/// A stream carries no virtio headers: what leaves by it is finished.
#[test]
fn long_packets_leave_by_a_stream_as_valid_segments() -> TestResult {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("uplink.sock");
    let listener = UnixListener::bind(&path)?;
    let uplink = format!("stream:{}", path.display());
    let mut back_end = NetBackEnd::start(1, &["--backend", "switch", "--uplink", &uplink])?;
    let mut guest = Guest::open(&mut back_end, 0, SENDS_LONG)?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        for sample in [
            Sample::new(v6, udp, 40_000, 1400),
            Sample::new(v6, udp, 1001, 0),
        ] {
            guest.send(&sample.unfinished())?;
            let mut frames = Vec::new();
            while frames.len() < sample.segments() {
                let mut length = [0; 4];
                stream.read_exact(&mut length)?;
                let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length))?];
                stream.read_exact(&mut frame)?;
                frames.push(frame);
            }
            sample.check(&frames)?;
        }
    }
    Ok(())
}

/// What the kernel sends out by the peer of the device arrives long, and without checksums.
#[test]
fn connection_by_a_packet_socket_carries_every_byte_to_a_guest_without_offloads() -> TestResult {
    if let Some(reason) = network_needs().or_else(tcpdump::needs) {
        skip!("{reason}");
    }
    let host = Host::with_veth("peer0", "wire0")?;
    let capture = Capture::start(&host, "peer0", "tcp or ip6")?;
    let mut back_end = host.back_end("packet", "wire0")?;
    converse(&host, Guest::open(&mut back_end, 0, SENDS_LONG)?)?;
    assert_eq!(host.counter("Tcp", "InCsumErrors")?, 0);
    sends_long(&capture)
}

#[test]
fn connection_by_a_tap_uplink_carries_every_byte_to_a_guest_without_offloads() -> TestResult {
    if let Some(reason) = network_needs().or_else(tcpdump::needs) {
        skip!("{reason}");
    }
    let host = Host::with_tap("up0")?;
    let capture = Capture::start(&host, "up0", "tcp or ip6")?;
    let uplink = host.link("tap", "up0");
    let mut back_end = NetBackEnd::start(1, &["--backend", "switch", "--uplink", &uplink])?;
    let guest = Guest::open(&mut back_end, 0, SENDS_LONG)?;
    converse(&host, guest)?;
    assert_eq!(host.counter("Tcp", "InCsumErrors")?, 0);
    sends_long(&capture)
}

/// The kernel has sent long packets, or a test of what becomes of them would be none.
fn sends_long(capture: &Capture) -> TestResult {
    let frames = capture.frames(1)?;
    let from_kernel = frames.iter().filter(|frame| frame[6..12] == crate::THEIRS);
    let longest = from_kernel.map(Vec::len).max().unwrap_or(0);
    assert!(
        longest > 2000,
        "the kernel sent no more than {longest} bytes"
    );
    Ok(())
}

/// A kernel that takes long packets gets them in one piece.
#[test]
fn long_packets_of_a_guest_reach_the_kernel_by_a_tap_in_one_piece() -> TestResult {
    if let Some(reason) = network_needs().or_else(tcpdump::needs) {
        skip!("{reason}");
    }
    let host = Host::with_tap("tap0")?;
    let capture = Capture::start(&host, "tap0", "tcp or udp or ip6")?;
    let mut back_end = host.back_end("tap", "tap0")?;
    let mut guest = Guest::open(&mut back_end, 0, SENDS_LONG)?;
    for (count, (v6, udp)) in [(false, false), (true, false), (false, true), (true, true)]
        .into_iter()
        .enumerate()
    {
        let sample = Sample::new(v6, udp, 40_000, 1400);
        let (header, frame) = sample.unfinished();
        guest.send(&(header, frame.clone()))?;
        let ours = || -> crate::Result<usize> {
            let frames = capture.frames(0)?;
            Ok(frames.iter().filter(|found| **found == frame).count())
        };
        crate::kernel::eventually("the long packet", || Ok(ours()? == 1))
            .map_err(|e| format!("sample {count}: {e}"))?;
    }
    Ok(())
}
