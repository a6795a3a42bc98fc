// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]

use proptest::prelude::*;

use super::*;

const EVERYTHING: Context = Context {
    features: u64::MAX,
    max_pairs: 4,
    announcing: true,
};

fn parse_with(header: [u8; 2], data: &[u8], context: &Context) -> Result<Command, ControlFault> {
    let read_at = |offset: usize, to: &mut [u8]| {
        let from = data.get(offset..).unwrap_or(&[]);
        let bytes = from.len().min(to.len());
        to[..bytes].copy_from_slice(&from[..bytes]);
        bytes
    };
    Command::parse(header, read_at, context)
}

fn parse(header: [u8; 2], data: &[u8]) -> Result<Command, ControlFault> {
    parse_with(header, data, &EVERYTHING)
}

fn modes(modes: RxModes, on: bool) -> Result<Command, ControlFault> {
    Ok(Command::Filter(FilterChange::Modes(modes, on)))
}

fn mac(last: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, last]
}

/// The data of a table with these numbers of addresses.
fn tables(unicast: u8, multicast: u8) -> Vec<u8> {
    let mut data = vec![unicast, 0, 0, 0];
    data.extend((0..unicast).flat_map(mac));
    data.extend([multicast, 0, 0, 0]);
    data.extend((0..multicast).flat_map(|last| [0x33, 0x33, 0, 0, 0, last]));
    data
}

#[test]
fn each_mode_is_switched_on_and_off() {
    let expected = [
        RxModes::PROMISCUOUS,
        RxModes::ALL_MULTICAST,
        RxModes::ALL_UNICAST,
        RxModes::NO_MULTICAST,
        RxModes::NO_UNICAST,
        RxModes::NO_BROADCAST,
    ];
    for (command, mode) in (0..).zip(expected) {
        assert_eq!(parse([0, command], &[0]), modes(mode, false));
        assert_eq!(parse([0, command], &[1]), modes(mode, true));
        assert_eq!(parse([0, command], &[]), Err(ControlFault::TooShort));
        let fault = ControlFault::NotASwitch { value: 2 };
        assert_eq!(parse([0, command], &[2]), Err(fault));
    }
}

#[test]
fn mac_tables_are_listed() {
    let expected = FilterChange::Tables {
        unicast: MacTable::Listed(vec![mac(0), mac(1)]),
        multicast: MacTable::Listed(vec![[0x33, 0x33, 0, 0, 0, 0]]),
    };
    assert_eq!(parse([1, 0], &tables(2, 1)), Ok(Command::Filter(expected)));
    let empty = FilterChange::Tables {
        unicast: MacTable::Listed(vec![]),
        multicast: MacTable::Listed(vec![]),
    };
    assert_eq!(parse([1, 0], &[0; 8]), Ok(Command::Filter(empty)));
}

#[test]
fn mac_table_of_too_many_is_all_of_its_kind() {
    let full: Vec<_> = (0..64).map(mac).collect();
    let expected = FilterChange::Tables {
        unicast: MacTable::Listed(full),
        multicast: MacTable::All,
    };
    assert_eq!(
        parse([1, 0], &tables(64, 65)),
        Ok(Command::Filter(expected))
    );
    let expected = FilterChange::Tables {
        unicast: MacTable::All,
        multicast: MacTable::Listed(vec![]),
    };
    assert_eq!(
        parse([1, 0], &tables(200, 0)),
        Ok(Command::Filter(expected))
    );
}

#[test]
fn f7_mac_table_cut_anywhere_is_refused() {
    for (unicast, multicast) in [(0, 0), (2, 1), (64, 65), (65, 64)] {
        let data = tables(unicast, multicast);
        for bytes in 0..data.len() {
            let fault = parse([1, 0], &data[..bytes]);
            assert_eq!(
                fault,
                Err(ControlFault::TooShort),
                "{unicast} {multicast} {bytes}"
            );
        }
    }
}

#[test]
fn f7_mac_table_larger_than_the_data_is_refused() {
    for entries in [2, 65, 0x2aaa_aaab, 0x8000_0000, 0xffff_ffff_u32] {
        let mut data = tables(1, 0);
        data[..4].copy_from_slice(&entries.to_le_bytes());
        assert_eq!(
            parse([1, 0], &data),
            Err(ControlFault::TooShort),
            "{entries}"
        );
        let mut data = tables(0, 1);
        data[4..8].copy_from_slice(&entries.to_le_bytes());
        assert_eq!(
            parse([1, 0], &data),
            Err(ControlFault::TooShort),
            "{entries}"
        );
    }
}

#[test]
fn own_address_is_a_station() {
    let expected = Command::Filter(FilterChange::Mac(mac(9)));
    assert_eq!(parse([1, 1], &mac(9)), Ok(expected));
    assert_eq!(parse([1, 1], &mac(9)[..5]), Err(ControlFault::TooShort));
    for other in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        assert_eq!(parse([1, 1], &other), Err(ControlFault::NotAStation));
    }
}

#[test]
fn own_address_is_set_with_either_feature() {
    for (feature, expected) in [(18, true), (23, true), (17, false)] {
        let context = Context {
            features: 1 << feature,
            ..EVERYTHING
        };
        assert_eq!(
            parse_with([1, 1], &mac(9), &context).is_ok(),
            expected,
            "{feature}"
        );
    }
}

#[test]
fn vlan_is_added_and_removed() {
    let added = Command::Filter(FilterChange::VlanAdded(4094));
    assert_eq!(parse([2, 0], &[0xfe, 0x0f]), Ok(added));
    let removed = Command::Filter(FilterChange::VlanRemoved(0));
    assert_eq!(parse([2, 1], &[0, 0]), Ok(removed));
    assert_eq!(parse([2, 1], &[0]), Err(ControlFault::TooShort));
}

#[test]
fn f7_vlan_from_4095_on_is_refused() {
    for id in [4095, 4096, 4097, 0x8001, u16::MAX] {
        for command in [0, 1] {
            let fault = ControlFault::VlanOutOfRange { id };
            assert_eq!(parse([2, command], &id.to_le_bytes()), Err(fault));
        }
    }
}

#[test]
fn announcement_is_acknowledged_once_asked_for() {
    assert_eq!(parse([3, 0], &[]), Ok(Command::Announced));
}

#[test]
fn f7_acknowledgement_of_no_announcement_is_refused() {
    let context = Context {
        announcing: false,
        ..EVERYTHING
    };
    assert_eq!(
        parse_with([3, 0], &[], &context),
        Err(ControlFault::NotAnnouncing)
    );
}

#[test]
fn pairs_are_set_up_to_the_most() {
    assert_eq!(parse([4, 0], &[1, 0]), Ok(Command::Pairs(1)));
    assert_eq!(parse([4, 0], &[4, 0]), Ok(Command::Pairs(4)));
    assert_eq!(parse([4, 0], &[4]), Err(ControlFault::TooShort));
}

#[test]
fn f7_pairs_of_none_or_too_many_are_refused() {
    for pairs in [0, 5, 0x8000, u16::MAX] {
        let fault = ControlFault::PairsOutOfRange {
            pairs,
            max_pairs: 4,
        };
        assert_eq!(parse([4, 0], &pairs.to_le_bytes()), Err(fault));
    }
}

#[test]
fn guest_offloads_are_set_within_what_was_acknowledged() {
    let context = Context {
        features: 1 << 1 | 1 << 2 | 1 << 7 | 1 << 54,
        ..EVERYTHING
    };
    let set = |bits: u64| parse_with([5, 0], &bits.to_le_bytes(), &context);
    assert_eq!(set(0), Ok(Command::GuestOffloads(Offloads::empty())));
    let expected = Offloads::CSUM | Offloads::TSO4 | Offloads::USO4;
    assert_eq!(
        set(1 << 1 | 1 << 7 | 1 << 54),
        Ok(Command::GuestOffloads(expected))
    );
    assert_eq!(set(1 << 7), Ok(Command::GuestOffloads(Offloads::empty())));
    for offloads in [1 << 8, 1 << 1 | 1 << 55, 1 << 2, u64::MAX] {
        let fault = ControlFault::OffloadsNotNegotiated { offloads };
        assert_eq!(set(offloads), Err(fault));
    }
    assert_eq!(parse([5, 0], &[0; 7]), Err(ControlFault::TooShort));
}

#[test]
fn f7_unknown_command_is_refused() {
    let known = [(0, 6), (1, 2), (2, 2), (3, 1), (4, 1), (5, 1)];
    for class in 0..=255 {
        let commands = known.iter().find(|(of, _)| *of == class);
        for command in commands.map_or(0, |(_, commands)| *commands)..=255 {
            let fault = ControlFault::Unknown { class, command };
            assert_eq!(parse([class, command], &[0; 1000]), Err(fault));
        }
    }
}

#[test]
fn f7_command_of_a_feature_that_was_not_acknowledged_is_refused() {
    let cases = [
        ([0, 0], 1_u64 << 18),
        ([0, 1], 1 << 18),
        ([0, 2], 1 << 20),
        ([0, 5], 1 << 20),
        ([1, 0], 1 << 18),
        ([1, 1], 1 << 18 | 1 << 23),
        ([2, 0], 1 << 19),
        ([2, 1], 1 << 19),
        ([3, 0], 1 << 21),
        ([4, 0], 1 << 22),
        ([5, 0], 1 << 2),
    ];
    for ([class, command], features) in cases {
        let context = Context {
            features: !features,
            ..EVERYTHING
        };
        let fault = ControlFault::Unknown { class, command };
        assert_eq!(
            parse_with([class, command], &[1; 1000], &context),
            Err(fault)
        );
    }
}

#[test]
fn bytes_behind_a_command_are_ignored() {
    assert_eq!(parse([0, 0], &[1, 2, 3]), modes(RxModes::PROMISCUOUS, true));
    let data = [tables(2, 1), vec![7; 100]].concat();
    assert_eq!(parse([1, 0], &data), parse([1, 0], &tables(2, 1)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200_000))]

    #[test]
    fn any_command_is_within_bounds_or_refused(
        header in (0..7_u8, 0..7_u8),
        counts in (prop_oneof![0..80_u32, any::<u32>()], prop_oneof![0..80_u32, any::<u32>()]),
        filler in 0..1000_usize,
        data in proptest::collection::vec(any::<u8>(), 0..16),
        features in prop_oneof![Just(u64::MAX), any::<u64>()],
        (max_pairs, announcing) in any::<(u16, bool)>(),
        is_table: bool,
    ) {
        let table = || {
            let unicast = vec![2; usize::try_from(counts.0).unwrap().min(100) * 6];
            let head = [&counts.0.to_le_bytes()[..], &unicast, &counts.1.to_le_bytes()].concat();
            [head, vec![3; filler]].concat()
        };
        let data = if is_table { table() } else { data };
        let context = Context { features, max_pairs, announcing };
        match parse_with(header.into(), &data, &context) {
            Ok(Command::Pairs(pairs)) => prop_assert!((1..=max_pairs).contains(&pairs)),
            Ok(Command::Announced) => prop_assert!(announcing),
            Ok(Command::GuestOffloads(offloads)) => {
                prop_assert!(taken_by_driver(features).contains(offloads));
            }
            Ok(Command::Filter(FilterChange::VlanAdded(id) | FilterChange::VlanRemoved(id))) => {
                prop_assert!(id < 4095);
            }
            Ok(Command::Filter(FilterChange::Tables { unicast, multicast })) => {
                for (table, count) in [(unicast, counts.0), (multicast, counts.1)] {
                    let count = usize::try_from(count).unwrap();
                    prop_assert!(!is_table || count * 6 <= data.len());
                    match table {
                        MacTable::Listed(macs) => {
                            prop_assert!(macs.len() <= 64 && (!is_table || macs.len() == count));
                        }
                        MacTable::All => prop_assert!(!is_table || count > 64),
                    }
                }
            }
            Ok(Command::Filter(FilterChange::Modes(..) | FilterChange::Mac(_))) => {
                prop_assert!(header.0 < 2);
            }
            Err(_) => {}
        }
    }
}
