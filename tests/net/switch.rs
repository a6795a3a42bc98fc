// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a port of a switch may send, hear, claim and cost others, and that all of it is counted.

#[path = "switch/addresses.rs"]
mod addresses;
#[path = "switch/announced.rs"]
mod announced;
#[path = "switch/cables.rs"]
mod cables;
#[path = "switch/changing.rs"]
mod changing;
#[path = "switch/counts.rs"]
mod counts;
#[path = "switch/floods.rs"]
mod floods;
#[path = "switch/held.rs"]
mod held;
#[path = "switch/limits.rs"]
mod limits;
#[path = "switch/outside.rs"]
mod outside;
#[path = "switch/properties.rs"]
mod properties;
#[path = "switch/short.rs"]
mod short;
#[path = "tap/sys.rs"]
#[allow(
    dead_code,
    clippy::allow_attributes,
    reason = "shared with a suite that uses all of it"
)]
mod sys;
#[path = "switch/uplink.rs"]
mod uplink;
#[path = "switch/uplinks.rs"]
mod uplinks;
#[path = "switch/vlan.rs"]
mod vlan;
#[path = "switch/waits.rs"]
mod waits;

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{Flow, Mac, NetConfig, NetHeader, NetPort, RxConfig, TxConfig};
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_tests::net_back_end::NetBackEnd;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tests that need processors of their own, one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The address of the guest at port `number`.
fn mac(number: u8) -> Mac {
    [2, 0, 0, 0, 0, number]
}

fn config() -> NetConfig {
    NetConfig {
        rx: RxConfig {
            buffers: 256,
            ..RxConfig::default()
        },
        tx: TxConfig {
            slots: 256,
            ..TxConfig::default()
        },
        timeout: PATIENCE,
        ..NetConfig::default()
    }
}

/// A guest without offloads that never wants to be called, at a port.
fn open(back_end: &mut NetBackEnd, port: usize) -> Result<NetPort> {
    let builder = Session::builder()
        .without_features(OFFLOADS)
        .calls(CallMode::Never);
    Ok(NetPort::open(back_end.connect(port)?, builder, &config())?)
}

/// As [`open`], with all its buffers posted.
fn open_listening(back_end: &mut NetBackEnd, port: usize) -> Result<NetPort> {
    let mut port = open(back_end, port)?;
    port.pairs[0].rx.post_all()?;
    Ok(port)
}

fn frame(source: Mac, destination: Mac, bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    Flow::new(source, destination, 0).make(0, bytes, &mut frame);
    frame
}

fn plain() -> NetHeader {
    NetHeader::default()
}

/// Frames that have come to a guest since; its buffers are posted again.
fn receive(port: &mut NetPort) -> Result<Vec<Vec<u8>>> {
    let (mut frames, mut got) = (Vec::new(), Vec::new());
    let rx = &mut port.pairs[0].rx;
    while rx.poll(&mut got)?.is_some() {
        frames.push(got.clone());
    }
    rx.post_all()?;
    Ok(frames)
}

/// What `stats` says of a vring of a port, whose uplink counts as the port behind the others.
fn counted(back_end: &NetBackEnd, port: usize, vring: u64) -> Result<Counted> {
    let stats = back_end.control("stats", &Value::Null)?;
    let vrings = stats["ports"][port]["packets"].as_array();
    let found = vrings
        .into_iter()
        .flatten()
        .find(|counters| counters["queue"] == vring);
    Ok(Counted(found.cloned().unwrap_or_default()))
}

/// The counters of a vring.
struct Counted(Value);

impl Counted {
    /// Frames that have passed.
    fn passed(&self) -> u64 {
        self.0["good_packets"].as_u64().unwrap_or(0)
    }

    /// Frames lost for a reason.
    fn lost(&self, reason: &str) -> u64 {
        self.0["drops"][reason].as_u64().unwrap_or(0)
    }

    /// Frames lost for any reason.
    fn all_lost(&self) -> u64 {
        let drops = self.0["drops"].as_object();
        let counts = drops.into_iter().flatten().filter_map(|(_, n)| n.as_u64());
        counts.sum()
    }
}

/// Waits until something holds.
fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> TestResult {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > PATIENCE {
            return Err(format!("{what}: not within {PATIENCE:?}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Sends a frame and waits until the switch has done with it.
fn send(port: &mut NetPort, frame: &[u8]) -> TestResult {
    Ok(port.pairs[0].tx.send_now(&plain(), frame, PATIENCE)?)
}
