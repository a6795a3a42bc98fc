// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of a process and their counters, as management shows them.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::stats::DeviceStats;

/// Counters that one kind of device has beside those of [`DeviceStats`].
pub trait DeviceCounters: Send + Sync {
    /// What is added to the device's object in the reply to `stats`.
    fn members(&self) -> Map<String, Value>;

    /// The same as metrics. All devices of a process name the same families.
    fn families(&self) -> Vec<Family>;
}

/// One name of the metrics and its values.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Family {
    /// The name, without the prefix `ringside_` and without the suffix of its kind.
    pub name: &'static str,
    /// What it counts, in a few words.
    pub help: &'static str,
    /// Whether it only grows.
    pub kind: FamilyKind,
    /// Its values.
    pub samples: Vec<Sample>,
}

/// What a value means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FamilyKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One value of a family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sample {
    /// What tells it from the others of its family, beside the device and the port.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: u64,
}

/// What is shown of one device.
#[derive(Clone)]
pub struct DeviceView {
    /// What every device counts.
    pub stats: Arc<DeviceStats>,
    /// What this kind of device counts.
    pub counters: Option<Arc<dyn DeviceCounters>>,
}

impl From<Arc<DeviceStats>> for DeviceView {
    fn from(stats: Arc<DeviceStats>) -> Self {
        Self {
            stats,
            counters: None,
        }
    }
}

impl fmt::Debug for DeviceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceView")
            .field("device", &self.stats.device())
            .finish_non_exhaustive()
    }
}

impl DeviceView {
    fn to_json(&self) -> Result<Value, serde_json::Error> {
        let mut value = serde_json::to_value(self.stats.snapshot())?;
        if let (Some(object), Some(counters)) = (value.as_object_mut(), &self.counters) {
            object.extend(counters.members());
        }
        Ok(value)
    }
}

/// The devices that a process serves.
#[derive(Clone, Debug)]
pub enum Devices {
    /// The only one there can be, without a name.
    Single(DeviceView),
    /// Any number, with names.
    Ports(Vec<(String, DeviceView)>),
}

impl Devices {
    /// The devices with their names.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&str>, &DeviceView)> {
        let (single, ports) = match self {
            Self::Single(device) => (Some((None, device)), [].as_slice()),
            Self::Ports(ports) => (None, ports.as_slice()),
        };
        let named = ports
            .iter()
            .map(|(name, device)| (Some(name.as_str()), device));
        single.into_iter().chain(named)
    }

    /// The reply to `stats`: the counters of the only device, or `ports` with those of each.
    pub(super) fn to_json(&self) -> Result<Value, serde_json::Error> {
        match self {
            Self::Single(device) => device.to_json(),
            Self::Ports(ports) => {
                let ports = ports.iter().map(|(name, device)| {
                    let mut value = device.to_json()?;
                    value["port"] = json!(name);
                    Ok(value)
                });
                let ports = ports.collect::<Result<Vec<_>, serde_json::Error>>()?;
                Ok(json!({ "ports": ports }))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Counts sheep.
    pub(in crate::management) struct Sheep(pub(in crate::management) u64);

    impl DeviceCounters for Sheep {
        fn members(&self) -> Map<String, Value> {
            Map::from_iter([("sheep".to_owned(), json!(self.0))])
        }

        fn families(&self) -> Vec<Family> {
            let sample = |color: &str, value| Sample {
                labels: vec![("color", color.to_owned())],
                value,
            };
            vec![
                Family {
                    name: "sheep",
                    help: "Sheep counted",
                    kind: FamilyKind::Counter,
                    samples: vec![sample("white", self.0), sample("black", 1)],
                },
                Family {
                    name: "awake",
                    help: "Whether awake",
                    kind: FamilyKind::Gauge,
                    samples: vec![sample("", 0)],
                },
            ]
        }
    }

    pub(in crate::management) fn two_ports() -> Devices {
        let port = |sheep| DeviceView {
            stats: Arc::new(DeviceStats::new("net", &["ctrl"])),
            counters: Some(Arc::new(Sheep(sheep))),
        };
        Devices::Ports(vec![
            ("vm0".to_owned(), port(5)),
            ("vm1".to_owned(), port(7)),
        ])
    }

    #[test]
    fn json_of_ports_has_their_names_and_members() {
        let devices = two_ports();
        for (index, (name, device)) in (0..).zip(devices.iter()) {
            assert_eq!(name, Some(format!("vm{index}").as_str()));
            device.stats.queue(index).add_kick();
        }
        let json = devices.to_json().unwrap();
        let ports = json["ports"].as_array().unwrap();
        let shown: Vec<_> = ports
            .iter()
            .map(|port| (&port["port"], &port["device"], &port["sheep"]))
            .collect();
        let (vm0, vm1, net) = (json!("vm0"), json!("vm1"), json!("net"));
        assert_eq!(shown, [(&vm0, &net, &json!(5)), (&vm1, &net, &json!(7))]);
        assert_eq!(ports[1]["queues"][0]["queue"], 1);
    }

    #[test]
    fn json_of_a_single_device_is_its_own() {
        let stats = Arc::new(DeviceStats::new("blk", &["read"]));
        let devices = Devices::Single(Arc::clone(&stats).into());
        let expected = serde_json::to_value(stats.snapshot()).unwrap();
        assert_eq!(devices.to_json().unwrap(), expected);
        let names: Vec<_> = devices.iter().map(|(name, _)| name).collect();
        assert_eq!(names, [None]);
    }
}
