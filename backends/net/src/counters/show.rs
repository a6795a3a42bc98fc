// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The counters of a port for people and their tools: JSON for `stats`, families for metrics.

use ringside_common::management::{DeviceCounters, Family, FamilyKind, Sample};
use serde_json::{Map, Value, json};

use super::{Direction, DropReason, PacketTotals, PortCounters, SIZE_CLASSES};

impl DeviceCounters for PortCounters {
    fn members(&self) -> Map<String, Value> {
        let vrings = self.read();
        let packets: Vec<Value> = vrings
            .iter()
            .map(|(index, totals)| vring(*index, totals))
            .collect();
        Map::from_iter([
            ("packets".to_owned(), packets.into()),
            ("ovs".to_owned(), ovs(self)),
        ])
    }

    fn families(&self) -> Vec<Family> {
        let vrings = self.read();
        let counter = |name, help, samples| Family {
            name,
            help,
            kind: FamilyKind::Counter,
            samples,
        };
        let plain = |value: fn(&PacketTotals) -> u64| {
            vrings
                .iter()
                .map(|(index, totals)| sample(*index, None, value(totals)))
                .collect()
        };
        vec![
            counter("packets", "Packets passed", plain(PacketTotals::packets)),
            counter("packet_bytes", "Bytes of packets", plain(|t| t.bytes)),
            counter(
                "multicast_packets",
                "Packets to groups",
                plain(|t| t.multicast),
            ),
            counter(
                "broadcast_packets",
                "Packets to all",
                plain(|t| t.broadcast),
            ),
            counter(
                "no_buffer_waits",
                "Times that packets waited because the guest had no buffers",
                plain(|t| t.starved),
            ),
            counter(
                "sized_packets",
                "Packets passed, by size in bytes",
                each(&vrings, "size", |totals| {
                    SIZE_CLASSES.into_iter().zip(totals.sizes).collect()
                }),
            ),
            counter(
                "dropped_packets",
                "Packets lost, by reason",
                each(&vrings, "reason", |totals| {
                    DropReason::ALL
                        .map(|reason| (reason.name(), totals.drops(reason)))
                        .to_vec()
                }),
            ),
        ]
    }
}

/// One sample for each vring and each of its named values.
fn each(
    vrings: &[(u16, PacketTotals)],
    label: &'static str,
    values: fn(&PacketTotals) -> Vec<(&'static str, u64)>,
) -> Vec<Sample> {
    vrings
        .iter()
        .flat_map(|(index, totals)| {
            values(totals)
                .into_iter()
                .map(|(name, value)| sample(*index, Some((label, name)), value))
        })
        .collect()
}

fn sample(index: u16, more: Option<(&'static str, &str)>, value: u64) -> Sample {
    let direction = Direction::of_vring(index).name().to_owned();
    let mut labels = vec![("queue", index.to_string()), ("direction", direction)];
    labels.extend(more.map(|(key, value)| (key, value.to_owned())));
    Sample { labels, value }
}

/// A vring under DPDK's names, and its drops.
fn vring(index: u16, totals: &PacketTotals) -> Value {
    let mut object = Map::from_iter([
        ("queue".to_owned(), json!(index)),
        (
            "direction".to_owned(),
            Direction::of_vring(index).name().into(),
        ),
        ("good_packets".to_owned(), totals.packets().into()),
        ("good_bytes".to_owned(), totals.bytes.into()),
        ("multicast_packets".to_owned(), totals.multicast.into()),
        ("broadcast_packets".to_owned(), totals.broadcast.into()),
    ]);
    for (class, count) in SIZE_CLASSES.into_iter().zip(totals.sizes) {
        let name = match class {
            "undersize" => "undersize_packets".to_owned(),
            size => format!("size_{size}_packets"),
        };
        object.insert(name, count.into());
    }
    if Direction::of_vring(index) == Direction::Rx {
        object.insert("no_buffer_waits".to_owned(), totals.starved.into());
    }
    let drops = DropReason::ALL.map(|reason| (reason, totals.drops(reason)));
    let drops: Map<_, _> = drops
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.name().to_owned(), count.into()))
        .collect();
    object.insert("drops".to_owned(), drops.into());
    object.into()
}

/// The port under Open vSwitch's names, and from its side: what the guest receives it transmits.
fn ovs(port: &PortCounters) -> Value {
    let (rx, tx) = (port.totals(Direction::Rx), port.totals(Direction::Tx));
    json!({
        "rx_packets": tx.packets(),
        "rx_bytes": tx.bytes,
        "tx_packets": rx.packets(),
        "tx_bytes": rx.bytes,
        "ovs_tx_failure_drops": rx.drops(DropReason::NoBuffer),
        "ovs_tx_mtu_exceeded_drops": rx.drops(DropReason::MtuExceeded),
        "ovs_tx_qos_drops": rx.drops(DropReason::RateLimited),
        "ovs_rx_qos_drops": tx.drops(DropReason::RateLimited),
        "ovs_tx_invalid_hwol_drops": rx.drops(DropReason::Offload),
    })
}
