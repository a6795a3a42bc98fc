// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Addresses, and files for firmware, from `dnsmasq`.

use std::path::Path;

use super::super::backend::START_LIMIT;
use super::super::child::Child;
use super::super::error::VmError;
use super::Network;

/// What the server hands out.
#[derive(Clone, Copy, Debug)]
pub struct DhcpOptions<'a> {
    /// First and last address, of the device's own network.
    pub range: (&'a str, &'a str),
    /// A directory served by TFTP, and the file in it that firmware is told to boot.
    pub boot: Option<(&'a Path, &'a str)>,
}

/// A running `dnsmasq`, ended when dropped.
#[derive(Debug)]
pub struct DhcpServer {
    dnsmasq: Child,
}

impl DhcpServer {
    /// Serves the clients behind `device`.
    ///
    /// # Errors
    /// When `dnsmasq` does not start.
    pub fn start(
        network: &Network,
        device: &str,
        options: &DhcpOptions<'_>,
    ) -> Result<Self, VmError> {
        let (first, last) = options.range;
        let mut args: Vec<String> = [
            "--conf-file=/dev/null",
            "--keep-in-foreground",
            "--log-facility=-",
            "--log-dhcp",
            "--user=root",
            "--pid-file=",
            "--leasefile-ro",
            "--no-resolv",
            "--no-hosts",
            "--no-ping",
            "--port=0",
            "--dhcp-authoritative",
        ]
        .map(String::from)
        .into();
        args.push(format!("--interface={device}"));
        args.push(format!("--dhcp-range={first},{last},1h"));
        if let Some((root, file)) = options.boot {
            args.push("--enable-tftp".into());
            args.push(format!("--tftp-root={}", root.display()));
            args.push(format!("--dhcp-boot={file}"));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut dnsmasq = network.spawn("dnsmasq", &args)?;
        dnsmasq.wait_for_text("DHCP, IP range", START_LIMIT)?;
        Ok(Self { dnsmasq })
    }

    /// What the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.dnsmasq.log()
    }
}
