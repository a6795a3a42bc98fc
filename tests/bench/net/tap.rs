// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames from a guest's memory to a tap: short ones beside DPDK, long ones, and both beside
//! somebody who only writes to a tap.

use std::time::{Duration, Instant};

use ringside_frontend::net::{NetConfig, NetPort, Pair, TxConfig};
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::process::{Process, old_back_end_binary};
use ringside_tests::testpmd::{Testpmd, TestpmdBuilder};
use ringside_tests::vm::Network;

use crate::Result;
use crate::contender::bind;
use crate::contest::{
    BACK_END_CPU, Contender, Contest, FRONT_END_CPU, Turn, bind_self, for_a_while,
};
use crate::frames::{tso, udp};
use crate::host::{RawWriter, frames_of};

const SHORT_BYTES: usize = 64;
const LONG_BYTES: usize = 62 << 10;
/// Of the devices.
const OURS: &str = "ours";
const OLD: &str = "old";
const THEIRS: &str = "theirs";
const RAW: &str = "raw";

/// Part d.
pub(crate) fn short_frames(network: &Network, rounds: usize, slice: Duration) -> Result<()> {
    network.tap(OURS, 1, &[])?;
    network.tap(RAW, 1, &[])?;
    let (header, frame) = udp(SHORT_BYTES);
    if old_back_end_binary("ringside-net").is_some() {
        network.tap(OLD, 1, &[])?;
        let contest = Contest {
            name: "d: frames of 64 bytes to a tap".into(),
            unit: ("million frames", 1e6),
            contenders: vec![
                ("ours", Box::new(Forwarder::ours(OURS)?)),
                ("old", Box::new(Forwarder::ours(OLD)?)),
            ],
            wanted: vec![None, Some(0.97)],
        };
        return contest.run(rounds, slice);
    }
    let contest = Contest {
        name: "d: frames of 64 bytes to a tap".into(),
        unit: ("million frames", 1e6),
        contenders: vec![
            ("ours", Box::new(Forwarder::ours(OURS)?)),
            ("DPDK vhost and tap", Box::new(Forwarder::theirs()?)),
            (
                "writev alone",
                Box::new(RawWriter::open(RAW, header, frame)?),
            ),
        ],
        wanted: vec![None, Some(1.1), Some(0.9)],
    };
    contest.run(rounds, slice)
}

/// Part e.
pub(crate) fn long_frames(network: &Network, rounds: usize, slice: Duration) -> Result<()> {
    network.tap(OURS, 1, &[])?;
    network.tap(RAW, 1, &[])?;
    let (header, frame) = tso(LONG_BYTES);
    // A gigabit in frames.
    let unit = 1e9 / f64::from(8 * u32::try_from(LONG_BYTES)?);
    let contest = Contest {
        name: "e: TCP segments of 62 KiB to a tap".into(),
        unit: ("gigabits", unit),
        contenders: vec![
            ("ours", Box::new(Driver::start()?)),
            (
                "writev alone",
                Box::new(RawWriter::open(RAW, header, frame)?),
            ),
        ],
        wanted: vec![None, Some(0.7)],
    };
    contest.run(rounds, slice)
}

/// Our back-end on its tap, bound to its processor once its front-end has made it start threads.
fn our_back_end(tap: &str) -> Result<NetBackEnd> {
    let backend = format!("tap:{tap}");
    let args = ["--backend", &backend, "--queue-pairs=1"];
    if tap == OLD {
        return Ok(NetBackEnd::start_old(1, &args)?);
    }
    Ok(NetBackEnd::start(1, &args)?)
}

enum Back {
    Ours(NetBackEnd),
    Theirs(Testpmd),
}

impl Back {
    fn process(&mut self) -> &mut Process {
        match self {
            Self::Ours(back) => back.process(),
            Self::Theirs(back) => back.process(),
        }
    }
}

/// A back-end that is sent to by testpmd.
struct Forwarder {
    back: Back,
    front: Testpmd,
    tap: &'static str,
}

impl Forwarder {
    fn ours(tap: &'static str) -> Result<Self> {
        let mut back = our_back_end(tap)?;
        let front = sender(back.socket(0))?;
        bind(back.process().id(), BACK_END_CPU)?;
        let back = Back::Ours(back);
        Ok(Self { back, front, tap })
    }

    fn theirs() -> Result<Self> {
        let back = TestpmdBuilder::new("io", BACK_END_CPU)?
            .vhost(1)
            .device(format!("net_tap0,iface={THEIRS}"))
            .start()?;
        let front = sender(&back.vhost_socket(0))?;
        let back = Back::Theirs(back);
        Ok(Self {
            back,
            front,
            tap: THEIRS,
        })
    }
}

fn sender(socket: &std::path::Path) -> Result<Testpmd> {
    Ok(TestpmdBuilder::new("txonly", FRONT_END_CPU)?
        .frame_bytes(SHORT_BYTES)
        .virtio_user(socket, "")
        .start()?)
}

impl Contender for Forwarder {
    fn turn(&mut self, slice: Duration) -> Result<Turn> {
        let cpu = self.back.process().sample()?.cpu;
        if let Back::Theirs(back) = &mut self.back {
            back.start_forwarding()?;
        }
        let (before, start) = (frames_of(self.tap)?, Instant::now());
        self.front.start_forwarding()?;
        std::thread::sleep(slice);
        self.front.stop_forwarding()?;
        let count = frames_of(self.tap)? - before;
        let seconds = start.elapsed().as_secs_f64();
        if let Back::Theirs(back) = &mut self.back {
            back.stop_forwarding()?;
        }
        let cpu_seconds = (self.back.process().sample()?.cpu - cpu).as_secs_f64();
        Ok(Turn {
            count,
            seconds,
            cpu_seconds,
        })
    }
}

/// Our back-end, sent to by a driver in this process.
struct Driver {
    back: NetBackEnd,
    port: NetPort,
}

impl Driver {
    fn start() -> Result<Self> {
        bind_self(FRONT_END_CPU)?;
        let mut back = our_back_end(OURS)?;
        let config = NetConfig {
            tx: TxConfig {
                slot_bytes: 64 << 10,
                ..TxConfig::default()
            },
            ..NetConfig::default()
        };
        let builder = Session::builder().calls(CallMode::Never);
        let mut port = NetPort::open(back.connect(0)?, builder, &config)?;
        let (header, frame) = tso(LONG_BYTES);
        port.pairs[0].tx.fill(&header, &frame)?;
        bind(back.process().id(), BACK_END_CPU)?;
        Ok(Self { back, port })
    }
}

impl Contender for Driver {
    fn turn(&mut self, slice: Duration) -> Result<Turn> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let (before, cpu) = (frames_of(OURS)?, self.back.process().sample()?.cpu);
        let start = Instant::now();
        let Pair { tx, .. } = &mut self.port.pairs[0];
        for_a_while(slice, || {
            while tx.send_filled(LONG_BYTES)? {}
            tx.publish()?;
            tx.reap()?;
            Ok(())
        })?;
        tx.wait_all(PATIENCE)?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu_seconds = (self.back.process().sample()?.cpu - cpu).as_secs_f64();
        Ok(Turn {
            count: frames_of(OURS)? - before,
            seconds,
            cpu_seconds,
        })
    }
}
