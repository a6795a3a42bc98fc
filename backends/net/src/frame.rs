// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ethernet frames: what a switch and a filter look at, and the RARP of `SEND_RARP`.
//!
//! Frames have no preamble and no frame check sequence here, as on every link of a virtual machine.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

/// Bytes of an Ethernet header without a tag.
pub const ETHERNET_HEADER_BYTES: usize = 14;
/// Bytes of a VLAN tag.
pub const VLAN_TAG_BYTES: usize = 4;
/// Bytes of the shortest frame that a real Ethernet carries.
pub const MIN_FRAME_BYTES: usize = 60;

/// The address of every station.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// The type of an IPv4 packet.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// The type of an IPv6 packet.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// The type of a VLAN tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// The type of the outer one of two tags (IEEE 802.1ad).
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
/// The type of a RARP packet (RFC 903).
const ETHERTYPE_RARP: u16 = 0x8035;

/// The bits of a tag's control information that say the VLAN.
const VLAN_ID_MASK: u16 = 0x0fff;

/// Whether a frame to this address is for several stations; all of them included.
#[must_use]
#[inline]
pub const fn is_multicast(mac: [u8; 6]) -> bool {
    let [first, ..] = mac;
    first & 1 != 0
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VlanTag {
    /// [`ETHERTYPE_VLAN`] or [`ETHERTYPE_SERVICE_VLAN`].
    pub protocol: u16,
    /// Tag control information: 3 bits of priority, 1 of eligibility to be dropped, 12 of id.
    pub control: u16,
}

impl VlanTag {
    /// The VLAN that an access port can be of which the tag says, if it is one: only
    /// [`ETHERTYPE_VLAN`] does.
    #[must_use]
    #[inline]
    pub const fn access_vlan(self) -> Option<u16> {
        match self.protocol {
            ETHERTYPE_VLAN => self.id(),
            _ => None,
        }
    }

    /// This tag with another VLAN, its priority kept, as one of [`ETHERTYPE_VLAN`].
    #[must_use]
    #[inline]
    pub const fn moved_to(self, vlan: u16) -> Self {
        Self {
            protocol: ETHERTYPE_VLAN,
            control: self.control & !VLAN_ID_MASK | vlan & VLAN_ID_MASK,
        }
    }

    /// The VLAN, or `None` for a tag that only says a priority.
    #[must_use]
    #[inline]
    pub const fn id(self) -> Option<u16> {
        match self.control & VLAN_ID_MASK {
            0 => None,
            id => Some(id),
        }
    }
}

/// What the first bytes of a frame say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ethernet {
    /// Whom it is for.
    pub destination: [u8; 6],
    /// Who says to have sent it.
    pub source: [u8; 6],
    /// Its outermost tag.
    pub tag: Option<VlanTag>,
    /// The type of what follows: a second tag, or the packet; a length below 1536.
    pub ethertype: u16,
    /// Where that begins.
    pub payload_offset: usize,
}

impl Ethernet {
    /// The header of a frame of which `head` are the first bytes; `None` if they are too few.
    #[must_use]
    #[inline]
    pub fn parse(head: &[u8]) -> Option<Self> {
        let (first, rest) = head.split_first_chunk::<ETHERNET_HEADER_BYTES>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *first;
        let mut parsed = Self {
            destination: [d0, d1, d2, d3, d4, d5],
            source: [s0, s1, s2, s3, s4, s5],
            tag: None,
            ethertype: u16::from_be_bytes([t0, t1]),
            payload_offset: ETHERNET_HEADER_BYTES,
        };
        if matches!(parsed.ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) {
            let [c0, c1, t0, t1] = *rest.first_chunk::<VLAN_TAG_BYTES>()?;
            parsed.tag = Some(VlanTag {
                protocol: parsed.ethertype,
                control: u16::from_be_bytes([c0, c1]),
            });
            parsed.ethertype = u16::from_be_bytes([t0, t1]);
            parsed.payload_offset = TAGGED_HEADER_BYTES;
        }
        Some(parsed)
    }

    /// The VLAN the frame says to be in.
    #[must_use]
    #[inline]
    pub fn vlan(&self) -> Option<u16> {
        self.tag.and_then(VlanTag::id)
    }
}

/// Which VLAN a frame is in, as a station on the wire sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Membership {
    /// The first tag that says a VLAN; tags of a priority alone may be in front of it.
    pub tag: Option<VlanTag>,
    /// Tags up to that one, or all those of a priority.
    pub tags: usize,
}

impl Membership {
    /// Where these tags end, and the type of what follows begins.
    #[must_use]
    #[inline]
    pub const fn end(self) -> usize {
        ADDRESSES_BYTES.saturating_add(self.tags.saturating_mul(VLAN_TAG_BYTES))
    }
}

/// Finds the tag that decides the VLAN of a frame of which `head` are the first bytes; `None` if
/// they are too few to tell.
///
/// Tags of a priority alone say nothing, however many there are and of either type: Linux and
/// others take them off one by one (`__netif_receive_skb_core`).
#[must_use]
#[inline]
pub fn membership(head: &[u8]) -> Option<Membership> {
    let (_, mut rest) = head.split_first_chunk::<ADDRESSES_BYTES>()?;
    let mut tags: usize = 0;
    loop {
        let (ethertype, behind) = rest.split_first_chunk::<2>()?;
        let protocol = u16::from_be_bytes(*ethertype);
        if !matches!(protocol, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) {
            return Some(Membership { tag: None, tags });
        }
        let (control, behind) = behind.split_first_chunk::<2>()?;
        tags = tags.saturating_add(1);
        let control = u16::from_be_bytes(*control);
        let tag = VlanTag { protocol, control };
        if tag.id().is_some() {
            return Some(Membership {
                tag: Some(tag),
                tags,
            });
        }
        rest = behind;
    }
}

/// Bytes of the two addresses.
const ADDRESSES_BYTES: usize = 12;

/// Bytes of an Ethernet header with one tag.
pub const TAGGED_HEADER_BYTES: usize = 18;

/// The type and the start of the packet that the first bytes of a frame lead to, behind up to two
/// tags; `None` if they are too few.
#[must_use]
#[inline]
pub fn network_header(head: &[u8]) -> Option<(u16, usize)> {
    let ethernet = Ethernet::parse(head)?;
    if ethernet.tag.is_none() || ethernet.ethertype != ETHERTYPE_VLAN {
        return Some((ethernet.ethertype, ethernet.payload_offset));
    }
    let inner = head.get(TAGGED_HEADER_BYTES..)?;
    let [_, _, t0, t1] = *inner.first_chunk::<VLAN_TAG_BYTES>()?;
    Some((
        u16::from_be_bytes([t0, t1]),
        TAGGED_HEADER_BYTES.saturating_add(VLAN_TAG_BYTES),
    ))
}

/// An Ethernet header with a tag of [`ETHERTYPE_VLAN`] put in.
///
/// All behind it moves by [`VLAN_TAG_BYTES`], and what the virtio header says of it; see
/// [`NetHeader::moved`](crate::header::NetHeader::moved).
#[must_use]
#[inline]
pub fn tagged(header: [u8; ETHERNET_HEADER_BYTES], control: u16) -> [u8; TAGGED_HEADER_BYTES] {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = header;
    let [p0, p1] = ETHERTYPE_VLAN.to_be_bytes();
    let [c0, c1] = control.to_be_bytes();
    [
        d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, p0, p1, c0, c1, t0, t1,
    ]
}

/// A frame that tells every switch where `mac` is now: a RARP request of its own address, as
/// `SEND_RARP` (vhost-user.rst) asks for.
#[must_use]
pub fn announcement(mac: [u8; 6]) -> [u8; MIN_FRAME_BYTES] {
    const ETHERNET: u16 = 1;
    const REVERSE_REQUEST: u16 = 3;
    let mut frame = [0; MIN_FRAME_BYTES];
    let fields = BROADCAST
        .into_iter()
        .chain(mac)
        .chain(ETHERTYPE_RARP.to_be_bytes())
        .chain(ETHERNET.to_be_bytes())
        .chain(ETHERTYPE_IPV4.to_be_bytes())
        .chain([6, 4]) // bytes of an address of either kind
        .chain(REVERSE_REQUEST.to_be_bytes())
        .chain(mac)
        .chain([0; 4])
        .chain(mac)
        .chain([0; 4]);
    for (byte, field) in frame.iter_mut().zip(fields) {
        *byte = field;
    }
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: [u8; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x08, 0x00];

    #[test]
    fn plain_frame_parses() {
        let ethernet = Ethernet::parse(&PLAIN).unwrap();
        let expected = Ethernet {
            destination: [1, 2, 3, 4, 5, 6],
            source: [7, 8, 9, 10, 11, 12],
            tag: None,
            ethertype: ETHERTYPE_IPV4,
            payload_offset: 14,
        };
        assert_eq!(ethernet, expected);
        assert_eq!(ethernet.vlan(), None);
        assert_eq!(network_header(&PLAIN), Some((ETHERTYPE_IPV4, 14)));
    }

    #[test]
    fn tagged_frame_parses_with_its_vlan() {
        let frame = tagged(PLAIN, 0xe123);
        let ethernet = Ethernet::parse(&frame).unwrap();
        assert_eq!(
            ethernet.tag,
            Some(VlanTag {
                protocol: 0x8100,
                control: 0xe123
            })
        );
        assert_eq!(ethernet.vlan(), Some(0x123));
        assert_eq!(ethernet.ethertype, ETHERTYPE_IPV4);
        assert_eq!(ethernet.payload_offset, 18);
        assert_eq!(network_header(&frame), Some((ETHERTYPE_IPV4, 18)));
    }

    #[test]
    fn tag_of_priority_only_is_no_vlan() {
        let ethernet = Ethernet::parse(&tagged(PLAIN, 0xe000)).unwrap();
        assert_eq!(ethernet.vlan(), None);
        assert!(ethernet.tag.is_some());
    }

    /// `PLAIN` with these tags.
    fn with_tags(tags: &[(u16, u16)]) -> Vec<u8> {
        let mut frame = PLAIN[..12].to_vec();
        for (protocol, control) in tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        frame.extend(&PLAIN[12..]);
        frame
    }

    #[test]
    fn f5_1_first_tag_with_a_vlan_decides_behind_any_stack_of_priority_tags() {
        const C: u16 = ETHERTYPE_VLAN;
        const S: u16 = ETHERTYPE_SERVICE_VLAN;
        for (tags, decides) in [
            (&[][..], None),
            (&[(C, 0)], None),
            (&[(C, 0xf000), (S, 0xe000), (C, 0)], None),
            (&[(C, 10)], Some((C, 10))),
            (&[(C, 0), (C, 0xa00a)], Some((C, 10))),
            (&[(S, 0), (C, 10)], Some((C, 10))),
            (&[(C, 0), (S, 0), (C, 0), (S, 7), (C, 10)], Some((S, 7))),
            (&[(S, 5), (C, 10)], Some((S, 5))),
            (&[(C, 5), (C, 0), (C, 10)], Some((C, 5))),
        ] {
            let frame = with_tags(tags);
            let found = membership(&frame).unwrap();
            let tag = found.tag.map(|tag| (tag.protocol, tag.id().unwrap()));
            assert_eq!(tag, decides, "{tags:?}");
            let deciding = tags.iter().position(|(_, control)| control & 0xfff != 0);
            let expected = deciding.map_or(tags.len(), |at| at + 1);
            assert_eq!(found.tags, expected, "{tags:?}");
            // One byte less than it takes to tell is too few.
            let enough = 12 + 4 * expected + if found.tag.is_some() { 0 } else { 2 };
            assert!(membership(&frame[..enough]).is_some(), "{tags:?}");
            assert_eq!(membership(&frame[..enough - 1]), None, "{tags:?}");
        }
    }

    #[test]
    fn f5_2_only_a_customer_tag_selects_an_access_vlan() {
        let tag = |protocol, control| VlanTag { protocol, control };
        assert_eq!(tag(ETHERTYPE_VLAN, 0xe00a).access_vlan(), Some(10));
        assert_eq!(tag(ETHERTYPE_VLAN, 0xe000).access_vlan(), None);
        assert_eq!(tag(ETHERTYPE_SERVICE_VLAN, 10).access_vlan(), None);
    }

    #[test]
    fn f5_3_priority_tag_moved_to_a_vlan_keeps_its_priority() {
        let tag = VlanTag {
            protocol: ETHERTYPE_SERVICE_VLAN,
            control: 0xb000,
        };
        let expected = VlanTag {
            protocol: ETHERTYPE_VLAN,
            control: 0xb00a,
        };
        assert_eq!(tag.moved_to(10), expected);
    }

    #[test]
    fn two_tags_lead_to_the_packet_behind_both() {
        let mut frame = tagged(PLAIN, 7).to_vec();
        frame[12..14].copy_from_slice(&[0x88, 0xa8]);
        frame[16..18].copy_from_slice(&[0x81, 0x00]);
        frame.extend([0, 9, 0x86, 0xdd]);
        assert_eq!(network_header(&frame), Some((ETHERTYPE_IPV6, 22)));
        assert_eq!(network_header(&frame[..21]), None);
        let ethernet = Ethernet::parse(&frame).unwrap();
        assert_eq!(ethernet.vlan(), Some(7));
        assert_eq!(ethernet.ethertype, ETHERTYPE_VLAN);
    }

    #[test]
    fn frame_cut_in_its_header_is_none() {
        let frame = tagged(PLAIN, 1);
        for bytes in 0..18 {
            assert_eq!(Ethernet::parse(&frame[..bytes]), None, "{bytes}");
            assert_eq!(network_header(&frame[..bytes]), None, "{bytes}");
        }
        assert_eq!(Ethernet::parse(&PLAIN[..13]), None);
    }

    #[test]
    fn tag_put_in_leaves_the_rest_of_the_header_as_it_was() {
        let frame = tagged(PLAIN, 0x0fff);
        assert_eq!(frame[..12], PLAIN[..12]);
        assert_eq!(frame[12..], [0x81, 0x00, 0x0f, 0xff, 0x08, 0x00]);
    }

    #[test]
    fn group_addresses_are_multicast() {
        assert!(is_multicast(BROADCAST));
        assert!(is_multicast([0x33, 0x33, 0, 0, 0, 1]));
        assert!(!is_multicast([0x52, 0x54, 0, 0xff, 0xff, 0xff]));
    }

    #[test]
    fn announcement_is_a_reverse_request_of_60_bytes() {
        let mut expected = vec![0xff; 6];
        expected.extend([0x52, 0x54, 0, 1, 2, 3, 0x80, 0x35]);
        expected.extend([0, 1, 8, 0, 6, 4, 0, 3]);
        expected.extend([0x52, 0x54, 0, 1, 2, 3, 0, 0, 0, 0]);
        expected.extend([0x52, 0x54, 0, 1, 2, 3, 0, 0, 0, 0]);
        expected.resize(60, 0);
        assert_eq!(announcement([0x52, 0x54, 0, 1, 2, 3]).to_vec(), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        #[test]
        fn any_bytes_parse_within_themselves(
            mut head in proptest::collection::vec(any::<u8>(), 0..40),
            tag in any::<bool>(),
        ) {
            if let (true, Some(ethertype)) = (tag, head.get_mut(12..14)) {
                ethertype.copy_from_slice(&[0x81, 0x00]);
            }
            if let Some(ethernet) = Ethernet::parse(&head) {
                prop_assert!(ethernet.payload_offset <= head.len());
                prop_assert_eq!(&head[..6], ethernet.destination);
            }
            if let Some((_, offset)) = network_header(&head) {
                prop_assert!(offset <= head.len());
            }
        }
    }
}
