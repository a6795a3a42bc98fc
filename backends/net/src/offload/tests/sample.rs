// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes frames for the tests, and takes finished ones apart; naively, with nothing of what is
//! tested.

use crate::header::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader};

/// A long packet.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) v6: bool,
    pub(super) udp: bool,
    /// VLAN tags, at most 2.
    pub(super) tags: usize,
    /// IPv4: words of options, at most 10. IPv6: a header of destination options of as many eights.
    pub(super) ip_options: u8,
    /// Words of TCP options, at most 10.
    pub(super) tcp_options: u8,
    pub(super) tcp_flags: u8,
    pub(super) sequence: u32,
    pub(super) id: u16,
    pub(super) gso_size_bytes: u16,
    pub(super) payload: Vec<u8>,
}

impl Sample {
    pub(super) fn tcp4(payload_bytes: usize, gso_size_bytes: u16) -> Self {
        Self {
            v6: false,
            udp: false,
            tags: 0,
            ip_options: 0,
            tcp_options: 0,
            tcp_flags: 0x10,
            sequence: 0x0102_0304,
            id: 0x5678,
            gso_size_bytes,
            payload: (0..payload_bytes)
                .map(|at| u8::try_from(at * 7 % 251).unwrap())
                .collect(),
        }
    }

    pub(super) fn ip_offset(&self) -> usize {
        14 + 4 * self.tags
    }

    pub(super) fn transport_offset(&self) -> usize {
        let options = usize::from(self.ip_options);
        self.ip_offset()
            + if self.v6 {
                40 + 8 * options
            } else {
                20 + 4 * options
            }
    }

    pub(super) fn headers_bytes(&self) -> usize {
        self.transport_offset()
            + if self.udp {
                8
            } else {
                20 + 4 * usize::from(self.tcp_options)
            }
    }

    pub(super) fn header(&self) -> NetHeader {
        NetHeader {
            flags: NEEDS_CSUM,
            gso_type: match (self.udp, self.v6) {
                (true, _) => GSO_UDP_L4,
                (false, false) => GSO_TCPV4,
                (false, true) => GSO_TCPV6,
            },
            hdr_len_bytes: u16::try_from(self.headers_bytes()).unwrap(),
            gso_size_bytes: self.gso_size_bytes,
            csum_start: u16::try_from(self.transport_offset()).unwrap(),
            csum_offset: if self.udp { 6 } else { 16 },
            num_buffers: 0,
        }
    }

    /// The frame, with the pseudo header's sum in the place of the checksum.
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
        for tag in 0..self.tags {
            let outer = tag + 1 < self.tags;
            frame.extend(if outer { [0x88, 0xa8] } else { [0x81, 0x00] });
            frame.extend([0x20, 5]);
        }
        let transport_bytes = self.headers_bytes() - self.transport_offset() + self.payload.len();
        let protocol = if self.udp { 17 } else { 6 };
        if self.v6 {
            self.put_ipv6(&mut frame, protocol, transport_bytes);
        } else {
            self.put_ipv4(&mut frame, protocol, transport_bytes);
        }
        frame.extend([0x30, 0x39, 0x00, 0x50]);
        if self.udp {
            frame.extend(u16::try_from(transport_bytes).unwrap().to_be_bytes());
            frame.extend([0, 0]);
        } else {
            frame.extend(self.sequence.to_be_bytes());
            frame.extend([9, 8, 7, 6, (5 + self.tcp_options) << 4, self.tcp_flags]);
            frame.extend([0x12, 0x34, 0, 0, 0, 0]);
            frame.extend(vec![1; 4 * usize::from(self.tcp_options)]);
        }
        let at = self.transport_offset() + usize::from(self.header().csum_offset);
        let pseudo = pseudo_header(&frame[self.ip_offset()..], protocol, transport_bytes);
        let sum = naive_sum(&pseudo);
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frame.extend(&self.payload);
        frame
    }

    fn put_ipv4(&self, frame: &mut Vec<u8>, protocol: u8, transport_bytes: usize) {
        let header_bytes = 20 + 4 * usize::from(self.ip_options);
        let total = u16::try_from(header_bytes + transport_bytes).unwrap();
        let mut ip = vec![0x45 + self.ip_options, 0];
        ip.extend(total.to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend([0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ip.extend(vec![1; header_bytes - 20]);
        let checksum = !naive_sum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend([0x08, 0x00]);
        frame.extend(ip);
    }

    fn put_ipv6(&self, frame: &mut Vec<u8>, protocol: u8, transport_bytes: usize) {
        let extension_bytes = 8 * usize::from(self.ip_options);
        let length = u16::try_from(extension_bytes + transport_bytes).unwrap();
        let next = if self.ip_options == 0 { protocol } else { 60 };
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([next, 64]);
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        if self.ip_options > 0 {
            let mut extension = vec![protocol, self.ip_options - 1];
            extension.resize(extension_bytes, 0);
            frame.extend(extension);
        }
    }
}

/// One frame for a receiver.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) header: NetHeader,
    pub(super) frame: Vec<u8>,
}

impl Segment {
    /// The payload, after a look at lengths and checksums, which must be those of this frame.
    pub(super) fn payload(&self, of: &Sample) -> Vec<u8> {
        let ip = &self.frame[of.ip_offset()..];
        let ip_header_bytes = of.transport_offset() - of.ip_offset();
        let transport = &ip[ip_header_bytes..];
        let protocol = if of.udp { 17 } else { 6 };
        if of.v6 {
            assert_eq!(usize::from(u16_at(ip, 4)), ip.len() - 40);
        } else {
            assert_eq!(usize::from(u16_at(ip, 2)), ip.len());
            assert_eq!(naive_sum(&ip[..ip_header_bytes]), 0xffff);
        }
        if of.udp {
            assert_eq!(usize::from(u16_at(transport, 4)), transport.len());
        }
        let mut summed = pseudo_header(ip, protocol, transport.len());
        if self.header.flags == NEEDS_CSUM {
            let at = usize::from(self.header.csum_offset);
            assert_eq!(usize::from(self.header.csum_start), of.transport_offset());
            assert_eq!(u16_at(transport, at), naive_sum(&summed));
        } else {
            assert_eq!(self.header, NetHeader::default());
            assert!(!of.udp || u16_at(transport, 6) != 0);
            summed.extend(transport);
            assert_eq!(naive_sum(&summed), 0xffff);
        }
        self.frame[of.headers_bytes()..].to_vec()
    }

    pub(super) fn id(&self, of: &Sample) -> u16 {
        u16_at(&self.frame, of.ip_offset() + 4)
    }

    pub(super) fn sequence(&self, of: &Sample) -> u32 {
        let at = of.transport_offset() + 4;
        u32::from_be_bytes(self.frame[at..at + 4].try_into().unwrap())
    }

    pub(super) fn tcp_flags(&self, of: &Sample) -> u8 {
        self.frame[of.transport_offset() + 13]
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The pseudo header of RFC 9293 §3.1 or RFC 8200 §8.1 for the packet that begins here.
fn pseudo_header(ip: &[u8], protocol: u8, transport_bytes: usize) -> Vec<u8> {
    let length = u32::try_from(transport_bytes).unwrap().to_be_bytes();
    let mut bytes = match ip[0] >> 4 {
        4 => ip[12..20].to_vec(),
        _ => ip[8..40].to_vec(),
    };
    bytes.extend([length, [0, 0, 0, protocol]].concat());
    bytes
}

/// The sum of RFC 1071 §1, word by word.
pub(super) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum % 65_536) + sum / 65_536;
    }
    u16::try_from(sum).unwrap()
}
