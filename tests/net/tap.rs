// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest on a tap, the kernel of a scratch network namespace being the other end: what queues,
//! offloads and back-pressure of a tap have to do right. Numbers are those of `net/rules.rs`.

#[path = "tap/again.rs"]
mod again;
#[path = "tap/carrier.rs"]
mod carrier;
#[path = "offload/connection.rs"]
#[allow(
    dead_code,
    clippy::allow_attributes,
    reason = "shared with a suite that uses all of it"
)]
mod connection;
#[path = "tap/faults.rs"]
mod faults;
#[path = "tap/full.rs"]
mod full;
#[path = "offload/guest.rs"]
#[allow(
    dead_code,
    clippy::allow_attributes,
    reason = "shared with a suite that uses all of it"
)]
mod guest;
#[path = "tap/kernel.rs"]
mod kernel;
#[path = "tap/long.rs"]
mod long;
#[path = "tap/opening.rs"]
mod opening;
#[path = "offload/packet.rs"]
mod packet;
#[path = "tap/queues.rs"]
mod queues;
#[path = "tap/quiet.rs"]
mod quiet;
#[path = "offload/sample.rs"]
#[allow(
    dead_code,
    clippy::allow_attributes,
    reason = "shared with a suite that uses all of it"
)]
mod sample;
#[path = "tap/sys.rs"]
mod sys;

use std::error::Error;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{Mac, NetConfig, NetHeader, NetPort, RxConfig};
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::net_back_end::NetBackEnd;
use serde_json::Value;

use packet::{Packet, sum};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long something that must not happen is waited for.
const SILENCE: Duration = Duration::from_millis(200);

/// The address of the guest.
const OURS: Mac = [2, 0, 0, 0, 0, 0xa1];
/// The address of the kernel's device.
const THEIRS: Mac = [2, 0, 0, 0, 0, 0xb2];

/// A guest that takes and sends finished frames only, and merges no buffers.
fn builder() -> SessionBuilder {
    Session::builder()
        .without_features(OFFLOADS | ringside_frontend::net::net_feature::MRG_RXBUF)
        .memory(MemoryLayout::single(16 << 20))
}

fn config(pairs: usize) -> NetConfig {
    NetConfig {
        pairs,
        rx: RxConfig {
            buffers: 200,
            ..RxConfig::default()
        },
        timeout: PATIENCE,
        ..NetConfig::default()
    }
}

/// A guest with so many pairs, none of which has buffers yet.
fn open(back_end: &mut NetBackEnd, pairs: usize) -> Result<NetPort> {
    let stream = back_end.connect(0)?;
    Ok(NetPort::open(stream, builder(), &config(pairs))?)
}

fn plain() -> NetHeader {
    NetHeader::default()
}

/// A finished datagram from the guest to an address of the kernel's, without a checksum of its own
/// (RFC 768).
fn datagram(
    to: (Mac, [u8; 4]),
    from: [u8; 4],
    (source, destination): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    // One that is too long is no datagram, and does not arrive.
    let udp_bytes = u16::try_from(8 + payload.len()).unwrap_or(0);
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&udp_bytes.saturating_add(20).to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend_from_slice(&from);
    ip.extend_from_slice(&to.1);
    let sum = !sum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [to.0, OURS].concat();
    frame.extend_from_slice(&[8, 0]);
    frame.extend_from_slice(&ip);
    for field in [source, destination, udp_bytes, 0] {
        frame.extend_from_slice(&field.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame
}

/// A finished datagram from the guest to the kernel's own address on the tap.
fn to_kernel(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    datagram((THEIRS, [10, 9, 0, 1]), [10, 9, 0, 2], ports, payload)
}

/// The datagram in a frame, its lengths and sums being right.
fn datagram_in(frame: &[u8]) -> Result<Option<Packet>> {
    Ok(Packet::parse(frame)?.filter(|packet| packet.udp))
}

/// The counters of a vring of the guest.
fn counters(back_end: &NetBackEnd, vring: u64) -> Result<Value> {
    let stats = back_end.control("stats", &Value::Null)?;
    let vrings = stats["ports"][0]["packets"].as_array();
    let found = vrings
        .into_iter()
        .flatten()
        .find(|counters| counters["queue"] == vring);
    found.cloned().ok_or_else(|| format!("{stats}").into())
}

/// Waits until `probe` is true.
fn eventually(what: &str, mut probe: impl FnMut() -> Result<bool>) -> TestResult {
    let start = Instant::now();
    while !probe()? {
        if start.elapsed() > PATIENCE {
            return Err(format!("not in time: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Ends a thread of the test with the scope, even by a panic: it would be waited for otherwise.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Past libtest's capture, which keeps the figures of a test that passes to itself.
fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "net tap: {text}");
}
