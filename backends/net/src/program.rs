// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-net` as a program: what it opens, and what it would need in a sandbox.

use std::error::Error;
use std::sync::Arc;

use ringside_common::cli::{Action, CommonArgs};
use ringside_common::program::{Opened, Program, Setup};
use ringside_common::sandbox::SandboxError;
use ringside_common::sandbox::seccomp::AllowList;

use crate::device::NetDevice;
use crate::manage::NetManagement;
use crate::network::Network;
use crate::options::{Options, QueuePairs};
use crate::sys::IOCTLS;

/// A tap that was deleted is opened again and so is the socket of a peer; captures begin at any time.
const CALLS: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_fchmod,
    libc::SYS_flock,
    libc::SYS_openat,
    libc::SYS_setns,
];

/// Of packet sockets, of those of peers, and of the kernel's lists of interfaces.
const FAMILIES: [i32; 3] = [libc::AF_PACKET, libc::AF_UNIX, libc::AF_NETLINK];

impl Program for Options {
    type Device = NetDevice;
    type Queues = QueuePairs;

    const NAME: &'static str = "ringside-net";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    /// A network has no features to tell.
    const CAPABILITIES: &'static str = r#"{
  "type": "net"
}
"#;

    fn common(&self) -> &CommonArgs<QueuePairs> {
        &self.common
    }

    fn action(&self) -> Option<&Action> {
        self.command.as_ref()
    }

    fn allow_system_calls(list: &mut AllowList) -> Result<(), SandboxError> {
        list.allow(CALLS);
        for family in FAMILIES {
            list.allow_value(libc::SYS_socket, 0, family.unsigned_abs().into())?;
        }
        for command in IOCTLS {
            list.allow_value(libc::SYS_ioctl, 1, command.into())?;
        }
        Ok(())
    }

    fn setup(self) -> Result<Setup<NetDevice>, Box<dyn Error>> {
        let mut config = self.into_config()?;
        Ok(Setup {
            what: config.to_string(),
            common: config.common.clone(),
            endpoints: std::mem::take(&mut config.endpoints),
            roots: config.roots(),
            confinement: None,
            pid_file: false,
            open: Box::new(move |_ground| {
                let (network, devices) = Network::open(config)?;
                let capture = Arc::clone(network.capture());
                Ok(Opened {
                    devices,
                    counters: network.counters(),
                    manage: Arc::new(NetManagement::new(network, capture)),
                })
            }),
        })
    }
}
