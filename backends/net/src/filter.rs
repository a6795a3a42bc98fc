// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which frames a driver wants to receive (virtio 1.3 §5.1.6.5.1 to §5.1.6.5.3).
//!
//! Most front-ends keep the control queue to themselves, so that a filter that has heard nothing
//! lets everything pass: it begins promiscuous, and no VLAN is filtered before the driver has named
//! one. What is filtered is so to spare the driver work; it is no boundary.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use crate::frame::{BROADCAST, is_multicast};

/// The ids that a VLAN can have are below this; the last one of 12 bits is reserved (IEEE 802.1Q).
pub const VLAN_IDS: u16 = 4095;
/// Addresses that a table holds at most.
pub const MAC_TABLE_ENTRIES: usize = 64;

const VLAN_WORDS: usize = 64;

bitflags::bitflags! {
    /// Modes of reception, each on or off.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub struct RxModes: u8 {
        /// Every frame passes, whatever the other modes say.
        const PROMISCUOUS = 1;
        /// Every multicast frame passes.
        const ALL_MULTICAST = 2;
        /// Every unicast frame passes.
        const ALL_UNICAST = 4;
        /// No multicast frame passes, broadcast excepted.
        const NO_MULTICAST = 8;
        /// No unicast frame passes.
        const NO_UNICAST = 16;
        /// No broadcast frame passes.
        const NO_BROADCAST = 32;
    }
}

/// Addresses of one kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MacTable {
    /// These.
    Listed(Vec<[u8; 6]>),
    /// More than [`MAC_TABLE_ENTRIES`], for which all of the kind pass, as the specification
    /// allows.
    All,
}

impl MacTable {
    fn contains(&self, mac: [u8; 6]) -> bool {
        match self {
            Self::Listed(macs) => macs.contains(&mac),
            Self::All => true,
        }
    }
}

/// What a command changes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FilterChange {
    /// These modes are on or off now.
    Modes(RxModes, bool),
    /// The addresses that pass beside the driver's own.
    Tables {
        /// Those of stations.
        unicast: MacTable,
        /// Those of groups.
        multicast: MacTable,
    },
    /// The driver's own address; the configuration space says it, too.
    Mac([u8; 6]),
    /// Frames of this VLAN pass; its id is below [`VLAN_IDS`].
    VlanAdded(u16),
    /// They no longer do.
    VlanRemoved(u16),
}

/// What a driver wants to receive.
#[derive(Clone, Debug)]
pub struct RxFilter {
    modes: RxModes,
    /// The driver's own address; `None` if it was never said: then all unicast passes.
    mac: Option<[u8; 6]>,
    unicast: MacTable,
    multicast: MacTable,
    /// The VLANs that pass; `None` if all do.
    vlans: Option<Box<Vlans>>,
}

impl RxFilter {
    /// The filter of a driver that has said nothing.
    #[must_use]
    pub const fn new(mac: Option<[u8; 6]>) -> Self {
        Self {
            modes: RxModes::PROMISCUOUS,
            mac,
            unicast: MacTable::Listed(Vec::new()),
            multicast: MacTable::Listed(Vec::new()),
            vlans: None,
        }
    }

    /// Does what a command says.
    pub fn apply(&mut self, change: FilterChange) {
        match change {
            FilterChange::Modes(modes, on) => self.modes.set(modes, on),
            FilterChange::Tables { unicast, multicast } => {
                self.unicast = unicast;
                self.multicast = multicast;
            }
            FilterChange::Mac(mac) => self.mac = Some(mac),
            FilterChange::VlanAdded(id) => self.vlans.get_or_insert_default().set(id, true),
            FilterChange::VlanRemoved(id) => self.vlans.get_or_insert_default().set(id, false),
        }
    }

    /// Whether every frame passes.
    #[must_use]
    #[inline]
    pub fn is_promiscuous(&self) -> bool {
        self.modes.contains(RxModes::PROMISCUOUS)
    }

    /// Whether a frame to `destination`, in the VLAN that its tag says, passes.
    #[must_use]
    #[inline]
    pub fn accepts(&self, destination: [u8; 6], vlan: Option<u16>) -> bool {
        self.is_promiscuous() || (self.accepts_vlan(vlan) && self.accepts_destination(destination))
    }

    fn accepts_vlan(&self, vlan: Option<u16>) -> bool {
        match (&self.vlans, vlan) {
            (Some(vlans), Some(id)) => vlans.contains(id),
            _ => true,
        }
    }

    fn accepts_destination(&self, destination: [u8; 6]) -> bool {
        let on = |mode| self.modes.contains(mode);
        if destination == BROADCAST {
            !on(RxModes::NO_BROADCAST)
        } else if is_multicast(destination) {
            !on(RxModes::NO_MULTICAST)
                && (on(RxModes::ALL_MULTICAST) || self.multicast.contains(destination))
        } else {
            !on(RxModes::NO_UNICAST)
                && (on(RxModes::ALL_UNICAST)
                    || self.mac.is_none_or(|mac| mac == destination)
                    || self.unicast.contains(destination))
        }
    }
}

/// The VLANs that pass, a bit each.
#[derive(Clone, Debug)]
struct Vlans([u64; VLAN_WORDS]);

impl Default for Vlans {
    fn default() -> Self {
        Self([0; VLAN_WORDS])
    }
}

impl Vlans {
    fn set(&mut self, id: u16, passes: bool) {
        if let Some(word) = self.0.get_mut(usize::from(id >> 6)) {
            let bit = Self::bit(id);
            *word = if passes { *word | bit } else { *word & !bit };
        }
    }

    fn contains(&self, id: u16) -> bool {
        let word = self.0.get(usize::from(id >> 6));
        word.is_some_and(|word| word & Self::bit(id) != 0)
    }

    /// The bit of an id in its word.
    const fn bit(id: u16) -> u64 {
        1 << (id & 63)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const OTHER_GROUP: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 1];

    /// A filter that has left promiscuous mode.
    fn filter() -> RxFilter {
        let mut filter = RxFilter::new(Some(OWN));
        filter.apply(FilterChange::Modes(RxModes::PROMISCUOUS, false));
        filter
    }

    /// Which of the five kinds of destination pass.
    fn passes(filter: &RxFilter) -> [bool; 5] {
        [OWN, OTHER, GROUP, OTHER_GROUP, BROADCAST].map(|mac| filter.accepts(mac, None))
    }

    fn with(modes: &[RxModes]) -> [bool; 5] {
        let mut filter = filter();
        for mode in modes {
            filter.apply(FilterChange::Modes(*mode, true));
        }
        passes(&filter)
    }

    #[test]
    fn filter_that_has_heard_nothing_passes_everything() {
        let filter = RxFilter::new(Some(OWN));
        assert_eq!(passes(&filter), [true; 5]);
        assert!((0..4096).all(|id| filter.accepts(OTHER, Some(id))));
    }

    #[test]
    fn filter_without_modes_passes_its_own_and_broadcast() {
        assert_eq!(passes(&filter()), [true, false, false, false, true]);
    }

    #[test]
    fn filter_without_an_address_passes_all_unicast() {
        let mut filter = RxFilter::new(None);
        filter.apply(FilterChange::Modes(RxModes::PROMISCUOUS, false));
        assert_eq!(passes(&filter), [true, true, false, false, true]);
        filter.apply(FilterChange::Mac(OTHER));
        assert_eq!(passes(&filter), [false, true, false, false, true]);
    }

    #[test]
    fn each_mode_passes_or_suppresses_its_kind() {
        assert_eq!(
            with(&[RxModes::ALL_MULTICAST]),
            [true, false, true, true, true]
        );
        assert_eq!(
            with(&[RxModes::ALL_UNICAST]),
            [true, true, false, false, true]
        );
        assert_eq!(
            with(&[RxModes::NO_UNICAST]),
            [false, false, false, false, true]
        );
        assert_eq!(
            with(&[RxModes::NO_BROADCAST]),
            [true, false, false, false, false]
        );
    }

    #[test]
    fn suppression_wins_over_passing_and_promiscuous_over_both() {
        let all = [RxModes::ALL_MULTICAST, RxModes::ALL_UNICAST];
        let none = [RxModes::NO_MULTICAST, RxModes::NO_UNICAST];
        assert_eq!(
            with(&[all, none].concat()),
            [false, false, false, false, true]
        );
        let broadcast = [RxModes::ALL_MULTICAST, RxModes::NO_BROADCAST];
        assert_eq!(with(&broadcast), [true, false, true, true, false]);
        assert_eq!(with(&[RxModes::all()]), [true; 5]);
    }

    #[test]
    fn mode_that_goes_off_leaves_the_others() {
        let mut filter = filter();
        let modes = RxModes::ALL_MULTICAST | RxModes::ALL_UNICAST;
        filter.apply(FilterChange::Modes(modes, true));
        filter.apply(FilterChange::Modes(RxModes::ALL_UNICAST, false));
        assert_eq!(passes(&filter), [true, false, true, true, true]);
    }

    #[test]
    fn listed_addresses_pass_and_a_new_list_replaces_them() {
        let mut filter = filter();
        filter.apply(FilterChange::Tables {
            unicast: MacTable::Listed(vec![OTHER]),
            multicast: MacTable::Listed(vec![OTHER_GROUP]),
        });
        assert_eq!(passes(&filter), [true, true, false, true, true]);
        filter.apply(FilterChange::Tables {
            unicast: MacTable::Listed(vec![]),
            multicast: MacTable::All,
        });
        assert_eq!(passes(&filter), [true, false, true, true, true]);
        filter.apply(FilterChange::Modes(RxModes::NO_MULTICAST, true));
        assert_eq!(passes(&filter), [true, false, false, false, true]);
    }

    #[test]
    fn address_in_the_table_of_the_other_kind_does_not_pass() {
        let mut filter = filter();
        filter.apply(FilterChange::Tables {
            unicast: MacTable::Listed(vec![GROUP, BROADCAST]),
            multicast: MacTable::Listed(vec![OTHER]),
        });
        filter.apply(FilterChange::Modes(RxModes::NO_BROADCAST, true));
        assert_eq!(passes(&filter), [true, false, false, false, false]);
    }

    #[test]
    fn vlans_are_filtered_from_the_first_that_is_named() {
        let mut filter = filter();
        assert!((1..4095).all(|id| filter.accepts(OWN, Some(id))));
        filter.apply(FilterChange::VlanAdded(1));
        filter.apply(FilterChange::VlanAdded(4094));
        filter.apply(FilterChange::VlanAdded(64));
        filter.apply(FilterChange::VlanRemoved(64));
        let passing: Vec<_> = (0..=u16::MAX)
            .filter(|id| filter.accepts(OWN, Some(*id)))
            .collect();
        assert_eq!(passing, [1, 4094]);
        assert!(filter.accepts(OWN, None));
        assert!(!filter.accepts(OTHER, Some(1)));
        filter.apply(FilterChange::Modes(RxModes::PROMISCUOUS, true));
        assert!(filter.accepts(OTHER, Some(2)));
    }
}
