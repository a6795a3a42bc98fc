// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is offered, and what an acknowledged set means for the data side.
//!
//! Features depend on each other (virtio 1.3 §5.1.3.1). What is offered keeps to that; a driver
//! that does not is given the features whose requirements it acknowledged, see [`consistent`].

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

bitflags::bitflags! {
    /// What a receiver of packets takes unfinished.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub struct Offloads: u8 {
        /// Checksums that are not complete; all others need it.
        const CSUM = 1;
        /// Long TCP over IPv4.
        const TSO4 = 2;
        /// Long TCP over IPv6.
        const TSO6 = 4;
        /// Long TCP with congestion marks.
        const ECN = 8;
        /// Long UDP over IPv4, to be segmented.
        const USO4 = 16;
        /// Long UDP over IPv6, to be segmented.
        const USO6 = 32;
        /// Long UDP, to be fragmented.
        const UFO = 64;
    }
}

impl Offloads {
    /// What [`offload::finish`](crate::offload::finish) can do for a receiver that does not take
    /// it: all but fragmentation, which no system
    /// asks for any more.
    pub const SOFTWARE: Self = Self::UFO.complement();
    /// Segmentation of UDP over either IP, which `HOST_USO` stands for.
    pub const USO: Self = Self::USO4.union(Self::USO6);
}

/// The `GUEST_` features and what each says of the driver.
const TAKEN: [(Offloads, u32); 7] = [
    (Offloads::CSUM, VIRTIO_NET_F_GUEST_CSUM),
    (Offloads::TSO4, VIRTIO_NET_F_GUEST_TSO4),
    (Offloads::TSO6, VIRTIO_NET_F_GUEST_TSO6),
    (Offloads::ECN, VIRTIO_NET_F_GUEST_ECN),
    (Offloads::USO4, VIRTIO_NET_F_GUEST_USO4),
    (Offloads::USO6, VIRTIO_NET_F_GUEST_USO6),
    (Offloads::UFO, VIRTIO_NET_F_GUEST_UFO),
];

/// The `HOST_` features and what each lets the driver leave to the device.
const SENT: [(Offloads, u32); 6] = [
    (Offloads::CSUM, VIRTIO_NET_F_CSUM),
    (Offloads::TSO4, VIRTIO_NET_F_HOST_TSO4),
    (Offloads::TSO6, VIRTIO_NET_F_HOST_TSO6),
    (Offloads::ECN, VIRTIO_NET_F_HOST_ECN),
    (Offloads::USO, VIRTIO_NET_F_HOST_USO),
    (Offloads::UFO, VIRTIO_NET_F_HOST_UFO),
];

/// Each feature that requires others, and those of which it requires one. A requirement comes
/// before what requires it as a dependant, so that one pass settles all.
const REQUIREMENTS: [(u32, &[u32]); 18] = [
    (VIRTIO_NET_F_GUEST_TSO4, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_TSO6, &[VIRTIO_NET_F_GUEST_CSUM]),
    (
        VIRTIO_NET_F_GUEST_ECN,
        &[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6],
    ),
    (VIRTIO_NET_F_GUEST_UFO, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_USO4, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_USO6, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_HOST_TSO4, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_HOST_TSO6, &[VIRTIO_NET_F_CSUM]),
    (
        VIRTIO_NET_F_HOST_ECN,
        &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6],
    ),
    (VIRTIO_NET_F_HOST_UFO, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_HOST_USO, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_CTRL_RX, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_CTRL_VLAN, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_GUEST_ANNOUNCE, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_MQ, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_CTRL_MAC_ADDR, &[VIRTIO_NET_F_CTRL_VQ]),
    // Not in that section, but nothing without a control queue either.
    (VIRTIO_NET_F_CTRL_RX_EXTRA, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, &[VIRTIO_NET_F_CTRL_VQ]),
];

/// Offered whatever is behind the device.
const ALWAYS: [u32; 13] = [
    VIRTIO_F_VERSION_1,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_RESET,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
];

/// What is behind a device, as far as its features depend on it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offer {
    /// What the link finishes for the driver; nothing where it carries no virtio headers, and at
    /// most [`Offloads::SOFTWARE`] where software does it.
    pub sent: Offloads,
    /// What may arrive unfinished for a driver that takes it.
    pub taken: Offloads,
    /// Queue pairs; several are a choice of the driver's.
    pub pairs: u16,
    /// The configuration space says a MAC.
    pub has_mac: bool,
    /// It says an MTU.
    pub has_mtu: bool,
    /// It says a speed.
    pub has_speed: bool,
}

impl Offer {
    /// The features to offer. Those of the vhost-user protocol itself are not among them.
    #[must_use]
    pub fn features(&self) -> u64 {
        let some = [
            (self.pairs > 1, VIRTIO_NET_F_MQ),
            (self.has_mac, VIRTIO_NET_F_MAC),
            (self.has_mtu, VIRTIO_NET_F_MTU),
            (self.has_speed, VIRTIO_NET_F_SPEED_DUPLEX),
        ];
        let always = ALWAYS.into_iter();
        let some = some.into_iter().filter(|(known, _)| *known);
        let sent = SENT
            .iter()
            .filter(|(offload, _)| self.sent.contains(*offload));
        let taken = TAKEN
            .iter()
            .filter(|(offload, _)| self.taken.contains(*offload));
        let features = always
            .chain(some.map(|(_, feature)| feature))
            .chain(sent.chain(taken).map(|(_, feature)| *feature));
        consistent(features.fold(0, |features, feature| features | 1 << feature))
    }
}

/// Whether a set contains this feature.
#[must_use]
#[inline]
pub fn has(features: u64, feature: u32) -> bool {
    1_u64
        .checked_shl(feature)
        .is_some_and(|bit| features & bit != 0)
}

/// The features of a set whose requirements are in it (virtio 1.3 §5.1.3.1): `features` itself,
/// unless the driver breaks its rules.
#[must_use]
pub fn consistent(features: u64) -> u64 {
    let lacking = |features, any_of: &[u32]| !any_of.iter().any(|one| has(features, *one));
    REQUIREMENTS
        .iter()
        .fold(features, |features, (feature, any_of)| {
            if lacking(features, any_of) {
                features & !(1 << feature)
            } else {
                features
            }
        })
}

/// What the driver may leave unfinished in what it sends, with these features acknowledged.
#[must_use]
pub fn sent_by_driver(features: u64) -> Offloads {
    offloads(features, &SENT)
}

/// What the driver takes unfinished, with these features acknowledged. The command-specific data
/// of `GUEST_OFFLOADS_SET` has the same bits (virtio 1.3 §5.1.6.5.8.1).
#[must_use]
pub fn taken_by_driver(features: u64) -> Offloads {
    offloads(features, &TAKEN)
}

/// The bits that `GUEST_OFFLOADS_SET` may have.
pub(crate) fn guest_offloads() -> u64 {
    let bits = TAKEN.iter().map(|(_, feature)| feature);
    bits.fold(0, |bits, feature| bits | 1 << feature)
}

fn offloads(features: u64, table: &[(Offloads, u32)]) -> Offloads {
    let features = consistent(features);
    let acknowledged = table.iter().filter(|(_, feature)| has(features, *feature));
    acknowledged.map(|(offload, _)| *offload).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(features: &[u32]) -> u64 {
        features.iter().fold(0, |set, feature| set | 1 << feature)
    }

    #[test]
    fn offer_of_a_link_without_headers_has_no_offload() {
        let offer = Offer {
            pairs: 1,
            ..Offer::default()
        };
        assert_eq!(offer.features(), set(&ALWAYS));
        assert_eq!(sent_by_driver(offer.features()), Offloads::empty());
        assert_eq!(taken_by_driver(offer.features()), Offloads::empty());
    }

    #[test]
    fn offer_of_everything_is_these_bits() {
        let offer = Offer {
            sent: Offloads::all(),
            taken: Offloads::all(),
            pairs: 8,
            has_mac: true,
            has_mtu: true,
            has_speed: true,
        };
        let bits = [
            0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 28, 29,
            32, 35, 40, 54, 55, 56, 63,
        ];
        assert_eq!(offer.features(), set(&bits));
        assert_eq!(sent_by_driver(offer.features()), Offloads::all());
        assert_eq!(taken_by_driver(offer.features()), Offloads::all());
    }

    #[test]
    fn offer_of_uso_over_one_ip_only_is_none_for_what_is_sent() {
        let offer = Offer {
            sent: Offloads::CSUM | Offloads::USO4,
            taken: Offloads::CSUM | Offloads::USO6,
            ..Offer::default()
        };
        assert_eq!(sent_by_driver(offer.features()), Offloads::CSUM);
        assert_eq!(taken_by_driver(offer.features()), offer.taken);
    }

    #[test]
    fn acknowledged_segmentation_without_checksums_is_cleared() {
        assert_eq!(
            sent_by_driver(set(&[11, 12, 13, 14, 56])),
            Offloads::empty()
        );
        assert_eq!(
            taken_by_driver(set(&[7, 8, 9, 10, 54, 55])),
            Offloads::empty()
        );
        assert_eq!(taken_by_driver(set(&[0, 7])), Offloads::empty());
    }

    #[test]
    fn acknowledged_ecn_without_segmentation_is_cleared() {
        assert_eq!(consistent(set(&[0, 1, 9, 13])), set(&[0, 1]));
        assert_eq!(
            consistent(set(&[0, 1, 9, 13, 8, 12])),
            set(&[0, 1, 9, 13, 8, 12])
        );
        assert_eq!(consistent(set(&[9, 13, 8, 12])), 0);
    }

    #[test]
    fn acknowledged_commands_without_a_control_queue_are_cleared() {
        assert_eq!(
            consistent(set(&[2, 16, 18, 19, 20, 21, 22, 23, 32])),
            set(&[16, 32])
        );
    }

    #[test]
    fn has_a_feature_past_the_set_is_false() {
        assert!(!has(u64::MAX, 64));
        assert!(has(u64::MAX, 63));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        #[test]
        fn consistent_set_satisfies_every_requirement(features: u64) {
            let kept = consistent(features);
            prop_assert_eq!(kept & !features, 0);
            prop_assert_eq!(consistent(kept), kept);
            for (feature, any_of) in REQUIREMENTS {
                prop_assert!(!has(kept, feature) || any_of.iter().any(|one| has(kept, *one)));
            }
        }

        #[test]
        fn offer_is_consistent_and_never_more_than_the_link_does(
            sent: u8, taken: u8, pairs: u16, known in any::<[bool; 3]>()
        ) {
            let [has_mac, has_mtu, has_speed] = known;
            let offer = Offer {
                sent: Offloads::from_bits_truncate(sent),
                taken: Offloads::from_bits_truncate(taken),
                pairs,
                has_mac,
                has_mtu,
                has_speed,
            };
            let features = offer.features();
            prop_assert_eq!(consistent(features), features);
            prop_assert!(offer.sent.contains(sent_by_driver(features)));
            prop_assert!(offer.taken.contains(taken_by_driver(features)));
            prop_assert_eq!(has(features, VIRTIO_NET_F_MQ), pairs > 1);
        }
    }
}
