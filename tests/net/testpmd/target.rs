// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cases, and the back-ends they are run on.

use std::error::Error;
use std::path::PathBuf;

use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::testpmd::{Testpmd, TestpmdBuilder};

/// Which back-end to test.
const BACK_END_VARIABLE: &str = "RINGSIDE_NET_BACK_END";
/// The most pairs a case has.
const PAIRS: usize = 4;

/// One combination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    merges: bool,
    in_order: bool,
    queues: usize,
    queue_size: usize,
    pub(crate) bytes: usize,
}

impl Case {
    /// Number of values of each field.
    pub(crate) const VALUES: [usize; 5] = [2, 2, 3, 3, 3];

    pub(crate) fn of([merges, in_order, queues, queue_size, bytes]: [usize; 5]) -> Self {
        Self {
            merges: merges == 1,
            in_order: in_order == 1,
            queues: [1, 2, 4][queues],
            queue_size: [64, 256, 1024][queue_size],
            bytes: [64, 1500, 9000][bytes],
        }
    }

    /// A front-end with one device per socket.
    pub(crate) fn front(&self, sockets: &[PathBuf]) -> Result<TestpmdBuilder, Box<dyn Error>> {
        let options = format!(
            "queues={},queue_size={},mrg_rxbuf={},in_order={}",
            self.queues,
            self.queue_size,
            u8::from(self.merges),
            u8::from(self.in_order)
        );
        let mut builder = TestpmdBuilder::new("io", 1)?;
        for socket in sockets {
            builder = builder.virtio_user(socket, &options);
        }
        // All frames under way fit a receive ring, even if all came to one: nothing needs be lost.
        // A frame of 9000 bytes takes 5 small buffers.
        let scattered = self.merges && self.bytes > 2048 && self.queue_size >= 256;
        let room = self.queue_size / (2 * self.queues * sockets.len());
        let burst = if scattered { room / 6 } else { room };
        builder = builder
            .option(format!("--rxq={}", self.queues))
            .option(format!("--txq={}", self.queues))
            .option(format!("--rxd={}", self.queue_size))
            .option(format!("--txd={}", self.queue_size))
            .option(format!("--burst={}", burst.clamp(1, 32)));
        Ok(if scattered {
            builder.scattered_frame_bytes(self.bytes)
        } else {
            builder.frame_bytes(self.bytes)
        })
    }
}

/// What to start.
pub(crate) enum Target {
    Ours { ports: usize },
    Theirs { ports: usize },
}

/// What runs.
pub(crate) enum Running {
    Ours(NetBackEnd, usize),
    Theirs(Testpmd, usize),
}

impl Target {
    /// One port gives every frame back; of two, each gets what the other is sent.
    pub(crate) fn of(ports: usize) -> Self {
        if Self::is_theirs() {
            Self::Theirs { ports }
        } else {
            Self::Ours { ports }
        }
    }

    pub(crate) fn is_theirs() -> bool {
        std::env::var(BACK_END_VARIABLE).is_ok_and(|name| name == "dpdk")
    }

    pub(crate) fn ports(&self) -> usize {
        match self {
            Self::Ours { ports } | Self::Theirs { ports } => *ports,
        }
    }

    pub(crate) fn start(&self) -> Result<Running, Box<dyn Error>> {
        match *self {
            Self::Ours { ports } => {
                let kind = if ports == 1 { "loopback" } else { "switch" };
                let pairs = PAIRS.to_string();
                let args = ["--backend", kind, "--queue-pairs", &pairs];
                Ok(Running::Ours(NetBackEnd::start(ports, &args)?, ports))
            }
            Self::Theirs { ports } => {
                let mut builder = TestpmdBuilder::new("io", 0)?;
                for _ in 0..ports {
                    builder = builder.vhost(PAIRS);
                }
                let mut testpmd = builder
                    .frame_bytes(9000)
                    .option(format!("--rxq={PAIRS}"))
                    .option(format!("--txq={PAIRS}"))
                    .start()?;
                testpmd.start_forwarding()?;
                Ok(Running::Theirs(testpmd, ports))
            }
        }
    }
}

impl Running {
    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        match self {
            Self::Ours(back_end, ports) => (0..*ports)
                .map(|port| back_end.socket(port).to_owned())
                .collect(),
            Self::Theirs(testpmd, ports) => {
                (0..*ports).map(|port| testpmd.vhost_socket(port)).collect()
            }
        }
    }

    /// What our back-end has counted, for a case that fails.
    pub(crate) fn losses(&self) -> String {
        let Self::Ours(back_end, _) = self else {
            return String::new();
        };
        let stats = match back_end.control("stats", &serde_json::Value::Null) {
            Ok(stats) => stats,
            Err(error) => return error,
        };
        let ports = stats["ports"].as_array().into_iter().flatten();
        let vrings = ports.flat_map(|port| port["packets"].as_array().into_iter().flatten());
        vrings
            .map(|v| {
                format!(
                    "\n  {} {}: {} passed, lost {}",
                    v["direction"], v["queue"], v["good_packets"], v["drops"]
                )
            })
            .collect()
    }

    /// It has not ended.
    pub(crate) fn check(&mut self) -> Result<(), Box<dyn Error>> {
        let process = match self {
            Self::Ours(back_end, _) => back_end.process(),
            Self::Theirs(testpmd, _) => testpmd.process(),
        };
        match process.try_exit()? {
            None => Ok(()),
            Some(status) => Err(format!("the back-end has ended: {status}").into()),
        }
    }
}
