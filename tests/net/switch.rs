// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a port of a switch may send, hear, claim and cost others, and that all of it is counted.

#[path = "switch/changing.rs"]
mod changing;
#[path = "switch/uplink.rs"]
mod uplink;

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ringside_tests::frontend::net::net_feature::OFFLOADS;
use ringside_tests::frontend::net::{Flow, Mac, NetConfig, NetPort, RxConfig, TxConfig};
use ringside_tests::frontend::ring::CallMode;
use ringside_tests::frontend::session::Session;
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
