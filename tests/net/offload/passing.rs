// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a receiver takes as it is, what is completed for it, and what is too long for it.

use ringside_frontend::net::NetHeader;
use ringside_frontend::net::net_feature::{CSUM, GUEST_CSUM};
use ringside_tests::net_back_end::NetBackEnd;

use crate::guest::{SENDS_LONG, TAKES_LONG, drops, pair};
use crate::kernel::eventually;
use crate::sample::Sample;
use crate::{Result, TestResult};

fn switch() -> Result<NetBackEnd> {
    Ok(NetBackEnd::start(2, &["--backend", "switch"])?)
}

/// One packet of each kind, with an odd number of bytes.
fn short_samples() -> [Sample; 4] {
    [(false, false), (true, false), (false, true), (true, true)]
        .map(|(v6, udp)| Sample::new(v6, udp, 777, 0))
}

#[test]
fn missing_checksum_is_completed_for_a_guest_that_wants_it() -> TestResult {
    let mut back_end = switch()?;
    let [mut sender, mut receiver] = pair(&mut back_end, [CSUM, 0])?;
    for sample in short_samples() {
        sender.send(&sample.unfinished())?;
        sample.check(&receiver.receive_finished(1)?)?;
    }
    Ok(())
}

/// UDP has no checksum of zero: one that comes out so is sent as the other zero (RFC 768).
#[test]
fn missing_checksum_that_comes_out_as_zero_is_sent_as_ones() -> TestResult {
    let mut back_end = switch()?;
    let [mut sender, mut receiver] = pair(&mut back_end, [CSUM, 0])?;
    for v6 in [false, true] {
        let mut sample = Sample::new(v6, true, 100, 0);
        sample.packet.payload[..2].fill(0);
        sender.send(&sample.unfinished())?;
        let frame = receiver.receive_finished(1)?.swap_remove(0);
        let at = frame.len() - 100;
        // Its own checksum added to a packet makes the sum of that zero.
        sample.packet.payload[..2].copy_from_slice(&frame[at - 2..at]);
        sender.send(&sample.unfinished())?;
        let frames = receiver.receive_finished(1)?;
        assert_eq!(frames[0][at - 2..at], [0xff, 0xff]);
        sample.check(&frames)?;
    }
    Ok(())
}

#[test]
fn missing_checksum_is_left_to_a_guest_that_takes_it_so() -> TestResult {
    let mut back_end = switch()?;
    let [mut sender, mut receiver] = pair(&mut back_end, [CSUM, GUEST_CSUM])?;
    for sample in short_samples() {
        let (header, frame) = sample.unfinished();
        sender.send(&(header, frame.clone()))?;
        let (arrived, bytes) = receiver.receive()?;
        assert!(bytes == frame, "another frame");
        let num_buffers = 1;
        assert_eq!(
            arrived,
            NetHeader {
                num_buffers,
                ..header
            }
        );
    }
    Ok(())
}

#[test]
fn long_tcp_to_a_guest_that_takes_it_arrives_in_one_piece() -> TestResult {
    let mut back_end = switch()?;
    let [mut sender, mut receiver] = pair(&mut back_end, [SENDS_LONG, TAKES_LONG])?;
    for v6 in [false, true] {
        let sample = Sample::new(v6, false, 65_475, 1400);
        let (header, frame) = sample.unfinished();
        sender.send(&(header, frame.clone()))?;
        let (arrived, bytes) = receiver.receive()?;
        assert!(bytes == frame, "another frame");
        let num_buffers = arrived.num_buffers;
        assert_eq!(usize::from(num_buffers), (frame.len() + 12).div_ceil(600));
        assert_eq!(
            arrived,
            NetHeader {
                num_buffers,
                ..header
            }
        );
    }
    Ok(())
}

/// Long UDP is not among what that guest takes.
#[test]
fn long_udp_to_a_guest_that_takes_checksums_is_cut_and_left_without() -> TestResult {
    let mut back_end = switch()?;
    let [mut sender, mut receiver] = pair(&mut back_end, [SENDS_LONG, TAKES_LONG])?;
    let sample = Sample::new(false, true, 5000, 1400);
    sender.send(&sample.unfinished())?;
    for (index, piece) in sample.packet.payload.chunks(1400).enumerate() {
        let mut expected = Sample::new(false, true, 0, 0);
        expected.packet.id += u16::try_from(index)?;
        expected.packet.payload = piece.to_vec();
        let (header, frame) = expected.unfinished();
        let (arrived, bytes) = receiver.receive()?;
        assert!(bytes == frame, "another frame");
        let num_buffers = arrived.num_buffers;
        assert_eq!(
            arrived,
            NetHeader {
                num_buffers,
                ..header
            }
        );
    }
    Ok(())
}

/// Segments that fit an MTU of 1280 arrive; what does not fit is lost and counted, once.
fn bounded(back_end: &mut NetBackEnd, tell: bool) -> TestResult {
    let [mut sender, mut receiver] = pair(back_end, [SENDS_LONG, 0])?;
    if tell {
        assert!(receiver.port.messages.set_mtu(1280)?);
    }
    for (v6, udp, most) in [
        (false, false, 1240),
        (true, false, 1220),
        (false, true, 1252),
        (true, true, 1232),
    ] {
        let lost = drops(back_end, "mtu_exceeded")?;
        let sample = Sample::new(v6, udp, 20_000, most);
        sender.send(&sample.unfinished())?;
        let frames = receiver.receive_finished(sample.segments())?;
        sample.check(&frames)?;
        assert_eq!(frames[0].len(), 14 + 1280);
        // An Ethernet header may have a tag, for which there is room.
        for sample in [
            Sample::new(v6, udp, 20_000, most + 5),
            Sample::new(v6, udp, usize::from(most) + 5, 0),
        ] {
            sender.send(&sample.unfinished())?;
        }
        receiver.receives_nothing()?;
        eventually("counted losses", || {
            Ok(drops(back_end, "mtu_exceeded")? == lost + 2)
        })?;
        assert_eq!(drops(back_end, "offload")?, 0);
    }
    Ok(())
}

#[test]
fn long_packets_to_a_guest_of_a_smaller_mtu_fit_or_are_counted() -> TestResult {
    bounded(&mut switch()?, true)
}

#[test]
fn long_packets_to_a_port_of_a_smaller_mtu_fit_or_are_counted() -> TestResult {
    let mut back_end = NetBackEnd::start_ports(&["", ",mtu=1280"], &["--backend", "switch"])?;
    bounded(&mut back_end, false)
}
