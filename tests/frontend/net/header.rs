// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `virtio_net_hdr` (virtio 1.3 §5.1.6), every field free to choose.

use super::net_feature::MRG_RXBUF;
use crate::ids::feature;

/// Length of a legacy header without merged buffers, which has no `num_buffers`.
pub const HEADER_LEGACY_BYTES: usize = 10;
/// Length of every other header of the features here.
pub const HEADER_MODERN_BYTES: usize = 12;

/// In [`NetHeader::flags`].
pub mod header_flag {
    /// The checksum is still to be computed.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified.
    pub const DATA_VALID: u8 = 2;
}

/// In [`NetHeader::gso_type`].
pub mod gso {
    /// A frame as it goes over a wire.
    pub const NONE: u8 = 0;
    /// TCP over IPv4, to be segmented.
    pub const TCPV4: u8 = 1;
    /// UDP, to be fragmented.
    pub const UDP: u8 = 3;
    /// TCP over IPv6, to be segmented.
    pub const TCPV6: u8 = 4;
    /// UDP, to be segmented.
    pub const UDP_L4: u8 = 5;
    /// The TCP segment has ECN set.
    pub const ECN: u8 = 0x80;
}

/// The header in front of a frame.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NetHeader {
    /// See [`header_flag`].
    pub flags: u8,
    /// See [`gso`].
    pub gso_type: u8,
    /// Bytes of the protocol headers: a hint.
    pub hdr_len: u16,
    /// Bytes of payload per segment.
    pub gso_size: u16,
    /// Where the checksum starts to count.
    pub csum_start: u16,
    /// Where it is stored, from there.
    pub csum_offset: u16,
    /// Buffers of the frame; for the device to write.
    pub num_buffers: u16,
}

impl NetHeader {
    /// The bytes; a legacy header is the first ten.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_MODERN_BYTES] {
        let mut bytes = [0; HEADER_MODERN_BYTES];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let fields = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ];
        for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// Reads the bytes; `num_buffers` of a legacy header is given as 0.
    #[must_use]
    pub fn from_bytes(bytes: [u8; HEADER_MODERN_BYTES]) -> Self {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
            num_buffers: field(10),
        }
    }

    /// Length of the header under these virtio features.
    #[must_use]
    pub fn bytes_under(features: u64) -> usize {
        if features & (feature::VERSION_1 | MRG_RXBUF) == 0 {
            HEADER_LEGACY_BYTES
        } else {
            HEADER_MODERN_BYTES
        }
    }
}
