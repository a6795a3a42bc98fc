// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The header in front of each packet (virtio 1.3 §5.1.6).
//!
//! A header is believed by whoever gets it next: the host's kernel, or another guest's. One that a
//! driver wrote is copied once and goes through [`NetHeader::check_sent`], whose result says only
//! what was negotiated and what lies in the frame. One that a link or another driver gave goes
//! through [`NetHeader::for_receiver`], which says whether this driver takes the frame as it is.
//! What only the frame's own bytes can tell is for [`offload`](crate::offload).
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use ringside_common::num::u64_of;
use thiserror::Error;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use crate::features::{Offloads, has};
use crate::frame::ETHERNET_HEADER_BYTES;

/// Bytes of the header with `VERSION_1` or `MRG_RXBUF`.
pub const HEADER_BYTES: usize = 12;
/// Bytes of the header of a legacy driver, which has no `num_buffers`.
pub const LEGACY_HEADER_BYTES: usize = 10;

/// The longest frame that is taken from a driver: an IP packet of 65535 bytes behind an Ethernet
/// header and two VLAN tags, made even. Longer ones exist on paper (IPv6 does not count its
/// header), but no system sends them, and buffers of 64 KiB are what everyone has for them.
pub const MAX_FRAME_BYTES: usize = 65_558;

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

/// Bytes of a checksum field.
const CHECKSUM_BYTES: usize = 2;

/// Bytes of the header of UDP, and of that of TCP without options (RFC 768, RFC 9293).
const UDP_HEADER_BYTES: usize = 8;
const TCP_HEADER_BYTES: usize = 20;
/// Where in TCP's header its length is, in words, in the upper half of a byte.
const TCP_OFFSET_AT: usize = 12;

/// Bytes of the header with these features acknowledged.
#[must_use]
#[inline]
pub fn header_bytes(features: u64) -> usize {
    if has(features, VIRTIO_F_VERSION_1) || has(features, VIRTIO_NET_F_MRG_RXBUF) {
        HEADER_BYTES
    } else {
        LEGACY_HEADER_BYTES
    }
}

/// Why a frame of a driver is dropped: what its header says cannot be, or was not negotiated.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HeaderFault {
    /// Not even an Ethernet header.
    #[error("frame of {frame_bytes} bytes")]
    FrameTooShort {
        /// Its length.
        frame_bytes: usize,
    },
    /// More than [`MAX_FRAME_BYTES`].
    #[error("frame of {frame_bytes} bytes")]
    FrameTooLong {
        /// Its length.
        frame_bytes: usize,
    },
    /// A checksum left out without `VIRTIO_NET_F_CSUM`.
    #[error("checksum left out without negotiation")]
    ChecksumNotNegotiated,
    /// A checksum that would begin in the Ethernet header, not cover its own field, lie across the
    /// words it is a sum of, or end past the frame.
    #[error("checksum from {csum_start} on at {csum_offset} of {frame_bytes} bytes")]
    ChecksumMisplaced {
        /// Where to begin to sum.
        csum_start: u16,
        /// Where the sum goes, from there.
        csum_offset: u16,
        /// Length of the frame.
        frame_bytes: usize,
    },
    /// No such type, or ECN with what is not TCP.
    #[error("gso type {gso_type:#x} is unknown")]
    GsoUnknown {
        /// The type.
        gso_type: u8,
    },
    /// A type whose feature the driver did not acknowledge.
    #[error("gso type {gso_type:#x} was not negotiated")]
    GsoNotNegotiated {
        /// The type.
        gso_type: u8,
    },
    /// Segments need their checksums completed.
    #[error("gso type {gso_type:#x} without a checksum left out")]
    GsoWithoutChecksum {
        /// The type.
        gso_type: u8,
    },
    /// Segments without payload.
    #[error("gso size 0")]
    GsoSizeZero,
}

/// `struct virtio_net_hdr_v1`.
/// Laid out as in memory, so that to encode it is to copy it.
#[repr(C)]
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

    /// What this driver's header may be taken for, in front of `frame_bytes` of a driver that may
    /// leave `negotiated` undone: a header with nothing in it that the device must ignore
    /// (virtio 1.3 §5.1.6.2.2), that is not negotiated, or that points out of the frame.
    ///
    /// # Errors
    /// The frame must be dropped.
    #[inline]
    pub fn check_sent(self, frame_bytes: usize, negotiated: Offloads) -> Result<Self, HeaderFault> {
        if frame_bytes < ETHERNET_HEADER_BYTES {
            return Err(HeaderFault::FrameTooShort { frame_bytes });
        }
        if frame_bytes > MAX_FRAME_BYTES {
            return Err(HeaderFault::FrameTooLong { frame_bytes });
        }
        let mut checked = Self::default();
        if self.needs_checksum() {
            self.check_checksum(frame_bytes, negotiated)?;
            checked.flags = NEEDS_CSUM;
            checked.csum_start = self.csum_start;
            checked.csum_offset = self.csum_offset;
        }
        if self.gso_type != GSO_NONE {
            self.check_gso(negotiated)?;
            checked.gso_type = self.gso_type;
            checked.gso_size_bytes = self.gso_size_bytes;
            // A hint that drivers get wrong, but the kernel refuses one past the frame, which may
            // be longer than the hint can say.
            let frame_bytes = u16::try_from(frame_bytes).unwrap_or(u16::MAX);
            checked.hdr_len_bytes = self.hdr_len_bytes.min(frame_bytes);
        }
        Ok(checked)
    }

    /// The header with which a receiver takes the frame as it is, or `None` where software has to
    /// finish it first, see [`offload::finish`](crate::offload::finish).
    ///
    /// `self` is a link's header, or another driver's after [`check_sent`](Self::check_sent). The
    /// caller sets `num_buffers`.
    #[must_use]
    #[inline]
    pub fn for_receiver(self, receiver: Offloads) -> Option<Self> {
        let mut passed = Self::default();
        if self.flags == 0 && self.gso_type == GSO_NONE {
            return Some(passed);
        }
        if self.gso_type != GSO_NONE {
            let needed = self.gso_offloads()? | Offloads::CSUM;
            if !self.needs_checksum() || !receiver.contains(needed) {
                return None;
            }
            passed.gso_type = self.gso_type;
            passed.gso_size_bytes = self.gso_size_bytes;
            passed.hdr_len_bytes = self.hdr_len_bytes;
        }
        if self.needs_checksum() {
            if !receiver.contains(Offloads::CSUM) {
                return None;
            }
            passed.flags = NEEDS_CSUM;
            passed.csum_start = self.csum_start;
            passed.csum_offset = self.csum_offset;
        } else if receiver.contains(Offloads::CSUM) {
            passed.flags = self.flags & DATA_VALID;
        }
        Some(passed)
    }

    /// How many packets a frame of `frame_bytes` is when it is cut: the length of its headers is
    /// where its checksum begins, and what `byte_at` says is there of TCP. At least one.
    #[must_use]
    #[inline]
    pub fn segments(self, frame_bytes: usize, byte_at: impl FnOnce(usize) -> Option<u8>) -> u64 {
        if self.gso_type == GSO_NONE {
            return 1;
        }
        let headers_bytes = if self.needs_checksum() {
            let transport_at = usize::from(self.csum_start);
            let transport_bytes = match self.gso_type & !GSO_ECN {
                GSO_TCPV4 | GSO_TCPV6 => {
                    let words = byte_at(transport_at.saturating_add(TCP_OFFSET_AT)).unwrap_or(0);
                    usize::from(words >> 4)
                        .saturating_mul(4)
                        .max(TCP_HEADER_BYTES)
                }
                GSO_UDP_L4 => UDP_HEADER_BYTES,
                // Fragments: UDP's header is in the first one.
                _ => 0,
            };
            transport_at.saturating_add(transport_bytes)
        } else {
            self.hdr_len_bytes.into()
        };
        let payload_bytes = frame_bytes.saturating_sub(headers_bytes);
        let segments = payload_bytes.div_ceil(usize::from(self.gso_size_bytes).max(1));
        u64_of(segments.max(1))
    }

    /// The same header when the packet behind the Ethernet header has moved by `bytes`, as by
    /// a tag put in or taken out; `None` if what it points at would be before or behind all frames.
    #[must_use]
    #[inline]
    pub fn moved(self, bytes: i16) -> Option<Self> {
        let mut moved = self;
        if self.needs_checksum() {
            moved.csum_start = self.csum_start.checked_add_signed(bytes)?;
        }
        if self.gso_type != GSO_NONE {
            moved.hdr_len_bytes = self.hdr_len_bytes.saturating_add_signed(bytes);
        }
        Some(moved)
    }

    /// Whether the frame's checksum is not complete.
    #[must_use]
    #[inline]
    pub const fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// Where a checksum that is left out goes.
    #[must_use]
    #[inline]
    pub fn checksum_at(&self) -> usize {
        usize::from(self.csum_start).saturating_add(self.csum_offset.into())
    }

    /// What a receiver of this type of long packet has to take, over either IP where the type does
    /// not tell; `None` for no or an unknown type.
    #[must_use]
    #[inline]
    pub(crate) fn gso_offloads(&self) -> Option<Offloads> {
        const TCPV4_ECN: u8 = GSO_TCPV4 | GSO_ECN;
        const TCPV6_ECN: u8 = GSO_TCPV6 | GSO_ECN;
        match self.gso_type {
            GSO_TCPV4 => Some(Offloads::TSO4),
            TCPV4_ECN => Some(Offloads::TSO4 | Offloads::ECN),
            GSO_TCPV6 => Some(Offloads::TSO6),
            TCPV6_ECN => Some(Offloads::TSO6 | Offloads::ECN),
            GSO_UDP => Some(Offloads::UFO),
            GSO_UDP_L4 => Some(Offloads::USO),
            _ => None,
        }
    }

    fn check_checksum(&self, frame_bytes: usize, negotiated: Offloads) -> Result<(), HeaderFault> {
        if !negotiated.contains(Offloads::CSUM) {
            return Err(HeaderFault::ChecksumNotNegotiated);
        }
        let start = usize::from(self.csum_start);
        let offset = usize::from(self.csum_offset);
        let end = start.saturating_add(offset).saturating_add(CHECKSUM_BYTES);
        // All headers in front of a transport header have even lengths, and a checksum across two
        // of the words it is made of would be right for no receiver.
        let odd = (start | offset) & 1 != 0;
        if start < ETHERNET_HEADER_BYTES || end > frame_bytes || odd {
            return Err(HeaderFault::ChecksumMisplaced {
                csum_start: self.csum_start,
                csum_offset: self.csum_offset,
                frame_bytes,
            });
        }
        Ok(())
    }

    fn check_gso(&self, negotiated: Offloads) -> Result<(), HeaderFault> {
        let gso_type = self.gso_type;
        let Some(needed) = self.gso_offloads() else {
            return Err(HeaderFault::GsoUnknown { gso_type });
        };
        if !negotiated.contains(needed) {
            return Err(HeaderFault::GsoNotNegotiated { gso_type });
        }
        if !self.needs_checksum() {
            return Err(HeaderFault::GsoWithoutChecksum { gso_type });
        }
        if self.gso_size_bytes == 0 {
            return Err(HeaderFault::GsoSizeZero);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
