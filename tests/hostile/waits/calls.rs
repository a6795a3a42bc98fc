// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds of disks and folders that make a data thread wait.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringside_tests::frontend::blk::{BlkConfig, BlkDriver, BlkRequest};
use ringside_tests::frontend::fuse::{FuseClient, FuseConfig, Request};
use ringside_tests::frontend::ids::request;
use ringside_tests::frontend::raw::RawClient;
use ringside_tests::frontend::session::{Session, SessionBuilder};
use ringside_tests::hostile::{PATIENCE, Result, TestResult, Trap, Victim};
use ringside_tests::process::Launch;
use rustix::process::Signal;

/// What a session may cost others, with a machine that is busy besides; a write that waits for
/// good is told from it.
const BOUND: Duration = Duration::from_secs(5);

fn drivers(
    victim: &mut Victim,
    builder: SessionBuilder,
) -> Result<(Session, RawClient, Vec<BlkDriver>)> {
    let (mut session, raw) = victim.session_and_raw(builder.timeout(PATIENCE))?;
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
        let (_session, raw, mut drivers) = drivers(&mut victim, Session::builder().queues(4))?;
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
        let (_session, raw, mut drivers) = drivers(&mut victim, Session::builder().queues(1))?;
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
    let (mut session, raw, mut drivers) = drivers(&mut victim, Session::builder().queues(2))?;
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
    let (_session, raw, mut drivers) = drivers(&mut victim, Session::builder())?;
    let trap = Trap::new()?;
    trap.give(&raw, request::SET_VRING_CALL, 0)?;
    trap.spring()?;
    provoke(&mut drivers[0])?;
    victim.process().signal(Signal::TERM)?;
    let status = victim.process().wait_exit(PATIENCE)?;
    assert!(status.success(), "{status}");
    Ok(())
}

#[test]
fn f1_2_full_call_of_a_folder_in_its_sandbox_ends_the_session() -> TestResult {
    for sandbox in ["none", "chroot", "namespace"] {
        if sandbox != "none" && !rustix::process::geteuid().is_root() {
            continue;
        }
        let launch = Launch::back_end("ringside-fs")?;
        let (share, socket) = (launch.path("share"), launch.socket());
        std::fs::create_dir(&share)?;
        let mut process = launch
            .arg("--shared-dir")
            .arg(&share)
            .arg("--socket-path")
            .arg(&socket)
            .args(["--tag", "share", "--sandbox", sandbox, "--seccomp", "kill"])
            .spawn()?;
        process.wait_listening(PATIENCE)?;
        let stream = UnixStream::connect(&socket)?;
        let raw = RawClient::from_stream(stream.try_clone()?)?;
        let mut client = FuseClient::from_stream(stream, &FuseConfig::default())?;
        let trap = Trap::new()?;
        trap.give(&raw, request::SET_VRING_CALL, 1)?;
        trap.spring()?;
        let queue = client.queue();
        queue.vring_mut().ring.arm_call();
        let slot = queue.acquire()?;
        queue.submit(slot, &Request::statfs(1))?;
        queue.publish()?;
        raw.expect_closed(BOUND)
            .map_err(|e| format!("{sandbox}: {e}"))?;
        drop((client, raw));
        // The next one is served, by the same process.
        let stream = UnixStream::connect(&socket)?;
        let config = FuseConfig {
            session: Session::builder().timeout(PATIENCE),
            ..FuseConfig::default()
        };
        let client = FuseClient::from_stream(stream, &config)?;
        drop(client);
        let status = process.terminate(PATIENCE)?;
        assert!(status.success(), "{sandbox}: {status} {}", process.stderr());
    }
    Ok(())
}
