// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--port`: where one guest is, and what it may do.

use std::path::PathBuf;
use std::str::FromStr;

use ringside_common::limit::{Limits, Rate};

use super::items::{Item, SpecError, items};
use super::values;
use crate::counters::Direction;

const KEYS: &str = "socket=, connect=, fd=, name=, mac=, mtu=, vlan=, isolated, anti-spoof, \
                    mac-limit=, limit-rx-bytes=, limit-rx-packets=, limit-tx-bytes=, limit-tx-packets= or \
                    burst=";

/// The value of `--port`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PortSpec {
    /// Where its front-end is met.
    pub endpoint: PortEndpoint,
    /// What management calls it.
    pub name: Option<String>,
    /// What else is said of it.
    pub properties: PortProperties,
}

/// What a port may do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PortProperties {
    /// The MAC address of its guest; `None`: the VMM's choice.
    pub mac: Option<[u8; 6]>,
    /// The MTU its guest is told, 68 to 65535.
    pub mtu: Option<u16>,
    /// The VLAN that its guest is in, without knowing: 1 to 4094. On a switch only.
    pub vlan: Option<u16>,
    /// Whether it reaches the uplink only. On a switch only.
    pub isolated: bool,
    /// Whether frames from other addresses than `mac`, which is there then, are dropped.
    pub anti_spoof: bool,
    /// Most addresses that the switch learns behind it. On a switch only.
    pub mac_limit: Option<u32>,
    /// What its guest may receive.
    pub rx: Limits,
    /// What its guest may send.
    pub tx: Limits,
}

/// Where the front-end of a port is met.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PortEndpoint {
    /// We listen at this path.
    Socket(PathBuf),
    /// The front-end does.
    Connect(PathBuf),
    /// Somebody has opened it for us.
    Fd(i32),
}

/// A port while its list is read.
#[derive(Debug, Default)]
struct Draft {
    socket: Option<PathBuf>,
    connect: Option<PathBuf>,
    fd: Option<i32>,
    name: Option<String>,
    properties: PortProperties,
    /// The limit that a burst would belong to.
    last_limit: Option<(Direction, Unit)>,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Bytes,
    Packets,
}

impl FromStr for PortSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut draft = Draft::default();
        for item in items(text) {
            draft.take(&item)?;
        }
        draft.finish()
    }
}

impl Draft {
    fn take(&mut self, item: &Item) -> Result<(), SpecError> {
        use self::Unit::{Bytes, Packets};
        use Direction::{Rx, Tx};

        let properties = &mut self.properties;
        match item.key.as_str() {
            "socket" => item.parse_into(&mut self.socket, values::path),
            "connect" => item.parse_into(&mut self.connect, values::path),
            "fd" => item.parse_into(&mut self.fd, values::descriptor),
            "name" => item.parse_into(&mut self.name, values::port_name),
            "mac" => item.parse_into(&mut properties.mac, values::mac),
            "mtu" => item.parse_into(&mut properties.mtu, values::mtu),
            "vlan" => item.parse_into(&mut properties.vlan, values::vlan),
            "isolated" => item.set(&mut properties.isolated),
            "anti-spoof" => item.set(&mut properties.anti_spoof),
            "mac-limit" => item.parse_into(&mut properties.mac_limit, values::mac_limit),
            "limit-rx-bytes" => self.limit(item, Rx, Bytes),
            "limit-rx-packets" => self.limit(item, Rx, Packets),
            "limit-tx-bytes" => self.limit(item, Tx, Bytes),
            "limit-tx-packets" => self.limit(item, Tx, Packets),
            "burst" => self.burst(item),
            _ => Err(item.unknown(KEYS)),
        }
    }

    fn limit(&mut self, item: &Item, direction: Direction, unit: Unit) -> Result<(), SpecError> {
        let parse = match unit {
            Unit::Bytes => values::bytes_limit,
            Unit::Packets => values::packets_limit,
        };
        item.parse_into(self.slot(direction, unit), parse)?;
        self.last_limit = Some((direction, unit));
        Ok(())
    }

    /// A burst is that of the limit in front of it.
    fn burst(&mut self, item: &Item) -> Result<(), SpecError> {
        let limit = self.last_limit;
        let limit = limit.and_then(|(direction, unit)| self.slot(direction, unit).as_mut());
        let limit = limit.ok_or(SpecError::BurstWithoutLimit)?;
        item.parse_into(&mut limit.burst, values::number)
    }

    fn slot(&mut self, direction: Direction, unit: Unit) -> &mut Option<Rate> {
        let limits = match direction {
            Direction::Rx => &mut self.properties.rx,
            Direction::Tx => &mut self.properties.tx,
        };
        match unit {
            Unit::Bytes => &mut limits.bytes,
            Unit::Packets => &mut limits.operations,
        }
    }

    fn finish(self) -> Result<PortSpec, SpecError> {
        let endpoint = match (self.socket, self.connect, self.fd) {
            (Some(path), None, None) => PortEndpoint::Socket(path),
            (None, Some(path), None) => PortEndpoint::Connect(path),
            (None, None, Some(fd)) => PortEndpoint::Fd(fd),
            (None, None, None) => return Err(SpecError::NoEndpoint),
            _ => return Err(SpecError::TwoEndpoints),
        };
        Ok(PortSpec {
            endpoint,
            name: self.name,
            properties: self.properties,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::values::ValueError;
    use super::*;

    fn port(text: &str) -> Result<PortSpec, SpecError> {
        text.parse()
    }

    fn rate(per_s: u64, burst: Option<u64>) -> Option<Rate> {
        let per_s = per_s.try_into().unwrap();
        Some(Rate { per_s, burst })
    }

    fn value_error(key: &str, value: &str, error: ValueError) -> SpecError {
        SpecError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            error,
        }
    }

    #[test]
    fn port_is_read_with_all_its_properties() {
        let text = "socket=/run/vm0,name=vm0,mac=52:54:00:12:34:56,mtu=1500,vlan=4094,isolated,\
                    anti-spoof,mac-limit=0,limit-rx-bytes=1M,burst=64K,limit-rx-packets=1K,\
                    limit-tx-bytes=2G,limit-tx-packets=3,burst=0";
        let expected = PortSpec {
            endpoint: PortEndpoint::Socket("/run/vm0".into()),
            name: Some("vm0".to_owned()),
            properties: PortProperties {
                mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
                mtu: Some(1500),
                vlan: Some(4094),
                isolated: true,
                anti_spoof: true,
                mac_limit: Some(0),
                rx: Limits {
                    bytes: rate(1_000_000, Some(64_000)),
                    operations: rate(1_000, None),
                },
                tx: Limits {
                    bytes: rate(2_000_000_000, None),
                    operations: rate(3, Some(0)),
                },
            },
        };
        assert_eq!(port(text), Ok(expected));
        let endpoint = |text| port(text).unwrap().endpoint;
        assert_eq!(endpoint("connect=c"), PortEndpoint::Connect("c".into()));
        assert_eq!(endpoint("fd=0"), PortEndpoint::Fd(0));
    }

    #[test]
    fn port_with_a_fault_says_where() {
        assert_eq!(port("vlan=1"), Err(SpecError::NoEndpoint));
        for text in ["socket=a,connect=b", "socket=a,fd=1", "fd=1,connect=a"] {
            assert_eq!(port(text), Err(SpecError::TwoEndpoints), "{text}");
        }
        let burst = port("socket=a,burst=5");
        assert_eq!(burst, Err(SpecError::BurstWithoutLimit));
        for (text, key) in [
            ("socket=a,socket=b", "socket"),
            ("socket=a,vlan=1,vlan=1", "vlan"),
            ("socket=a,isolated,isolated", "isolated"),
            (
                "socket=a,limit-tx-bytes=1,limit-tx-bytes=1",
                "limit-tx-bytes",
            ),
            ("socket=a,limit-tx-bytes=1,burst=1,burst=1", "burst"),
        ] {
            let key = key.to_owned();
            assert_eq!(port(text), Err(SpecError::Twice { key }), "{text}");
        }
        for (text, key) in [
            ("", ""),
            ("/run/s", "/run/s"),
            ("socket=a,", ""),
            ("path=a", "path"),
        ] {
            let error = port(text).unwrap_err();
            assert!(
                matches!(&error, SpecError::Unknown { key: got, .. } if got == key),
                "{error}"
            );
        }
        for (text, key) in [("socket", "socket"), ("socket=a,vlan", "vlan")] {
            let key = key.to_owned();
            assert_eq!(port(text), Err(SpecError::NoValue { key }), "{text}");
        }
        let key = "isolated".to_owned();
        let flag = port("socket=a,isolated=on");
        assert_eq!(flag, Err(SpecError::UnexpectedValue { key }));
    }

    #[test]
    fn port_with_a_value_out_of_range_is_refused() {
        let bytes_rate = ValueError::Rate {
            max: 50_000_000_000,
        };
        let packets_rate = ValueError::Rate { max: 100_000_000 };
        for (key, value, error) in [
            ("socket", "", ValueError::Path),
            ("fd", "-1", ValueError::Descriptor),
            ("fd", "x", ValueError::Descriptor),
            ("name", "", ValueError::PortName),
            ("name", "12", ValueError::PortName),
            ("name", "a b", ValueError::PortName),
            (
                "name",
                "a-name-that-is-longer-than-32-bytes",
                ValueError::PortName,
            ),
            ("mac", "52:54:00:00:00", ValueError::Mac),
            ("mac", "52:54:00:00:00:01:02", ValueError::Mac),
            ("mac", "52-54-00-00-00-01", ValueError::Mac),
            ("mac", "52:54:00:00:00:+1", ValueError::Mac),
            ("mac", "52:54:00:00:00:1", ValueError::Mac),
            ("mac", "00:00:00:00:00:00", ValueError::MacOfNobody),
            ("mac", "01:00:5e:00:00:01", ValueError::MacOfNobody),
            ("mac", "ff:ff:ff:ff:ff:ff", ValueError::MacOfNobody),
            ("mtu", "67", ValueError::Mtu),
            ("mtu", "65536", ValueError::Mtu),
            ("vlan", "0", ValueError::Vlan),
            ("vlan", "4095", ValueError::Vlan),
            ("mac-limit", "", ValueError::Number),
            ("mac-limit", "5G", ValueError::Number),
            ("limit-rx-bytes", "0", bytes_rate),
            ("limit-rx-bytes", "51G", bytes_rate),
            ("limit-rx-bytes", "", ValueError::Number),
            ("limit-rx-bytes", "G", ValueError::Number),
            ("limit-rx-bytes", "+5", ValueError::Number),
            ("limit-rx-bytes", "1.5M", ValueError::Number),
            ("limit-rx-bytes", "99999999999G", ValueError::Number),
            ("limit-tx-packets", "0", packets_rate),
            ("limit-tx-packets", "101M", packets_rate),
        ] {
            let text = format!("{key}={value},connect=c");
            assert_eq!(port(&text), Err(value_error(key, value, error)), "{text}");
        }
    }
}
