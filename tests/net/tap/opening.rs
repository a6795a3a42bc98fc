// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rule 29: why a tap cannot be had is said, and one that is open needs no privilege.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use ringside_frontend::net::NetPort;
use ringside_net::link::tap::{Tap, TapSpec};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::{Nic, NicOptions, network_needs};
use rustix::io::FdFlags;

use crate::kernel::{Host, TAP};
use crate::{PATIENCE, Result, TestResult, builder, config, datagram_in, open, plain, to_kernel};

/// What a back-end that does not start says.
fn refusal(started: Result<NetBackEnd>) -> Result<String> {
    match started {
        Ok(_) => Err("it started".into()),
        Err(error) => Ok(error.to_string()),
    }
}

#[test]
fn rule_29_tap_of_another_process_is_explained() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?;
    let mut first = host.back_end(1)?;
    let said = refusal(host.back_end(1))?;
    assert!(
        said.contains("tap tap0: another process holds it"),
        "{said}"
    );
    // The first does not mind.
    open(&mut first, 1)?;
    Ok(())
}

#[test]
fn f5_10_second_process_on_a_multi_queue_tap_is_refused_unless_it_is_shared() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(4)?;
    let link = host.link(TAP);
    // With all queues and with one, as the only link and as an uplink.
    for (first, second) in [
        (
            ["--backend", "--queue-pairs=2"],
            ["--backend", "--queue-pairs=2"],
        ),
        (
            ["--backend", "--queue-pairs=1"],
            ["--uplink", "--queue-pairs=8"],
        ),
        (
            ["--uplink", "--queue-pairs=1"],
            ["--backend", "--queue-pairs=1"],
        ),
    ] {
        let start =
            |[option, pairs]: [&str; 2], link: &str| NetBackEnd::start(1, &[option, link, pairs]);
        let mut holder = start(first, &link)?;
        let said = match start(second, &link) {
            Ok(_) => return Err(format!("{second:?} started beside {first:?}").into()),
            Err(error) => error.to_string(),
        };
        assert!(said.contains("tap tap0: in use"), "{said}");
        assert!(said.contains("shared"), "{said}");
        // The first does not mind.
        open(&mut holder, 1)?;
        let shared = start(second, &format!("{link},shared"))?;
        drop((shared, holder));
    }
    Ok(())
}

#[test]
fn f5_10_one_of_two_processes_that_start_together_gets_the_tap() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(2)?;
    for round in 0..3 {
        let started = std::thread::scope(|scope| {
            [(); 2]
                .map(|()| scope.spawn(|| host.back_end(2).map_err(|error| error.to_string())))
                .map(|start| start.join().unwrap_or_else(|_panic| Err("a panic".into())))
        });
        let refused: Vec<_> = started
            .iter()
            .filter_map(|one| one.as_ref().err())
            .collect();
        assert_eq!(refused.len(), 1, "round {round}: {refused:?}");
        assert!(refused[0].contains("in use"), "{}", refused[0]);
    }
    Ok(())
}

#[test]
fn f5_10_restart_after_a_process_was_killed_finds_the_tap_free() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    for queues in [1, 4] {
        let host = Host::new(queues)?;
        for round in 0..5 {
            let mut back_end = host.back_end(queues)?;
            // With a guest, whose rings and watches go with the process, too.
            let mut port = open(&mut back_end, 1)?;
            port.pairs[0].rx.post_all()?;
            back_end
                .process()
                .kill()
                .map_err(|error| format!("round {round}: {error}"))?;
        }
        host.back_end(queues)?;
    }
    Ok(())
}

#[test]
fn f5_14_tap_made_for_one_queue_is_served_with_one_pair_and_says_so_once() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?;
    let link = host.link(TAP);
    // As asked for, and as it is without asking.
    for (args, pairs) in [(&["--queue-pairs=4"][..], 4), (&[], 8)] {
        let args = [&["--backend", &link], args].concat();
        let mut back_end = NetBackEnd::start(1, &args)?;
        let mut port = open(&mut back_end, 1)?;
        host.meet()?;
        let socket = host.socket()?;
        let frame = to_kernel((7, socket.local_addr()?.port()), b"out");
        port.pairs[0].tx.send_now(&plain(), &frame, PATIENCE)?;
        let mut arrived = [0; 64];
        assert_eq!(socket.recv(&mut arrived)?, 3);
        let said = back_end.process().stderr();
        let reason = format!("tap tap0: made for one queue, but {pairs} queue pairs are asked for");
        assert_eq!(said.matches(&reason).count(), 1, "{said}");
        assert!(said.contains("multi_queue"), "{said}");
        drop(port);
        back_end.terminate()?;
    }
    // One queue of many will do.
    open(&mut Host::new(2)?.back_end(1)?, 1)?;
    Ok(())
}

#[test]
fn rule_29_interface_that_is_no_tap_is_explained() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::empty()?;
    host.ip("link add tap0 type veth peer name other0")?;
    let said = refusal(host.back_end(1))?;
    assert!(
        said.contains("tap0: neither a tap nor a macvtap interface"),
        "{said}"
    );
    Ok(())
}

#[test]
fn rule_29_open_tap_needs_no_capability() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(2)?;
    let spec = TapSpec::Interface {
        name: TAP.to_owned(),
        netns: Some(host.path()),
        shared: false,
    };
    let tap = Tap::open(&spec, 2)?;
    let mut numbers = Vec::new();
    for pair in 0..2 {
        let queue = tap.queue(pair).ok_or("no such queue")?;
        rustix::io::fcntl_setfd(queue.descriptor(), FdFlags::empty())?;
        numbers.push(queue.descriptor().as_raw_fd().to_string());
    }
    let options = NicOptions {
        outside: true,
        unprivileged: true,
        ..NicOptions::new(&format!("tap:fd={}", numbers.join(":"))).args(&["--queue-pairs=2"])
    };
    let mut nic = Nic::start(&host.network, options)?;
    // The process has its own by now.
    drop(tap);
    let socket = host.socket()?;
    let to = socket.local_addr()?.port();
    // Offloads are set and queues attached for each of them.
    for pairs in [2, 1, 2] {
        let stream = UnixStream::connect(nic.socket(0))?;
        let mut port = NetPort::open(stream, builder(), &config(pairs))?;
        host.meet()?;
        for (number, pair) in (0..).zip(&mut port.pairs) {
            pair.rx.post_all()?;
            let frame = to_kernel((1000 + number, to), b"hello");
            pair.tx.send_now(&plain(), &frame, PATIENCE)?;
            let mut arrived = [0; 64];
            let (bytes, from) = socket.recv_from(&mut arrived)?;
            assert_eq!(
                (&arrived[..bytes], from.port()),
                (&b"hello"[..], 1000 + number)
            );
        }
        socket.send_to(b"hello", ("10.9.0.2", 1000))?;
        let mut frame = Vec::new();
        crate::eventually("the datagram for the guest", || {
            for pair in &mut port.pairs {
                while pair.rx.poll(&mut frame)?.is_some() {
                    if datagram_in(&frame)?.is_some_and(|found| found.payload == b"hello") {
                        return Ok(true);
                    }
                }
            }
            Ok(false)
        })?;
    }
    nic.terminate()?;
    Ok(())
}
