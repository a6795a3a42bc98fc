// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running a network: limits, counters, captures, links, and what it costs to do nothing.

#[path = "operation/captures.rs"]
mod captures;

use std::error::Error;
use std::io::Write as _;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{Flow, NetConfig, NetHeader, NetPort};
use ringside_frontend::session::Session;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::process::{Sample, thread_activity, thread_ids};
use ringside_tests::skip;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long something that must not happen is waited for.
const SILENCE: Duration = Duration::from_millis(200);

/// One figure at a time: they are of whole processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn open(back_end: &mut NetBackEnd, port: usize) -> Result<NetPort> {
    let config = NetConfig {
        timeout: PATIENCE,
        ..NetConfig::default()
    };
    let builder = Session::builder().without_features(OFFLOADS);
    Ok(NetPort::open(back_end.connect(port)?, builder, &config)?)
}

fn flow() -> Flow {
    Flow::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], 1)
}

fn frame(sequence: u64, bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    flow().make(sequence, bytes, &mut frame);
    frame
}

fn send(port: &mut NetPort, sequence: u64, bytes: usize) -> TestResult {
    let header = NetHeader::default();
    Ok(port.pairs[0]
        .tx
        .send_now(&header, &frame(sequence, bytes), PATIENCE)?)
}

/// Past libtest's capture, which keeps the figures of a test that passes to itself.
fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "net operation: {text}");
}

/// The counters of a vring of the first port that `stats` shows.
fn counters(back_end: &NetBackEnd, port: usize, vring: u64) -> Result<Value> {
    let stats = back_end.control("stats", &Value::Null)?;
    let vrings = stats["ports"][port]["packets"].as_array();
    let found = vrings
        .into_iter()
        .flatten()
        .find(|counters| counters["queue"] == vring);
    found.cloned().ok_or_else(|| format!("{stats}").into())
}

#[test]
fn limited_guest_sends_at_its_limit() -> TestResult {
    const BYTES_PER_S: f64 = 4_000_000.0;
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let args = ["--backend", "null", "--limit-tx-bytes", "4M"];
    let mut back_end = NetBackEnd::start(1, &args)?;
    let mut port = open(&mut back_end, 0)?;
    let tx = &mut port.pairs[0].tx;
    let (header, frame) = (NetHeader::default(), frame(0, 1000));
    let mut sent = 0_u32;
    let mut start = Instant::now();
    let mut warm = false;
    loop {
        while tx.send(&header, &frame)? {}
        tx.publish()?;
        tx.vring_mut().wait_used(PATIENCE)?;
        sent += u32::try_from(tx.reap()?)?;
        // What may pass at once passes first.
        if !warm && start.elapsed() > Duration::from_millis(500) {
            (warm, sent, start) = (true, 0, Instant::now());
        }
        if warm && start.elapsed() > Duration::from_secs(5) {
            break;
        }
    }
    let rate = f64::from(sent) * 1000.0 / start.elapsed().as_secs_f64();
    let ratio = rate / BYTES_PER_S;
    report(&format!(
        "{ratio:.4} of the limit of {BYTES_PER_S} bytes per second over 5 s"
    ));
    assert!((0.97..=1.03).contains(&ratio), "{ratio}");
    Ok(())
}

#[test]
fn counters_add_up_and_name_the_loss() -> TestResult {
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    right.pairs[0].rx.post(40)?;
    let mut bytes = 0;
    for sequence in 0..40 {
        let length = 60 + 7 * usize::try_from(sequence)?;
        send(&mut left, sequence, length)?;
        bytes += length;
    }
    let sent = counters(&back_end, 0, 1)?;
    let received = counters(&back_end, 1, 0)?;
    assert_eq!(
        (&sent["good_packets"], &sent["good_bytes"]),
        (&json!(40), &json!(bytes))
    );
    assert_eq!(
        (&received["good_packets"], &received["good_bytes"]),
        (&json!(40), &json!(bytes))
    );
    // No buffers any more: what is lost is counted with its reason, at the receiver.
    for sequence in 0..10 {
        send(&mut left, sequence, 100)?;
    }
    let received = counters(&back_end, 1, 0)?;
    assert_eq!(received["good_packets"], 40);
    assert_eq!(received["drops"]["no_buffer"], 10, "{received}");
    Ok(())
}

#[test]
fn link_taken_down_passes_nothing_and_up_again_it_does() -> TestResult {
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    right.pairs[0].rx.post_all()?;
    let mut arrived = Vec::new();
    for state in ["down", "up", "down", "up"] {
        back_end.control("link", &json!({"port": "port1", "state": state}))?;
        send(&mut left, 7, 100)?;
        if state == "up" {
            right.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
            assert_eq!(arrived, frame(7, 100));
        } else {
            std::thread::sleep(SILENCE);
            assert_eq!(right.pairs[0].rx.poll(&mut arrived)?, None);
        }
    }
    Ok(())
}

#[test]
fn capture_holds_as_many_frames_as_were_counted() -> TestResult {
    if let Err(error) = Command::new("tcpdump").arg("--version").output() {
        skip!("tcpdump: {error}");
    }
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let path = back_end.process().path("frames.pcapng");
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    let file = path.to_string_lossy().into_owned();
    back_end.control("capture-start", &json!({"path": file, "port": "port0"}))?;
    left.pairs[0].rx.post_all()?;
    for sequence in 0..30 {
        send(&mut left, sequence, 100)?;
        send(&mut right, sequence, 200)?;
    }
    back_end.control("capture-stop", &Value::Null)?;
    let output = Command::new("tcpdump")
        .args(["-nn", "-e", "-r", &file])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = |length: &str| text.lines().filter(|line| line.contains(length)).count();
    assert_eq!(lines("length 100:"), 30, "{text}");
    assert_eq!(lines("length 200:"), 30, "{text}");
    let count = |vring| -> Result<u64> {
        Ok(counters(&back_end, 0, vring)?["good_packets"]
            .as_u64()
            .unwrap_or_default())
    };
    // One line each; dumps of what tcpdump does not know have none of these.
    assert_eq!(count(0)? + count(1)?, u64::try_from(lines(" > "))?);
    Ok(())
}

/// Sleeps and processor time of a process over some time.
fn cost_over(back_end: &mut NetBackEnd, time: Duration) -> Result<(u64, Duration)> {
    let before: Sample = back_end.process().sample()?;
    std::thread::sleep(time);
    let after = back_end.process().sample()?;
    Ok((
        after.voluntary_switches - before.voluntary_switches,
        after.cpu.saturating_sub(before.cpu),
    ))
}

#[test]
fn idle_network_does_not_wake_up() -> TestResult {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    right.pairs[0].rx.post_all()?;
    for sequence in 0..20 {
        send(&mut left, sequence, 100)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let before = thread_activity(back_end.process().id())?;
    std::thread::sleep(Duration::from_secs(5));
    let after = thread_activity(back_end.process().id())?;
    assert_eq!(after, before);
    // Idle, not dead.
    let mut arrived = Vec::new();
    right.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    Ok(())
}

#[test]
fn receiver_without_buffers_costs_nothing_and_is_served_when_it_has_some() -> TestResult {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut back_end = NetBackEnd::start(1, &["--backend", "null:64"])?;
    let mut port = open(&mut back_end, 0)?;
    let time = Duration::from_secs(5);
    let mut arrived = Vec::new();
    for posted in [0, 10] {
        port.pairs[0].rx.post(posted)?;
        for _ in 0..posted {
            port.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
            assert_eq!(arrived.len(), 64);
        }
        std::thread::sleep(SILENCE);
        let (sleeps, cpu) = cost_over(&mut back_end, time)?;
        report(&format!(
            "no buffers for {time:?}: {cpu:?} of processor time, {sleeps} wake-ups"
        ));
        assert!(cpu < time / 100, "{cpu:?}");
    }
    let start = Instant::now();
    port.pairs[0].rx.post(1)?;
    port.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    report(&format!("a frame {:?} after a buffer", start.elapsed()));
    Ok(())
}

#[test]
fn switch_is_served_by_one_thread_whatever_the_number_of_its_ports() -> TestResult {
    let args = ["--backend", "switch", "--threads", "4"];
    let mut back_end = NetBackEnd::start(4, &args)?;
    let mut ports = Vec::new();
    for port in 0..4 {
        ports.push(open(&mut back_end, port)?);
        let threads = thread_ids(back_end.process().id(), "data-")?;
        assert_eq!(threads.len(), 1, "with {} ports", port + 1);
    }
    Ok(())
}

#[test]
fn guest_of_a_network_without_offloads_is_offered_none() -> TestResult {
    for (args, wanted) in [(&[][..], OFFLOADS), (&["--no-offloads"], 0)] {
        let args = [&["--backend", "switch"], args].concat();
        let mut back_end = NetBackEnd::start(1, &args)?;
        let session = Session::builder().from_stream(back_end.connect(0)?)?;
        let offered = session.negotiated().offered & OFFLOADS;
        // UFO is not made in software.
        assert_eq!(offered == 0, wanted == 0, "{args:?}: {offered:#x}");
    }
    Ok(())
}

#[test]
fn guest_is_told_the_speed_that_is_set_and_none_otherwise() -> TestResult {
    const SPEED_DUPLEX: u64 = 1 << 63;
    // `speed` and `duplex` of `struct virtio_net_config`; unknown is all ones.
    for (args, told) in [
        (&[][..], None),
        (&["--speed-mbps", "40000"], Some([0x40, 0x9c, 0, 0, 1])),
    ] {
        let args = [&["--backend", "null"], args].concat();
        let mut back_end = NetBackEnd::start(1, &args)?;
        let mut port = open(&mut back_end, 0)?;
        let offered = port.session.negotiated().offered & SPEED_DUPLEX != 0;
        assert_eq!(offered, told.is_some(), "{args:?}");
        let read = port.session.config(12, 5)?;
        assert_eq!(read, told.unwrap_or([0xff; 5]), "{args:?}");
    }
    Ok(())
}

#[test]
fn f6_8_start_says_what_is_served_and_how_it_is_caged() -> TestResult {
    let start = |ports: &[&str], args: &[&str], expected: &dyn Fn(&NetBackEnd) -> String| {
        let mut back_end = NetBackEnd::start_ports(ports, args)?;
        let expected = expected(&back_end);
        back_end.process().expect_served(&expected, PATIENCE)?;
        TestResult::Ok(())
    };
    let uplink = [
        "--backend",
        "switch:lab",
        "--uplink",
        "stream:/nowhere/peer",
    ];
    start(&[",name=a", ",name=b"], &uplink, &|back_end| {
        let [a, b] = [0, 1].map(|port| back_end.socket(port).display().to_string());
        format!(
            "serving switch:lab, uplink stream:/nowhere/peer, port a on socket {a} (mode 600), \
             port b on socket {b} (mode 600), no sandbox"
        )
    })?;
    start(&[",name=a"], &["--backend", "null"], &|back_end| {
        let socket = back_end.socket(0).display();
        format!("serving null, port a on socket {socket} (mode 600), no sandbox")
    })
}
