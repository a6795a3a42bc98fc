// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk that does not answer, and those who wait for it.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest};
use ringside_frontend::ids::request;
use ringside_frontend::raw::RawClient;
use ringside_frontend::session::Session;
use ringside_tests::hostile::support_chains::Disk;
use ringside_tests::hostile::wire::vring_state;
use ringside_tests::hostile::{Injection, PATIENCE, Result, TestResult, wait_until};
use ringside_tests::skip;
use rustix::process::Signal;
use serde_json::Value;

/// `EXIT_STUCK`.
const GAVE_UP: Option<i32> = Some(4);
/// An hour, in microseconds.
const FOR_EVER: &str = "delay_enter=3600000000";

/// A disk with a read that never ends.
struct Hung {
    disk: Disk,
    _session: Session,
    raw: RawClient,
    driver: BlkDriver,
    injection: Option<Injection>,
}

impl Hung {
    fn start(args: &[&str]) -> Result<Self> {
        let mut disk = Disk::start(&[&["--aio", "threads"], args].concat())?;
        let builder = Session::builder().timeout(PATIENCE);
        let stream = disk.process.connect(PATIENCE)?;
        let raw = RawClient::from_stream(stream.try_clone()?)?;
        let mut session = builder.from_stream(stream)?;
        let vring = session.create_vring(0)?;
        session.start(&vring, 0)?;
        let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
        driver.read(0, &mut [0; 512])?.ok()?;
        let injection = Injection::attach(disk.process.id(), "preadv", FOR_EVER)?;
        let slot = driver.acquire()?;
        driver.submit(slot, &BlkRequest::read(8, 4096))?;
        driver.publish()?;
        disk.wait_in_flight()?;
        Ok(Self {
            disk,
            _session: session,
            raw,
            driver,
            injection: Some(injection),
        })
    }

    /// `GET_VRING_BASE`, whose answer nobody waits for.
    fn stop_unanswered(&mut self) -> TestResult {
        let body = vring_state(0, 0);
        self.raw.request(request::GET_VRING_BASE, &body)?;
        Ok(())
    }

    /// Waits until the process has ended itself, and returns how.
    fn gave_up(&mut self) -> Result<Option<i32>> {
        let process = &mut self.disk.process;
        wait_until("the end", || {
            Ok(process.stderr().contains("this process ends"))
        })?;
        // A thread that strace holds back ends only when strace has.
        self.injection = None;
        Ok(process.wait_exit(PATIENCE)?.code())
    }

    fn log(&self) -> String {
        self.disk.process.stderr()
    }
}

trait InFlight {
    fn wait_in_flight(&self) -> TestResult;
}

impl InFlight for Disk {
    /// Until the read was taken.
    fn wait_in_flight(&self) -> TestResult {
        wait_until("the read to be taken", || {
            let stats = self.control("stats", &Value::Null)?;
            Ok(stats["queues"][0]["chains"].as_u64() >= Some(2))
        })
    }
}

/// How often a line with `text` was logged.
fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn f1_10_stop_of_a_ring_of_a_hung_disk_is_told_and_bounded() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut hung = Hung::start(&["--stop-timeout", "3"])?;
    let start = Instant::now();
    hung.stop_unanswered()?;
    assert_eq!(hung.gave_up()?, GAVE_UP, "{}", hung.log());
    assert!(start.elapsed() >= Duration::from_secs(3));
    let log = hung.log();
    let told = count(
        &log,
        "waiting for the stop of vring 0, 1 requests in flight",
    );
    assert!((1..=4).contains(&told), "{log}");
    Ok(())
}

#[test]
fn f1_10_sigterm_while_a_ring_of_a_hung_disk_stops_is_followed() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut hung = Hung::start(&["--stop-timeout", "2"])?;
    hung.stop_unanswered()?;
    wait_until("the wait to be told", || {
        Ok(count(&hung.log(), "waiting for the stop of vring 0") >= 1)
    })?;
    hung.disk.process.signal(Signal::TERM)?;
    assert_eq!(hung.gave_up()?, GAVE_UP, "{}", hung.log());
    Ok(())
}

#[test]
fn f1_10_sigterm_on_a_hung_disk_ends_within_the_bound() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut hung = Hung::start(&["--stop-timeout", "2"])?;
    hung.disk.process.signal(Signal::TERM)?;
    assert_eq!(hung.gave_up()?, GAVE_UP, "{}", hung.log());
    let log = hung.log();
    assert!(count(&log, "waiting for the stop of vring 0") >= 1, "{log}");
    assert_eq!(count(&log, "--stop-timeout"), 1, "{log}");
    Ok(())
}

#[test]
fn f1_10_sigterm_waits_for_a_flush_at_the_end_no_longer_than_the_bound() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut disk = Disk::start(&["--aio", "threads", "--stop-timeout", "2"])?;
    let (session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    driver.write(0, &[7; 512])?.ok()?;
    let injection = Injection::attach(disk.process.id(), "fdatasync", FOR_EVER)?;
    disk.process.signal(Signal::TERM)?;
    wait_until("the end", || {
        Ok(disk.process.stderr().contains("this process ends"))
    })?;
    drop(injection);
    let status = disk.process.wait_exit(PATIENCE)?;
    let log = disk.process.stderr();
    assert_eq!(status.code(), GAVE_UP, "{log}");
    assert!(
        count(&log, "waiting for what was written to be stable") >= 1,
        "{log}"
    );
    drop((session, driver));
    Ok(())
}

#[test]
fn f1_10_hung_disk_without_a_bound_is_waited_for_and_a_second_sigterm_ends_it() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut hung = Hung::start(&["--stop-timeout", "0"])?;
    hung.disk.process.signal(Signal::TERM)?;
    wait_until("the wait to be told", || {
        Ok(count(&hung.log(), "waiting for the stop of vring 0") >= 3)
    })?;
    assert!(hung.disk.process.try_exit()?.is_none(), "{}", hung.log());
    hung.disk.process.signal(Signal::TERM)?;
    hung.injection = None;
    assert_eq!(hung.disk.process.wait_exit(PATIENCE)?.code(), Some(1));
    Ok(())
}

#[test]
fn f1_10_wait_in_which_requests_end_is_not_given_up() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    // Each read takes a second, one after the other on one data thread's 16: 64 of them take longer
    // than the bound, and none of them longer than it.
    let mut disk = Disk::start(&["--aio", "threads", "--stop-timeout", "3"])?;
    let builder = Session::builder().timeout(PATIENCE * 3);
    let config = BlkConfig {
        depth: 64,
        ..BlkConfig::default()
    };
    let (mut session, mut driver) = disk.driver(builder, config)?;
    let _injection = Injection::attach(disk.process.id(), "preadv", "delay_enter=1500000")?;
    for at in 0..64 {
        let slot = driver.acquire()?;
        driver.submit(slot, &BlkRequest::read(at * 8, 4096))?;
    }
    driver.publish()?;
    disk.wait_in_flight()?;
    assert_eq!(session.stop(0)?, 64);
    for _ in 0..64 {
        driver.poll()?.ok_or("a read was not answered")?.ok()?;
    }
    Ok(())
}

#[test]
fn f1_11_second_front_end_on_a_busy_socket_is_told_of() -> TestResult {
    let mut disk = Disk::start(&[])?;
    let (session, _driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    assert_eq!(count(&disk.process.stderr(), "another front-end waits"), 0);
    let mut second = UnixStream::connect(disk.process.socket())?;
    wait_until("the line", || {
        Ok(count(&disk.process.stderr(), "another front-end waits") == 1)
    })?;
    // More of them are no flood: one line a second.
    let more: Vec<_> = (0..8)
        .map(|_| UnixStream::connect(disk.process.socket()))
        .collect::<std::result::Result<_, _>>()?;
    std::thread::sleep(Duration::from_millis(100));
    assert!(count(&disk.process.stderr(), "another front-end waits") <= 2);
    drop((more, session));
    // It is served when the first one has left.
    second.set_read_timeout(Some(PATIENCE))?;
    second.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])?;
    let mut answer = [0; 20];
    second.read_exact(&mut answer)?;
    assert_eq!(answer[..4], [1, 0, 0, 0]);
    Ok(())
}

/// A line of the control protocol, and who waits for the answer.
pub(crate) fn ask(path: &Path, method: &str) -> Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, r#"{{"id":"{method}","method":"{method}"}}"#)?;
    Ok(BufReader::new(stream))
}

/// What comes within [`PATIENCE`].
pub(crate) fn answer(client: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = String::new();
    client.read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Nothing has come.
pub(crate) fn is_unanswered(client: &BufReader<UnixStream>) -> TestResult {
    client.get_ref().set_nonblocking(true)?;
    let nothing = client.get_ref().read(&mut [0]).map_err(|e| e.kind());
    client.get_ref().set_nonblocking(false)?;
    assert_eq!(nothing, Err(ErrorKind::WouldBlock));
    Ok(())
}

/// Asks for a drain of a disk that hangs, and returns when it is waited for.
fn drain_unanswered(hung: &Hung) -> Result<BufReader<UnixStream>> {
    let drain = ask(&hung.disk.process.path("control.sock"), "drain")?;
    wait_until("the wait to be told", || {
        Ok(count(&hung.log(), "waiting for requests in flight to end") >= 1)
    })?;
    is_unanswered(&drain)?;
    Ok(drain)
}

#[test]
fn f1_10_f4_6_sigterm_while_a_hung_disk_is_drained_ends_within_the_bound() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut hung = Hung::start(&["--stop-timeout", "2"])?;
    // It is no reason to end before: who has asked is told that it takes long.
    let drain = drain_unanswered(&hung)?;
    wait_until("more than the bound", || {
        Ok(count(&hung.log(), "waiting for requests in flight to end") >= 4)
    })?;
    assert!(hung.disk.process.try_exit()?.is_none(), "{}", hung.log());
    hung.disk.process.signal(Signal::TERM)?;
    assert_eq!(hung.gave_up()?, GAVE_UP, "{}", hung.log());
    drop(drain);
    Ok(())
}

#[test]
fn f1_10_f4_6_sigterm_while_a_disk_is_drained_that_goes_on_ends_in_good_order() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut hung = Hung::start(&["--stop-timeout", "60"])?;
    let mut drain = drain_unanswered(&hung)?;
    hung.disk.process.signal(Signal::TERM)?;
    let told = count(&hung.log(), "waiting for requests in flight to end");
    wait_until("the wait to go on", || {
        Ok(count(&hung.log(), "waiting for requests in flight to end") > told)
    })?;
    assert!(hung.disk.process.try_exit()?.is_none(), "{}", hung.log());
    hung.injection = None;
    let status = hung.disk.process.wait_exit(PATIENCE)?;
    assert!(status.success(), "{status}: {}", hung.log());
    // What it has waited for was done, and it is told so.
    assert_eq!(answer(&mut drain)?["result"]["done"], true);
    // So was the read.
    let read = hung.driver.poll()?.ok_or("the read was not answered")?;
    read.ok()?;
    Ok(())
}

#[test]
fn f4_6_drain_of_a_hung_disk_holds_up_nobody_else() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let dir = tempfile::tempdir()?;
    let metrics = dir.path().join("metrics");
    let path = metrics.to_str().ok_or("no text")?;
    let mut hung = Hung::start(&["--stop-timeout", "0", "--metrics", path])?;
    let control = hung.disk.process.path("control.sock");
    let start = Instant::now();
    let mut drains: Vec<_> = (0..3)
        .map(|_| ask(&control, "drain"))
        .collect::<Result<_>>()?;
    // What is asked behind a drain is answered behind it.
    let behind = r#"{"id":"behind","method":"version"}"#;
    writeln!(drains[0].get_mut(), "{behind}")?;
    // Who leaves takes nothing along.
    drop(ask(&control, "drain")?);
    for _ in 0..3 {
        let stats = hung.disk.control("stats", &Value::Null)?;
        assert_eq!(stats["device"], "blk");
        let mut scrape = UnixStream::connect(&metrics)?;
        scrape.set_read_timeout(Some(PATIENCE))?;
        scrape.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut page = String::new();
        scrape.read_to_string(&mut page)?;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    }
    // All of that while they wait.
    for drain in &drains {
        is_unanswered(drain)?;
    }
    for drain in &mut drains {
        assert_eq!(answer(drain)?["result"]["done"], false);
    }
    assert!(start.elapsed() >= Duration::from_secs(9));
    assert_eq!(answer(&mut drains[0])?["id"], "behind");
    // More of them than there is room for are refused, and their client is served on.
    let mut more: Vec<_> = (0..12)
        .map(|_| ask(&control, "drain"))
        .collect::<Result<_>>()?;
    let mut answers = more.iter_mut().map(answer).collect::<Result<Vec<_>>>()?;
    answers.retain(|answer| answer["error"].is_object());
    // The one that nobody waits for may end a little later than the others.
    assert!((4..=5).contains(&answers.len()), "{answers:?}");
    let busy = answers[0]["error"]["message"].as_str().unwrap_or_default();
    assert!(busy.contains("busy"), "{busy}");
    // When the disk is back, a drain is done; so is what undoes it.
    hung.injection = None;
    wait_until("the drain", || {
        Ok(hung.disk.control("drain", &Value::Null)?["done"] == true)
    })?;
    assert_eq!(hung.disk.control("resume", &Value::Null)?["done"], true);
    Ok(())
}
