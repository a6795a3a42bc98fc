// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A scratch network namespace with a tap whose kernel is the other end.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::thread;

use nix::sched::{CloneFlags, setns};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::vm::Network;

use crate::sample::{OUR_IP, OUR_IP6, THEIR_IP, THEIR_IP6};
use crate::{PATIENCE, Result, eventually};

/// The name of the tap.
pub(crate) const TAP: &str = "tap0";

/// See above.
pub(crate) struct Host {
    pub(crate) network: Network,
}

impl Host {
    /// A namespace in which nothing is said unasked.
    pub(crate) fn empty() -> Result<Self> {
        let network = Network::new()?;
        let host = Self { network };
        host.within(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))?;
        Ok(host)
    }

    /// A namespace with a tap of so many queues, which knows the guest.
    pub(crate) fn new(queues: u16) -> Result<Self> {
        let host = Self::empty()?;
        host.network.tap(TAP, queues, &[])?;
        host.settle(TAP)?;
        Ok(host)
    }

    /// Gives a device the kernel's addresses, and has it know the guest's.
    pub(crate) fn settle(&self, device: &str) -> Result<()> {
        self.ip(&format!("link set {device} address 02:00:00:00:00:b2"))?;
        self.ip(&format!("address add {THEIR_IP}/24 dev {device}"))?;
        self.ip(&format!(
            "neigh add {OUR_IP} lladdr 02:00:00:00:00:a1 dev {device} nud permanent"
        ))
    }

    /// The same for IPv6.
    pub(crate) fn with_ipv6(self) -> Result<Self> {
        let switch = format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6");
        self.within(|| fs::write(&switch, "0"))?;
        self.ip(&format!("address add {THEIR_IP6}/64 dev {TAP} nodad"))?;
        self.ip(&format!(
            "neigh add {OUR_IP6} lladdr 02:00:00:00:00:a1 dev {TAP} nud permanent"
        ))?;
        Ok(self)
    }

    /// Runs `ip` with these words in the namespace.
    pub(crate) fn ip(&self, words: &str) -> Result<()> {
        self.run("ip", words)
    }

    /// Runs a program with these words in the namespace.
    pub(crate) fn run(&self, program: &str, words: &str) -> Result<()> {
        let words: Vec<_> = words.split(' ').collect();
        self.network.run(program, &words)?;
        Ok(())
    }

    /// Waits until the tap passes frames: it has a carrier while a guest is there.
    pub(crate) fn meet(&self) -> Result<()> {
        eventually("the carrier", || {
            let said = self.network.run("ip", &["-o", "link", "show", TAP])?;
            Ok(said.contains("LOWER_UP") && said.contains("state UP"))
        })
    }

    /// A device of the namespace as a link.
    pub(crate) fn link(&self, device: &str) -> String {
        format!("tap:{device},netns={}", self.network.path().display())
    }

    /// A back-end on the tap that offers so many pairs.
    pub(crate) fn back_end(&self, pairs: u16) -> Result<NetBackEnd> {
        let link = self.link(TAP);
        let pairs = format!("--queue-pairs={pairs}");
        Ok(NetBackEnd::start(1, &["--backend", &link, &pairs])?)
    }

    /// Runs `open` in the namespace.
    pub(crate) fn within<T: Send>(&self, open: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        let namespace = File::open(self.path())?;
        let opened = thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                open()
            });
            inside
                .join()
                .unwrap_or_else(|_panic| Err(io::Error::other("a panic")))
        });
        Ok(opened?)
    }

    /// Where the namespace is.
    pub(crate) fn path(&self) -> PathBuf {
        self.network.path()
    }

    /// A socket of the kernel's side, at any port of `ip`.
    pub(crate) fn socket_at(&self, ip: Ipv4Addr) -> Result<UdpSocket> {
        let socket = self.within(|| UdpSocket::bind((ip, 0)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// A socket at the address of the tap.
    pub(crate) fn socket(&self) -> Result<UdpSocket> {
        self.socket_at(THEIR_IP)
    }
}
