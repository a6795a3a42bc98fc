// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file whose server answers nothing, with every message: its close never ends, nor does the end
//! of a process that has it open. Neither keeps anybody.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use ringside_frontend::blk::{BlkConfig, BlkDriver};
use ringside_frontend::ids::request;
use ringside_frontend::raw::{Header, RawClient};
use ringside_frontend::session::Session;
use ringside_tests::fs_mount::needs;
use ringside_tests::hostile::silent::SilentFile;
use ringside_tests::hostile::wire::{self, mem_region};
use ringside_tests::hostile::{Result, TestResult, wait_until};
use ringside_tests::process::{Launch, Process};
use ringside_tests::skip;
use rustix::process::{Pid, Signal, kill_process};

use super::walk::messages;
use super::{BOUND, PATIENCE, REGION, Target, answered_or_closed};

/// `MAX_KEPT` of a back-end, and as many as come with one message.
const MOST_KEPT: usize = 64;

fn silent_file() -> Result<SilentFile> {
    SilentFile::new(env!("CARGO_BIN_EXE_file-hander"))
}

/// Every message, with one and with two of the file.
fn hand_over_all(target: &mut Target, file: &SilentFile) -> TestResult {
    for (id, body) in messages() {
        for count in [1, 2] {
            let client = target.negotiated()?;
            file.hand_over(client.stream(), wire::header(id, &body), &body, count)?;
            answered_or_closed(&client)
                .map_err(|e| format!("{:?}: {count} in message {id}: {e}", target.device))?;
        }
    }
    target.others_go_on()
}

fn says(process: &Process, what: &str) -> TestResult {
    let log = process.stderr();
    if log.contains(what) {
        return Ok(());
    }
    Err(format!("nothing of {what:?} in:\n{log}").into())
}

#[test]
fn f1_6_silent_file_with_every_message_keeps_nobody_and_no_end() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let file = silent_file()?;
    let mut targets = Target::all()?;
    for sandbox in ["chroot", "namespace"] {
        targets.push(Target::start_in(super::Device::Folder, &[], sandbox)?);
    }
    for mut target in targets {
        hand_over_all(&mut target, &file)?;
        says(&target.process, "a file whose close may never end")?;
        target.ends()?;
    }
    Ok(())
}

/// The message is one upon which a session goes on.
fn hand_over_again_and_again(client: &RawClient, file: &SilentFile, id: u32, body: &[u8]) {
    for _ in 0..2 * MOST_KEPT {
        // Until nobody takes it.
        if file
            .hand_over(client.stream(), wire::header(id, body), body, 1)
            .is_err()
        {
            return;
        }
    }
}

fn descriptors(process: &Process) -> Result<usize> {
    Ok(process.sample()?.fds)
}

#[test]
fn f1_6_front_end_that_hands_over_many_is_left_and_its_socket_serves_nobody() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let file = silent_file()?;
    for (id, body) in [
        (request::REM_MEM_REG, mem_region(&REGION)),
        (request::SET_DEVICE_STATE_FD, wire::words(&[0])),
    ] {
        for mut target in Target::all()? {
            let client = target.negotiated()?;
            let before = descriptors(&target.process)?;
            hand_over_again_and_again(&client, &file, id, &body);
            client
                .expect_closed(BOUND)
                .map_err(|e| format!("{:?}: message {id}: {e}", target.device))?;
            drop(client);
            // The next one is not served.
            let next = RawClient::from_stream(target.process.connect(PATIENCE)?)?;
            next.expect_closed(BOUND)?;
            let now = descriptors(&target.process)?;
            assert!(now <= before + MOST_KEPT + 2, "{before}, now {now}");
            says(&target.process, "too many descriptors were handed over")?;
            says(&target.process, "no front-end is served")?;
            target.others_go_on()?;
            target.ends()?;
        }
    }
    Ok(())
}

/// What is in the queue of a socket is let go without a close, read or not.
#[test]
fn f1_6_silent_files_that_nobody_has_received_keep_no_end() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let file = silent_file()?;
    for mut target in Target::all()? {
        let client = target.negotiated()?;
        // One that waits until the first has left.
        let waiting = target.process.connect(PATIENCE)?;
        for _ in 0..4 {
            file.hand_over(&waiting, Header::new(request::GET_FEATURES, 0), &[], 8)?;
        }
        // One in a socket that is handed over itself.
        let (ours, theirs) = UnixStream::pair()?;
        file.hand_over(&ours, Header::new(0, 0), &[], 8)?;
        let header = Header::new(request::SET_BACKEND_REQ_FD, 0);
        client.send(header, &[], &[theirs.as_fd()])?;
        answered_or_closed(&client)?;
        drop((ours, theirs));
        target.others_go_on()?;
        target.ends()?;
        drop((client, waiting));
    }
    Ok(())
}

/// A disk of a file, in a directory of the test's own.
fn disk(image: &Path) -> Result<Process> {
    let launch = Launch::back_end("ringside-blk")?;
    let socket = launch.socket();
    let process = launch
        .arg("--blk-file")
        .arg(image)
        .arg("--socket-path")
        .arg(socket)
        .spawn()?;
    Ok(process)
}

#[test]
fn f1_6_disk_with_silent_files_that_is_ended_or_killed_is_gone_and_its_socket_too() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk.img");
    std::fs::File::create(&image)?.set_len(1 << 20)?;
    let file = silent_file()?;
    for signal in [Signal::TERM, Signal::KILL] {
        let mut process = disk(&image)?;
        process.wait_listening(PATIENCE)?;
        let client = RawClient::from_stream(process.connect(PATIENCE)?)?;
        let header = Header::new(request::SET_DEVICE_STATE_FD, 8);
        file.hand_over(client.stream(), header, &wire::words(&[0]), 1)?;
        assert!(answered_or_closed(&client)?);
        drop(client);
        // A session with data threads, whose rings and image are in use when the end comes.
        let mut session = Session::builder().from_stream(process.connect(PATIENCE)?)?;
        let vring = session.create_vring(0)?;
        session.start(&vring, 0)?;
        let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
        driver.write(0, &[7; 512])?.ok()?;
        process.signal(signal)?;
        let status = process.wait_exit(BOUND)?;
        assert_eq!(status.success(), signal == Signal::TERM, "{status}");
        // The heir closes what a killed process leaves, a moment after its end.
        wait_until("nobody listens", || {
            Ok(UnixStream::connect(process.socket()).is_err())
        })?;
        let mut again = None;
        wait_until("the image is free", || {
            let mut process = disk(&image)?;
            let listens = process.wait_listening(PATIENCE).is_ok();
            again = Some(process).filter(|_| listens);
            Ok(listens)
        })?;
        let stream = again.ok_or("not served")?.connect(PATIENCE)?;
        drop((stream, driver, session));
    }
    Ok(())
}

/// The process that serves; it is the child of the one that was started, if there is a sandbox.
fn serving(process: &Process, sandbox: &str) -> Result<Pid> {
    let own = process.id();
    let number = if sandbox == "none" {
        own.to_string()
    } else {
        std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?
    };
    let pid = Pid::from_raw(number.trim().parse()?);
    Ok(pid.ok_or("no process serves")?)
}

#[test]
fn f1_6_folder_with_silent_files_that_is_killed_is_gone_and_its_socket_too() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let file = silent_file()?;
    // In namespaces a process that is killed is gone with its file only.
    for (sandbox, inside) in [("none", true), ("chroot", true), ("chroot", false)] {
        let mut target = Target::start_in(super::Device::Folder, &[], sandbox)?;
        let client = target.negotiated()?;
        let header = Header::new(request::SET_DEVICE_STATE_FD, 8);
        file.hand_over(client.stream(), header, &wire::words(&[0]), 1)?;
        answered_or_closed(&client)?;
        says(&target.process, "a file whose close may never end")?;
        drop(client);
        let stream = target.process.connect(PATIENCE)?;
        let watched = RawClient::from_stream(stream.try_clone()?)?;
        let mut session = Session::builder().from_stream(stream)?;
        let vring = session.create_vring(1)?;
        session.start(&vring, 0)?;
        let serving = serving(&target.process, sandbox)?;
        let victim = if inside {
            serving
        } else {
            Pid::from_raw(target.process.id().cast_signed()).ok_or("no process")?
        };
        kill_process(victim, Signal::KILL)?;
        let status = target.process.wait_exit(BOUND)?;
        assert!(!status.success(), "{sandbox}, {inside}: {status}");
        wait_until("nobody listens", || {
            Ok(UnixStream::connect(target.process.socket()).is_err())
        })
        .map_err(|e| format!("{sandbox}, {inside}: {e}"))?;
        // So is the session: a front-end sees it, and comes again.
        watched
            .expect_closed(BOUND)
            .map_err(|e| format!("{sandbox}, {inside}: {e}"))?;
    }
    Ok(())
}
