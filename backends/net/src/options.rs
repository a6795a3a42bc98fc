// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `ringside-net`.
//!
//! [`Options`] is what the user wrote, [`Options::into_config`] checks it as a whole and turns it
//! into a [`NetConfig`]. Options that say several things at once, like `--port` and `--backend`,
//! are lists of `key=value` behind commas; a comma that is meant is written twice, as for QEMU.

mod backend;
mod capture;
mod config;
mod items;
mod port;
mod values;

use clap::{Args, Parser};
use ringside_common::cli::{Action, CommonArgs, QueueCount};
use ringside_common::limit::Rate;

pub use self::backend::{BackendSpec, LinkSpec, Netns};
pub use self::capture::CaptureSpec;
pub use self::config::{NetConfig, OptionsError, PortConfig, UPLINK};
pub use self::items::SpecError;
pub use self::port::{PortEndpoint, PortProperties, PortSpec};
pub use self::values::ValueError;
pub(crate) use self::values::{bytes_rate, mac_text, number, packets_rate};

const BACKEND_HELP: &str =
    "Where packets go: a tap device, a socket, an interface, or a switch between the guests";

const BACKEND_FORMS: &str = "\
    One of: tap:NAME[,netns=NAME|PATH][,shared], tap:fd=N[:N...][,shared] (one descriptor for each \
    pair of queues), macvtap:NAME[,netns=NAME|PATH][,shared] (a tap of which another process has \
    queues is refused unless it is shared: its flows go to either in turns), \
    packet:IFNAME[,netns=NAME|PATH], stream:PATH (of passt, or of \
    QEMU's -netdev stream), dgram:PATH[,local=PATH], switch[:NAME], loopback, and for \
    measurements null[:BYTES], which discards what guests send and with BYTES fills their queues \
    with frames of that size.";

/// Serves virtio-net devices to any VMM that speaks vhost-user: on a tap device, on a socket of
/// passt or QEMU, on an interface of the host, or on a switch between guests
///
/// Directions are those of the guest: rx is what a guest receives, tx what it sends.
#[derive(Clone, Debug, Parser)]
#[command(name = "ringside-net", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Options {
    /// What all back-ends have.
    #[command(flatten)]
    pub common: CommonArgs<QueuePairs>,

    /// What this one has.
    #[command(flatten)]
    pub net: NetArgs,

    /// Limits of every port.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<Action>,
}

/// How many queues a network device has.
#[derive(Args, Clone, Debug)]
#[group(id = "queue-pairs")]
#[command(about = None, long_about = None)]
pub struct QueuePairs {
    /// The most pairs of queues offered to a guest
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Queues")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=127))]
    pub queue_pairs: u16,
}

impl QueueCount for QueuePairs {
    /// Both queues of each pair, and the control queue (virtio 1.3 §5.1.2).
    fn vrings(&self) -> u16 {
        2 * self.queue_pairs + 1
    }
}

/// Options of the network.
#[derive(Args, Clone, Debug)]
#[group(id = "net")]
#[command(about = None, long_about = None, next_help_heading = "Network")]
pub struct NetArgs {
    /// Serve one more guest, at socket=PATH, connect=PATH or fd=N, with further properties
    ///
    /// Give it once for each guest. --socket-path may be repeated as well, for guests without
    /// further properties. After the socket, separated by commas: name=NAME (how management calls
    /// the port; default: port0, port1 and so on), mac=ADDR, mtu=N, vlan=ID (an access port),
    /// isolated (does not reach other isolated ports), anti-spoof (frames from other addresses than
    /// mac are dropped), mac-limit=N (the most addresses that the switch learns behind the port)
    /// and limit-rx-bytes, limit-rx-packets, limit-tx-bytes, limit-tx-packets=RATE, each optionally
    /// followed by burst=N. A comma in a path is written twice.
    #[arg(long = "port", value_name = "SPEC", group = "listening")]
    pub ports: Vec<PortSpec>,

    /// What is behind the ports.
    #[arg(long, value_name = "SPEC", default_value = "switch")]
    #[arg(help = BACKEND_HELP, long_help = format!("{BACKEND_HELP}\n\n{BACKEND_FORMS}"))]
    pub backend: BackendSpec,

    /// The link of the switch to other networks: tap:, packet:, stream: or dgram:, as for
    /// --backend
    #[arg(long, value_name = "SPEC", value_parser = backend::uplink)]
    pub uplink: Option<LinkSpec>,

    /// The MAC address of the only guest [default: the VMM's choice]
    #[arg(long, value_name = "ADDR", value_parser = values::mac)]
    pub mac: Option<[u8; 6]>,

    /// The MTU that guests are told, 68 to 65535 [default: none]
    #[arg(long, value_name = "BYTES", value_parser = values::mtu)]
    pub mtu: Option<u16>,

    /// The speed that guests are told, in Mbit/s [default: unknown]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=0x7fff_ffff))]
    pub speed_mbps: Option<u32>,

    /// Do not offer checksum and segmentation offloads to guests
    #[arg(long)]
    pub no_offloads: bool,

    /// The most MAC addresses that the switch learns
    #[arg(long, value_name = "N", default_value_t = 8192)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub mac_table_size: u32,

    /// Seconds after which the switch forgets a MAC address that has sent nothing
    #[arg(long, value_name = "S", default_value_t = 300)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub mac_ageing_s: u32,

    /// Copies a second that the broadcasts, multicasts and frames to unknown addresses of one guest
    /// may make on the switch
    ///
    /// A frame for five ports is five copies. Floods beyond are dropped and counted as rate
    /// limited. A frame for one place is no flood. The burst is by default what passes in 10 ms.
    #[arg(long, value_name = "RATE[,burst=N]", value_parser = values::packets_limit)]
    #[arg(default_value = "200K")]
    pub flood_limit: Rate,

    /// Capture all frames from the start into pcapng files, which replace older ones
    ///
    /// The first file is PATH. When a file has max-bytes=N, PATH.1, PATH.2 and so on follow, up to
    /// files=N of them; then the first is written anew. The defaults are 4 files of 250M;
    /// max-bytes=off is one file without a bound. Write a comma in the path twice.
    #[arg(long, value_name = "PATH[,max-bytes=N][,files=N]")]
    pub capture: Option<CaptureSpec>,
}

/// Limits of every port that has none of its own.
#[derive(Args, Clone, Debug)]
#[group(id = "limits")]
#[command(about = None, long_about = None, next_help_heading = "Limits of each port")]
pub struct LimitArgs {
    /// Bytes per second that a guest receives
    ///
    /// K, M and G are powers of 1000. The burst is what may pass at once after a pause, by default
    /// as much as passes in 100 ms. Frames beyond the limit wait: in the guest's ring, in the link,
    /// or on a switch in a queue of the guest, with room for 100 ms of the rate and at least two
    /// frames of 64 KiB. Frames that find no room there are dropped and counted as rate limited.
    #[arg(long, value_name = "RATE[,burst=N]", value_parser = values::bytes_limit)]
    pub limit_rx_bytes: Option<Rate>,

    /// Packets per second that a guest receives
    ///
    /// A packet that will be segmented counts as its segments.
    #[arg(long, value_name = "RATE[,burst=N]", value_parser = values::packets_limit)]
    pub limit_rx_packets: Option<Rate>,

    /// Bytes per second that a guest sends
    #[arg(long, value_name = "RATE[,burst=N]", value_parser = values::bytes_limit)]
    pub limit_tx_bytes: Option<Rate>,

    /// Packets per second that a guest sends
    ///
    /// A packet that will be segmented counts as its segments.
    #[arg(long, value_name = "RATE[,burst=N]", value_parser = values::packets_limit)]
    pub limit_tx_packets: Option<Rate>,
}

#[cfg(test)]
mod tests;
