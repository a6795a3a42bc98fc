// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network driver of these suites against DPDK's `net_vhost`, which nobody here wrote: what it
//! finds there it does not invent elsewhere.

#[path = "exchange.rs"]
mod exchange;

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringside_frontend::ids::feature;
use ringside_frontend::net::net_feature::{MRG_RXBUF, OFFLOADS};
use ringside_frontend::net::{
    HEADER_LEGACY_BYTES, NetConfig, NetPort, RxConfig, Shape, Start, TxConfig,
};
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::skip;
use ringside_tests::testpmd::{self, Testpmd, TestpmdBuilder};

use exchange::{Plan, exchange_with_reflector};

type TestResult = Result<(), Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(30);

fn reflector(pairs: usize) -> Result<Testpmd, Box<dyn Error>> {
    let mut testpmd = TestpmdBuilder::new("macswap", 0)?
        .vhost(8)
        .option(format!("--rxq={pairs}"))
        .option(format!("--txq={pairs}"))
        .frame_bytes(9000)
        .start()?;
    testpmd.start_forwarding()?;
    Ok(testpmd)
}

fn builder() -> SessionBuilder {
    // Its ring of 4 KiB pages polls; a driver that polls as well keeps up on two processors.
    Session::builder()
        .without_features(OFFLOADS)
        .calls(CallMode::Never)
}

fn config(pairs: usize) -> NetConfig {
    NetConfig {
        pairs,
        timeout: PATIENCE,
        ..NetConfig::default()
    }
}

/// Frames of many lengths there and back, all of them, in their order, each byte checked.
fn reflected(
    pairs: usize,
    builder: SessionBuilder,
    config: &NetConfig,
    longest: usize,
) -> TestResult {
    let testpmd = reflector(pairs)?;
    let stream = UnixStream::connect(testpmd.vhost_socket(0))?;
    let mut port = NetPort::open(stream, builder, config)?;
    for bytes in [60, 64, 1500, longest] {
        let plan = Plan {
            frames: 500,
            bytes,
            in_flight: 16,
            timeout: PATIENCE,
        };
        for pair in &mut port.pairs {
            exchange_with_reflector(pair, &plan)?;
        }
    }
    Ok(())
}

#[test]
fn frames_come_back_with_merged_buffers() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    let config = NetConfig {
        rx: RxConfig {
            buffers: 200,
            buffer_bytes: 1024,
            ..RxConfig::default()
        },
        tx: TxConfig {
            slot_bytes: 10_000,
            ..TxConfig::default()
        },
        ..config(1)
    };
    let builder = builder().require(MRG_RXBUF | feature::IN_ORDER);
    reflected(1, builder, &config, 9000)
}

#[test]
fn frames_come_back_without_merging_in_any_shape() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    for (tx, rx) in [
        (Shape::WHOLE, Shape::HEADER_APART),
        (Shape::CUT.in_table(), Shape::CUT),
        (Shape::HEADER_APART, Shape::CUT.in_table()),
    ] {
        let config = NetConfig {
            rx: RxConfig {
                buffers: 32,
                buffer_bytes: 9100,
                shape: rx,
                strict: false,
            },
            tx: TxConfig {
                slots: 32,
                slot_bytes: 9100,
                shape: tx,
            },
            ..config(1)
        };
        let builder = builder().without_features(MRG_RXBUF | feature::IN_ORDER);
        reflected(1, builder, &config, 9000)?;
    }
    Ok(())
}

#[test]
fn two_pairs_and_calls_work() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    let builder = builder().calls(CallMode::Wanted).queue_size(64);
    reflected(2, builder, &config(2), 1518)
}

#[test]
fn legacy_header_has_ten_bytes() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    let testpmd = reflector(1)?;
    let stream = UnixStream::connect(testpmd.vhost_socket(0))?;
    let builder = builder().without_features(feature::VERSION_1 | MRG_RXBUF | feature::IN_ORDER);
    let mut port = NetPort::open(stream, builder, &config(1))?;
    assert_eq!(port.header_bytes(), HEADER_LEGACY_BYTES);
    let plan = Plan {
        frames: 500,
        bytes: 200,
        in_flight: 16,
        timeout: PATIENCE,
    };
    Ok(exchange_with_reflector(&mut port.pairs[0], &plan)?)
}

#[test]
fn vrings_enabled_before_features_work() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    let config = NetConfig {
        start: Start::EnableFirst,
        ..config(1)
    };
    reflected(1, builder(), &config, 1518)
}

#[test]
fn messages_of_network_devices_are_answered() -> TestResult {
    if let Err(reason) = testpmd::available() {
        skip!("{reason}");
    }
    let testpmd = reflector(1)?;
    let stream = UnixStream::connect(testpmd.vhost_socket(0))?;
    let mut port = NetPort::open(stream, builder(), &config(1))?;
    assert!(port.messages.set_mtu(1500)?);
    assert!(!port.messages.set_mtu(67)?);
    assert!(port.messages.send_rarp([2, 0, 0, 0, 0, 9])?);
    assert_eq!(port.messages.status()?, 15);
    assert!(port.messages.set_status(7)?);
    assert_eq!(port.messages.status()?, 7);
    // The session itself goes on.
    assert_eq!(port.session.stop(0)?, 0);
    Ok(())
}
