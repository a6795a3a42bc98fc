// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A TCP connection of a guest with the kernel of a namespace: just enough of TCP to send long
//! packets and to take what comes, on a path that loses nothing.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;

use ringside_frontend::load::fill_pattern;
use ringside_frontend::net::NetHeader;

use crate::guest::Guest;
use crate::kernel::Host;
use crate::packet::Packet;
use crate::sample::{PORTS, Sample, THEIR_IP, THEIR_IP6, tcp};
use crate::{Result, TestResult};

/// Payload of a long packet at most: less than the window that a kernel offers at first.
const BURST_BYTES: usize = 40_000;
/// What each side sends.
const STREAM_BYTES: usize = 400_000;
/// Payload of a segment (RFC 6691).
const SEGMENT_BYTES: u16 = 1400;

/// How the frames of a guest get to a kernel, and back.
pub(crate) trait Way {
    fn send(&mut self, sample: &Sample) -> TestResult;
    /// The next frame; valid if it is of TCP.
    fn receive(&mut self) -> Result<Vec<u8>>;
}

/// The kernel is on the guest's link.
impl Way for Guest {
    fn send(&mut self, sample: &Sample) -> TestResult {
        Guest::send(self, &sample.unfinished())
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        Ok(self.receive_finished(1)?.swap_remove(0))
    }
}

/// Another guest gets the frames and puts them on a link.
pub(crate) struct Relay {
    pub(crate) sender: Guest,
    pub(crate) receiver: Guest,
    pub(crate) wire: Guest,
}

impl Way for Relay {
    fn send(&mut self, sample: &Sample) -> TestResult {
        self.sender.send(&sample.unfinished())?;
        for frame in self.receiver.receive_finished(sample.segments())? {
            self.wire.send(&(NetHeader::default(), frame))?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        Way::receive(&mut self.wire)
    }
}

/// Opens connections over both IPs, sends a stream each way and holds it to what was sent.
pub(crate) fn converse(host: &Host, mut way: impl Way) -> TestResult {
    for (v6, ip) in [(false, IpAddr::V4(THEIR_IP)), (true, IpAddr::V6(THEIR_IP6))] {
        let address = SocketAddr::new(ip, PORTS.1);
        let listener = host.within(|| TcpListener::bind(address))?;
        let [mut there, mut back] = [vec![0; STREAM_BYTES], vec![0; STREAM_BYTES]];
        fill_pattern(1, u64::from(v6), &mut there);
        fill_pattern(2, u64::from(v6), &mut back);
        let (expected, answer) = (there.clone(), back.clone());
        let kernel = thread::spawn(move || -> std::io::Result<bool> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(crate::PATIENCE))?;
            stream.set_write_timeout(Some(crate::PATIENCE))?;
            let mut found = vec![0; expected.len()];
            stream.read_exact(&mut found)?;
            stream.write_all(&answer)?;
            Ok(found == expected)
        });
        let mut connection = Connection::open(&mut way, v6)?;
        connection.send(&there)?;
        let found = connection.receive(back.len())?;
        assert!(found == back, "another stream came back");
        let kernel = kernel
            .join()
            .map_err(|_panic| "the kernel's side panicked")??;
        assert!(kernel, "another stream arrived");
    }
    Ok(())
}

struct Connection<'a, W> {
    way: &'a mut W,
    v6: bool,
    /// What we send next.
    sequence: u32,
    /// What the kernel takes at once.
    window: u16,
    /// What we have up to.
    received: u32,
    /// What has come and was not asked for yet.
    stream: Vec<u8>,
}

impl<'a, W: Way> Connection<'a, W> {
    fn open(way: &'a mut W, v6: bool) -> Result<Self> {
        let mut connection = Self {
            way,
            v6,
            sequence: 0xffff_0000,
            window: 0,
            received: 0,
            stream: Vec::new(),
        };
        let mut sample = connection.sample(tcp::SYN, &[]);
        let [high, low] = SEGMENT_BYTES.to_be_bytes();
        sample.options = vec![2, 4, high, low];
        connection.way.send(&sample)?;
        let answer = connection.next()?;
        assert_eq!(answer.flags, tcp::SYN | tcp::ACK);
        connection.sequence = connection.sequence.wrapping_add(1);
        connection.received = answer.sequence.wrapping_add(1);
        connection.acknowledge()?;
        Ok(connection)
    }

    fn sample(&self, flags: u8, payload: &[u8]) -> Sample {
        let long = payload.len() > usize::from(SEGMENT_BYTES);
        let mut sample = Sample::new(self.v6, false, 0, if long { SEGMENT_BYTES } else { 0 });
        sample.packet.flags = flags;
        sample.packet.sequence = self.sequence;
        sample.packet.acknowledgement = self.received;
        sample.packet.payload = payload.to_vec();
        sample
    }

    fn acknowledge(&mut self) -> TestResult {
        let sample = self.sample(tcp::ACK, &[]);
        self.way.send(&sample)
    }

    /// The next packet of the connection.
    fn next(&mut self) -> Result<Packet> {
        loop {
            let frame = self.way.receive()?;
            let ours = (PORTS.1, PORTS.0);
            if let Some(packet) = Packet::parse(&frame)?
                && (packet.ports, packet.v6, packet.udp) == (ours, self.v6, false)
            {
                if packet.flags & tcp::RST != 0 {
                    return Err("the kernel has reset the connection".into());
                }
                self.window = packet.window;
                return Ok(packet);
            }
        }
    }

    /// Sends in long packets, each when all before it are acknowledged.
    fn send(&mut self, mut stream: &[u8]) -> TestResult {
        while !stream.is_empty() {
            let bytes = stream.len().min(BURST_BYTES).min(self.window.into());
            let (burst, rest) = stream.split_at(bytes);
            if bytes > 0 {
                let sample = self.sample(tcp::ACK | tcp::PSH, burst);
                self.way.send(&sample)?;
            }
            stream = rest;
            self.sequence = self.sequence.wrapping_add(u32::try_from(bytes)?);
            // Also that the window has opened is told by an acknowledgement.
            loop {
                let packet = self.next()?;
                self.take(&packet)?;
                if packet.acknowledgement == self.sequence {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes what continues the stream; anything else was sent twice.
    fn take(&mut self, packet: &Packet) -> TestResult {
        if packet.sequence == self.received && !packet.payload.is_empty() {
            self.stream.extend_from_slice(&packet.payload);
            let bytes = u32::try_from(packet.payload.len())?;
            self.received = self.received.wrapping_add(bytes);
        }
        Ok(())
    }

    fn receive(&mut self, bytes: usize) -> Result<Vec<u8>> {
        while self.stream.len() < bytes {
            let packet = self.next()?;
            self.take(&packet)?;
            self.acknowledge()?;
        }
        Ok(std::mem::take(&mut self.stream))
    }
}
