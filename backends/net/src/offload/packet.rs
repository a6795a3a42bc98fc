// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the headers of a long packet are, read from its bytes.
//!
//! What the virtio header and the length fields of the packet say is not believed: a long packet's
//! payload is what the frame has behind the last header, and its lengths are written anew.

use super::FinishFault;
use crate::features::Offloads;
use crate::frame::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, network_header};
use crate::header::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, NetHeader};

/// The most bytes of headers that are repeated in front of each segment: two tags, either IP with
/// all options or as many extension headers, and TCP with all options.
pub const MAX_HEADERS_BYTES: usize = 256;

/// Bytes of an IPv4 header without options.
const IPV4_BYTES: usize = 20;
/// Bytes of an IPv6 header.
pub(super) const IPV6_BYTES: usize = 40;
/// Bytes of a TCP header without options.
const TCP_BYTES: usize = 20;
/// Bytes of a UDP header.
pub(super) const UDP_BYTES: usize = 8;

/// `IPPROTO_TCP`.
pub(super) const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub(super) const UDP: u8 = 17;
/// `IPPROTO_HOPOPTS`.
const HOP_BY_HOP: u8 = 0;
/// `IPPROTO_DSTOPTS`.
const DESTINATION_OPTIONS: u8 = 60;

/// More fragments, and the offset of this one, in units of 8 bytes.
const IPV4_FRAGMENT: u16 = 0x3fff;

/// Which IP a packet is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ip {
    V4,
    V6,
}

/// Which transport it carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Where its checksum is in its header.
    pub(super) const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    /// Its number in an IP header.
    pub(super) const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

/// The headers of a long packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Packet {
    pub(super) ip: Ip,
    pub(super) transport: Transport,
    /// Where the IP header begins.
    pub(super) network_offset: usize,
    /// Where the transport header begins.
    pub(super) transport_offset: usize,
    /// Where the payload begins; at most [`MAX_HEADERS_BYTES`].
    pub(super) payload_offset: usize,
}

impl Packet {
    /// The headers in the first bytes of a frame, which are those that its virtio header says.
    ///
    /// # Errors
    /// They are not, or not all there, or not such that they can be repeated.
    pub(super) fn parse(header: &NetHeader, head: &[u8]) -> Result<Self, FinishFault> {
        let (ethertype, network_offset) = network_header(head).ok_or(FinishFault::Truncated)?;
        let network = head.get(network_offset..).ok_or(FinishFault::Truncated)?;
        let (ip, (protocol, network_bytes)) = match ethertype {
            ETHERTYPE_IPV4 => (Ip::V4, ipv4(network)?),
            ETHERTYPE_IPV6 => (Ip::V6, ipv6(network)?),
            _ => return Err(FinishFault::OtherProtocol),
        };
        let transport = transport(header.gso_type, ip)?;
        if protocol != transport.protocol() {
            return Err(FinishFault::OtherProtocol);
        }
        let transport_offset = network_offset.saturating_add(network_bytes);
        let segment = head.get(transport_offset..).ok_or(FinishFault::Truncated)?;
        let transport_bytes = match transport {
            Transport::Tcp => tcp_header_bytes(segment)?,
            Transport::Udp => UDP_BYTES,
        };
        let payload_offset = transport_offset.saturating_add(transport_bytes);
        if payload_offset > MAX_HEADERS_BYTES {
            return Err(FinishFault::HeadersTooLong);
        }
        if payload_offset > head.len() {
            return Err(FinishFault::Truncated);
        }
        let checksum = (header.csum_start.into(), header.csum_offset.into());
        let its_own = (transport_offset, transport.checksum_offset());
        if header.needs_checksum() && checksum != its_own {
            return Err(FinishFault::ChecksumElsewhere);
        }
        Ok(Self {
            ip,
            transport,
            network_offset,
            transport_offset,
            payload_offset,
        })
    }

    /// What a receiver of this packet has to take.
    pub(super) fn offloads(&self, header: &NetHeader) -> Offloads {
        let ecn = match header.gso_type & GSO_ECN {
            0 => Offloads::empty(),
            _ => Offloads::ECN,
        };
        let long = match (self.transport, self.ip) {
            (Transport::Tcp, Ip::V4) => Offloads::TSO4,
            (Transport::Tcp, Ip::V6) => Offloads::TSO6,
            (Transport::Udp, Ip::V4) => Offloads::USO4,
            (Transport::Udp, Ip::V6) => Offloads::USO6,
        };
        Offloads::CSUM | ecn | long
    }
}

/// The transport that a type of long packet has over this IP.
fn transport(gso_type: u8, ip: Ip) -> Result<Transport, FinishFault> {
    match (gso_type & !GSO_ECN, ip) {
        (GSO_TCPV4, Ip::V4) | (GSO_TCPV6, Ip::V6) => Ok(Transport::Tcp),
        (GSO_UDP_L4, _) => Ok(Transport::Udp),
        (GSO_UDP, _) => Err(FinishFault::Fragmentation),
        _ => Err(FinishFault::OtherProtocol),
    }
}

/// The protocol in an IPv4 packet, and the bytes of its header.
fn ipv4(packet: &[u8]) -> Result<(u8, usize), FinishFault> {
    let header = packet.first_chunk::<IPV4_BYTES>();
    let [version_length, _, _, _, _, _, f0, f1, _, protocol, ..] =
        *header.ok_or(FinishFault::Truncated)?;
    let header_bytes = usize::from(version_length & 0xf).saturating_mul(4);
    if version_length >> 4 != 4 || header_bytes < IPV4_BYTES {
        return Err(FinishFault::Malformed);
    }
    if u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT != 0 {
        return Err(FinishFault::Fragment);
    }
    Ok((protocol, header_bytes))
}

/// The protocol in an IPv6 packet, and the bytes of its header with the extension headers that can
/// be repeated: a routing header is none, as it changes the address that checksums are made of.
fn ipv6(packet: &[u8]) -> Result<(u8, usize), FinishFault> {
    let header = packet.first_chunk::<IPV6_BYTES>();
    let [version, _, _, _, _, _, mut next, ..] = *header.ok_or(FinishFault::Truncated)?;
    if version >> 4 != 6 {
        return Err(FinishFault::Malformed);
    }
    let mut offset = IPV6_BYTES;
    while matches!(next, HOP_BY_HOP | DESTINATION_OPTIONS) {
        let extension = packet.get(offset..).ok_or(FinishFault::Truncated)?;
        let [following, eights] = *extension.first_chunk().ok_or(FinishFault::Truncated)?;
        // The length does not count the first 8 bytes, so that each round gets further.
        let extension_bytes = usize::from(eights).saturating_add(1).saturating_mul(8);
        offset = offset.saturating_add(extension_bytes);
        if offset > MAX_HEADERS_BYTES {
            return Err(FinishFault::HeadersTooLong);
        }
        next = following;
    }
    Ok((next, offset))
}

/// Bytes of the header that begins a TCP segment.
fn tcp_header_bytes(segment: &[u8]) -> Result<usize, FinishFault> {
    let [.., words_flags, _, _, _, _, _, _, _] = *segment
        .first_chunk::<TCP_BYTES>()
        .ok_or(FinishFault::Truncated)?;
    let header_bytes = usize::from(words_flags >> 4).saturating_mul(4);
    if header_bytes < TCP_BYTES {
        return Err(FinishFault::Malformed);
    }
    Ok(header_bytes)
}
