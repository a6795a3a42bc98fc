// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Automatic receive steering (virtio 1.3 §5.1.6.5.5): packets of a flow come in on the queue pair
//! on which the driver sends its packets of that flow.
//!
//! A flow is known by a hash that is the same for both directions. What was learned of one may be
//! forgotten when another one falls into its place; packets then go where the hash says, which is
//! no worse than chance. The hash has no secret: a sender who finds collisions gains that packets
//! of the driver that it talks to share a queue.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use std::sync::atomic::{AtomicU32, Ordering};

use ringside_common::num::usize_of;

use crate::frame::{ETHERNET_HEADER_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, network_header};

/// Bytes from the start of a frame that [`flow_hash`] looks at; more make no difference.
pub const FLOW_HEAD_BYTES: usize = 96;

/// Flows that are remembered.
const ENTRIES: usize = 1024;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// More fragments, and the offset of this one, in units of 8 bytes.
const IPV4_FRAGMENT: u16 = 0x3fff;

/// The hash of the flow of a frame of which `head` are the first bytes, [`FLOW_HEAD_BYTES`] or all.
///
/// It is made of both addresses, and ports where TCP or UDP has them in the packet: fragments and
/// unknown protocols have addresses only, and what is not IP those of Ethernet.
#[must_use]
#[inline]
pub fn flow_hash(head: &[u8]) -> u32 {
    let head = head.get(..FLOW_HEAD_BYTES).unwrap_or(head);
    let hash = ip_hash(head).or_else(|| ethernet_hash(head)).unwrap_or(0);
    let [h0, h1, h2, h3, ..] = hash.to_be_bytes();
    u32::from_be_bytes([h0, h1, h2, h3])
}

/// On which queue pair the driver sent packets of each flow last.
///
/// Data threads share it: an entry is one atomic, and is only written when it changes.
#[derive(Debug)]
pub struct FlowTable {
    /// The upper half of the hash, which the place does not tell, and the number of the pair,
    /// counted from 1.
    entries: [AtomicU32; ENTRIES],
}

impl Default for FlowTable {
    fn default() -> Self {
        Self {
            entries: [const { AtomicU32::new(0) }; ENTRIES],
        }
    }
}

impl FlowTable {
    /// The driver sent a packet of this flow on this pair.
    #[inline]
    pub fn learn(&self, hash: u32, pair: u16) {
        let Some(entry) = self.entry(hash) else {
            return;
        };
        let learned = tag(hash) | u32::from(pair).wrapping_add(1) & 0xffff;
        if entry.load(Ordering::Relaxed) != learned {
            entry.store(learned, Ordering::Relaxed);
        }
    }

    /// The pair on which the guest gets a packet of this flow, of `usable_pairs`, which are at
    /// least one.
    #[must_use]
    #[inline]
    pub fn pair_of(&self, hash: u32, usable_pairs: u16) -> u16 {
        let entry = self.entry(hash);
        let known = entry.map_or(0, |entry| entry.load(Ordering::Relaxed));
        let number = known & 0xffff;
        if number != 0 && tag(known) == tag(hash) && number <= usable_pairs.into() {
            // No more than `usable_pairs`, which is a number of 16 bits.
            return u16::try_from(number.wrapping_sub(1)).unwrap_or(0);
        }
        let scaled = u64::from(hash).wrapping_mul(usable_pairs.into()) >> 32;
        // A part of `usable_pairs`, which is a number of 16 bits.
        u16::try_from(scaled).unwrap_or(0)
    }

    /// Forgets all flows.
    pub fn clear(&self) {
        for entry in &self.entries {
            entry.store(0, Ordering::Relaxed);
        }
    }

    fn entry(&self, hash: u32) -> Option<&AtomicU32> {
        let place = usize_of(hash.into()) % ENTRIES;
        self.entries.get(place)
    }
}

/// The half of a hash that an entry keeps.
const fn tag(hash: u32) -> u32 {
    hash & 0xffff_0000
}

fn ethernet_hash(head: &[u8]) -> Option<u64> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] =
        *head.first_chunk::<ETHERNET_HEADER_BYTES>()?;
    let destination = u64::from_be_bytes([0, 0, d0, d1, d2, d3, d4, d5]);
    let source = u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]);
    Some(either_way(mix(destination), mix(source)))
}

fn ip_hash(head: &[u8]) -> Option<u64> {
    let (ethertype, offset) = network_header(head)?;
    let packet = head.get(offset..)?;
    match ethertype {
        ETHERTYPE_IPV4 => ipv4_hash(packet),
        ETHERTYPE_IPV6 => ipv6_hash(packet),
        _ => None,
    }
}

fn ipv4_hash(packet: &[u8]) -> Option<u64> {
    let [
        version_length,
        _,
        _,
        _,
        _,
        _,
        f0,
        f1,
        _,
        protocol,
        _,
        _,
        addresses @ ..,
    ] = *packet.first_chunk::<20>()?;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    let source = u32::from_be_bytes([s0, s1, s2, s3]);
    let destination = u32::from_be_bytes([d0, d1, d2, d3]);
    let is_fragment = u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT != 0;
    let header_bytes = usize::from(version_length & 0xf).saturating_mul(4);
    let segment = packet.get(header_bytes..).unwrap_or(&[]);
    let (from, to) = ports(protocol, if is_fragment { &[] } else { segment });
    Some(either_way(
        mix(u64::from(source) << 16 | u64::from(from)),
        mix(u64::from(destination) << 16 | u64::from(to)),
    ))
}

fn ipv6_hash(packet: &[u8]) -> Option<u64> {
    let (header, segment) = packet.split_first_chunk::<40>()?;
    let [_, _, _, _, _, _, protocol, _, addresses @ ..] = *header;
    let (halves, _) = addresses.as_chunks::<8>();
    let &[s0, s1, d0, d1] = halves.first_chunk()?;
    let (from, to) = ports(protocol, segment);
    let end = |high, low, port| {
        let low = u64::from_be_bytes(low) ^ mix(u64::from_be_bytes(high));
        mix(low.rotate_left(16) ^ u64::from(port))
    };
    Some(either_way(end(s0, s1, from), end(d0, d1, to)))
}

/// The ports in front of a segment, or zeroes where there are none.
fn ports(protocol: u8, segment: &[u8]) -> (u16, u16) {
    match segment.first_chunk() {
        Some(&[s0, s1, d0, d1]) if matches!(protocol, TCP | UDP) => {
            (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]))
        }
        _ => (0, 0),
    }
}

/// The hash of two ends, whichever is which.
fn either_way(one: u64, other: u64) -> u64 {
    mix(one.wrapping_add(other))
}

/// Spreads each bit over all; one to one (the finalizer of `SplitMix64`).
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 1], 40_000);
    const SERVER: ([u8; 4], u16) = ([10, 0, 0, 2], 80);

    fn ethernet(forth: bool, ethertype: [u8; 2]) -> Vec<u8> {
        let (a, b) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let (destination, source) = if forth { (b, a) } else { (a, b) };
        [&destination[..], &source, &ethertype].concat()
    }

    /// A packet of TCP over IPv4; `fragment` is its flags and offset.
    fn ipv4(from: ([u8; 4], u16), to: ([u8; 4], u16), fragment: [u8; 2]) -> Vec<u8> {
        let mut frame = ethernet(from.1 > to.1, [8, 0]);
        frame.extend([0x45, 0, 0, 40, 0, 0, fragment[0], fragment[1], 64, 6, 0, 0]);
        frame.extend([from.0, to.0].concat());
        frame.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
        frame.extend([0; 16]);
        frame
    }

    fn ipv6(from: (u8, u16), to: (u8, u16), protocol: u8) -> Vec<u8> {
        let mut frame = ethernet(from.1 > to.1, [0x86, 0xdd]);
        frame.extend([0x60, 0, 0, 0, 0, 20, protocol, 64]);
        frame.extend([[0, from.0].repeat(8), [0, to.0].repeat(8)].concat());
        frame.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
        frame.extend([0; 16]);
        frame
    }

    #[test]
    fn both_directions_have_one_hash() {
        let forth = flow_hash(&ipv4(CLIENT, SERVER, [0x40, 0]));
        assert_eq!(flow_hash(&ipv4(SERVER, CLIENT, [0, 0])), forth);
        let forth = flow_hash(&ipv6((1, 9), (2, 8), 17));
        assert_eq!(flow_hash(&ipv6((2, 8), (1, 9), 17)), forth);
        let forth = flow_hash(&ethernet(true, [8, 6]));
        assert_eq!(flow_hash(&ethernet(false, [8, 6])), forth);
    }

    #[test]
    fn other_flows_have_other_hashes() {
        let hashes = [
            flow_hash(&ipv4(CLIENT, SERVER, [0, 0])),
            flow_hash(&ipv4((CLIENT.0, 40_001), SERVER, [0, 0])),
            flow_hash(&ipv4((CLIENT.0, 80), (SERVER.0, 40_000), [0, 0])),
            flow_hash(&ipv4(CLIENT, ([10, 0, 0, 3], 80), [0, 0])),
            flow_hash(&ipv4(CLIENT, SERVER, [0x20, 0])),
            flow_hash(&ipv6((1, 9), (2, 8), 6)),
            flow_hash(&ipv6((1, 8), (2, 9), 6)),
            flow_hash(&ipv6((1, 9), (3, 8), 6)),
            flow_hash(&ipv6((1, 9), (2, 8), 58)),
            flow_hash(&ethernet(true, [8, 6])),
            flow_hash(&[]),
        ];
        for (index, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..index].contains(hash), "{index}");
        }
    }

    #[test]
    fn fragments_of_a_packet_have_one_hash_of_addresses() {
        let first = flow_hash(&ipv4(CLIENT, SERVER, [0x20, 0]));
        let other = ipv4((CLIENT.0, 1), (SERVER.0, 2), [0, 100]);
        assert_eq!(flow_hash(&other), first);
    }

    #[test]
    fn ports_are_those_behind_options() {
        let mut frame = ipv4(CLIENT, SERVER, [0, 0]);
        let plain = flow_hash(&frame);
        frame[14] = 0x46;
        frame.splice(34..34, [1, 1, 1, 1]);
        assert_eq!(flow_hash(&frame), plain);
    }

    #[test]
    fn tags_make_no_difference() {
        let frame = ipv4(CLIENT, SERVER, [0, 0]);
        let mut tagged = frame.clone();
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        assert_eq!(flow_hash(&tagged), flow_hash(&frame));
    }

    #[test]
    fn flow_comes_in_where_it_went_out() {
        let flows = FlowTable::default();
        flows.learn(0x1234_5678, 3);
        assert_eq!(flows.pair_of(0x1234_5678, 4), 3);
        flows.learn(0x1234_5678, 0);
        assert_eq!(flows.pair_of(0x1234_5678, 4), 0);
        flows.learn(0x1234_5678, 3);
        flows.clear();
        assert_eq!(flows.pair_of(0x1234_5678, 4), 0);
    }

    #[test]
    fn pair_that_is_not_usable_any_more_is_not_chosen() {
        let flows = FlowTable::default();
        flows.learn(0xf234_5678, 3);
        assert_eq!(flows.pair_of(0xf234_5678, 3), 2);
        assert_eq!(flows.pair_of(0xf234_5678, 1), 0);
        flows.learn(0xf234_5678, u16::MAX);
        assert_eq!(flows.pair_of(0xf234_5678, u16::MAX), 62_003);
    }

    #[test]
    fn flow_in_the_place_of_another_is_not_taken_for_it() {
        let flows = FlowTable::default();
        flows.learn(0x0001_0005, 1);
        assert_eq!(flows.pair_of(0x0002_0005, 4), 0);
        assert_eq!(flows.pair_of(0x0001_0005, 4), 1);
    }

    #[test]
    fn unknown_flows_are_spread_over_the_pairs() {
        let flows = FlowTable::default();
        let mut counts = [0; 3];
        for port in 0..3000 {
            let hash = flow_hash(&ipv4((CLIENT.0, port), SERVER, [0, 0]));
            counts[usize::from(flows.pair_of(hash, 3))] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1100).contains(count)),
            "{counts:?}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        #[test]
        fn any_bytes_have_a_pair_that_is_usable(
            mut head in proptest::collection::vec(any::<u8>(), 0..120),
            ethertype in prop_oneof![Just([8, 0]), Just([0x86, 0xdd]), Just([0x81, 0])],
            learned: u16,
            usable_pairs in 1..=u16::MAX,
        ) {
            if let Some(place) = head.get_mut(12..14) {
                place.copy_from_slice(&ethertype);
            }
            let hash = flow_hash(&head);
            prop_assert_eq!(flow_hash(&head[..head.len().min(FLOW_HEAD_BYTES)]), hash);
            let flows = FlowTable::default();
            prop_assert!(flows.pair_of(hash, usable_pairs) < usable_pairs);
            flows.learn(hash, learned);
            let pair = flows.pair_of(hash, usable_pairs);
            prop_assert!(pair < usable_pairs);
            prop_assert!(pair == learned || learned >= usable_pairs);
        }
    }
}
