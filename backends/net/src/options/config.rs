// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line as a whole: what its options mean together.

use std::fmt;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringside_common::cli::{CliError, CommonConfig, Endpoint, QueueCount as _};
use ringside_common::limit::Rate;
use ringside_common::num::usize_of;
use ringside_common::socket::InheritedSocket;
use thiserror::Error;

use super::{
    BackendSpec, CaptureSpec, LimitArgs, LinkSpec, NetArgs, Options, PortEndpoint, PortProperties,
    PortSpec, QueuePairs, mac_text,
};

/// What management calls the uplink of a switch.
pub const UPLINK: &str = "uplink";

/// Why options do not go together.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Options of all back-ends.
    #[error(transparent)]
    Common(#[from] CliError),
    /// Nothing says where guests are.
    #[error(
        "one of --socket-path, --port, --fd and --connect is needed, or sockets passed by the \
         service manager"
    )]
    NoPort,
    /// A link for several guests.
    #[error(
        "--backend {kind} serves one guest, and {ports} are given: leave one of them, or give \
         them a switch with --uplink instead of --backend"
    )]
    OneGuest {
        /// The kind of link.
        kind: &'static str,
        /// How many guests.
        ports: usize,
    },
    /// An uplink of nothing.
    #[error("--uplink belongs to a switch: leave out --backend, or --uplink")]
    UplinkWithoutSwitch,
    /// A property of a switch without one.
    #[error("port {port}: {property} needs a switch, which is what --backend is by default")]
    NeedsSwitch {
        /// The port.
        port: String,
        /// The property.
        property: &'static str,
    },
    /// One address for several guests.
    #[error("--mac is for one guest, and {ports} are given: write --port ...,mac=ADDR for each")]
    MacOfMany {
        /// How many guests.
        ports: usize,
    },
    /// Nothing to compare source addresses with.
    #[error("port {port}: anti-spoof needs to know the address of the guest: add mac=ADDR")]
    AntiSpoofWithoutMac {
        /// The port.
        port: String,
    },
    /// Two ports with one name.
    #[error("two ports are called {name}: give one of them another name=")]
    SameName {
        /// The name.
        name: String,
    },
    /// Two guests with one address.
    #[error("two ports have the address {mac}: a switch cannot tell them apart")]
    SameMac {
        /// The address.
        mac: String,
    },
    /// Two ports with one socket.
    #[error("{path}: two ports cannot share a socket")]
    SameSocket {
        /// Its path.
        path: PathBuf,
    },
    /// One descriptor for two things.
    #[error("descriptor {fd} is given twice")]
    SameDescriptor {
        /// Its number.
        fd: i32,
    },
}

/// The checked form of [`Options`].
#[derive(Debug)]
pub struct NetConfig {
    /// Queues, threads and management.
    pub common: CommonConfig,
    /// Where the front-ends of the ports are met, in the order of the ports.
    pub endpoints: Vec<Endpoint>,
    /// Pairs of queues offered to each guest, 1 to 127; no more than a tap has descriptors.
    pub queue_pairs: u16,
    /// The guests, at least one.
    pub ports: Vec<PortConfig>,
    /// What is behind them.
    pub backend: BackendSpec,
    /// The way out of a switch.
    pub uplink: Option<LinkSpec>,
    /// The speed that guests are told.
    pub speed_mbps: Option<u32>,
    /// Whether checksum and segmentation offloads are offered.
    pub offloads: bool,
    /// Most MAC addresses that a switch learns.
    pub mac_table_size: usize,
    /// How long it remembers one that is silent.
    pub mac_ageing: Duration,
    /// Copies a second that what one guest sends to several may make.
    pub flood_limit: Option<Rate>,
    /// Where to capture from the start.
    pub capture: Option<CaptureSpec>,
}

/// One guest.
#[derive(Debug)]
pub struct PortConfig {
    /// What management calls it; no two are the same, and none is [`UPLINK`].
    pub name: String,
    /// What is said of it, with what was said of all.
    pub properties: PortProperties,
}

impl Options {
    /// Checks the options as a whole, and takes over the sockets they name.
    ///
    /// To be called once, at start, before other descriptors are opened.
    ///
    /// # Errors
    /// [`OptionsError`], which says what to change.
    pub fn into_config(self) -> Result<NetConfig, OptionsError> {
        let Self {
            common,
            net,
            limits,
            command: _,
        } = self;
        check_descriptors(common.fd, &net)?;
        let (mode, group) = (common.socket_mode(), common.socket_group);
        let queues = common.queues.clone();
        let (mut common, mut endpoints) = common.into_config_of_many()?;
        let mut ports: Vec<PortConfig> = (0..endpoints.len())
            .map(|index| PortConfig {
                name: default_name(index),
                properties: PortProperties::default(),
            })
            .collect();
        for spec in &net.ports {
            let endpoint = match &spec.endpoint {
                PortEndpoint::Socket(path) => Endpoint::Listen {
                    path: path.clone(),
                    mode,
                    group,
                },
                PortEndpoint::Connect(path) => Endpoint::Connect(path.clone()),
                PortEndpoint::Fd(fd) => inherited(*fd, &endpoints)?,
            };
            endpoints.push(endpoint);
            ports.push(port(spec, ports.len()));
        }
        for port in &mut ports {
            complete(&mut port.properties, &net, &limits);
        }
        check_ports(&ports, &endpoints, &net)?;
        let queues = queue_pairs(&queues, &net);
        common.num_queues = queues.vrings();
        Ok(NetConfig {
            common,
            endpoints,
            queue_pairs: queues.queue_pairs,
            ports,
            backend: net.backend,
            uplink: net.uplink,
            speed_mbps: net.speed_mbps,
            offloads: !net.no_offloads,
            mac_table_size: usize_of(net.mac_table_size.into()),
            mac_ageing: Duration::from_secs(net.mac_ageing_s.into()),
            flood_limit: Some(net.flood_limit),
            capture: net.capture,
        })
    }
}

impl NetConfig {
    /// The folders that are needed while the network is served: of sockets that are connected to
    /// again, of the node that taps are made with, and of the capture.
    #[must_use]
    pub fn roots(&self) -> Vec<PathBuf> {
        let link = match &self.backend {
            BackendSpec::Link(link) => Some(link),
            _ => None,
        };
        let mut roots: Vec<PathBuf> = Vec::new();
        for link in link.into_iter().chain(&self.uplink) {
            match link {
                LinkSpec::Stream { path } | LinkSpec::Dgram { path, .. } => {
                    roots.extend(folder(path));
                }
                LinkSpec::Tap { .. } | LinkSpec::Macvtap { .. } => roots.push("/dev".into()),
                LinkSpec::TapFds { .. } | LinkSpec::Packet { .. } => {}
            }
        }
        roots.extend(
            self.capture
                .iter()
                .filter_map(|capture| folder(&capture.path)),
        );
        roots
    }
}

/// The folder that `path` is in.
fn folder(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    let here = parent.as_os_str().is_empty();
    Some(if here { ".".into() } else { parent.into() })
}

fn default_name(index: usize) -> String {
    format!("port{index}")
}

fn port(spec: &PortSpec, index: usize) -> PortConfig {
    PortConfig {
        name: spec.name.clone().unwrap_or_else(|| default_name(index)),
        properties: spec.properties.clone(),
    }
}

/// Fills in what is said of all ports.
fn complete(properties: &mut PortProperties, net: &NetArgs, limits: &LimitArgs) {
    let PortProperties { rx, tx, .. } = properties;
    rx.bytes = rx.bytes.or(limits.limit_rx_bytes);
    rx.operations = rx.operations.or(limits.limit_rx_packets);
    tx.bytes = tx.bytes.or(limits.limit_tx_bytes);
    tx.operations = tx.operations.or(limits.limit_tx_packets);
    properties.mac = properties.mac.or(net.mac);
    properties.mtu = properties.mtu.or(net.mtu);
}

/// Takes over a descriptor that none of `endpoints` has.
fn inherited(fd: i32, endpoints: &[Endpoint]) -> Result<Endpoint, OptionsError> {
    let taken = |endpoint: &Endpoint| match endpoint {
        Endpoint::ListenFd(listener) => listener.as_raw_fd() == fd,
        Endpoint::ConnectedFd(stream) => stream.as_raw_fd() == fd,
        Endpoint::Listen { .. } | Endpoint::Connect(_) => false,
    };
    // The service manager may have passed it already.
    if endpoints.iter().any(taken) {
        return Err(OptionsError::SameDescriptor { fd });
    }
    let socket = InheritedSocket::from_number(fd).map_err(CliError::from)?;
    Ok(socket.into())
}

/// A descriptor that was taken over for one thing is no longer there for another.
fn check_descriptors(fd: Option<i32>, net: &NetArgs) -> Result<(), OptionsError> {
    let of_ports = net.ports.iter().filter_map(|port| match port.endpoint {
        PortEndpoint::Fd(fd) => Some(fd),
        PortEndpoint::Socket(_) | PortEndpoint::Connect(_) => None,
    });
    let backend = match &net.backend {
        BackendSpec::Link(link) => Some(link),
        _ => None,
    };
    let of_taps = backend.into_iter().chain(&net.uplink).flat_map(tap_fds);
    let all = fd.into_iter().chain(of_ports).chain(of_taps.copied());
    first_repeated(all).map_or(Ok(()), |fd| Err(OptionsError::SameDescriptor { fd }))
}

fn tap_fds(link: &LinkSpec) -> &[i32] {
    match link {
        LinkSpec::TapFds { fds, .. } => fds,
        _ => &[],
    }
}

/// A tap whose descriptors are all there is has that many queues.
fn queue_pairs(asked: &QueuePairs, net: &NetArgs) -> QueuePairs {
    let queue_pairs = match &net.backend {
        BackendSpec::Link(LinkSpec::TapFds { fds, .. }) => {
            // More descriptors than that are more than any number of pairs.
            let fds = u16::try_from(fds.len()).unwrap_or(u16::MAX);
            asked.queue_pairs.min(fds)
        }
        _ => asked.queue_pairs,
    };
    QueuePairs { queue_pairs }
}

fn check_ports(
    ports: &[PortConfig],
    endpoints: &[Endpoint],
    net: &NetArgs,
) -> Result<(), OptionsError> {
    if ports.is_empty() {
        return Err(OptionsError::NoPort);
    }
    let is_switch = matches!(net.backend, BackendSpec::Switch { .. });
    if !is_switch && net.uplink.is_some() {
        return Err(OptionsError::UplinkWithoutSwitch);
    }
    if let BackendSpec::Link(link) = &net.backend
        && ports.len() > 1
    {
        return Err(OptionsError::OneGuest {
            kind: link.kind(),
            ports: ports.len(),
        });
    }
    if net.mac.is_some() && ports.len() > 1 {
        let ports = ports.len();
        return Err(OptionsError::MacOfMany { ports });
    }
    for port in ports {
        check_properties(port, is_switch)?;
    }
    check_differences(ports, endpoints, is_switch)
}

fn check_properties(port: &PortConfig, is_switch: bool) -> Result<(), OptionsError> {
    let PortProperties {
        mac,
        vlan,
        isolated,
        anti_spoof,
        mac_limit,
        ..
    } = port.properties;
    let name = || port.name.clone();
    for (given, property) in [
        (vlan.is_some(), "vlan"),
        (isolated, "isolated"),
        (mac_limit.is_some(), "mac-limit"),
    ] {
        if given && !is_switch {
            let port = name();
            return Err(OptionsError::NeedsSwitch { port, property });
        }
    }
    if anti_spoof && mac.is_none() {
        return Err(OptionsError::AntiSpoofWithoutMac { port: name() });
    }
    Ok(())
}

/// What must not be the same for two ports.
fn check_differences(
    ports: &[PortConfig],
    endpoints: &[Endpoint],
    is_switch: bool,
) -> Result<(), OptionsError> {
    let names = ports.iter().map(|port| port.name.as_str());
    if let Some(name) = first_repeated(names.chain([UPLINK])) {
        let name = name.to_owned();
        return Err(OptionsError::SameName { name });
    }
    let macs = ports.iter().filter_map(|port| port.properties.mac);
    if let Some(mac) = first_repeated(macs).filter(|_| is_switch) {
        let mac = mac_text(mac);
        return Err(OptionsError::SameMac { mac });
    }
    let paths = endpoints.iter().filter_map(|endpoint| match endpoint {
        Endpoint::Listen { path, .. } | Endpoint::Connect(path) => Some(path),
        Endpoint::ListenFd(_) | Endpoint::ConnectedFd(_) => None,
    });
    match first_repeated(paths) {
        Some(path) => Err(OptionsError::SameSocket { path: path.clone() }),
        None => Ok(()),
    }
}

fn first_repeated<T: PartialEq>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = Vec::new();
    for item in items {
        if seen.contains(&item) {
            return Some(item);
        }
        seen.push(item);
    }
    None
}

/// For the line that tells what is served.
impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            BackendSpec::Link(link) => link.fmt(f),
            BackendSpec::Switch { name: Some(name) } => write!(f, "switch:{name}"),
            BackendSpec::Switch { name: None } => f.write_str("switch"),
            BackendSpec::Null { fill_bytes: None } => f.write_str("null"),
            BackendSpec::Null {
                fill_bytes: Some(bytes),
            } => write!(f, "null:{bytes}"),
            BackendSpec::Loopback => f.write_str("loopback"),
        }?;
        if let Some(uplink) = &self.uplink {
            write!(f, ", uplink {uplink}")?;
        }
        for (port, endpoint) in self.ports.iter().zip(&self.endpoints) {
            write!(f, ", port {} on {endpoint}", port.name)?;
        }
        Ok(())
    }
}

impl LinkSpec {
    /// The word it is written with.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Tap { .. } | Self::TapFds { .. } => "tap",
            Self::Macvtap { .. } => "macvtap",
            Self::Packet { .. } => "packet",
            Self::Stream { .. } => "stream",
            Self::Dgram { .. } => "dgram",
        }
    }
}
