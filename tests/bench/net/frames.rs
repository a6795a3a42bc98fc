// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames that a host takes from a tap and then has nobody for: their Ethernet address is not its.

use ringside_frontend::net::{NetHeader, gso, header_flag};

/// Bytes of the Ethernet, the IPv4 and the TCP header.
const ETHERNET: usize = 14;
const IP: usize = 20;
const TCP: usize = 20;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Payload of a segment on an Ethernet.
const SEGMENT_BYTES: u16 = 1460;

/// A datagram, whose frame is `bytes` long: what testpmd sends, too.
pub(crate) fn udp(bytes: usize) -> (NetHeader, Vec<u8>) {
    (NetHeader::default(), frame(PROTOCOL_UDP, bytes))
}

/// A TCP segment that the receiver of the frame is to cut: `bytes` long with all headers.
pub(crate) fn tso(bytes: usize) -> (NetHeader, Vec<u8>) {
    let mut frame = frame(PROTOCOL_TCP, bytes);
    // Five words of header, and the flag ACK.
    frame[ETHERNET + IP + 12..ETHERNET + IP + 14].copy_from_slice(&[0x50, 0x10]);
    let header = NetHeader {
        flags: header_flag::NEEDS_CSUM,
        gso_type: gso::TCPV4,
        hdr_len: short(ETHERNET + IP + TCP),
        gso_size: SEGMENT_BYTES,
        csum_start: short(ETHERNET + IP),
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, frame)
}

fn frame(protocol: u8, bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; bytes];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12] = 8;
    let [high, low] = short(bytes - ETHERNET).to_be_bytes();
    let ip: [u8; IP] = [
        0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2,
    ];
    frame[ETHERNET..ETHERNET + IP].copy_from_slice(&ip);
    let words = ip
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default();
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
    let ports = [40_001_u16.to_be_bytes(), 9_u16.to_be_bytes()].concat();
    frame[ETHERNET + IP..ETHERNET + IP + 4].copy_from_slice(&ports);
    if protocol == PROTOCOL_UDP {
        let length = short(bytes - ETHERNET - IP).to_be_bytes();
        frame[ETHERNET + IP + 4..ETHERNET + IP + 6].copy_from_slice(&length);
    }
    frame
}

fn short(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}
