// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits of ports, held to what TCP of real kernels makes of them. Bounds are of the limit alone:
//! a busy machine delays, but has always more to give than is asked for.

#[path = "limits/guest.rs"]
mod guest;
#[path = "limits/tcp.rs"]
mod tcp;

use std::error::Error;
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::{Network, network_needs};

use guest::Guest;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
type TestResult = Result<()>;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection is listened to: what waits behind a lost segment at its end is not counted.
const TIME: Duration = Duration::from_secs(10);

/// Bits per second.
const RATES: [u32; 3] = [1_000_000, 10_000_000, 100_000_000];
/// Payload of a segment of TCP on Ethernet, with time stamps.
const SEGMENT_BYTES: u32 = 1448;

/// What is behind the guest that has a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Path {
    /// A tap, and nobody else.
    Tap,
    /// A packet socket on one end of a cable.
    Packet,
    /// Another guest on the switch.
    Switch,
    /// The uplink of a switch.
    Uplink,
}

/// Which way the limit is, as the guest sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Rx,
    Tx,
}

/// A back-end with a limited guest, and whom that talks to.
struct Line {
    guest: Guest,
    other: Other,
    /// Ends before the guests' namespaces.
    _back_end: NetBackEnd,
}

enum Other {
    Host(Network),
    Guest(Guest),
}

impl Line {
    fn new(path: Path, limit: &str, offloads: bool) -> Result<Self> {
        let ports = [limit, ""];
        let (mut back_end, host) = match path {
            Path::Switch => (NetBackEnd::start_ports(&ports, &[])?, None),
            _ => {
                let host = Network::new()?;
                let link = prepare(&host, path)?;
                let option = if path == Path::Uplink {
                    "--uplink"
                } else {
                    "--backend"
                };
                let args = [option, &link, "--queue-pairs=1"];
                (NetBackEnd::start_ports(&ports[..1], &args)?, Some(host))
            }
        };
        let guest = Guest::start(back_end.connect(0)?, 2, offloads)?;
        let other = match host {
            Some(host) => Other::Host(host),
            // One that cuts long packets itself, or not.
            None => Other::Guest(Guest::start(back_end.connect(1)?, 1, true)?),
        };
        Ok(Self {
            guest,
            other,
            _back_end: back_end,
        })
    }

    /// Payload in bits per second that arrives in the direction of the limit.
    fn speed(&self, way: Way) -> Result<f64> {
        let other = match &self.other {
            Other::Host(network) => network,
            Other::Guest(guest) => guest.network(),
        };
        match way {
            Way::Rx => tcp::speed(other, self.guest.network(), "10.9.0.2", TIME),
            Way::Tx => tcp::speed(self.guest.network(), other, "10.9.0.1", TIME),
        }
    }
}

/// Makes the kernel's end of a link; returns the link.
fn prepare(host: &Network, path: Path) -> Result<String> {
    let namespace = host.path();
    let address = ["10.9.0.1/24"];
    if path != Path::Packet {
        host.tap("tap0", 1, &address)?;
        return Ok(format!("tap:tap0,netns={}", namespace.display()));
    }
    let ip = |words: &str| host.run("ip", &words.split(' ').collect::<Vec<_>>());
    ip("link add wire0 type veth peer name peer0")?;
    ip("address add 10.9.0.1/24 dev peer0")?;
    ip("link set wire0 up")?;
    ip("link set peer0 up")?;
    Ok(format!("packet:wire0,netns={}", namespace.display()))
}

/// Past libtest's capture, which keeps the figures of a test that passes to itself.
fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "net limits: {text}");
}

/// The limit holds, and TCP gets nearly all of it.
fn holds(
    what: &str,
    path: Path,
    way: Way,
    limit: &str,
    bits_per_s: u32,
    offloads: bool,
) -> TestResult {
    let line = Line::new(path, limit, offloads)?;
    let part = line.speed(way)? / f64::from(bits_per_s);
    let said = format!(
        "{path:?} {way:?} {what}, offloads {offloads}: {:.1} %",
        part * 100.0
    );
    report(&said);
    if (0.8..=1.2).contains(&part) {
        Ok(())
    } else {
        Err(said.into())
    }
}

/// All rates, each on a line of its own.
fn all_rates_hold(path: Path, way: Way) -> TestResult {
    let name = match way {
        Way::Rx => "limit-rx-bytes",
        Way::Tx => "limit-tx-bytes",
    };
    thread::scope(|scope| {
        let lines: Vec<_> = (0..)
            .zip(RATES)
            .map(|(number, rate)| {
                let limit = format!(",{name}={}", rate / 8);
                let what = format!("{rate} bit/s");
                scope.spawn(move || holds(&what, path, way, &limit, rate, number % 2 == 0))
            })
            .collect();
        for line in lines {
            line.join().map_err(|_panic| "a panic")??;
        }
        Ok(())
    })
}

#[test]
fn f5_7_tcp_gets_what_the_limit_allows_to_a_guest_on_a_switch() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    all_rates_hold(Path::Switch, Way::Rx)
}

#[test]
fn f5_7_tcp_gets_what_the_limit_allows_from_a_guest_on_a_switch() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    all_rates_hold(Path::Switch, Way::Tx)
}

#[test]
fn f5_7_tcp_gets_what_the_limit_allows_by_an_uplink_to_a_guest() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    all_rates_hold(Path::Uplink, Way::Rx)
}

#[test]
fn f5_7_tcp_gets_what_the_limit_allows_from_a_guest_by_an_uplink() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    all_rates_hold(Path::Uplink, Way::Tx)
}

#[test]
fn f5_7_tcp_gets_what_the_limit_allows_to_a_guest_on_a_tap() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    all_rates_hold(Path::Tap, Way::Rx)
}

#[test]
fn f5_7_tcp_gets_what_the_limit_allows_from_a_guest_on_a_tap() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    all_rates_hold(Path::Tap, Way::Tx)
}

#[test]
fn f5_7_tcp_gets_what_the_limit_allows_to_a_guest_on_a_packet_socket() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    all_rates_hold(Path::Packet, Way::Rx)
}

#[test]
fn f5_7_tcp_gets_what_the_limit_allows_from_a_guest_on_a_packet_socket() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    all_rates_hold(Path::Packet, Way::Tx)
}

#[test]
fn f5_7_packet_limit_counts_the_segments_of_long_packets() -> TestResult {
    const PER_S: u32 = 2000;
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    for (path, way, name) in [
        (Path::Switch, Way::Rx, "limit-rx-packets"),
        (Path::Tap, Way::Rx, "limit-rx-packets"),
        (Path::Tap, Way::Tx, "limit-tx-packets"),
    ] {
        let limit = format!(",{name}={PER_S}");
        let bits_per_s = PER_S * SEGMENT_BYTES * 8;
        let what = format!("{PER_S} packets/s");
        holds(&what, path, way, &limit, bits_per_s, true)?;
    }
    Ok(())
}
