// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--port`: where one guest is, and what it may do.

use std::path::PathBuf;
use std::str::FromStr;

use super::items::{Item, SpecError, items};
use super::values;
use crate::counters::Direction;
use crate::limit::{Limits, Rate};

const KEYS: &str = "socket=, connect=, fd=, name=, mac=, mtu=, vlan=, isolated, anti-spoof, \
                    limit-rx-bytes=, limit-rx-packets=, limit-tx-bytes=, limit-tx-packets= or \
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
            Unit::Packets => &mut limits.packets,
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
