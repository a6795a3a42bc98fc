// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the headers of a long packet are, read from its bytes.
//!
//! What the virtio header and the length fields of the packet say is not believed: a long packet's
//! payload is what the frame has behind the last header, and its lengths are written anew.

use super::fault::{FinishFault, MAX_HEADERS_BYTES};
use crate::features::Offloads;
use crate::frame::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, network_header};
use crate::header::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, NetHeader};

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
/// `IPPROTO_ROUTING`.
const ROUTING: u8 = 43;
/// `IPPROTO_DSTOPTS`.
const DESTINATION_OPTIONS: u8 = 60;
/// Bytes of a routing header in front of its addresses.
const ROUTING_BYTES: usize = 8;
/// Bytes of an IPv6 address.
const ADDRESS_BYTES: usize = 16;

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

/// The address of a packet that its checksums are made of (RFC 8200, section 8.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Destination {
    /// That in the IP header.
    InHeader,
    /// The last one of a routing header, at this offset from the IP header.
    At(usize),
    /// That of a routing header of another kind: such a packet passes, but is not segmented.
    Unknown,
}

/// What a walk over the headers of IP has found.
struct Network {
    protocol: u8,
    header_bytes: usize,
    destination: Destination,
}

/// The headers of a long packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Packet {
    pub(super) ip: Ip,
    pub(super) transport: Transport,
    /// Of the checksums.
    pub(super) destination: Destination,
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
        let (ip, found) = match ethertype {
            ETHERTYPE_IPV4 => (Ip::V4, ipv4(network)?),
            ETHERTYPE_IPV6 => (Ip::V6, ipv6(network)?),
            _ => return Err(FinishFault::OtherProtocol),
        };
        let transport = transport(header.gso_type, ip)?;
        if found.protocol != transport.protocol() {
            return Err(FinishFault::OtherProtocol);
        }
        let transport_offset = network_offset.saturating_add(found.header_bytes);
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
            destination: found.destination,
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

/// The header of an IPv4 packet.
fn ipv4(packet: &[u8]) -> Result<Network, FinishFault> {
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
    Ok(Network {
        protocol,
        header_bytes,
        destination: Destination::InHeader,
    })
}

/// The header of an IPv6 packet with the extension headers that can be repeated.
fn ipv6(packet: &[u8]) -> Result<Network, FinishFault> {
    let header = packet.first_chunk::<IPV6_BYTES>();
    let [version, _, _, _, _, _, mut next, ..] = *header.ok_or(FinishFault::Truncated)?;
    if version >> 4 != 6 {
        return Err(FinishFault::Malformed);
    }
    let mut offset = IPV6_BYTES;
    let mut destination = Destination::InHeader;
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
        let extension = packet.get(offset..).ok_or(FinishFault::Truncated)?;
        let [following, eights] = *extension.first_chunk().ok_or(FinishFault::Truncated)?;
        // The length does not count the first 8 bytes, so that each round gets further.
        let extension_bytes = usize::from(eights).saturating_add(1).saturating_mul(8);
        let start = offset;
        offset = offset.saturating_add(extension_bytes);
        if offset > MAX_HEADERS_BYTES {
            return Err(FinishFault::HeadersTooLong);
        }
        if next == ROUTING {
            destination = routed(extension, start, extension_bytes, destination)?;
        }
        next = following;
    }
    Ok(Network {
        protocol: next,
        header_bytes: offset,
        destination,
    })
}

/// The address that a packet with a routing header, which begins at `start`, goes to in the end.
fn routed(
    header: &[u8],
    start: usize,
    header_bytes: usize,
    before: Destination,
) -> Result<Destination, FinishFault> {
    /// RFC 5095, RFC 6275 and RFC 8754.
    const SOURCE: u8 = 0;
    const MOBILE: u8 = 2;
    const SEGMENTS: u8 = 4;
    let [_, _, kind, segments_left] = *header.first_chunk().ok_or(FinishFault::Truncated)?;
    if segments_left == 0 {
        // It has arrived where the header says, or where one before this says.
        return Ok(before);
    }
    let addresses_bytes = header_bytes.saturating_sub(ROUTING_BYTES);
    let at = match kind {
        _ if addresses_bytes < ADDRESS_BYTES => return Ok(Destination::Unknown),
        SOURCE | MOBILE if addresses_bytes.is_multiple_of(ADDRESS_BYTES) => {
            header_bytes.saturating_sub(ADDRESS_BYTES)
        }
        // In the opposite order.
        SEGMENTS => ROUTING_BYTES,
        _ => return Ok(Destination::Unknown),
    };
    Ok(Destination::At(start.saturating_add(at)))
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
