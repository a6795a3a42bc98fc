// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that has no descriptors left, or next to none.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use ringside_frontend::ids::request;
use ringside_tests::hostile::wire::{self, RegionBody, mem_region};
use ringside_tests::hostile::{PATIENCE, Result, TestResult, wait_until};
use ringside_tests::process::Process;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::{Target, answered_or_closed, walk};

fn set_limit(process: &Process, limit: Rlimit) -> Result<Rlimit> {
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
    Ok(prlimit(pid, Resource::Nofile, limit)?)
}

/// The limit of the process as it is.
fn limit(process: &Process) -> Result<Rlimit> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id()))?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let mut numbers = line.unwrap_or_default().split_whitespace();
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    Ok(Rlimit {
        current: next(),
        maximum: next(),
    })
}

/// The numbers of the descriptors that are open.
fn open(process: &Process) -> Result<BTreeSet<u64>> {
    let mut open = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", process.id()))? {
        let name = entry?.file_name();
        open.insert(name.to_str().ok_or("no number")?.parse()?);
    }
    Ok(open)
}

/// Leaves the process so many descriptors that it could open. What it could before is returned.
fn leave(process: &Process, free: usize) -> Result<Rlimit> {
    let before = limit(process)?;
    // What was closed a moment ago may still be seen.
    wait_until("so many free descriptors", || {
        let taken = open(process)?;
        let end = if free == 0 {
            (0..).find(|number| !taken.contains(number))
        } else {
            let mut unused = (0..).filter(|number| !taken.contains(number));
            unused.nth(free - 1).map(|last| last + 1)
        };
        let current = end;
        set_limit(process, Rlimit { current, ..before })?;
        Ok(open(process)? == taken)
    })?;
    Ok(before)
}

#[test]
fn f1_9_messages_with_descriptors_are_answered_or_refused_with_next_to_none_free() -> TestResult {
    let (stream, _peer) = UnixStream::pair()?;
    let memory = rustix::fs::memfd_create("few", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, 4096)?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    for mut target in Target::all()? {
        for free in 0..=3 {
            for (what, fd) in [
                ("a stream", stream.as_fd()),
                ("memory", memory.as_fd()),
                ("an eventfd", event.as_fd()),
            ] {
                for (id, body) in walk::messages() {
                    for count in [1, 2, 8] {
                        let client = target.negotiated()?;
                        assert!(client.is_alive(PATIENCE));
                        let before = leave(&target.process, free)?;
                        client.send(wire::header(id, &body), &body, &vec![fd; count])?;
                        answered_or_closed(&client).map_err(|e| {
                            let device = target.device;
                            format!("{device:?}: {count} of {what} in {id}, {free} free: {e}")
                        })?;
                        set_limit(&target.process, before)?;
                    }
                }
            }
            target.others_go_on()?;
        }
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}

#[test]
fn f1_9_front_end_is_not_blamed_for_a_lack_of_our_descriptors() -> TestResult {
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    for mut target in Target::all()? {
        let client = target.negotiated()?;
        assert!(client.is_alive(PATIENCE));
        let before = leave(&target.process, 0)?;
        let body = 0_u64.to_le_bytes();
        let header = wire::header(request::SET_VRING_CALL, &body);
        client.send(header, &body, &[event.as_fd()])?;
        client.expect_closed(PATIENCE)?;
        set_limit(&target.process, before)?;
        let log = target.process.stderr();
        let said = "receiving the descriptors of a message: Too many open files";
        assert!(log.contains(said), "{log}");
        assert!(!log.contains("not the descriptors it takes"), "{log}");
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}

#[test]
fn f1_9_sigterm_is_followed_with_one_descriptor_left() -> TestResult {
    let (stream, _peer) = UnixStream::pair()?;
    for count in [1, 2] {
        for mut target in Target::all()? {
            let client = target.negotiated()?;
            assert!(client.is_alive(PATIENCE));
            leave(&target.process, 1)?;
            let header = wire::header(request::SET_BACKEND_REQ_FD, &[]);
            client.send(header, &[], &vec![stream.as_fd(); count])?;
            // Answered or not: nothing is waited for, the front-end is there, and so is the lack.
            target.ends()?;
        }
    }
    Ok(())
}

#[test]
fn f1_9_front_end_that_takes_all_descriptors_ends_its_session_only() -> TestResult {
    let memory = rustix::fs::memfd_create("few", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, 4096)?;
    for mut target in Target::all()? {
        // For a front-end that is sound it is enough.
        leave(&target.process, 64)?;
        for _ in 0..3 {
            let client = target.negotiated()?;
            for n in 0..200 {
                let region = RegionBody {
                    gpa: n * 4096,
                    bytes: 4096,
                    uva: n * 4096,
                    offset: 0,
                };
                let body = mem_region(&region);
                let header = wire::header(request::ADD_MEM_REG, &body);
                if client.send(header, &body, &[memory.as_fd()]).is_err() {
                    break;
                }
            }
            client.expect_closed(PATIENCE)?;
            target.others_go_on()?;
        }
        let log = target.process.stderr();
        assert!(log.contains("Too many open files"), "{log}");
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}
