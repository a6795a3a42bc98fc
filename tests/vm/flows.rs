// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vm-flows SERVER COUNT SECONDS`: asks an echo server over COUNT flows and says which of them got
//! no answer.
//!
//! Each flow is a UDP socket whose port is always the same, so that two runs ask over the same
//! flows, and what steers packets to queues by flow has something to remember. A flow asks again
//! until it has its answer: a lost packet is no matter, a queue that nobody serves is. Flows take
//! turns on the processors, since Linux chooses a queue by the processor.

use std::error::Error;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Port of the first flow.
const FIRST_PORT: u16 = 40_000;

/// Between two questions of a flow: far above the round trip of a loaded guest under TCG.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// Between two looks at all sockets.
const POLL: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (text, code) = match run(&words) {
        Ok(unanswered) if unanswered.is_empty() => ("all flows answered".into(), ExitCode::SUCCESS),
        Ok(ports) => (format!("no answer on ports {ports:?}"), ExitCode::FAILURE),
        Err(error) => (format!("vm-flows: {error}"), ExitCode::FAILURE),
    };
    writeln!(io::stdout(), "{text}").unwrap_or_default();
    code
}

/// The ports whose flows got no answer.
fn run(words: &[String]) -> io::Result<Vec<u16>> {
    let [server, count, seconds] = words else {
        return Err(bad("usage: vm-flows SERVER COUNT SECONDS"));
    };
    let server: SocketAddr = server.parse().map_err(bad)?;
    let count: u16 = count.parse().map_err(bad)?;
    let limit = Duration::from_secs(seconds.parse().map_err(bad)?);
    let processors = thread::available_parallelism()?.get();
    let mut waiting = Vec::new();
    for port in FIRST_PORT..FIRST_PORT.saturating_add(count) {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        waiting.push((port, socket));
    }
    // An answer to a question of an earlier run must not count.
    let question = format!("{:?}", Instant::now());
    let deadline = Instant::now() + limit;
    let mut next_question = Instant::now();
    while !waiting.is_empty() && Instant::now() < deadline {
        if Instant::now() >= next_question {
            for (port, socket) in &waiting {
                let mut processor = CpuSet::new();
                processor.set(usize::from(*port) % processors);
                sched_setaffinity(None, &processor)?;
                // A link that is down loses the question; the next one follows.
                let _ = socket.send(question.as_bytes());
            }
            next_question = Instant::now() + ASK_AGAIN;
        }
        waiting.retain(|(_, socket)| !answered(socket, question.as_bytes()));
        thread::sleep(POLL);
    }
    Ok(waiting.into_iter().map(|(port, _)| port).collect())
}

fn answered(socket: &UdpSocket, question: &[u8]) -> bool {
    let mut buffer = [0; 256];
    while let Ok(count) = socket.recv(&mut buffer) {
        if buffer.get(..count) == Some(question) {
            return true;
        }
    }
    false
}

fn bad(error: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
