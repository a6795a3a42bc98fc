// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Part f: TCP of a guest, over our tap device, QEMU's own and passt's own vhost-user device, all
//! in one machine.

use std::process::Command;
use std::time::Duration;

use ringside_tests::process::{Launch, Process};
use ringside_tests::skip;
use ringside_tests::vm::{Device, Guest, Network, Nic, NicOptions, needs};

use crate::Result;
use crate::contest::{ratios, series};
use crate::figures::say;

const SCRIPT: &str = concat!(
    include_str!("../../vm/guest/net.sh"),
    "\n",
    include_str!("guest.sh")
);
/// How long each measurement takes.
const SECONDS: usize = 2;
/// For the boot on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// The first of them.
const OURS: &str = "ours";
const WAYS: [&str; 2] = ["sends", "receives"];

/// A device of the guest.
struct Card {
    name: &'static str,
    device: Device,
    /// The guest's address and the server's.
    address: String,
    server: String,
    mac: String,
}

impl Card {
    fn new(name: &'static str, index: usize, device: Device) -> Self {
        let mac = format!("52:54:00:00:02:{index:02x}");
        Self {
            name,
            device: device.mac(&mac),
            address: format!("10.0.{index}.2/24"),
            server: format!("10.0.{index}.1"),
            mac,
        }
    }

    fn line(&self) -> String {
        let Self {
            name,
            address,
            server,
            mac,
            ..
        } = self;
        format!("{name} {mac} {address} {server}")
    }
}

/// Part f.
pub(crate) fn tcp_of_a_guest(network: &Network, rounds: usize) -> Result<()> {
    if let Some(reason) = needs() {
        skip::report("bench net f", &reason);
        return Ok(());
    }
    network.tap("tap0", 1, &["10.0.0.1/24"])?;
    network.tap("tap1", 1, &["10.0.1.1/24"])?;
    let nic = Nic::start(
        network,
        NicOptions::new("tap:tap0").args(&["--queue-pairs=1"]),
    )?;
    let mut cards = vec![
        Card::new(OURS, 0, Device::net(OURS, &nic.socket(0))),
        Card::new("qemu", 1, Device::tap("qemu", "tap1")),
    ];
    let passt = match passt_is_a_back_end() {
        Ok(()) => Some(start_passt(network, &mut cards)?),
        Err(reason) => {
            skip::report("bench net f, passt's own vhost-user device", &reason);
            None
        }
    };
    let _iperf3 = network.iperf3_server()?;
    let lines: Vec<_> = cards.iter().map(Card::line).collect();
    let back: Vec<_> = lines.iter().rev().cloned().collect();
    let turns = u32::try_from((rounds + 1) * cards.len() * WAYS.len() * (SECONDS + 3))?;
    let guest = Guest::new()
        .program("iperf3")
        .network(network)
        .timeout(BOOT_LIMIT + Duration::from_secs(turns.into()))
        .env("ROUNDS", rounds)
        .env("SECONDS_EACH", SECONDS)
        .env("THERE", lines.join("\n"))
        .env("BACK", back.join("\n"))
        .script(SCRIPT);
    let devices = cards.iter().map(|card| card.device.clone());
    let outcome = devices.fold(guest, Guest::device).run()?;
    drop(passt);
    if outcome.exit_code != 0 {
        return Err(format!("{}\n{}", outcome.output, outcome.log).into());
    }
    say(format_args!(
        "\nf: TCP of a guest under {:?}, gigabits per second",
        outcome.accel
    ));
    for way in WAYS {
        let ours = figures(&outcome.output, OURS, way);
        for card in &cards {
            let theirs = figures(&outcome.output, card.name, way);
            let rate = series(&theirs).to_string();
            let ratio = match card.name {
                OURS => String::new(),
                _ => format!("   ours to that {:>24}", ratios(&ours, &theirs).to_string()),
            };
            say(format_args!("  {:6} {way:9} {rate:>24}{ratio}", card.name));
        }
    }
    Ok(())
}

/// Gigabits per second by round, without the first.
fn figures(output: &str, name: &str, way: &str) -> Vec<f64> {
    let lines = output.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match *words {
            ["figure", round, of, by, megabits] if of == name && by == way && round != "0" => {
                megabits.parse::<f64>().ok()
            }
            _ => None,
        }
    });
    lines.map(|megabits| megabits / 1e3).collect()
}

/// Or why not.
fn passt_is_a_back_end() -> std::result::Result<(), String> {
    let output = Command::new("passt").arg("--help").output();
    let output = output.map_err(|error| format!("passt: {error}"))?;
    let text = [output.stdout, output.stderr].concat();
    if String::from_utf8_lossy(&text).contains("vhost-user") {
        Ok(())
    } else {
        Err("the passt of this machine has no --vhost-user".to_owned())
    }
}

/// Its guest has the address of a device that nobody is behind, and finds the server at its router.
fn start_passt(network: &Network, cards: &mut Vec<Card>) -> Result<Process> {
    network.tap("template", 1, &["10.0.2.2/24"])?;
    network.run("ip", &["route", "add", "default", "via", "10.0.2.1"])?;
    let launch = Launch::program("passt")?;
    let socket = launch.path("passt.sock");
    let mut process = launch
        .args(["--foreground", "--stderr", "--ipv4-only", "--vhost-user"])
        // Its socket lies where only root comes.
        .args(["--runas", "0", "--socket"])
        .arg(&socket)
        .spawn()?;
    process.poll_until("socket of passt", BOOT_LIMIT, |_| {
        Ok(socket.exists().then_some(()))
    })?;
    let mut card = Card::new("passt", 2, Device::net("passt", &socket));
    card.address = "dhcp".to_owned();
    cards.push(card);
    Ok(process)
}
