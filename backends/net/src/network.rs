// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything the command line describes, put together: link, ports, devices, and what management
//! sees of them.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringside_common::limit::{Limits, RateLimit};
use ringside_common::management::{DeviceView, Devices, ManageError};
use ringside_common::worker::monotonic_ns;
use serde_json::{Value, json};

use crate::capture::{CaptureControl, CaptureOptions, MAX_SNAPLEN_BYTES};
use crate::counters::Direction;
use crate::device::NetDevice;
use crate::features::Offloads;
use crate::hub::{Fabric, Hub};
use crate::link::error::LinkError;
use crate::link::tap::TapSpec;
use crate::link::{Link, LinkSpec};
use crate::mac_table::{MacTable, PortId, seconds};
use crate::manage::{MacEntry, PortState, Ports};
use crate::options::{
    BackendSpec, CaptureSpec, LinkSpec as LinkOption, NetConfig, Netns, PortConfig, UPLINK,
};
use crate::port::{Port, PortOptions};

/// How long a change of a link waits for data threads to notice it.
const NOTICE_LIMIT: Duration = Duration::from_secs(1);

/// A network of ports, ready to be served.
pub struct Network {
    hub: Arc<Hub>,
    /// Of the ports, and of the uplink behind them.
    names: Vec<String>,
    capture: Arc<CaptureControl>,
    /// The back-end as it was asked for.
    backend: String,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("hub", &self.hub)
            .finish_non_exhaustive()
    }
}

/// A network, and its ports in their order.
pub type OpenNetwork = (Arc<Network>, Vec<Arc<NetDevice>>);

impl Network {
    /// Opens the link and makes the ports.
    ///
    /// # Errors
    /// When the link cannot be had, or the capture not be started.
    pub fn open(config: NetConfig) -> Result<OpenNetwork, Box<dyn Error>> {
        let backend = described(&config);
        let (fabric, spec) = match config.backend {
            BackendSpec::Link(link) => (Fabric::Wire, Some(link)),
            BackendSpec::Switch { .. } => (Fabric::Switch, config.uplink),
            BackendSpec::Null { fill_bytes } => (
                Fabric::Null {
                    generate: fill_bytes,
                },
                None,
            ),
            BackendSpec::Loopback => (Fabric::Loopback, None),
        };
        let (link, queue_pairs) = open_link(fabric, spec, config.queue_pairs, config.offloads)?;
        let mut names: Vec<String> = config.ports.iter().map(|port| port.name.clone()).collect();
        if fabric == Fabric::Switch && link.is_some() {
            names.push(UPLINK.to_owned());
        }
        let (offloads, speed_mbps) = (config.offloads, config.speed_mbps);
        let ports: Vec<_> = (0..)
            .zip(config.ports)
            .map(|(number, port)| {
                let (options, rx, tx) = port_options(port, offloads, speed_mbps);
                let port = Port::new(PortId(number), options, queue_pairs);
                port.to_guest.set(monotonic_ns(), rx);
                port.from_guest.set(monotonic_ns(), tx);
                Arc::new(port)
            })
            .collect();
        let capture = Arc::new(CaptureControl::new(names.clone()));
        if let Some(CaptureSpec { path, rotation }) = config.capture {
            capture.start(&CaptureOptions {
                path,
                rotation,
                snaplen_bytes: MAX_SNAPLEN_BYTES,
                port: None,
            })?;
        }
        // 136 years are for good.
        let ageing_s = u32::try_from(config.mac_ageing.as_secs()).unwrap_or(u32::MAX);
        let table = MacTable::new(config.mac_table_size, ports.len() + 1, ageing_s);
        let table = configured(table, &ports);
        let hub = Hub::new(
            fabric,
            link,
            ports,
            table,
            config.flood_limit,
            Arc::clone(capture.capture()),
        )?;
        let queue_size = config.common.queue_size;
        let device =
            |port: &Arc<Port>| NetDevice::new(Arc::clone(port), Arc::clone(&hub), queue_size);
        let devices = hub.ports().iter().map(|port| Arc::new(device(port)));
        let devices = devices.collect();
        let network = Self {
            hub,
            names,
            capture,
            backend,
        };
        Ok((Arc::new(network), devices))
    }

    /// What passes, for management.
    #[must_use]
    pub fn capture(&self) -> &Arc<CaptureControl> {
        &self.capture
    }

    /// The counters of all ports.
    #[must_use]
    pub fn counters(&self) -> Devices {
        let ports = self.hub.ports().iter().map(|port| {
            let view = DeviceView {
                stats: Arc::clone(&port.stats),
                counters: Some(Arc::clone(&port.counters) as _),
            };
            (port.options.name.clone(), view)
        });
        let uplink = self.hub.uplink_counters().map(|counters| {
            let view = DeviceView {
                stats: Arc::new(ringside_common::stats::DeviceStats::new("net", &[])),
                counters: Some(Arc::clone(counters) as _),
            };
            (UPLINK.to_owned(), view)
        });
        Devices::Ports(ports.chain(uplink).collect())
    }

    fn port(&self, port: usize) -> Result<&Arc<Port>, ManageError> {
        self.hub.ports().get(port).ok_or(ManageError::Unavailable {
            reason: "that is no port of a guest",
        })
    }

    fn limit(&self, port: usize, direction: Direction) -> Result<&RateLimit, ManageError> {
        let port = self.port(port)?;
        Ok(match direction {
            Direction::Rx => &port.to_guest,
            Direction::Tx => &port.from_guest,
        })
    }

    fn table(&self) -> Result<(&MacTable, u32), ManageError> {
        if self.hub.fabric() != Fabric::Switch {
            return Err(ManageError::Unavailable {
                reason: "there is no switch",
            });
        }
        Ok((self.hub.table(), seconds(monotonic_ns())))
    }
}

impl Ports for Network {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn info(&self) -> Value {
        let link = self.hub.link();
        json!({
            "backend": self.backend,
            "ports": self.hub.ports().len(),
            "link_queues": self.hub.link_count(),
            "link_mtu": link.and_then(Link::mtu),
            "link_offloads": link.map(|link| {
                let names: Vec<_> = link.supported().iter_names().map(|(name, _)| name).collect();
                names
            }),
        })
    }

    fn state(&self, port: usize) -> PortState {
        let Ok(port) = self.port(port) else {
            return PortState {
                connected: true,
                link_up: true,
                ..PortState::default()
            };
        };
        PortState {
            connected: port.is_connected(),
            link_up: port.is_link_up(),
            queue_pairs: port.running_pairs(),
            mac: port.options.mac,
            mtu: port.guest_mtu().or(port.options.mtu),
            vlan: port.options.vlan,
            features: port.acked_features(),
        }
    }

    fn set_link(&self, port: usize, up: bool) -> Result<(), ManageError> {
        let port = self.port(port)?;
        if port.cable.set(up) {
            self.hub.wake();
            if up {
                // The host is to see it when what it has sent until then is out of the way.
                port.cable.wait(NOTICE_LIMIT);
            }
            self.hub.follow_carrier();
            let told = port.back_channel.config_changed();
            log::info!(
                "port {}: the link is {}; the front-end was {}told",
                port.options.name,
                if up { "up" } else { "down" },
                if told { "" } else { "not " },
            );
        }
        Ok(())
    }

    fn limits(&self, port: usize, direction: Direction) -> Limits {
        self.limit(port, direction)
            .map_or_else(|_| Limits::default(), RateLimit::limits)
    }

    fn set_limits(
        &self,
        port: usize,
        direction: Direction,
        limits: Limits,
    ) -> Result<(), ManageError> {
        self.limit(port, direction)?.set(monotonic_ns(), limits);
        // A queue may be waiting for the old one.
        self.hub.wake();
        Ok(())
    }

    fn mac_table(&self) -> Result<Vec<MacEntry>, ManageError> {
        let (table, now_s) = self.table()?;
        let entries = table.stations(now_s).into_iter().map(|station| MacEntry {
            mac: station.mac,
            vlan: station.vlan,
            port: usize::from(station.port.0),
            age_s: station.idle_s.into(),
            configured: station.pinned,
        });
        Ok(entries.collect())
    }

    fn flush_macs(&self, port: Option<usize>) -> Result<usize, ManageError> {
        let (table, now_s) = self.table()?;
        let port = port.and_then(|port| Some(PortId(u16::try_from(port).ok()?)));
        Ok(table.flush(port, now_s))
    }
}

/// Opens the link, with a queue for each pair where a tap is all there is; returns how many pairs
/// there are then: a tap that was made for one queue has one.
fn open_link(
    fabric: Fabric,
    option: Option<LinkOption>,
    queue_pairs: u16,
    offloads: bool,
) -> Result<(Option<Link>, u16), LinkError> {
    let Some(spec) = option.map(link_spec) else {
        return Ok((None, queue_pairs));
    };
    let mut queue_pairs = queue_pairs;
    let mut pairs = match &spec {
        LinkSpec::Tap(_) if fabric == Fabric::Wire => queue_pairs,
        _ => 1,
    };
    let link = match Link::open(&spec, pairs) {
        Err(fault @ LinkError::SingleQueue { .. }) => {
            log::warn!("one queue pair is served: {fault}");
            (pairs, queue_pairs) = (1, 1);
            Link::open(&spec, pairs)
        }
        opened => opened,
    }?;
    // A guest may use fewer pairs than are offered, and no data thread reads the queues of the
    // others.
    for pair in 1..pairs {
        link.attach(pair, false)?;
    }
    if fabric == Fabric::Switch && offloads {
        // Guests come and go: for those that do not take it so, it is finished here.
        link.set_offloads(link.supported() & Offloads::SOFTWARE)?;
    }
    Ok((Some(link), queue_pairs))
}

/// A table that knows what was said of the ports.
fn configured(mut table: MacTable, ports: &[Arc<Port>]) -> MacTable {
    let mut pinned = Vec::new();
    for port in ports {
        if let Some(limit) = port.options.mac_limit {
            table = table.with_limit(port.id, limit);
        }
        if let Some(mac) = port.options.mac {
            pinned.push((port.options.vlan.unwrap_or(0), mac, port.id));
        }
    }
    table.with_pinned(&pinned)
}

/// What is behind the ports, in words.
fn described(config: &NetConfig) -> String {
    match (&config.backend, &config.uplink) {
        (BackendSpec::Link(link), _) => link.kind().to_owned(),
        (BackendSpec::Switch { name }, uplink) => {
            let name = name.as_ref().map(|name| format!(" {name}"));
            let uplink = uplink.as_ref().map(|link| format!(" with {}", link.kind()));
            let (name, uplink) = (name.unwrap_or_default(), uplink.unwrap_or_default());
            format!("switch{name}{uplink}")
        }
        (BackendSpec::Null { .. }, _) => "null".to_owned(),
        (BackendSpec::Loopback, _) => "loopback".to_owned(),
    }
}

/// What a port is, and what it is limited to in either direction.
fn port_options(
    port: PortConfig,
    offloads: bool,
    speed_mbps: Option<u32>,
) -> (PortOptions, Limits, Limits) {
    let PortConfig { name, properties } = port;
    let options = PortOptions {
        name,
        mac: properties.mac,
        vlan: properties.vlan,
        isolated: properties.isolated,
        anti_spoof: properties.anti_spoof,
        mac_limit: properties.mac_limit,
        mtu: properties.mtu,
        speed_mbps,
        no_offloads: !offloads,
    };
    (options, properties.rx, properties.tx)
}

fn link_spec(option: LinkOption) -> LinkSpec {
    match option {
        LinkOption::Tap {
            name,
            netns,
            shared,
        }
        | LinkOption::Macvtap {
            name,
            netns,
            shared,
        } => LinkSpec::Tap(TapSpec::Interface {
            name,
            netns: netns.map(netns_path),
            shared,
        }),
        LinkOption::TapFds { fds, shared } => LinkSpec::Tap(TapSpec::Descriptors {
            numbers: fds,
            shared,
        }),
        LinkOption::Packet { interface, netns } => LinkSpec::Packet {
            interface,
            netns: netns.map(netns_path),
        },
        LinkOption::Stream { path } => LinkSpec::Stream { path },
        LinkOption::Dgram { path, local } => LinkSpec::Dgram { path, local },
    }
}

fn netns_path(netns: Netns) -> PathBuf {
    match netns {
        // Where `ip netns` keeps them (ip-netns(8)).
        Netns::Name(name) => PathBuf::from("/run/netns").join(name),
        Netns::Path(path) => path,
    }
}
