// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The header in front of each packet (virtio 1.3 §5.1.6).

/// Bytes of the header with `VERSION_1` or `MRG_RXBUF`.
pub const HEADER_BYTES: usize = 12;
/// Bytes of the header of a legacy driver, which has no `num_buffers`.
pub const LEGACY_HEADER_BYTES: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds the pseudo header's sum only.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum has been verified.
pub const DATA_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_NONE`.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP`: fragmentation (UFO).
pub const GSO_UDP: u8 = 3;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
pub const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: segmentation (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`, added to the type.
pub const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` types, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Length of all headers of a segment, a hint.
    pub hdr_len_bytes: u16,
    /// Payload of each segment.
    pub gso_size_bytes: u16,
    /// Where to begin to sum.
    pub csum_start: u16,
    /// Where the sum goes, from there.
    pub csum_offset: u16,
    /// Chains that a received packet takes.
    pub num_buffers: u16,
}

impl NetHeader {
    /// The header of these bytes.
    #[must_use]
    #[inline]
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len_bytes: u16::from_le_bytes([h0, h1]),
            gso_size_bytes: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// The bytes of this header.
    #[must_use]
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let [h0, h1] = self.hdr_len_bytes.to_le_bytes();
        let [g0, g1] = self.gso_size_bytes.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        let (flags, gso_type) = (self.flags, self.gso_type);
        [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }
}
