// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use ringside_common::management::DeviceCounters as _;
use serde_json::{Value, json};

use super::*;

const UNICAST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

#[test]
fn sizes_are_classed_at_their_bounds() {
    for (bytes, class) in [
        (0, "undersize"),
        (14, "undersize"),
        (31, "undersize"),
        (32, "undersize"),
        (63, "undersize"),
        (64, "64"),
        (65, "65_127"),
        (127, "65_127"),
        (128, "128_255"),
        (255, "128_255"),
        (256, "256_511"),
        (511, "256_511"),
        (512, "512_1023"),
        (1023, "512_1023"),
        (1024, "1024_1518"),
        (1518, "1024_1518"),
        (1519, "1519_max"),
        (2047, "1519_max"),
        (2048, "1519_max"),
        (65_550, "1519_max"),
        (usize::MAX, "1519_max"),
    ] {
        assert_eq!(SIZE_CLASSES[size_class(bytes)], class, "{bytes}");
    }
}

#[test]
fn drop_reasons_are_in_order_and_have_names_of_their_own() {
    for (index, reason) in DropReason::ALL.into_iter().enumerate() {
        assert_eq!(reason.index(), index, "{reason:?}");
        let same_name = DropReason::ALL.map(|other| other.name() == reason.name());
        assert_eq!(same_name.into_iter().filter(|same| *same).count(), 1);
    }
}

#[test]
fn directions_of_vrings_are_those_of_the_specification() {
    let directions = [0, 1, 2, 3].map(Direction::of_vring);
    let (rx, tx) = (Direction::Rx, Direction::Tx);
    assert_eq!(directions, [rx, tx, rx, tx]);
}

#[test]
fn totals_of_a_port_are_sums_by_direction() {
    let port = PortCounters::default();
    port.vring(0).count(60, UNICAST);
    port.vring(2).count(1514, [0xff; 6]);
    port.vring(2).count(64, [0x01, 0, 0x5e, 0, 0, 1]);
    port.vring(2).count_drop(DropReason::NoBuffer);
    port.vring(0).count_drop(DropReason::NoBuffer);
    port.vring(0).count_starved();
    port.vring(1)
        .count(9000, [0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
    port.vring(1).count_drop(DropReason::Spoofed);

    let rx = port.totals(Direction::Rx);
    assert_eq!((rx.packets(), rx.bytes), (3, 1638));
    assert_eq!((rx.multicast, rx.broadcast, rx.starved), (1, 1, 1));
    assert_eq!(rx.drops(DropReason::NoBuffer), 2);
    assert_eq!(rx.drops(DropReason::Spoofed), 0);
    let tx = port.totals(Direction::Tx);
    assert_eq!((tx.packets(), tx.bytes), (1, 9000));
    assert_eq!((tx.multicast, tx.broadcast), (1, 0));
    assert_eq!(tx.drops(DropReason::Spoofed), 1);
}

#[test]
fn json_has_the_names_of_dpdk_and_open_vswitch() {
    let port = PortCounters::default();
    let (rx, tx) = (port.vring(0), port.vring(1));
    for bytes in [60, 64, 100, 200, 300, 600, 1514, 9000] {
        tx.count(bytes, UNICAST);
    }
    tx.count_drop(DropReason::RateLimited);
    rx.count(64, [0xff; 6]);
    rx.count_starved();
    (0..2).for_each(|_| rx.count_drop(DropReason::NoBuffer));
    (0..3).for_each(|_| rx.count_drop(DropReason::MtuExceeded));
    (0..4).for_each(|_| rx.count_drop(DropReason::RateLimited));
    (0..5).for_each(|_| rx.count_drop(DropReason::Offload));

    let members = Value::from(port.members());

    let expected = json!({
        "packets": [
            {
                "queue": 0, "direction": "rx", "good_packets": 1, "good_bytes": 64,
                "multicast_packets": 0, "broadcast_packets": 1, "undersize_packets": 0,
                "size_64_packets": 1, "size_65_127_packets": 0, "size_128_255_packets": 0,
                "size_256_511_packets": 0, "size_512_1023_packets": 0,
                "size_1024_1518_packets": 0, "size_1519_max_packets": 0, "no_buffer_waits": 1,
                "drops": {"no_buffer": 2, "mtu_exceeded": 3, "rate_limited": 4, "offload": 5},
            },
            {
                "queue": 1, "direction": "tx", "good_packets": 8, "good_bytes": 11838,
                "multicast_packets": 0, "broadcast_packets": 0, "undersize_packets": 1,
                "size_64_packets": 1, "size_65_127_packets": 1, "size_128_255_packets": 1,
                "size_256_511_packets": 1, "size_512_1023_packets": 1,
                "size_1024_1518_packets": 1, "size_1519_max_packets": 1,
                "drops": {"rate_limited": 1},
            },
        ],
        "ovs": {
            "rx_packets": 8, "rx_bytes": 11838, "tx_packets": 1, "tx_bytes": 64,
            "ovs_tx_failure_drops": 2, "ovs_tx_mtu_exceeded_drops": 3, "ovs_tx_qos_drops": 4,
            "ovs_rx_qos_drops": 1, "ovs_tx_invalid_hwol_drops": 5,
        },
    });
    assert_eq!(members, expected);
}

#[test]
fn families_have_a_value_for_each_vring_with_its_labels() {
    let port = PortCounters::default();
    port.vring(0).count_starved();
    port.vring(3).count(64, UNICAST);
    port.vring(3).count_drop(DropReason::Isolated);

    let families = port.families();

    let value = |name: &str, labels: &[(&'static str, &str)]| {
        let family = families.iter().find(|family| family.name == name).unwrap();
        let labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()))
            .collect();
        let mut same = family.samples.iter().filter(|s| s.labels == labels);
        let value = same.next().unwrap().value;
        assert_eq!(same.next(), None);
        (value, family.samples.len())
    };
    let (rx, tx) = (
        [("queue", "0"), ("direction", "rx")],
        [("queue", "3"), ("direction", "tx")],
    );
    assert_eq!(value("packets", &rx), (0, 2));
    assert_eq!(value("packets", &tx), (1, 2));
    assert_eq!(value("packet_bytes", &tx), (64, 2));
    assert_eq!(value("no_buffer_waits", &rx), (1, 2));
    let sized = [tx[0], tx[1], ("size", "64")];
    assert_eq!(value("sized_packets", &sized), (1, 16));
    let isolated = [tx[0], tx[1], ("reason", "isolated")];
    assert_eq!(value("dropped_packets", &isolated), (1, 24));
}

#[test]
fn counters_of_a_vring_survive_its_restart_and_share_no_cache_line() {
    let port = PortCounters::default();
    port.vring(0).count(64, UNICAST);
    port.vring(0).count(64, UNICAST);
    assert_eq!(port.totals(Direction::Rx).packets(), 2);
    assert_eq!(align_of::<PacketCounters>(), 128);
}
