// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DPDK's `testpmd` as a front-end (`virtio_user`), as a rival back-end (`net_vhost`), or as both:
//! a program nobody here wrote, without huge pages and without a guest.
//!
//! It is run by its prompt. Its standard output is made line-buffered, so that an answer is there
//! when it is looked for.

use std::io::{PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Launch, Process, ProcessError, Result};

/// How long it may take to start or to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Frames in a burst, and so the unit of [`Testpmd::start_tx_first`].
pub const BURST: u64 = 32;
/// testpmd's buffers by default, headroom included.
const SMALL_BUFFER_BYTES: usize = 2176;

/// Whether this machine has what it takes, and if not, why.
///
/// # Errors
///
/// A text for a skip.
pub fn available() -> std::result::Result<(), String> {
    match Command::new("dpdk-testpmd").arg("--help").output() {
        Err(error) => Err(format!("dpdk-testpmd: {error}")),
        Ok(_) => match Command::new("stdbuf").arg("--version").output() {
            Err(error) => Err(format!("stdbuf: {error}")),
            Ok(_) => Ok(()),
        },
    }
}

/// A `testpmd` about to be started.
#[derive(Debug)]
pub struct TestpmdBuilder {
    launch: Launch,
    cpu: usize,
    devices: Vec<String>,
    mode: &'static str,
    options: Vec<String>,
}

impl TestpmdBuilder {
    /// A process that forwards in `mode` (`io`, `macswap`, `rxonly`, `txonly`, ...), its threads
    /// all on one processor.
    ///
    /// # Errors
    ///
    /// When no temporary directory can be made.
    pub fn new(mode: &'static str, cpu: usize) -> Result<Self> {
        Ok(Self {
            launch: Launch::program("stdbuf")?,
            cpu,
            devices: Vec::new(),
            mode,
            options: Vec::new(),
        })
    }

    /// Adds a `virtio_user` front-end on a socket; `options` like `mrg_rxbuf=0,queue_size=64`.
    #[must_use]
    pub fn virtio_user(mut self, socket: &Path, options: &str) -> Self {
        let number = self.devices.len();
        self.devices.push(format!(
            "net_virtio_user{number},path={},mac={}{}{options}",
            socket.display(),
            mac(number),
            if options.is_empty() { "" } else { "," },
        ));
        self
    }

    /// Adds a `net_vhost` back-end, which listens on [`Testpmd::vhost_socket`] of its number.
    #[must_use]
    pub fn vhost(mut self, pairs: usize) -> Self {
        let number = self.devices.len();
        let socket = self.launch.path(&format!("vhost-{number}.sock"));
        self.devices.push(format!(
            "net_vhost{number},iface={},queues={pairs}",
            socket.display()
        ));
        self
    }

    /// Adds any other device.
    #[must_use]
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.devices.push(device.into());
        self
    }

    /// Adds an option of testpmd proper, such as `--txpkts=1500`.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Frames of this length, each in one buffer.
    #[must_use]
    pub fn frame_bytes(self, bytes: usize) -> Self {
        let room = (bytes + 512).next_multiple_of(64).max(SMALL_BUFFER_BYTES);
        self.option(format!("--mbuf-size={room}"))
            .option(format!("--txpkts={bytes}"))
            .longest_frame(bytes)
    }

    /// Frames of this length in as many buffers of 2 KiB as they take.
    #[must_use]
    pub fn scattered_frame_bytes(self, bytes: usize) -> Self {
        const PART: usize = 2000;
        let parts: Vec<_> = (0..bytes)
            .step_by(PART)
            .map(|at| (bytes - at).min(PART).to_string())
            .collect();
        self.option(format!("--mbuf-size={SMALL_BUFFER_BYTES}"))
            .option(format!("--txpkts={}", parts.join(",")))
            .option("--enable-scatter")
            .longest_frame(bytes)
    }

    fn longest_frame(self, bytes: usize) -> Self {
        if bytes > 1518 {
            self.option(format!("--max-pkt-len={bytes}"))
        } else {
            self
        }
    }

    /// Starts it and waits for its prompt.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(self) -> Result<Testpmd> {
        let mut testpmd = self.spawn()?;
        testpmd.wait_prompt()?;
        Ok(testpmd)
    }

    /// Starts it only: one that listens as a front-end has no prompt before a back-end connects.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn spawn(self) -> Result<Testpmd> {
        let (reader, input) =
            std::io::pipe().map_err(|source| ProcessError::pipe("pipe", source))?;
        let cpu = self.cpu;
        let mut launch = self
            .launch
            .args(["-oL", "dpdk-testpmd"])
            .args(["--lcores", &format!("0@{cpu},1@{cpu}")])
            .args(["--no-pci", "--no-huge", "-m", "256"])
            .args(["--no-telemetry", "--no-shconf"]);
        for device in &self.devices {
            launch = launch.args(["--vdev", device]);
        }
        launch = launch
            .args(["--", "-i", "--nb-cores=1", "--no-mlockall"])
            .arg("--total-num-mbufs=16384")
            .arg(format!("--forward-mode={}", self.mode));
        for number in 0..self.devices.len() {
            // Each port sends to the one it is paired with, so that a switch can learn.
            launch = launch.arg(format!("--eth-peer={number},{}", mac(number ^ 1)));
        }
        launch = launch.args(&self.options);
        launch.command_mut().stdin(reader);
        let process = launch.spawn()?;
        Ok(Testpmd { process, input })
    }

    /// A path in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.launch.path(name)
    }
}

/// The address of a port.
#[must_use]
pub fn mac(port: usize) -> String {
    format!("02:00:00:00:00:{:02x}", port + 1)
}

/// What a port has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PortStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// A running `testpmd`.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    input: PipeWriter,
}

impl Testpmd {
    /// Where its `net_vhost` device of that number listens.
    #[must_use]
    pub fn vhost_socket(&self, number: usize) -> PathBuf {
        self.process.path(&format!("vhost-{number}.sock"))
    }

    /// Waits for its prompt.
    ///
    /// # Errors
    ///
    /// When it ends before, or takes too long.
    pub fn wait_prompt(&mut self) -> Result<()> {
        self.process
            .poll_until("prompt of testpmd", PATIENCE, |process| {
                Ok(process.stderr().contains("testpmd> ").then_some(()))
            })
    }

    /// Begins to forward.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn start_forwarding(&mut self) -> Result<()> {
        self.command("start", "packet forwarding - ports=")
            .map(drop)
    }

    /// Begins to forward after each port has sent `bursts` bursts on each queue.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn start_tx_first(&mut self, bursts: u64) -> Result<()> {
        self.command(
            &format!("start tx_first {bursts}"),
            "packet forwarding - ports=",
        )
        .map(drop)
    }

    /// Stops forwarding.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn stop_forwarding(&mut self) -> Result<()> {
        self.command("stop", "Done.").map(drop)
    }

    /// Forwards in another mode from the next start on.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn set_mode(&mut self, mode: &str) -> Result<()> {
        self.command(&format!("set fwd {mode}"), "packet forwarding mode")
            .map(drop)
    }

    /// What a port has counted.
    ///
    /// # Errors
    ///
    /// When it does not answer in the way known.
    pub fn stats(&mut self, port: usize) -> Result<PortStats> {
        let text = self.command(&format!("show port stats {port}"), "Tx-bps:")?;
        let number = |label: &str| {
            let (_, rest) = text.split_once(label)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let missing = |field| ProcessError::Proc {
            pid: self.process.id(),
            file: "port stats",
            field,
        };
        Ok(PortStats {
            rx_packets: number("RX-packets:").ok_or_else(|| missing("RX-packets"))?,
            rx_bytes: number("RX-bytes:").ok_or_else(|| missing("RX-bytes"))?,
            tx_packets: number("TX-packets:").ok_or_else(|| missing("TX-packets"))?,
            tx_bytes: number("TX-bytes:").ok_or_else(|| missing("TX-bytes"))?,
        })
    }

    /// Gives a command and returns what is said from then on, once `marker` is in it.
    ///
    /// # Errors
    ///
    /// When that does not come.
    pub fn command(&mut self, command: &str, marker: &str) -> Result<String> {
        let before = self.process.stderr().len();
        writeln!(self.input, "{command}")
            .map_err(|source| ProcessError::pipe("command to testpmd", source))?;
        self.process
            .poll_until("answer of testpmd", PATIENCE, |process| {
                let said = process.stderr();
                let answer = said.get(before..).unwrap_or_default();
                Ok(answer.contains(marker).then(|| answer.to_owned()))
            })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
