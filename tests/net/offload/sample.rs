// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets as a driver leaves them: long, and with the sum of the pseudo header for a checksum.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringside_frontend::load::fill_pattern;
use ringside_frontend::net::{NetHeader, gso, header_flag};

use crate::packet::{Packet, pseudo_header, sum};
use crate::{OURS, Result, THEIRS};

/// The addresses of the sender and of the receiver.
pub(crate) const OUR_IP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
pub(crate) const THEIR_IP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub(crate) const OUR_IP6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const THEIR_IP6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
/// The port of the sender, and of a receiver that waits for nothing: `tcpdump` knows neither.
pub(crate) const PORTS: (u16, u16) = (40_001, 40_000);

/// Flags of TCP.
pub(crate) mod tcp {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const CWR: u8 = 0x80;
}

/// A packet to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// What it is, its checksums and its VLAN apart.
    pub(crate) packet: Packet,
    /// Payload of each segment; 0 for a packet that is none of several.
    pub(crate) gso_bytes: u16,
    /// Options of TCP: a multiple of four bytes.
    pub(crate) options: Vec<u8>,
}

impl Sample {
    /// TCP or UDP with this much payload.
    pub(crate) fn new(v6: bool, udp: bool, payload_bytes: usize, gso_bytes: u16) -> Self {
        let mut payload = vec![0; payload_bytes];
        fill_pattern(payload_bytes as u64, u64::from(gso_bytes), &mut payload);
        let packet = Packet {
            v6,
            udp,
            // Both overflow on the way.
            id: if v6 { 0 } else { 0xfff0 },
            sequence: if udp { 0 } else { 0xffff_8000 },
            acknowledgement: if udp { 0 } else { 0x0102_0304 },
            flags: if udp { 0 } else { tcp::ACK | tcp::PSH },
            window: if udp { 0 } else { u16::MAX },
            ports: PORTS,
            payload,
            vlan: None,
        };
        Self {
            packet,
            gso_bytes,
            options: Vec::new(),
        }
    }

    /// The same in a VLAN, as its own driver would tag it.
    pub(crate) fn tagged(mut self, vlan: u16) -> Self {
        self.packet.vlan = Some(vlan);
        self
    }

    /// The virtio header and the frame, both as a driver has them that leaves all to its device.
    pub(crate) fn unfinished(&self) -> (NetHeader, Vec<u8>) {
        let packet = &self.packet;
        let transport = self.transport();
        let protocol = if packet.udp { 17 } else { 6 };
        let ethertype: u16 = if packet.v6 { 0x86dd } else { 0x0800 };
        let mut frame = [THEIRS, OURS].concat();
        if let Some(vlan) = packet.vlan {
            frame.extend_from_slice(&[0x81, 0]);
            frame.extend_from_slice(&vlan.to_be_bytes());
        }
        frame.extend_from_slice(&ethertype.to_be_bytes());
        let network = network(packet, protocol, transport.len());
        frame.extend_from_slice(&network);
        let csum_start = frame.len();
        let csum_offset = if packet.udp { 6 } else { 16 };
        frame.extend_from_slice(&transport);
        let pseudo = pseudo_header(&network, transport.len(), protocol);
        let at = csum_start + csum_offset;
        frame[at..at + 2].copy_from_slice(&sum(&[&pseudo]).to_be_bytes());
        let header_bytes = frame.len() - packet.payload.len();
        let short = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        let header = NetHeader {
            flags: header_flag::NEEDS_CSUM,
            gso_type: match (self.gso_bytes, packet.udp, packet.v6) {
                (0, _, _) => gso::NONE,
                (_, true, _) => gso::UDP_L4,
                (_, false, false) => gso::TCPV4,
                (_, false, true) => gso::TCPV6,
            },
            hdr_len: if self.gso_bytes == 0 {
                0
            } else {
                short(header_bytes)
            },
            gso_size: self.gso_bytes,
            csum_start: short(csum_start),
            csum_offset: short(csum_offset),
            num_buffers: 0,
        };
        (header, frame)
    }

    fn transport(&self) -> Vec<u8> {
        let packet = &self.packet;
        let (from, to) = packet.ports;
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        if packet.udp {
            let length = u16::try_from(8 + packet.payload.len()).unwrap_or(0);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&[0; 2]);
        } else {
            bytes.extend_from_slice(&packet.sequence.to_be_bytes());
            bytes.extend_from_slice(&packet.acknowledgement.to_be_bytes());
            let words = u8::try_from(5 + self.options.len() / 4).unwrap_or(u8::MAX);
            bytes.extend_from_slice(&[words << 4, packet.flags]);
            bytes.extend_from_slice(&packet.window.to_be_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&self.options);
        }
        bytes.extend_from_slice(&packet.payload);
        bytes
    }

    /// Packets that arrive at a receiver that takes none that is unfinished.
    pub(crate) fn segments(&self) -> usize {
        match self.gso_bytes {
            0 => 1,
            bytes => self.packet.payload.len().div_ceil(bytes.into()).max(1),
        }
    }

    /// Holds what has arrived to what was sent.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub(crate) fn check(&self, frames: &[Vec<u8>]) -> Result<()> {
        let mut left = self.packet.payload.as_slice();
        let mut expected = self.packet.clone();
        for (index, frame) in frames.iter().enumerate() {
            let about = |what: &str| format!("segment {index}: {what}");
            let found = Packet::parse(frame).map_err(|e| about(&e.to_string()))?;
            let found = found.ok_or_else(|| about("neither TCP nor UDP"))?;
            if frame[..12] != [THEIRS, OURS].concat() {
                return Err(about("other addresses").into());
            }
            let bytes = match self.gso_bytes {
                0 => left.len(),
                bytes => left.len().min(bytes.into()),
            };
            let (piece, rest) = left.split_at(bytes);
            expected.payload = piece.to_vec();
            expected.flags = self.packet.flags;
            if index > 0 {
                expected.flags &= !tcp::CWR;
            }
            if !rest.is_empty() {
                expected.flags &= !(tcp::PSH | tcp::FIN);
            }
            if found != expected {
                let brief = |packet: &Packet| {
                    format!(
                        "{:?}",
                        Packet {
                            payload: vec![],
                            ..packet.clone()
                        }
                    )
                };
                let (is, was) = (brief(&found), brief(&expected));
                return Err(about(&format!("{is} is not {was}, or the payload differs")).into());
            }
            left = rest;
            expected.id = expected.id.wrapping_add(u16::from(!expected.v6));
            if !expected.udp {
                let bytes = u32::try_from(bytes)?;
                expected.sequence = expected.sequence.wrapping_add(bytes);
            }
        }
        if left.is_empty() && frames.len() == self.segments() {
            return Ok(());
        }
        Err(format!("{} segments, {} bytes missing", frames.len(), left.len()).into())
    }
}

fn network(packet: &Packet, protocol: u8, transport_bytes: usize) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    if packet.v6 {
        let [high, low] = length(transport_bytes);
        let fixed = [0x60, 0, 0, 0, high, low, protocol, 64];
        return [&fixed[..], &OUR_IP6.octets(), &THEIR_IP6.octets()].concat();
    }
    let ([high, low], [id_high, id_low]) = (length(20 + transport_bytes), packet.id.to_be_bytes());
    let fixed = [
        0x45, 0, high, low, id_high, id_low, 0x40, 0, 64, protocol, 0, 0,
    ];
    let mut bytes = [&fixed[..], &OUR_IP.octets(), &THEIR_IP.octets()].concat();
    let checksum = !sum(&[&bytes]);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes
}
