// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames longer than a buffer, and who gets them.

use std::net::UdpSocket;

use ringside_frontend::load::fill_pattern;
use ringside_frontend::net::net_feature::{GUEST_USO4, GUEST_USO6};
use ringside_frontend::net::{NetHeader, gso, header_flag};
use ringside_tests::skip;
use ringside_tests::vm::network_needs;

use crate::connection::{Way, converse};
use crate::guest::{Guest, SENDS_LONG, TAKES_LONG};
use crate::kernel::Host;
use crate::packet::{Packet, sum};
use crate::sample::{OUR_IP, Sample};
use crate::{PATIENCE, Result, SILENCE, TestResult, datagram_in, report, sys};

/// All that can be left to the guest.
const TAKES_ALL: u64 = TAKES_LONG | GUEST_USO4 | GUEST_USO6 | SENDS_LONG;
/// The longest frame by Ethernet.
const USUAL_BYTES: usize = 1514;
/// Payload of a long datagram, and of each segment of it.
const LONG_BYTES: usize = 65_000;
const SEGMENT_BYTES: usize = 1400;

/// Sets the checksum that is left to the receiver.
fn finish_sum(header: &NetHeader, frame: &mut [u8]) {
    if header.flags & header_flag::NEEDS_CSUM != 0 {
        let start = usize::from(header.csum_start);
        let at = start + usize::from(header.csum_offset);
        let found = !sum(&[&frame[start..]]);
        frame[at..at + 2].copy_from_slice(&found.to_be_bytes());
    }
}

/// A guest that takes all, and what the longest was.
struct LongGuest<'a> {
    guest: Guest,
    longest: &'a mut usize,
    most_chains: &'a mut u16,
}

impl Way for LongGuest<'_> {
    fn send(&mut self, sample: &Sample) -> TestResult {
        self.guest.send(&sample.unfinished())
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let (header, mut frame) = self.guest.receive()?;
        *self.longest = frame.len().max(*self.longest);
        *self.most_chains = header.num_buffers.max(*self.most_chains);
        finish_sum(&header, &mut frame);
        Ok(frame)
    }
}

/// A kernel's socket whose datagrams are cut as late as can be.
fn cutting_socket(host: &Host) -> Result<UdpSocket> {
    let socket = host.socket()?;
    sys::set_segment(&socket, i32::try_from(SEGMENT_BYTES)?)?;
    Ok(socket)
}

fn pattern(sequence: u64) -> Vec<u8> {
    let mut payload = vec![0; LONG_BYTES];
    fill_pattern(3, sequence, &mut payload);
    payload
}

/// The next datagram from the kernel, its checksum finished.
fn next_datagram(guest: &mut Guest) -> Result<(NetHeader, usize, Packet)> {
    loop {
        let (header, mut frame) = guest.receive()?;
        finish_sum(&header, &mut frame);
        if let Some(packet) = datagram_in(&frame)? {
            return Ok((header, frame.len(), packet));
        }
    }
}

#[test]
fn rule_20_frame_longer_than_the_buffers_is_whole() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?.with_ipv6()?;
    let mut back_end = host.back_end(1)?;
    // Buffers of 600 bytes: as many as 110 to a frame.
    let mut guest = Guest::open(&mut back_end, 0, TAKES_ALL)?;
    host.meet()?;
    let socket = cutting_socket(&host)?;
    for sequence in 0..50 {
        socket.send_to(&pattern(sequence), (OUR_IP, 9))?;
        let (header, bytes, packet) = next_datagram(&mut guest)?;
        assert_eq!((header.gso_type, bytes), (gso::UDP_L4, LONG_BYTES + 42));
        assert_eq!(usize::from(header.num_buffers), (bytes + 12).div_ceil(600));
        assert!(packet.payload == pattern(sequence), "datagram {sequence}");
    }
    let (mut longest, mut most_chains) = (0, 0);
    converse(
        &host,
        LongGuest {
            guest,
            longest: &mut longest,
            most_chains: &mut most_chains,
        },
    )?;
    report(&format!(
        "rule 20: TCP in frames of up to {longest} bytes, in {most_chains} chains"
    ));
    assert!(longest > 8 * USUAL_BYTES && most_chains > 20);
    Ok(())
}

/// Whatever was there for the guest before, this one gets finished frames only.
fn gets_finished_frames(host: &Host, guest: &mut Guest) -> TestResult {
    let socket = cutting_socket(host)?;
    for sequence in 0..10 {
        socket.send_to(&pattern(sequence), (OUR_IP, 9))?;
        let mut payload = Vec::new();
        while payload.len() < LONG_BYTES {
            // The sums are right as they are, or `receive_finished` and the parser object.
            let frame = guest.receive_finished(1)?.swap_remove(0);
            assert!(frame.len() <= USUAL_BYTES, "{} bytes", frame.len());
            if let Some(packet) = datagram_in(&frame)? {
                payload.extend_from_slice(&packet.payload);
            }
        }
        assert!(payload == pattern(sequence), "datagram {sequence}");
    }
    Ok(())
}

#[test]
fn rule_28_offloads_follow_what_the_guest_takes() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?.with_ipv6()?;
    let mut back_end = host.back_end(1)?;
    let socket = cutting_socket(&host)?;
    for round in 0..3 {
        let mut guest = Guest::open(&mut back_end, 0, SENDS_LONG)?;
        host.meet()?;
        gets_finished_frames(&host, &mut guest).map_err(|e| format!("round {round}: {e}"))?;
        drop(guest);
        let mut guest = Guest::open(&mut back_end, 0, TAKES_ALL)?;
        host.meet()?;
        socket.send_to(&pattern(round), (OUR_IP, 9))?;
        let (header, bytes, packet) = next_datagram(&mut guest)?;
        assert_eq!((header.gso_type, bytes), (gso::UDP_L4, LONG_BYTES + 42));
        assert!(packet.payload == pattern(round));
        // More than its buffers hold: the rest waits in the tap, long and without sums, and the
        // next guest takes neither.
        for sequence in 0..20 {
            socket.send_to(&pattern(sequence), (OUR_IP, 9))?;
        }
        std::thread::sleep(SILENCE);
    }
    converse(&host, Guest::open(&mut back_end, 0, SENDS_LONG)?)
}

/// What is for nobody while there is no guest is not for the next one either.
#[test]
fn rule_28_frames_from_before_a_guest_are_finished_or_gone() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?;
    let mut back_end = host.back_end(1)?;
    let socket = cutting_socket(&host)?;
    drop(Guest::open(&mut back_end, 0, TAKES_ALL)?);
    for sequence in 0..20 {
        socket.send_to(&pattern(sequence), (OUR_IP, 9))?;
    }
    let mut guest = Guest::open(&mut back_end, 0, 0)?;
    host.meet()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let last = pattern(77);
    socket.send_to(&last, (OUR_IP, 9))?;
    let mut end = Vec::new();
    while end != last[LONG_BYTES - LONG_BYTES % SEGMENT_BYTES..] {
        let frame = guest.receive_finished(1)?.swap_remove(0);
        assert!(frame.len() <= USUAL_BYTES, "{} bytes", frame.len());
        if let Some(packet) = datagram_in(&frame)? {
            end = packet.payload;
        }
    }
    Ok(())
}
