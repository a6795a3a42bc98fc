// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two back-ends, each with a front-end of its own.

use std::error::Error;
use std::time::{Duration, Instant};

use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::testpmd::{Testpmd, TestpmdBuilder};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is measured.
pub(crate) struct Load {
    pub(crate) part: &'static str,
    pub(crate) name: &'static str,
    ports: usize,
    frame_bytes: usize,
    /// Of the front-end.
    mode: &'static str,
    our_back_end: &'static str,
    their_mode: &'static str,
}

impl Load {
    pub(crate) const ALL: [Self; 4] = [
        Self {
            part: "a",
            name: "transmit, 64 bytes",
            ports: 1,
            frame_bytes: 64,
            mode: "txonly",
            our_back_end: "null",
            their_mode: "rxonly",
        },
        Self {
            part: "b",
            name: "receive, 64 bytes",
            ports: 1,
            frame_bytes: 64,
            mode: "rxonly",
            our_back_end: "null:64",
            their_mode: "txonly",
        },
        Self::switch("switch, 64 bytes", 64),
        Self::switch("switch, 1518 bytes", 1518),
    ];

    const fn switch(name: &'static str, frame_bytes: usize) -> Self {
        Self {
            part: "c",
            name,
            ports: 2,
            frame_bytes,
            mode: "io",
            our_back_end: "switch",
            their_mode: "io",
        }
    }
}

/// Whose back-end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Ours,
    /// Ours from before a change.
    Old,
    Theirs,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Old => "old",
            Self::Theirs => "DPDK",
        }
    }
}

enum Back {
    Ours(NetBackEnd),
    Theirs(Testpmd),
}

/// A back-end and its front-end.
pub(crate) struct Contender {
    back: Back,
    front: Testpmd,
}

impl Contender {
    pub(crate) fn start(load: &Load, side: Side) -> Result<Self> {
        let (back, sockets) = match side {
            Side::Ours | Side::Old => {
                let args = ["--backend", load.our_back_end];
                let back = if side == Side::Old {
                    NetBackEnd::start_old(load.ports, &args)?
                } else {
                    NetBackEnd::start(load.ports, &args)?
                };
                let sockets: Vec<_> = (0..load.ports)
                    .map(|port| back.socket(port).to_owned())
                    .collect();
                (Back::Ours(back), sockets)
            }
            Side::Theirs => {
                let mut builder =
                    TestpmdBuilder::new(load.their_mode, 0)?.frame_bytes(load.frame_bytes);
                for _ in 0..load.ports {
                    builder = builder.vhost(1);
                }
                let back = builder.start()?;
                let sockets = (0..load.ports)
                    .map(|port| back.vhost_socket(port))
                    .collect();
                (Back::Theirs(back), sockets)
            }
        };
        let mut builder = TestpmdBuilder::new(load.mode, 1)?.frame_bytes(load.frame_bytes);
        for socket in &sockets {
            builder = builder.virtio_user(socket, "");
        }
        let mut contender = Self {
            front: builder.start()?,
            back,
        };
        if let Back::Ours(back) = &mut contender.back {
            bind(back.process().id(), 0)?;
        }
        Ok(contender)
    }

    /// Frames per second over one turn: sent, or where the front-end sends none, received.
    pub(crate) fn round(&mut self, load: &Load, slice: Duration) -> Result<f64> {
        if let Back::Theirs(back) = &mut self.back {
            back.start_forwarding()?;
        }
        let before = self.count(load)?;
        let start = Instant::now();
        if load.mode == "io" {
            self.front.start_tx_first(8)?;
        } else {
            self.front.start_forwarding()?;
        }
        std::thread::sleep(slice);
        self.front.stop_forwarding()?;
        let seconds = start.elapsed().as_secs_f64();
        let frames = self.count(load)? - before;
        if let Back::Theirs(back) = &mut self.back {
            back.stop_forwarding()?;
        }
        Ok(u32::try_from(frames).map(f64::from)? / seconds)
    }

    fn count(&mut self, load: &Load) -> Result<u64> {
        let mut frames = 0;
        for port in 0..load.ports {
            let stats = self.front.stats(port)?;
            frames += if load.mode == "txonly" {
                stats.tx_packets
            } else {
                stats.rx_packets
            };
        }
        Ok(frames)
    }
}

/// Binds all threads of a process, as they are now, to a processor.
pub(crate) fn bind(process: u32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let id = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(id), &set)?;
    }
    Ok(())
}
