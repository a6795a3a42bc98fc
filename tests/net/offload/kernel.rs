// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A scratch network namespace whose kernel is the other end.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::Instant;

use nix::sched::{CloneFlags, setns};
use ringside_frontend::net::Mac;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::vm::Network;

use crate::sample::{OUR_IP, OUR_IP6, THEIR_IP, THEIR_IP6};
use crate::{OURS, PATIENCE, Result, THEIRS};

/// See above.
pub(crate) struct Host {
    network: Network,
}

impl Host {
    /// A namespace with nothing in it.
    pub(crate) fn new() -> Result<Self> {
        let network = Network::new()?;
        Ok(Self { network })
    }

    /// A namespace with a tap of the receiver's addresses, which knows the sender's.
    pub(crate) fn with_tap(name: &str) -> Result<Self> {
        let host = Self::new()?;
        host.network.tap(name, 1, &[])?;
        host.settle(name)?;
        Ok(host)
    }

    /// The same with a pair of devices: the receiver's, and that at the other end of its cable.
    pub(crate) fn with_veth(name: &str, other: &str) -> Result<Self> {
        let host = Self::new()?;
        host.ip(&format!("link add {name} type veth peer name {other}"))?;
        host.ip(&format!("link set {other} up"))?;
        host.ip(&format!("link set {name} up"))?;
        host.settle(name)?;
        Ok(host)
    }

    fn settle(&self, device: &str) -> Result<()> {
        self.ip(&format!("link set {device} address {}", text_of(THEIRS)))?;
        self.ip(&format!("address add {THEIR_IP}/24 dev {device}"))?;
        self.ip(&format!("address add {THEIR_IP6}/64 dev {device} nodad"))?;
        for ip in [IpAddr::V4(OUR_IP), IpAddr::V6(OUR_IP6)] {
            let ours = text_of(OURS);
            self.ip(&format!(
                "neigh add {ip} lladdr {ours} dev {device} nud permanent"
            ))?;
        }
        Ok(())
    }

    /// Runs `ip` with these words in the namespace.
    pub(crate) fn ip(&self, words: &str) -> Result<()> {
        let words: Vec<_> = words.split(' ').collect();
        self.network.run("ip", &words)?;
        Ok(())
    }

    /// Has a device leave nothing to others.
    pub(crate) fn without_offloads(&self, device: &str) -> Result<()> {
        let words = ["-K", device, "tx", "off", "tso", "off", "gso", "off"];
        self.network.run("ethtool", &words)?;
        Ok(())
    }

    /// The value of `--backend` or `--uplink` for a device of the namespace.
    pub(crate) fn link(&self, kind: &str, device: &str) -> String {
        format!("{kind}:{device},netns={}", self.network.path().display())
    }

    /// A back-end for one guest, with a device of the namespace for its link.
    pub(crate) fn back_end(&self, kind: &str, device: &str) -> Result<NetBackEnd> {
        let link = self.link(kind, device);
        let args = ["--backend", &link, "--queue-pairs=1"];
        Ok(NetBackEnd::start(1, &args)?)
    }

    /// Runs `open` in the namespace.
    pub(crate) fn within<T: Send>(&self, open: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        let namespace = File::open(self.network.path())?;
        let opened = thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                open()
            });
            inside
                .join()
                .map_err(|_panic| io::Error::other("a panic"))?
        });
        Ok(opened?)
    }

    /// A counter of the namespace's kernel: of `/proc/net/snmp6` if the group is `6`, else of that
    /// group in `/proc/net/snmp`.
    pub(crate) fn counter(&self, group: &str, name: &str) -> Result<u64> {
        let file = if group == "6" { "snmp6" } else { "snmp" };
        let text = self.within(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
        let value = if group == "6" {
            text.lines()
                .filter_map(|line| line.split_once(char::is_whitespace))
                .find(|(found, _)| *found == name)
                .map(|(_, value)| value.trim())
        } else {
            let prefix = format!("{group}: ");
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
            let (names, values) = (lines.next(), lines.next());
            let mut both = names
                .unwrap_or_default()
                .split(' ')
                .zip(values.unwrap_or_default().split(' '));
            both.find(|(found, _)| *found == name)
                .map(|(_, value)| value)
        };
        let value = value.ok_or_else(|| format!("no counter {group} {name}"))?;
        Ok(value.parse()?)
    }
}

fn text_of(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Waits until `probe` is true.
pub(crate) fn eventually(what: &str, mut probe: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !probe()? {
        if start.elapsed() > PATIENCE {
            return Err(format!("{what} did not come").into());
        }
        thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}
