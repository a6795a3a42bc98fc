// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What passes a device of the namespace, as `tcpdump` tells it.

use std::time::Duration;

use super::super::backend::START_LIMIT;
use super::super::child::Child;
use super::super::error::VmError;
use super::Network;

/// A running `tcpdump`, ended when dropped.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
}

impl Capture {
    /// Watches `device` for frames that pass `filter` (a `pcap-filter` expression).
    ///
    /// # Errors
    /// When `tcpdump` does not start.
    pub fn start(network: &Network, device: &str, filter: &str) -> Result<Self, VmError> {
        let args = [
            "--immediate-mode",
            "-n",
            "-t",
            "-e",
            "-l",
            "-i",
            device,
            filter,
        ];
        let mut tcpdump = network.spawn("tcpdump", &args)?;
        tcpdump.wait_for_text("listening on", START_LIMIT)?;
        Ok(Self { tcpdump })
    }

    /// One line for each frame so far, with its Ethernet header.
    #[must_use]
    pub fn frames(&self) -> Vec<String> {
        let log = self.tcpdump.log();
        log.lines()
            .filter(|line| line.contains(" ethertype "))
            .map(str::to_owned)
            .collect()
    }

    /// Waits for the first frame and gives its line.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn first_frame(&mut self, limit: Duration) -> Result<String, VmError> {
        self.tcpdump.wait_for_text(" ethertype ", limit)?;
        Ok(self.frames().into_iter().next().unwrap_or_default())
    }
}
