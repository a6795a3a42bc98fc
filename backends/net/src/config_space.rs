// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space, to the byte (virtio 1.3 §5.1.4).
//!
//! Front-ends read prefixes of it of many sizes and take an answer of any other size than the one
//! asked for as an error, so it is zero-padded to the [`CONFIG_SPACE_BYTES`] that a vhost-user
//! message can carry. The driver may write none of it.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};

/// What can be read: `VHOST_USER_MAX_CONFIG_SIZE`.
pub const CONFIG_SPACE_BYTES: usize = 256;

/// The speed of a link that says none.
const SPEED_UNKNOWN: u32 = u32::MAX;
/// Both directions at once, as the field's description and Linux have it; the normative paragraph
/// of virtio 1.3 §5.1.4.1 has the two values the other way round.
const FULL_DUPLEX: u8 = 1;
const DUPLEX_UNKNOWN: u8 = 0xff;

/// Every field of the configuration space that this device has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConfigSpace {
    /// The driver's address; only looked at with `VIRTIO_NET_F_MAC`.
    pub mac: [u8; 6],
    /// There is someone to talk to.
    pub link_up: bool,
    /// The driver is asked to tell its neighbours where it is.
    pub announce: bool,
    /// Queue pairs, at least 1.
    pub max_virtqueue_pairs: u16,
    /// The longest packet of the link, without Ethernet header; 68 or more. `None` if not offered.
    pub mtu: Option<u16>,
    /// In Mbit/s, at most 2^31 - 1; `None` if unknown.
    pub speed_mbps: Option<u32>,
}

impl ConfigSpace {
    /// Exactly `size` bytes from `offset` on, or `None` for an empty range or one beyond
    /// [`CONFIG_SPACE_BYTES`].
    #[must_use]
    pub fn read(&self, offset: u32, size: u32) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        let size = usize::try_from(size).ok().filter(|size| *size > 0)?;
        let end = start.checked_add(size)?;
        Some(self.to_bytes().get(start..end)?.to_vec())
    }

    fn to_bytes(self) -> Vec<u8> {
        let bits = [
            (self.link_up, VIRTIO_NET_S_LINK_UP),
            (self.announce, VIRTIO_NET_S_ANNOUNCE),
        ];
        let set = bits.into_iter().filter(|(is_set, _)| *is_set);
        let [status0, status1, ..] = set.fold(0, |status, (_, bit)| status | bit).to_le_bytes();
        let duplex = match self.speed_mbps {
            Some(_) => FULL_DUPLEX,
            None => DUPLEX_UNKNOWN,
        };

        let mut bytes = Vec::with_capacity(CONFIG_SPACE_BYTES);
        bytes.extend(self.mac);
        bytes.extend([status0, status1]);
        bytes.extend(self.max_virtqueue_pairs.to_le_bytes());
        bytes.extend(self.mtu.unwrap_or(0).to_le_bytes());
        bytes.extend(self.speed_mbps.unwrap_or(SPEED_UNKNOWN).to_le_bytes());
        bytes.push(duplex);
        // What follows belongs to hashes, which are never offered.
        bytes.resize(CONFIG_SPACE_BYTES, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG_SPACE: ConfigSpace = ConfigSpace {
        mac: [1, 2, 3, 4, 5, 6],
        link_up: true,
        announce: false,
        max_virtqueue_pairs: 0x0102,
        mtu: Some(9000),
        speed_mbps: Some(10_000),
    };

    #[test]
    fn layout_is_exact_to_the_byte() {
        let expected = [
            1, 2, 3, 4, 5, 6, // 0 mac
            1, 0, // 6 status
            2, 1, // 8 max_virtqueue_pairs
            0x28, 0x23, // 10 mtu
            0x10, 0x27, 0, 0, // 12 speed
            1, // 16 duplex
        ];
        let bytes = CONFIG_SPACE.read(0, 256).unwrap();
        assert_eq!(bytes[..17], expected);
        assert_eq!(bytes[17..], [0; 239]);
    }

    #[test]
    fn status_says_link_and_announcement() {
        for (link_up, announce, expected) in [
            (false, false, 0),
            (true, false, 1),
            (false, true, 2),
            (true, true, 3),
        ] {
            let config_space = ConfigSpace {
                link_up,
                announce,
                ..CONFIG_SPACE
            };
            assert_eq!(config_space.read(6, 2), Some(vec![expected, 0]));
        }
    }

    #[test]
    fn unknown_link_says_so() {
        let config_space = ConfigSpace {
            mtu: None,
            speed_mbps: None,
            ..CONFIG_SPACE
        };
        let expected = vec![0, 0, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(config_space.read(10, 7), Some(expected));
    }

    #[test]
    fn read_of_any_range_inside_gives_exactly_that_range() {
        let all = CONFIG_SPACE.read(0, 256).unwrap();
        for offset in 0..=260_u32 {
            for size in 0..=260_u32 {
                let start = usize::try_from(offset).unwrap();
                let end = usize::try_from(offset + size).unwrap();
                let expected = all.get(start..end).filter(|_| size > 0);
                let read = CONFIG_SPACE.read(offset, size);
                assert_eq!(read.as_deref(), expected, "{offset} {size}");
            }
        }
    }

    #[test]
    fn read_of_an_overflowing_range_gives_none() {
        for (offset, size) in [(u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX), (256, 1)] {
            assert_eq!(CONFIG_SPACE.read(offset, size), None);
        }
    }
}
