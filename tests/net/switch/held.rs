// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Properties of a port hold on every back-end, or the back-end does not start.

use std::os::unix::net::{UnixDatagram, UnixListener};

use ringside_frontend::net::{NetHeader, NetPort};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;
use serde_json::Value;

use crate::outside::{Kind, Outside};
use crate::{PATIENCE, Result, TestResult, frame, mac, open_listening};

/// How many frames of the first port's guest were lost as spoofed, and how many were taken.
fn counted(back_end: &NetBackEnd) -> Result<(u64, u64)> {
    let stats = back_end.control("stats", &Value::Null)?;
    let vrings = stats["ports"][0]["packets"].as_array();
    let vring = vrings
        .into_iter()
        .flatten()
        .find(|counters| counters["queue"] == 1)
        .ok_or_else(|| format!("{stats}"))?;
    let spoofed = vring["drops"]["spoofed"].as_u64();
    let taken = vring["good_packets"].as_u64();
    Ok((
        spoofed.ok_or_else(|| format!("{vring}"))?,
        taken.ok_or_else(|| format!("{vring}"))?,
    ))
}

fn send(port: &mut NetPort, source: u8) -> TestResult {
    let frame = frame(mac(source), [0xff; 6], 100);
    let header = NetHeader::default();
    Ok(port.pairs[0].tx.send_now(&header, &frame, PATIENCE)?)
}

/// A guest of 1 that says to be 2 is heard nowhere.
fn holds_to_its_address(backend: &str) -> TestResult {
    let ports = [",mac=02:00:00:00:00:01,anti-spoof"];
    let mut back_end = NetBackEnd::start_ports(&ports, &["--backend", backend])?;
    let mut port = open_listening(&mut back_end, 0)?;
    for _ in 0..5 {
        send(&mut port, 2)?;
    }
    send(&mut port, 1)?;
    let (spoofed, taken) = counted(&back_end)?;
    assert_eq!(spoofed, 5, "{backend}");
    assert!(taken <= 1, "{backend}: {taken} taken");
    // Nor does it hear them itself.
    let mut arrived = Vec::new();
    while port.pairs[0].rx.poll(&mut arrived)?.is_some() {
        assert_ne!(arrived.get(6..12), Some(&mac(2)[..]), "{backend}");
    }
    Ok(())
}

#[test]
fn f5_13b_anti_spoof_holds_on_every_back_end_without_privileges() -> TestResult {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    let stream = UnixListener::bind(path("stream"))?;
    let dgram = UnixDatagram::bind(path("dgram"))?;
    dgram.set_nonblocking(true)?;
    for backend in [
        "switch".to_owned(),
        "null".to_owned(),
        "loopback".to_owned(),
        format!("stream:{}", path("stream").display()),
        format!("dgram:{}", path("dgram").display()),
    ] {
        holds_to_its_address(&backend)?;
    }
    // What came there was sent under the right address.
    let mut arrived = [0; 200];
    while let Ok(bytes) = dgram.recv(&mut arrived) {
        assert_eq!(arrived[..bytes].get(6..12), Some(&mac(1)[..]));
    }
    drop(stream);
    Ok(())
}

#[test]
fn f5_13b_anti_spoof_holds_on_every_interface() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    for kind in Kind::INTERFACES {
        holds_to_its_address(&Outside::new(kind)?.spec)?;
    }
    Ok(())
}
