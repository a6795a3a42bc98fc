// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a back-end for network devices has to do right, one named test each: the numbers are those
//! of a list of faults that back-ends have had.

#[path = "exchange.rs"]
mod exchange;
#[path = "rules/header.rs"]
mod header;
#[path = "rules/protocol.rs"]
mod protocol;
#[path = "rules/queues.rs"]
mod queues;
#[path = "rules/rings.rs"]
mod rings;

use std::error::Error;
use std::time::Duration;

use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{Flow, NetConfig, NetHeader, NetPort, Pair};
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::net_back_end::NetBackEnd;

use exchange::{OURS, Plan, THEIRS, exchange_with_loop};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long something that must not happen is waited for.
const SILENCE: Duration = Duration::from_millis(200);

fn loopback() -> Result<NetBackEnd> {
    Ok(NetBackEnd::start(1, &["--backend", "loopback"])?)
}

fn switch(ports: usize) -> Result<NetBackEnd> {
    Ok(NetBackEnd::start(ports, &["--backend", "switch"])?)
}

fn builder() -> SessionBuilder {
    Session::builder().without_features(OFFLOADS)
}

fn config() -> NetConfig {
    NetConfig {
        timeout: PATIENCE,
        ..NetConfig::default()
    }
}

fn open(back_end: &mut NetBackEnd, port: usize) -> Result<NetPort> {
    open_as(back_end, port, builder(), &config())
}

fn open_as(
    back_end: &mut NetBackEnd,
    port: usize,
    builder: SessionBuilder,
    config: &NetConfig,
) -> Result<NetPort> {
    Ok(NetPort::open(back_end.connect(port)?, builder, config)?)
}

/// A hundred frames go round.
fn serves(pair: &mut Pair) -> TestResult {
    let plan = Plan {
        frames: 100,
        bytes: 200,
        in_flight: 8,
        timeout: PATIENCE,
    };
    Ok(exchange_with_loop(pair, &plan)?)
}

/// One frame of the flow that [`serves`] uses.
fn frame(sequence: u64, bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    Flow::new(OURS, THEIRS, 0).make(sequence, bytes, &mut frame);
    frame
}

fn plain() -> NetHeader {
    NetHeader::default()
}
