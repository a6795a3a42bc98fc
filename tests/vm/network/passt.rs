// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User-mode networking: `passt` ends the guest's connections and makes them anew as an ordinary
//! process of the namespace.

use std::path::{Path, PathBuf};

use super::super::backend::START_LIMIT;
use super::super::child::Child;
use super::super::error::VmError;
use super::Network;

/// The device whose address `passt` gives to the guest. Nobody is behind it.
const TEMPLATE: &str = "template";

/// A running `passt`, ended when dropped.
#[derive(Debug)]
pub struct Passt {
    _passt: Child,
    socket: PathBuf,
}

impl Passt {
    /// Serves one guest that will have `address` (with its prefix) and `router`, which stands for
    /// the host's loopback.
    pub(super) fn start(network: &Network, address: &str, router: &str) -> Result<Self, VmError> {
        network.tap(TEMPLATE, 1, &[address])?;
        network.run("ip", &["route", "add", "default", "via", router])?;
        // passt gives up root, for the user nobody.
        let dir = network.dir_of_nobody()?;
        let socket = dir.join("passt");
        let path = socket.to_string_lossy().into_owned();
        let args = ["--foreground", "--stderr", "--ipv4-only", "--socket", &path];
        let mut passt = network.spawn("passt", &args)?;
        passt.wait_for_file(&socket, START_LIMIT)?;
        Ok(Self {
            _passt: passt,
            socket,
        })
    }

    /// Where it listens, for QEMU's stream protocol: each frame after its length, 4 bytes in
    /// network order.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}
