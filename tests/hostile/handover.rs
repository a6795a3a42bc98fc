// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a front-end can hand over: every kind of descriptor with every message, to every device.
//!
//! Whatever it is, the message is answered or its connection closed, the next front-end is served,
//! another port of a switch never notices, and SIGTERM ends the process.

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
#[path = "handover/walk.rs"]
mod walk;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringside_tests::frontend::error::FrontendError;
use ringside_tests::frontend::ids::request;
use ringside_tests::frontend::net::net_feature::OFFLOADS;
use ringside_tests::frontend::net::{Flow, NetConfig, NetHeader, NetPort};
use ringside_tests::frontend::raw::RawClient;
use ringside_tests::frontend::session::Session;
use ringside_tests::hostile::{PATIENCE, Result, TestResult, negotiated};
use ringside_tests::process::{Launch, Process};

/// Far more than anything takes that waits for nobody.
const BOUND: Duration = Duration::from_secs(5);

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
        let mut launch = match device {
            Device::Disk => Launch::back_end("ringside-blk")?.args(["--memory", "--size", "16M"]),
            Device::Switch => Launch::back_end("ringside-net")?.args(["--backend", "switch"]),
            Device::Folder => {
                let launch = Launch::back_end("ringside-fs")?;
                let shared = launch.path("shared");
                std::fs::create_dir(&shared)?;
                let launch = launch.arg("--shared-dir").arg(shared);
                launch.args(["--tag", "share", "--sandbox", "none"])
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
