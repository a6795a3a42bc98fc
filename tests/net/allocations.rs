// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A frame takes nothing from the heap and, while guests keep the data thread busy, makes no system
//! call of its own.

#[path = "../in_process/allocator.rs"]
mod allocator;
#[path = "exchange.rs"]
mod exchange;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser as _;
use ringside_common::daemon::{Control, Source, serve_all};
use ringside_common::error::HostError;
use ringside_common::worker::WorkerOptions;
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{
    Flow, NetConfig, NetHeader, NetPort, RxConfig, RxQueue, TxConfig, TxQueue,
};
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_net::network::Network;
use ringside_net::options::Options;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::process::{SyscallCounter, thread_ids, tracing_available};
use ringside_tests::skip;

use exchange::{OURS, Plan, THEIRS, eventually};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const FRAMES: u64 = 10_000;
const BYTES: usize = 64;
/// Frames under way at most, in each queue.
const SLOTS: u16 = 512;

/// Networks served in this process, on socket pairs; they end with their connections.
struct Served(JoinHandle<std::result::Result<(), HostError>>);

impl Served {
    /// One port for each stream that is returned.
    fn start(backend: &str, ports: usize) -> Result<(Self, Vec<UnixStream>)> {
        // The sockets are never bound: connections are handed over instead.
        let sockets = (0..ports).map(|port| format!("--socket-path=unbound-{port}"));
        let words = ["ringside-net".to_owned(), format!("--backend={backend}")];
        let options = Options::try_parse_from(words.into_iter().chain(sockets))?;
        let control = Control::new()?;
        let (_, opened) = Network::open(options.into_config()?)?;
        let (mut devices, mut streams) = (Vec::new(), Vec::new());
        for device in opened {
            let (ours, theirs) = UnixStream::pair()?;
            devices.push((device, Source::Connected(theirs)));
            streams.push(ours);
        }
        let workers = WorkerOptions {
            max_threads: 4,
            cpus: Vec::new(),
            max_poll_ns: 50_000,
            stop_timeout: None,
            file_memory: false,
        };
        let thread = std::thread::spawn(move || serve_all(devices, &workers, &control));
        Ok((Self(thread), streams))
    }

    fn wait_end(self) -> Result<()> {
        let ended = self.0.join();
        Ok(ended.map_err(|_panic| "serving panicked")??)
    }
}

fn open(stream: UnixStream) -> Result<NetPort> {
    let builder = Session::builder()
        .without_features(OFFLOADS)
        .queue_size(1024)
        .calls(CallMode::Never);
    let config = NetConfig {
        rx: RxConfig {
            buffers: SLOTS,
            buffer_bytes: 512,
            ..RxConfig::default()
        },
        tx: TxConfig {
            slots: SLOTS,
            slot_bytes: 512,
            ..TxConfig::default()
        },
        timeout: PATIENCE,
        ..NetConfig::default()
    };
    Ok(NetPort::open(stream, builder, &config)?)
}

/// Sends frames that nobody gets.
fn send(tx: &mut TxQueue, frames: u64) -> Result<()> {
    let mut frame = Vec::new();
    Flow::new(OURS, THEIRS, 1).make(0, BYTES, &mut frame);
    tx.fill(&NetHeader::default(), &frame)?;
    let (mut left, start) = (frames, Instant::now());
    while left > 0 {
        while left > 0 && tx.send_filled(BYTES)? {
            left -= 1;
        }
        tx.publish()?;
        if tx.reap()? == 0 && start.elapsed() > PATIENCE {
            return Err(format!("{left} frames left").into());
        }
    }
    Ok(tx.wait_all(PATIENCE)?)
}

/// Takes frames of whatever content.
fn receive(rx: &mut RxQueue, frames: u64) -> Result<()> {
    let (mut left, mut frame) = (frames, Vec::new());
    rx.post_all()?;
    let came = eventually(PATIENCE, || {
        while rx.poll(&mut frame)?.is_some() {
            left = left.saturating_sub(1);
            rx.post_all()?;
        }
        Ok(left == 0)
    })?;
    if came {
        Ok(())
    } else {
        Err(format!("{left} frames left").into())
    }
}

/// Frames from the first port to the second.
fn pass(ports: &mut [NetPort], frames: u64) -> Result<()> {
    let [left, right, ..] = ports else {
        return Err("one port".into());
    };
    // The switch knows both addresses, and floods nothing.
    let mut hello = Vec::new();
    Flow::new(THEIRS, THEIRS, 1).make(0, BYTES, &mut hello);
    let header = NetHeader::default();
    right.pairs[0].tx.send_now(&header, &hello, PATIENCE)?;
    let plan = Plan {
        frames,
        bytes: BYTES,
        in_flight: SLOTS.into(),
        timeout: PATIENCE,
    };
    exchange::exchange(
        (&mut left.pairs[0].tx, &mut right.pairs[0].rx),
        &Flow::new(OURS, THEIRS, 1),
        &mut Flow::new(OURS, THEIRS, 1),
        &plan,
    )?;
    Ok(())
}

/// Past libtest's capture, which keeps the figures of a test that passes to itself.
fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "allocations: {text}");
}

/// Calls to the allocator that so many frames make on data threads, after as many before.
fn calls_of(
    backend: &str,
    ports: usize,
    run: impl Fn(&mut [NetPort], u64) -> Result<()>,
) -> Result<u64> {
    let (served, streams) = Served::start(backend, ports)?;
    let mut opened = streams.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    run(&mut opened, FRAMES)?;
    let (ran, count) = allocator::calls_during(|| run(&mut opened, FRAMES));
    ran.map_err(|e| format!("{backend}: {e}"))?;
    report(&format!("{count} calls for {FRAMES} frames: {backend}"));
    drop(opened);
    served.wait_end()?;
    Ok(count)
}

#[test]
fn frame_in_steady_state_allocates_nothing() -> Result<()> {
    let _alone = allocator::alone();
    let sent = calls_of("null", 1, |ports, frames| {
        send(&mut ports[0].pairs[0].tx, frames)
    })?;
    let received = calls_of("null:64", 1, |ports, frames| {
        receive(&mut ports[0].pairs[0].rx, frames)
    })?;
    let passed = calls_of("switch", 2, pass)?;
    assert_eq!((sent, received, passed), (0, 0, 0));
    Ok(())
}

/// A ring's bookkeeping is made when it starts; this is what shows that the count counts.
#[test]
fn count_sees_a_ring_start() -> Result<()> {
    let _alone = allocator::alone();
    let (served, mut streams) = Served::start("null", 1)?;
    let stream = streams.remove(0);
    let (opened, count) = allocator::calls_during(|| -> Result<NetPort> {
        let mut port = open(stream)?;
        send(&mut port.pairs[0].tx, 100)?;
        Ok(port)
    });
    drop(opened?);
    served.wait_end()?;
    assert!(count > 0);
    Ok(())
}

/// A data thread that has nothing to do for long sleeps, in one system call. How often that is so
/// depends on who else runs, and where guest and data thread have one processor between them, it
/// comes after every queue full of frames: the best of some rounds counts.
#[test]
fn frames_of_polling_guests_cost_no_system_calls_but_for_sleep() -> Result<()> {
    const ENOUGH: u64 = 200_000;
    // Two and a half sleeps for each queue full.
    const PER_THOUSAND: u64 = 5;
    if let Err(reason) = tracing_available() {
        skip!("{reason}");
    }
    let _alone = allocator::alone();
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let mut ports = [open(back_end.connect(0)?)?, open(back_end.connect(1)?)?];
    pass(&mut ports, FRAMES)?;
    let threads = thread_ids(back_end.process().id(), "data-")?;
    let [thread] = *threads else {
        return Err(format!("data threads: {threads:?}").into());
    };
    let mut best = u64::MAX;
    for _ in 0..5 {
        let counter = SyscallCounter::attach(thread)?;
        pass(&mut ports, ENOUGH)?;
        let count = counter.finish()?;
        report(&format!(
            "{count} system calls for {ENOUGH} frames of the switch"
        ));
        best = best.min(count);
        if best * 1000 <= ENOUGH * PER_THOUSAND {
            break;
        }
    }
    assert!(best * 1000 <= ENOUGH * PER_THOUSAND, "{best}");
    Ok(())
}
