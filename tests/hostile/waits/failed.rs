// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A data thread from which the kernel takes no more I/O.

use std::os::unix::net::UnixStream;

use ringside_frontend::blk::BlkConfig;
use ringside_frontend::fuse::{FuseClient, FuseConfig};
use ringside_frontend::net::{NetConfig, NetPort};
use ringside_frontend::session::Session;
use ringside_tests::fs_back_end::{FsBackEnd, FsProgram};
use ringside_tests::hostile::{Injection, PATIENCE, TestResult, Victim};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::process::Process;
use ringside_tests::skip;

/// `EXIT_DATA_THREAD`.
const DATA_THREAD_FAILED: Option<i32> = Some(3);

/// A call that strace lets fail has no number that a filter would know.
const UNFILTERED: &[&str] = &["--seccomp", "none"];

/// The process ends with the status for it, has said why, and has taken its socket away.
fn ends(process: &mut Process, what: &str) -> TestResult {
    let status = process.wait_exit(PATIENCE)?;
    let log = process.stderr();
    assert_eq!(status.code(), DATA_THREAD_FAILED, "{what}: {status}\n{log}");
    // Of several that end at once, one is told of.
    let told = "ended, and the process with it";
    assert!(log.contains(told), "{what}: {log}");
    assert!(!process.socket().exists(), "{what}: the socket is left");
    Ok(())
}

fn no_more_io(process: &Process) -> Result<Injection, Box<dyn std::error::Error>> {
    Injection::attach(process.id(), "io_uring_enter", "error=ENOMEM")
}

#[test]
fn f1_8_disk_whose_data_thread_fails_ends_with_its_own_status() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    for (threads, queues) in [("1", 1), ("4", 4)] {
        let mut victim = Victim::file(&["--threads", threads])?;
        let config = BlkConfig::default();
        let (_session, mut drivers) = victim.drivers(Session::builder().queues(queues), config)?;
        for driver in &mut drivers {
            driver.get_id()?;
        }
        let _injection = no_more_io(victim.process())?;
        // Woken, if they were not by the tracer.
        for driver in &mut drivers {
            driver.vring_mut().kick()?;
        }
        ends(victim.process(), threads)?;
    }
    Ok(())
}

#[test]
fn f1_8_switch_whose_data_thread_fails_ends_for_all_its_ports() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let mut back_end = NetBackEnd::start(3, &["--backend", "switch"])?;
    let mut ports = Vec::new();
    for port in 0..3 {
        let stream = back_end.connect(port)?;
        ports.push(NetPort::open(
            stream,
            Session::builder(),
            &NetConfig::default(),
        )?);
    }
    let sockets: Vec<_> = (0..3)
        .map(|port| back_end.socket(port).to_owned())
        .collect();
    let _injection = no_more_io(back_end.process())?;
    ports[0].pairs[0].tx.vring_mut().kick()?;
    ends(back_end.process(), "switch")?;
    assert!(sockets.iter().all(|socket| !socket.exists()), "{sockets:?}");
    Ok(())
}

#[test]
fn f1_8_folder_whose_data_thread_fails_ends_with_its_own_status() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let share = tempfile::tempdir()?;
    let mut back_end = FsBackEnd::start_program(FsProgram::Ringside, share.path(), UNFILTERED)?;
    let stream = UnixStream::connect(back_end.socket())?;
    let mut client = FuseClient::from_stream(stream, &FuseConfig::default())?;
    let _injection = no_more_io(back_end.process())?;
    client.queue().vring_mut().kick()?;
    let status = back_end.process_mut().wait_exit(PATIENCE)?;
    let log = back_end.process().stderr();
    assert_eq!(status.code(), DATA_THREAD_FAILED, "{log}");
    Ok(())
}

#[test]
fn f1_8_data_thread_that_cannot_be_set_up_turns_the_front_end_away() -> TestResult {
    if !Injection::is_possible() {
        skip!("strace cannot trace here");
    }
    let share = tempfile::tempdir()?;
    let back_end = FsBackEnd::start_program(FsProgram::Ringside, share.path(), UNFILTERED)?;
    let injection = Injection::attach(back_end.process().id(), "unshare", "error=ENOMEM")?;
    let stream = UnixStream::connect(back_end.socket())?;
    let refused = FuseClient::from_stream(stream, &FuseConfig::default());
    assert!(
        refused.is_err(),
        "a thread that can serve nothing was started"
    );
    drop(injection);
    let stream = UnixStream::connect(back_end.socket())?;
    FuseClient::from_stream(stream, &FuseConfig::default())?;
    Ok(())
}
