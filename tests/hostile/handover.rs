// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a front-end can hand over: every kind of descriptor with every message, to every device.
//!
//! Whatever it is, the message is answered or its connection closed, the next front-end is served,
//! another port of a switch never notices, and SIGTERM ends the process. So it is with as many
//! messages as it likes.

#[path = "handover/silent.rs"]
mod silent;
#[path = "handover/walk.rs"]
mod walk;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringside_tests::frontend::error::FrontendError;
use ringside_tests::frontend::ids::request;
use ringside_tests::frontend::net::net_feature::OFFLOADS;
use ringside_tests::frontend::net::{Flow, NetConfig, NetHeader, NetPort};
use ringside_tests::frontend::raw::RawClient;
use ringside_tests::frontend::session::Session;
use ringside_tests::hostile::wire::{self, vring_state};
use ringside_tests::hostile::{PATIENCE, Result, TestResult, negotiated, wait_until};
use ringside_tests::process::{Launch, Process};

/// Far more than anything takes that waits for nobody.
const BOUND: Duration = Duration::from_secs(5);

/// A device under attack.
struct Target {
    name: &'static str,
    process: Process,
    /// Another port of the same process.
    other: Option<NetPort>,
}

impl Target {
    fn disk() -> Result<Self> {
        let launch = Launch::back_end("ringside-blk")?.args(["--memory", "--size", "16M"]);
        Self::start("disk", launch, false)
    }

    fn folder() -> Result<Self> {
        Self::folder_in("none")
    }

    fn folder_in(sandbox: &str) -> Result<Self> {
        let launch = Launch::back_end("ringside-fs")?;
        let shared = launch.path("shared");
        std::fs::create_dir(&shared)?;
        let launch =
            launch
                .arg("--shared-dir")
                .arg(shared)
                .args(["--tag", "share", "--sandbox", sandbox]);
        Self::start("folder", launch, false)
    }

    fn switch() -> Result<Self> {
        let launch = Launch::back_end("ringside-net")?.args(["--backend", "switch"]);
        Self::start("switch", launch, true)
    }

    fn all() -> Result<Vec<Self>> {
        Ok(vec![Self::disk()?, Self::switch()?, Self::folder()?])
    }

    fn start(name: &'static str, launch: Launch, switch: bool) -> Result<Self> {
        let (socket, second) = (launch.socket(), launch.path("second.sock"));
        let mut launch = launch.arg("--socket-path").arg(&socket).env(
            "GLIBC_TUNABLES",
            "glibc.malloc.arena_max=1:glibc.pthread.stack_cache_size=0",
        );
        if switch {
            launch = launch.arg("--socket-path").arg(&second);
        }
        let mut process = launch.spawn()?;
        process.wait_listening(PATIENCE)?;
        let other = if switch {
            let stream = process.poll_until("second port", PATIENCE, |_| {
                Ok(UnixStream::connect(&second).ok())
            })?;
            let builder = Session::builder().without_features(OFFLOADS);
            Some(NetPort::open(stream, builder, &NetConfig::default())?)
        } else {
            None
        };
        Ok(Self {
            name,
            process,
            other,
        })
    }

    /// A front-end that has negotiated all that is offered.
    fn negotiated(&mut self) -> Result<RawClient> {
        negotiated(self.process.connect(PATIENCE)?, BOUND)
    }

    /// Frames of the other port are taken.
    fn others_go_on(&mut self) -> TestResult {
        let Some(port) = &mut self.other else {
            return Ok(());
        };
        let mut frame = Vec::new();
        Flow::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], 9).make(0, 100, &mut frame);
        for _ in 0..10 {
            port.pairs[0]
                .tx
                .send_now(&NetHeader::default(), &frame, BOUND)?;
        }
        Ok(())
    }

    /// SIGTERM ends it, in good order.
    fn ends(mut self) -> TestResult {
        drop(self.other.take());
        let status = self.process.terminate(BOUND)?;
        let log = self.process.stderr();
        if !status.success() || log.contains("panicked") {
            return Err(format!("{}: {status}\n{log}", self.name).into());
        }
        Ok(())
    }
}

/// The connection is answered on or closed.
fn answered_or_closed(client: &RawClient) -> Result<bool> {
    match client.call(request::GET_FEATURES, &[], BOUND) {
        Ok(_) => Ok(true),
        Err(error @ FrontendError::Timeout { .. }) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

#[test]
fn a8_front_end_that_never_stops_sending_keeps_neither_others_nor_the_end() -> TestResult {
    let body = vring_state(0, 64);
    let message = [
        &wire::header(request::SET_VRING_NUM, &body).to_bytes()[..],
        &body,
    ];
    let messages = message.concat().repeat(1000);
    for mut target in Target::all()? {
        let client = target.negotiated()?;
        let sent = Arc::new(AtomicU64::new(0));
        let (counter, messages) = (Arc::clone(&sent), messages.clone());
        let flood = std::thread::spawn(move || {
            while client.send_bytes(&messages, &[]).is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        for more in [10, 20] {
            wait_until("the flood", || Ok(sent.load(Ordering::Relaxed) >= more))?;
            target.others_go_on()?;
        }
        target.ends()?;
        flood.join().map_err(|_panic| "the flood panicked")?;
    }
    Ok(())
}
