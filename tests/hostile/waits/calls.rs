// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds of disks and folders that make a data thread wait.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest};
use ringside_frontend::fuse::{FuseClient, FuseConfig, FuseQueue, Request};
use ringside_frontend::ids::request;
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{Flow, NetConfig, NetHeader, NetPort};
use ringside_frontend::raw::RawClient;
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::hostile::support_chains::{Disk, control};
use ringside_tests::hostile::{Injection, PATIENCE, Result, TestResult, Trap, Victim, wait_until};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::process::{Launch, Process, thread_ids};
use ringside_tests::skip;
use rustix::process::Signal;
use serde_json::Value;

use super::disk::{answer, ask, is_unanswered};

/// What a session may cost others, with a machine that is busy besides; a write that waits for
/// good is told from it.
const BOUND: Duration = Duration::from_secs(5);

fn drivers(
    stream: UnixStream,
    builder: SessionBuilder,
) -> Result<(Session, RawClient, Vec<BlkDriver>)> {
    let raw = RawClient::from_stream(stream.try_clone()?)?;
    let mut session = builder.timeout(PATIENCE).from_stream(stream)?;
    let drivers = session
        .start_all()?
        .into_iter()
        .map(|vring| BlkDriver::new(vring, BlkConfig::default()))
        .collect::<std::result::Result<_, _>>()?;
    Ok((session, raw, drivers))
}

fn provoke(driver: &mut BlkDriver) -> TestResult {
    driver.vring_mut().ring.arm_call();
    let slot = driver.acquire()?;
    driver.submit(slot, &BlkRequest::read(0, 4096))?;
    driver.publish()?;
    Ok(())
}

#[test]
fn f1_2_full_call_of_a_disk_ends_the_session_whatever_thread_serves_it() -> TestResult {
    for args in [&["--threads", "1"][..], &["--threads", "4"]] {
        let mut victim = Victim::memory_with(args)?;
        let (_session, raw, mut drivers) = drivers(victim.stream()?, Session::builder().queues(4))?;
        // All at once: it is one offence, and one delay.
        let traps = (0..4)
            .map(|vring| {
                let trap = Trap::new()?;
                trap.give(&raw, request::SET_VRING_CALL, vring)?;
                trap.spring()?;
                Ok(trap)
            })
            .collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        for driver in &mut drivers {
            provoke(driver)?;
        }
        raw.expect_closed(BOUND)?;
        let took = start.elapsed();
        assert!(took < BOUND, "{args:?}: {took:?}");
        drop((drivers, raw, traps));
        victim.check().map_err(|e| format!("{args:?}: {e}"))?;
    }
    Ok(())
}

#[test]
fn f1_2_full_call_of_a_file_disk_ends_the_session_by_either_engine() -> TestResult {
    for engine in ["io_uring", "threads"] {
        let mut victim = Victim::file(&["--aio", engine])?;
        let (_session, raw, mut drivers) = drivers(victim.stream()?, Session::builder().queues(1))?;
        let trap = Trap::new()?;
        trap.give(&raw, request::SET_VRING_CALL, 0)?;
        trap.spring()?;
        provoke(&mut drivers[0])?;
        raw.expect_closed(BOUND)?;
        drop((drivers, raw));
        victim.check().map_err(|e| format!("{engine}: {e}"))?;
    }
    Ok(())
}

#[test]
fn f1_2_vring_with_a_full_call_is_stopped_within_the_bound() -> TestResult {
    let mut victim = Victim::memory()?;
    let (mut session, raw, mut drivers) = drivers(victim.stream()?, Session::builder().queues(2))?;
    let trap = Trap::new()?;
    trap.give(&raw, request::SET_VRING_CALL, 0)?;
    trap.spring()?;
    provoke(&mut drivers[0])?;
    let start = Instant::now();
    // Answered, or closed before: never neither.
    let stopped = session.stop(0);
    assert!(stopped.is_ok() || raw.expect_closed(PATIENCE).is_ok());
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    drop((session, drivers, raw));
    victim.check()
}

#[test]
fn f1_2_sigterm_ends_a_disk_whose_data_thread_waits() -> TestResult {
    let mut victim = Victim::memory()?;
    let (_session, raw, mut drivers) = drivers(victim.stream()?, Session::builder())?;
    let trap = Trap::new()?;
    trap.give(&raw, request::SET_VRING_CALL, 0)?;
    trap.spring()?;
    provoke(&mut drivers[0])?;
    victim.process().signal(Signal::TERM)?;
    let status = victim.process().wait_exit(PATIENCE)?;
    assert!(status.success(), "{status}");
    Ok(())
}

/// A folder that listens in a sandbox of this kind, with more arguments.
fn folder(sandbox: &str, args: &[&str]) -> Result<Process> {
    let launch = Launch::back_end("ringside-fs")?;
    let (share, socket) = (launch.path("share"), launch.socket());
    std::fs::create_dir(&share)?;
    let mut process = launch
        .arg("--shared-dir")
        .arg(&share)
        .arg("--socket-path")
        .arg(&socket)
        .args(["--tag", "share", "--sandbox", sandbox])
        .args(args)
        .spawn()?;
    process.wait_listening(PATIENCE)?;
    Ok(process)
}

/// A guest of the folder whose first queue has a call descriptor that is full, and waits.
fn trapped(process: &mut Process) -> Result<(FuseClient, RawClient, Trap)> {
    let stream = process.connect(PATIENCE)?;
    let raw = RawClient::from_stream(stream.try_clone()?)?;
    let client = FuseClient::from_stream(stream, &FuseConfig::default())?;
    let trap = Trap::new()?;
    trap.give(&raw, request::SET_VRING_CALL, 1)?;
    trap.spring()?;
    Ok((client, raw, trap))
}

/// Has the folder signal the queue.
fn ask_folder(queue: &mut FuseQueue) -> TestResult {
    queue.vring_mut().ring.arm_call();
    let slot = queue.acquire()?;
    queue.submit(slot, &Request::statfs(1))?;
    queue.publish()?;
    Ok(())
}

/// A guest that waits until it is served.
fn patient() -> FuseConfig {
    FuseConfig {
        session: Session::builder().timeout(PATIENCE),
        ..FuseConfig::default()
    }
}

#[test]
fn f1_2_full_call_of_a_folder_in_its_sandbox_ends_the_session() -> TestResult {
    for sandbox in ["none", "chroot", "namespace"] {
        if sandbox != "none" && !rustix::process::geteuid().is_root() {
            continue;
        }
        let mut process = folder(sandbox, &["--seccomp", "kill"])?;
        let (mut client, raw, _trap) = trapped(&mut process)?;
        ask_folder(client.queue())?;
        raw.expect_closed(BOUND)
            .map_err(|e| format!("{sandbox}: {e}"))?;
        drop((client, raw));
        // The next one is served, by the same process.
        let client = FuseClient::from_stream(process.connect(PATIENCE)?, &patient())?;
        drop(client);
        let status = process.terminate(PATIENCE)?;
        assert!(status.success(), "{sandbox}: {status} {}", process.stderr());
    }
    Ok(())
}

/// Whether one of the data threads is in a write, whoever else the process has.
fn writes(pid: u32) -> Result<bool> {
    for thread in thread_ids(pid, "data-")? {
        // Of one that has gone meanwhile there is none.
        let call = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall"));
        let number = call.unwrap_or_default();
        let number = number.split(' ').next().and_then(|text| text.parse().ok());
        if number == Some(libc::SYS_write) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A data thread is in a write that waits, from which the watchdog does not take it yet, when a
/// drain is asked for. It is over when the watchdog comes, and the session too.
fn drain_ends_with_the_write(
    pid: u32,
    path: &Path,
    raw: &RawClient,
    provoke: impl FnOnce() -> TestResult,
) -> TestResult {
    let late = Injection::attach(pid, "tgkill", "delay_enter=3600000000")?;
    provoke()?;
    wait_until("a write that waits", || writes(pid))?;
    let mut drain = ask(path, "drain")?;
    // Others are answered meanwhile.
    for _ in 0..3 {
        control(path, "stats", &Value::Null)?;
    }
    is_unanswered(&drain)?;
    assert!(writes(pid)?, "the write is over");
    drop(late);
    assert_eq!(answer(&mut drain)?["result"]["done"], true);
    raw.expect_closed(PATIENCE)?;
    // Nothing is left of it that would keep the next one.
    assert_eq!(control(path, "drain", &Value::Null)?["done"], true);
    assert_eq!(control(path, "resume", &Value::Null)?["done"], true);
    Ok(())
}

#[test]
fn f1_2_f4_6_drain_of_a_disk_in_a_write_that_waits_ends_and_the_session_too() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut disk = Disk::start(&["--threads", "2"])?;
    let (pid, path) = (disk.process.id(), disk.process.path("control.sock"));
    let stream = disk.process.connect(PATIENCE)?;
    let (session, raw, mut drivers) = drivers(stream, Session::builder().queues(2))?;
    let trap = Trap::new()?;
    trap.give(&raw, request::SET_VRING_CALL, 0)?;
    trap.spring()?;
    drain_ends_with_the_write(pid, &path, &raw, || provoke(&mut drivers[0]))?;
    drop((session, drivers, raw));
    let builder = Session::builder().timeout(PATIENCE);
    let (session, mut driver) = disk.driver(builder, BlkConfig::default())?;
    driver.write(0, &[7; 512])?.ok()?;
    drop((session, driver));
    let status = disk.process.terminate(PATIENCE)?;
    assert!(status.success(), "{status} {}", disk.process.stderr());
    Ok(())
}

#[test]
fn f1_2_f4_6_drain_of_a_folder_in_a_write_that_waits_ends_and_the_session_too() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("control.sock");
    let at = path.to_str().ok_or("no text")?;
    let mut process = folder("none", &["--control-socket", at])?;
    let (mut client, raw, _trap) = trapped(&mut process)?;
    drain_ends_with_the_write(process.id(), &path, &raw, || ask_folder(client.queue()))?;
    drop((client, raw));
    let mut client = FuseClient::from_stream(process.connect(PATIENCE)?, &patient())?;
    client.queue().statfs(1)?;
    drop(client);
    let status = process.terminate(PATIENCE)?;
    assert!(status.success(), "{status} {}", process.stderr());
    Ok(())
}

/// A port that sends without offloads.
fn port(back_end: &mut NetBackEnd, number: usize) -> Result<(NetPort, RawClient)> {
    let stream = back_end.connect(number)?;
    let raw = RawClient::from_stream(stream.try_clone()?)?;
    let config = NetConfig {
        timeout: PATIENCE,
        ..NetConfig::default()
    };
    let builder = Session::builder().without_features(OFFLOADS);
    Ok((NetPort::open(stream, builder, &config)?, raw))
}

#[test]
fn f1_2_f4_6_drain_of_a_switch_in_a_write_that_waits_ends_and_one_session_too() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut back_end = NetBackEnd::start(3, &["--backend", "switch"])?;
    let (mut hostile, raw) = port(&mut back_end, 0)?;
    let (mut left, _left) = port(&mut back_end, 1)?;
    let (mut right, _right) = port(&mut back_end, 2)?;
    let trap = Trap::new()?;
    trap.give(&raw, request::SET_VRING_CALL, 1)?;
    trap.spring()?;
    let mut frame = Vec::new();
    let mut flow = Flow::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], 1);
    flow.make(0, 100, &mut frame);
    let (pid, path) = {
        let process = back_end.process();
        (process.id(), process.path("control.sock"))
    };
    drain_ends_with_the_write(pid, &path, &raw, || {
        let tx = &mut hostile.pairs[0].tx;
        let ring = &tx.vring().ring;
        ring.set_used_event(ring.used_idx());
        tx.send(&NetHeader::default(), &frame)?;
        tx.publish()?;
        Ok(())
    })?;
    // The others go on.
    right.pairs[0].rx.post_all()?;
    let mut got = Vec::new();
    for sequence in 0..100 {
        flow.make(sequence, 100, &mut frame);
        let tx = &mut left.pairs[0].tx;
        tx.send_now(&NetHeader::default(), &frame, PATIENCE)?;
        right.pairs[0].rx.wait(&mut got, PATIENCE)?;
        assert_eq!(flow.check(&got, 100)?, sequence);
        right.pairs[0].rx.post_all()?;
    }
    drop((hostile, raw, left, right));
    let status = back_end.terminate()?;
    assert!(status.success(), "{status}");
    Ok(())
}
