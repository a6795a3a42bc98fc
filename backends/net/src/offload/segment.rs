// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The headers of the segments of one long packet.

use super::checksum::Sum;
use super::fault::{FinishFault, MAX_HEADERS_BYTES};
use super::packet::{Destination, IPV6_BYTES, Ip, Packet, Transport};
use crate::header::{NEEDS_CSUM, NetHeader};

/// Offsets in an IPv4 header.
mod ipv4 {
    pub(super) const TOTAL_LENGTH: usize = 2;
    pub(super) const ID: usize = 4;
    pub(super) const CHECKSUM: usize = 10;
    pub(super) const ADDRESSES: usize = 12;
}

/// Offsets in an IPv6 header.
mod ipv6 {
    pub(super) const PAYLOAD_LENGTH: usize = 4;
    pub(super) const SOURCE: usize = 8;
    pub(super) const DESTINATION: usize = 24;
}

/// Offsets in a TCP header, and flags.
mod tcp {
    pub(super) const SEQUENCE: usize = 4;
    pub(super) const FLAGS: usize = 13;
    /// What only the last segment says.
    pub(super) const FIN_PSH: u8 = 0x01 | 0x08;
    /// What only the first one says (RFC 3168).
    pub(super) const CWR: u8 = 0x80;
}

/// Offset in a UDP header.
const UDP_LENGTH: usize = 4;

/// The headers of the next segment, as far as they do not depend on its payload.
#[derive(Debug)]
pub(super) struct Template {
    packet: Packet,
    /// The headers; as many bytes as the packet's payload offset.
    bytes: [u8; MAX_HEADERS_BYTES],
    /// Addresses and protocol, which every checksum covers.
    pseudo_header: Sum,
    /// The receiver completes checksums.
    leave_checksum: bool,
    ipv4_id: u16,
    tcp_sequence: u32,
    tcp_flags: u8,
}

impl Template {
    /// The headers of the first segment.
    pub(super) fn new(
        packet: Packet,
        headers: &[u8],
        leave_checksum: bool,
    ) -> Result<Self, FinishFault> {
        let mut bytes = [0; MAX_HEADERS_BYTES];
        let room = bytes.get_mut(..headers.len());
        room.ok_or(FinishFault::HeadersTooLong)?
            .copy_from_slice(headers);
        let template = Self::parse(packet, bytes, leave_checksum);
        template.ok_or(FinishFault::Truncated)
    }

    fn parse(packet: Packet, bytes: [u8; MAX_HEADERS_BYTES], leave_checksum: bool) -> Option<Self> {
        let network = bytes.get(packet.network_offset..)?;
        let transport = bytes.get(packet.transport_offset..)?;
        let protocol = Sum::default().field(packet.transport.protocol().into());
        let pseudo_header = match packet.ip {
            Ip::V4 => protocol.bytes(&read::<8>(network, ipv4::ADDRESSES)?),
            Ip::V6 => {
                let destination = match packet.destination {
                    Destination::InHeader => ipv6::DESTINATION,
                    Destination::At(offset) => offset,
                    Destination::Unknown => return None,
                };
                protocol
                    .bytes(&read::<16>(network, ipv6::SOURCE)?)
                    .bytes(&read::<16>(network, destination)?)
            }
        };
        let (tcp_sequence, tcp_flags) = match packet.transport {
            Transport::Tcp => (
                u32::from_be_bytes(read(transport, tcp::SEQUENCE)?),
                u8::from_be_bytes(read(transport, tcp::FLAGS)?),
            ),
            Transport::Udp => (0, 0),
        };
        Some(Self {
            packet,
            bytes,
            pseudo_header,
            leave_checksum,
            ipv4_id: u16::from_be_bytes(read(network, ipv4::ID)?),
            tcp_sequence,
            tcp_flags,
        })
    }

    /// The headers in front of the next piece of the payload.
    ///
    /// # Errors
    /// With its headers it is more than an IP packet can be.
    pub(super) fn segment(
        &mut self,
        piece: &[u8],
        is_last: bool,
    ) -> Result<(NetHeader, &[u8]), FinishFault> {
        let header = self.update(piece, is_last).ok_or(FinishFault::Malformed)?;
        let head = self.bytes.get(..self.packet.payload_offset);
        Ok((header, head.ok_or(FinishFault::HeadersTooLong)?))
    }

    fn update(&mut self, piece: &[u8], is_last: bool) -> Option<NetHeader> {
        let Packet {
            network_offset,
            transport_offset,
            payload_offset,
            ..
        } = self.packet;
        let end = payload_offset.checked_add(piece.len())?;
        self.update_network(end.checked_sub(network_offset)?)?;
        let transport_bytes = u16::try_from(end.checked_sub(transport_offset)?).ok()?;
        let transport = self.bytes.get_mut(transport_offset..payload_offset)?;
        match self.packet.transport {
            Transport::Tcp => {
                write(transport, tcp::SEQUENCE, self.tcp_sequence.to_be_bytes())?;
                let kept = if is_last { u8::MAX } else { !tcp::FIN_PSH };
                write(transport, tcp::FLAGS, [self.tcp_flags & kept])?;
                self.tcp_flags &= !tcp::CWR;
                let piece_bytes = u32::try_from(piece.len()).ok()?;
                self.tcp_sequence = self.tcp_sequence.wrapping_add(piece_bytes);
            }
            Transport::Udp => write(transport, UDP_LENGTH, transport_bytes.to_be_bytes())?,
        }
        let pseudo_header = self.pseudo_header.field(transport_bytes);
        let checksum_offset = self.packet.transport.checksum_offset();
        if self.leave_checksum {
            write(transport, checksum_offset, pseudo_header.partial())?;
            return Some(NetHeader {
                flags: NEEDS_CSUM,
                csum_start: u16::try_from(transport_offset).ok()?,
                csum_offset: u16::try_from(checksum_offset).ok()?,
                ..NetHeader::default()
            });
        }
        write(transport, checksum_offset, [0; 2])?;
        let sum = pseudo_header.bytes(transport).bytes(piece);
        write(transport, checksum_offset, sum.complete_transport())?;
        Some(NetHeader::default())
    }

    fn update_network(&mut self, packet_bytes: usize) -> Option<()> {
        let Packet {
            network_offset,
            transport_offset,
            ..
        } = self.packet;
        let network = self.bytes.get_mut(network_offset..transport_offset)?;
        match self.packet.ip {
            Ip::V4 => {
                let total_length = u16::try_from(packet_bytes).ok()?;
                write(network, ipv4::TOTAL_LENGTH, total_length.to_be_bytes())?;
                write(network, ipv4::ID, self.ipv4_id.to_be_bytes())?;
                self.ipv4_id = self.ipv4_id.wrapping_add(1);
                write(network, ipv4::CHECKSUM, [0; 2])?;
                write(
                    network,
                    ipv4::CHECKSUM,
                    Sum::default().bytes(network).complete(),
                )
            }
            Ip::V6 => {
                let payload_length = u16::try_from(packet_bytes.checked_sub(IPV6_BYTES)?).ok()?;
                write(network, ipv6::PAYLOAD_LENGTH, payload_length.to_be_bytes())
            }
        }
    }
}

/// Writes a field of a header, or nothing where it would be past the end.
pub(super) fn write<const N: usize>(bytes: &mut [u8], offset: usize, field: [u8; N]) -> Option<()> {
    *bytes.get_mut(offset..)?.first_chunk_mut()? = field;
    Some(())
}

/// Reads a field of a header, or nothing where it would be past the end.
fn read<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}
