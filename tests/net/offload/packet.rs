// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames read with nothing believed: every length and checksum has to be right.

use std::fmt::Display;

use crate::Result;

const ETHERNET_BYTES: usize = 14;
/// The shortest frame of Ethernet, without its check sequence; one may be filled up to it.
const SHORTEST_BYTES: usize = 60;

/// A finished TCP or UDP packet.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Packet {
    /// The VLAN of its tag.
    pub(crate) vlan: Option<u16>,
    /// IPv6, or IPv4.
    pub(crate) v6: bool,
    /// UDP, or TCP.
    pub(crate) udp: bool,
    /// The identification of IPv4.
    pub(crate) id: u16,
    /// Source and destination.
    pub(crate) ports: (u16, u16),
    /// Of TCP.
    pub(crate) sequence: u32,
    /// Of TCP.
    pub(crate) acknowledgement: u32,
    /// Of TCP.
    pub(crate) flags: u8,
    /// Of TCP.
    pub(crate) window: u16,
    pub(crate) payload: Vec<u8>,
}

/// The ones' complement sum of all pieces, each but the last of an even length (RFC 1071).
pub(crate) fn sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for word in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        let low = word.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([word[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Addresses, length and protocol, which a transport's checksum covers besides its segment.
pub(crate) fn pseudo_header(network: &[u8], segment_bytes: usize, protocol: u8) -> Vec<u8> {
    let addresses = if network[0] >> 4 == 6 {
        &network[8..40]
    } else {
        &network[12..20]
    };
    let bytes = u32::try_from(segment_bytes).unwrap_or(u32::MAX);
    [addresses, &bytes.to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) << 16 | u32::from(word(bytes, at + 2))
}

fn expect<T: PartialEq + Copy + Display>(what: &str, found: T, expected: T) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what} is {found}, not {expected}").into())
}

impl Packet {
    /// Reads a frame; none if it is neither TCP nor UDP.
    ///
    /// # Errors
    ///
    /// When it is such a packet, and not a valid one.
    pub(crate) fn parse(frame: &[u8]) -> Result<Option<Self>> {
        let mut packet = Self::default();
        let mut at = ETHERNET_BYTES;
        if word(frame, 12) == 0x8100 {
            packet.vlan = Some(word(frame, 14) & 0xfff);
            at += 4;
        }
        let network = &frame[at..];
        let (protocol, header_bytes, length) = match word(frame, at - 2) {
            0x0800 => {
                let header_bytes = usize::from(network[0] & 0xf) * 4;
                expect("the sum of IPv4", sum(&[&network[..header_bytes]]), 0xffff)?;
                expect("the fragment field", word(network, 6) & 0x3fff, 0)?;
                packet.id = word(network, 4);
                (network[9], header_bytes, usize::from(word(network, 2)))
            }
            0x86dd => {
                packet.v6 = true;
                (network[6], 40, 40 + usize::from(word(network, 4)))
            }
            _ => return Ok(None),
        };
        if !matches!(protocol, 6 | 17) {
            return Ok(None);
        }
        if frame.len() > SHORTEST_BYTES || length > network.len() {
            expect("the length of IP", length, network.len())?;
        }
        let segment = &network[header_bytes..length];
        let pseudo = pseudo_header(network, segment.len(), protocol);
        expect("the sum of all", sum(&[&pseudo, segment]), 0xffff)?;
        packet.ports = (word(segment, 0), word(segment, 2));
        packet.udp = protocol == 17;
        let header_bytes = if packet.udp {
            expect(
                "the length of UDP",
                usize::from(word(segment, 4)),
                segment.len(),
            )?;
            expect("without a checksum", word(segment, 6) == 0, false)?;
            8
        } else {
            (packet.sequence, packet.acknowledgement) = (long(segment, 4), long(segment, 8));
            packet.flags = segment[13];
            packet.window = word(segment, 14);
            usize::from(segment[12] >> 4) * 4
        };
        packet.payload = segment[header_bytes..].to_vec();
        Ok(Some(packet))
    }
}
