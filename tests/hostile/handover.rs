// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a front-end can hand over: every kind of descriptor with every message, to every device.
//!
//! Whatever it is, the message is answered or its connection closed, the next front-end is served,
//! another port of a switch never notices, and SIGTERM ends the process. So it is with as many
//! messages as it likes.

#[path = "handover/few.rs"]
mod few;
#[path = "handover/files.rs"]
mod files;
#[path = "handover/flat.rs"]
mod flat;
#[path = "handover/guest.rs"]
mod guest;
#[path = "handover/huge.rs"]
mod huge;
#[path = "handover/polled.rs"]
mod polled;
#[path = "handover/silent.rs"]
mod silent;
#[path = "handover/walk.rs"]
mod walk;

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringside_frontend::error::FrontendError;
use ringside_frontend::ids::request;
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{Flow, NetConfig, NetHeader, NetPort};
use ringside_frontend::raw::RawClient;
use ringside_frontend::session::Session;
use ringside_tests::hostile::wire::{self, RegionBody, mem_region, mem_table, vring_state};
use ringside_tests::hostile::{
    PATIENCE, Result, TestResult, expect_refusal, negotiated, wait_until,
};
use ringside_tests::process::{Launch, Process};

/// Far more than anything takes that waits for nobody.
const BOUND: Duration = Duration::from_secs(5);

/// A region of a page.
const REGION: RegionBody = RegionBody {
    gpa: 0,
    bytes: 4096,
    uva: 0x10_0000,
    offset: 0,
};

/// What is attacked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Device {
    Disk,
    Switch,
    Folder,
}

/// A device under attack.
struct Target {
    device: Device,
    process: Process,
    /// Another port of the same process.
    other: Option<NetPort>,
}

impl Target {
    fn all() -> Result<Vec<Self>> {
        Self::all_with(&[])
    }

    fn all_with(args: &[&str]) -> Result<Vec<Self>> {
        [Device::Disk, Device::Switch, Device::Folder]
            .map(|device| Self::start(device, args))
            .into_iter()
            .collect()
    }

    fn start(device: Device, args: &[&str]) -> Result<Self> {
        Self::start_in(device, args, "none")
    }

    /// A folder is in a sandbox of this kind.
    fn start_in(device: Device, args: &[&str], sandbox: &str) -> Result<Self> {
        let mut launch = match device {
            Device::Disk => Launch::back_end("ringside-blk")?.args(["--memory", "--size", "16M"]),
            Device::Switch => Launch::back_end("ringside-net")?.args(["--backend", "switch"]),
            Device::Folder => {
                let launch = Launch::back_end("ringside-fs")?;
                let shared = launch.path("shared");
                std::fs::create_dir(&shared)?;
                let launch = launch.arg("--shared-dir").arg(shared);
                launch.args(["--tag", "share", "--sandbox", sandbox])
            }
        };
        let (socket, second) = (launch.socket(), launch.path("second.sock"));
        launch = launch.args(args).arg("--socket-path").arg(&socket).env(
            "GLIBC_TUNABLES",
            "glibc.malloc.arena_max=1:glibc.pthread.stack_cache_size=0",
        );
        if device == Device::Switch {
            launch = launch.arg("--socket-path").arg(&second);
        }
        let mut process = launch.spawn()?;
        process.wait_listening(PATIENCE)?;
        let other = if device == Device::Switch {
            let stream = process.poll_until("second port", PATIENCE, |_| {
                Ok(UnixStream::connect(&second).ok())
            })?;
            let builder = Session::builder().without_features(OFFLOADS);
            Some(NetPort::open(stream, builder, &NetConfig::default())?)
        } else {
            None
        };
        Ok(Self {
            device,
            process,
            other,
        })
    }

    /// A front-end that has negotiated all that is offered.
    fn negotiated(&mut self) -> Result<RawClient> {
        negotiated(self.process.connect(PATIENCE)?, BOUND)
    }

    /// Both messages that bring memory are refused with a region of `file`.
    fn refuses(&mut self, region: RegionBody, file: BorrowedFd<'_>) -> TestResult {
        for (id, body) in [
            (request::SET_MEM_TABLE, mem_table(1, &[region])),
            (request::ADD_MEM_REG, mem_region(&region)),
        ] {
            let client = self.negotiated()?;
            let header = wire::header(id, &body).need_reply();
            client.send(header, &body, &[file])?;
            expect_refusal(&client).map_err(|e| format!("{:?}, {id}: {e}", self.device))?;
            self.others_go_on()?;
        }
        Ok(())
    }

    /// Frames of the other port are taken.
    fn others_go_on(&mut self) -> TestResult {
        let Some(port) = &mut self.other else {
            return Ok(());
        };
        let mut frame = Vec::new();
        Flow::new(guest::OTHER, guest::OWN, 9).make(0, 100, &mut frame);
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
            return Err(format!("{:?}: {status}\n{log}", self.device).into());
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
