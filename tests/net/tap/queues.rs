// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many queues: no flow goes to one that nobody empties, and answers come where questions went.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringside_frontend::net::NetPort;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;

use crate::kernel::Host;
use crate::packet::Packet;
use crate::sample::OUR_IP;
use crate::{PATIENCE, Result, Stop, TestResult, datagram_in, open, plain, to_kernel};

const FLOWS: usize = 64;
/// The guest's port of those flows, and of others that are not answered.
const ECHO: u16 = 7;
const DISCARD: u16 = 9;
/// How long an answer is waited for before the question is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Sockets of the kernel's side, a flow each.
struct Flows(Vec<UdpSocket>);

impl Flows {
    fn new(host: &Host) -> Result<Self> {
        let sockets = (0..FLOWS).map(|_| {
            let socket = host.socket()?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        sockets.collect::<Result<_>>().map(Self)
    }

    fn ask(&self, flow: usize, question: u32) -> TestResult {
        self.0[flow].send_to(&question.to_be_bytes(), (OUR_IP, ECHO))?;
        Ok(())
    }

    /// Whether the flow has had the answer to `question`; others are thrown away.
    fn is_answered(&self, flow: usize, question: u32) -> bool {
        let mut answer = [0; 64];
        while let Ok(bytes) = self.0[flow].recv(&mut answer) {
            if answer[..bytes] == question.to_be_bytes() {
                return true;
            }
        }
        false
    }
}

/// Takes all frames that have come by each pair.
fn take(port: &mut NetPort, mut taken: impl FnMut(usize, Packet)) -> TestResult {
    let mut frame = Vec::new();
    for (number, pair) in port.pairs.iter_mut().enumerate() {
        let mut some = false;
        while pair.rx.poll(&mut frame)?.is_some() {
            some = true;
            if let Some(packet) = datagram_in(&frame)? {
                taken(number, packet);
            }
        }
        if some {
            pair.rx.post_all()?;
        }
    }
    Ok(())
}

/// Answers what has come, by the pair it came by while that is one of the first `pairs`.
fn answer(port: &mut NetPort, pairs: usize) -> TestResult {
    let mut questions = Vec::new();
    take(port, |pair, packet| {
        if packet.ports.1 == ECHO {
            questions.push((pair, packet));
        }
    })?;
    for (pair, packet) in questions {
        let pair = if pair < pairs { pair } else { 0 };
        let frame = to_kernel((ECHO, packet.ports.0), &packet.payload);
        port.pairs[pair].tx.send_now(&plain(), &frame, PATIENCE)?;
    }
    Ok(())
}

/// All flows have an answer, if need be to a question asked again: the tap may be full.
fn all_are_answered(flows: &Flows, port: &mut NetPort, pairs: usize, question: u32) -> TestResult {
    let start = Instant::now();
    let mut open: Vec<usize> = (0..FLOWS).collect();
    while !open.is_empty() {
        if start.elapsed() > PATIENCE {
            return Err(format!("{pairs} pairs: no answer for the flows {open:?}").into());
        }
        for flow in &open {
            flows.ask(*flow, question)?;
        }
        let asked = Instant::now();
        while !open.is_empty() && asked.elapsed() < AGAIN {
            answer(port, pairs)?;
            open.retain(|flow| !flows.is_answered(*flow, question));
        }
    }
    Ok(())
}

fn post(port: &mut NetPort) -> TestResult {
    for pair in &mut port.pairs {
        pair.rx.post_all()?;
    }
    Ok(())
}

#[test]
fn rule_26_flows_all_arrive_at_a_guest_that_uses_one_pair_of_four() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(4)?;
    let mut back_end = host.back_end(4)?;
    let flows = Flows::new(&host)?;
    // The second guest takes the place of one that used all.
    for pairs in [1, 4, 1] {
        let mut port = open(&mut back_end, pairs)?;
        host.meet()?;
        post(&mut port)?;
        all_are_answered(&flows, &mut port, pairs, 1)?;
        let mut arrived = [false; FLOWS];
        for flow in 0..FLOWS {
            // None is lost: nothing else goes on.
            flows.ask(flow, 2)?;
        }
        let start = Instant::now();
        while arrived.contains(&false) && start.elapsed() < PATIENCE {
            answer(&mut port, pairs)?;
            for (flow, arrived) in arrived.iter_mut().enumerate() {
                *arrived |= flows.is_answered(flow, 2);
            }
        }
        assert!(!arrived.contains(&false), "{pairs} pairs: {arrived:?}");
    }
    Ok(())
}

#[test]
fn rule_26_flows_all_arrive_after_each_change_of_pairs_under_load() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(4)?;
    let mut back_end = host.back_end(4)?;
    let mut port = open(&mut back_end, 4)?;
    host.meet()?;
    post(&mut port)?;
    let flows = Flows::new(&host)?;
    let loads = [host.socket()?, host.socket()?, host.socket()?];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for socket in &loads {
                    // What does not go out is no load.
                    let _ = socket.send_to(&[0; 1000], (OUR_IP, DISCARD));
                }
                thread::sleep(Duration::from_micros(50));
            }
        });
        let _stop = Stop(&stop);
        let rounds = [1, 4, 2, 1].into_iter().cycle().take(12);
        for (question, pairs) in (0..).zip(rounds) {
            for vring in 2..8 {
                let enable = u32::from(vring < 2 * u32::try_from(pairs)?);
                assert!(port.messages.enable(vring, enable)?);
            }
            all_are_answered(&flows, &mut port, pairs, question)?;
        }
        Ok(())
    })
}

/// Which pairs the flows come by.
fn spread(flows: &Flows, port: &mut NetPort) -> Result<[usize; 4]> {
    let mut found = [0; 4];
    for flow in 0..FLOWS {
        flows.ask(flow, 3)?;
    }
    let start = Instant::now();
    while found.iter().sum::<usize>() < FLOWS {
        if start.elapsed() > PATIENCE {
            return Err(format!("{found:?}").into());
        }
        take(port, |pair, _| found[pair] += 1)?;
    }
    Ok(found)
}

#[test]
fn rule_26_pair_that_never_had_buffers_gets_no_flows() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(4)?;
    let mut back_end = host.back_end(4)?;
    let mut port = open(&mut back_end, 4)?;
    host.meet()?;
    for pair in [0, 2] {
        port.pairs[pair].rx.post_all()?;
    }
    crate::eventually("the second queue", || {
        let found = spread(&Flows::new(&host)?, &mut port)?;
        assert_eq!((found[1], found[3]), (0, 0));
        Ok(found[0] > 0 && found[2] > 0)
    })?;
    port.pairs[3].rx.post_all()?;
    crate::eventually("the third queue", || {
        let found = spread(&Flows::new(&host)?, &mut port)?;
        assert_eq!(found[1], 0);
        Ok(found[0] > 0 && found[2] > 0 && found[3] > 0)
    })
}

#[test]
fn rule_27_replies_come_to_the_pair_that_sent() -> TestResult {
    const PAIRS: usize = 4;
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(4)?;
    let mut back_end = host.back_end(4)?;
    let mut port = open(&mut back_end, PAIRS)?;
    host.meet()?;
    post(&mut port)?;
    let kernel = host.socket()?;
    let to = kernel.local_addr()?.port();
    let pair_of = |flow: u16| usize::from(flow) % PAIRS;
    // The first question makes the flow known, perhaps after its answer.
    for round in 0..4_u8 {
        for flow in 0..u16::try_from(FLOWS)? {
            let frame = to_kernel((5000 + flow, to), &[round]);
            port.pairs[pair_of(flow)]
                .tx
                .send_now(&plain(), &frame, PATIENCE)?;
            let mut question = [0; 8];
            let (bytes, from) = kernel.recv_from(&mut question)?;
            kernel.send_to(&question[..bytes], from)?;
            let mut came_by = None;
            let start = Instant::now();
            while came_by.is_none() && start.elapsed() < PATIENCE {
                take(&mut port, |pair, packet| {
                    if (packet.ports.1, packet.payload) == (5000 + flow, vec![round]) {
                        came_by = Some(pair);
                    }
                })?;
            }
            let came_by = came_by.ok_or("no answer")?;
            assert!(
                round == 0 || came_by == pair_of(flow),
                "flow {flow} of pair {}: an answer by pair {came_by}",
                pair_of(flow)
            );
        }
    }
    Ok(())
}
