// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The management thread: counters and a few methods, for operators and their tools.
//!
//! Two doors, both optional, both served by one thread that sleeps in `epoll_wait` while no
//! client talks to it:
//! - the control socket (`--control-socket`): JSON lines, as described below;
//! - metrics (`--metrics`): `GET /metrics` over HTTP, the `OpenMetrics` text for Prometheus.
//!
//! # The control protocol
//! One request per line, one reply per line, in order:
//! ```text
//! {"id":1,"method":"stats"}
//! {"id":1,"result":{...}}
//! {"id":2,"method":"log-level","params":{"level":"debug"}}
//! {"id":2,"result":{"level":"debug"}}
//! {"id":3,"method":"frobnicate"}
//! {"id":3,"error":{"code":-32601,"message":"unknown method"}}
//! ```
//! Error codes are those of JSON-RPC 2.0. `id` may be any JSON value and comes back unchanged; a
//! line is at most 64 KiB long. `stats`, `version`, `log-level` and `help` are always there; the
//! device and the daemon add theirs through [`Manage`].
//!
//! A process that serves several devices names them ([`Devices::Ports`]): `stats` has a list of
//! them, and metrics the label `port`. What only one kind of device counts comes through
//! [`DeviceCounters`].
//!
//! # Trust
//! A user that may open the control socket (mode 0600) may command the back-end. One that reaches
//! the metrics door may read counters and no more. Neither can make the thread wait, spin or grow:
//! the bounds are listed at the top of `server.rs`.
//!
//! # Order at start
//! [`ManagementSockets::bind`] comes before the sandbox, [`ManagementSockets::spawn`] after it.

mod address;
mod calls;
mod client;
mod connection;
mod devices;
mod http;
mod manage;
mod metrics;
mod protocol;
mod server;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use log::{error, warn};
use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;

pub use self::address::{MetricsAddress, MetricsAddressError};
pub use self::client::{CtlError, ctl};
use self::connection::Door;
pub use self::devices::{DeviceCounters, DeviceView, Devices, Family, FamilyKind, Sample};
pub use self::manage::{Manage, ManageError, MethodInfo};
pub use self::protocol::Services;
use self::server::{Listener, Server};
use crate::socket::{BoundSocket, SocketError};

/// The mode of both Unix sockets.
const SOCKET_MODE: u32 = 0o600;

/// Why management could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManagementError {
    /// A Unix socket could not be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The TCP port of the metrics could not be bound.
    #[error("metrics: cannot listen on {address}")]
    Tcp {
        /// The address asked for.
        address: SocketAddr,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The thread or what it needs could not be made.
    #[error("cannot start the management thread")]
    Start(#[source] io::Error),
}

/// The doors, bound but not served yet.
#[derive(Debug, Default)]
pub struct ManagementSockets {
    listeners: Vec<(Door, Listener)>,
}

impl ManagementSockets {
    /// Binds the control socket and the metrics address, those that are given.
    ///
    /// # Errors
    ///
    /// [`ManagementError`] if one of them cannot be bound.
    pub fn bind(
        control: Option<&Path>,
        metrics: Option<&MetricsAddress>,
    ) -> Result<Self, ManagementError> {
        let mut listeners = Vec::new();
        if let Some(path) = control {
            listeners.push((Door::Control, bind_unix(path)?));
        }
        match metrics {
            Some(MetricsAddress::Unix(path)) => listeners.push((Door::Metrics, bind_unix(path)?)),
            Some(MetricsAddress::Tcp(address)) => {
                listeners.push((Door::Metrics, bind_tcp(*address)?));
            }
            None => (),
        }
        Ok(Self { listeners })
    }

    /// Where metrics are served, with the port the kernel chose if 0 was asked for.
    pub fn metrics_address(&self) -> Option<MetricsAddress> {
        self.listeners
            .iter()
            .find_map(|(door, listener)| match (door, listener) {
                (Door::Control, _) => None,
                (Door::Metrics, Listener::Unix(socket)) => {
                    Some(MetricsAddress::Unix(PathBuf::from(socket.path())))
                }
                (Door::Metrics, Listener::Tcp(listener)) => {
                    listener.local_addr().ok().map(MetricsAddress::Tcp)
                }
            })
    }

    /// Starts the thread. `on_start` runs on it first, for instance to enter its sandbox.
    ///
    /// Without a socket no thread is started; the handle then does nothing.
    ///
    /// # Errors
    ///
    /// [`ManagementError::Start`] if the kernel refuses a descriptor or the thread.
    pub fn spawn(
        self,
        services: Services,
        on_start: impl FnOnce() + Send + 'static,
    ) -> Result<Management, ManagementError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = eventfd(0, flags).map_err(|errno| ManagementError::Start(errno.into()))?;
        let stop = Arc::new(stop);
        if self.listeners.is_empty() {
            return Ok(Management { stop, thread: None });
        }
        let server = Server::new(self.listeners, services, Arc::clone(&stop))
            .map_err(ManagementError::Start)?;
        let thread = thread::Builder::new()
            .name("management".to_owned())
            .spawn(move || {
                on_start();
                // The data path goes on without management.
                if let Err(error) = server.run() {
                    error!("management: stopped: {error}");
                }
            })
            .map_err(ManagementError::Start)?;
        Ok(Management {
            stop,
            thread: Some(thread),
        })
    }
}

fn bind_unix(path: &Path) -> Result<Listener, ManagementError> {
    Ok(Listener::Unix(BoundSocket::bind(path, SOCKET_MODE, None)?))
}

fn bind_tcp(address: SocketAddr) -> Result<Listener, ManagementError> {
    if !address.ip().is_loopback() {
        warn!("metrics: {address} can be reached from other machines, by anyone, unencrypted");
    }
    TcpListener::bind(address)
        .map(Listener::Tcp)
        .map_err(|source| ManagementError::Tcp { address, source })
}

/// The running management thread. Dropping it ends the thread and closes and removes its sockets.
#[derive(Debug)]
pub struct Management {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Management {
    /// Ends the thread, after the methods that may just be running. Dropping does the same.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Management {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // An eventfd takes this unless its counter is full, and then it is readable anyway.
        if let Err(error) = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()) {
            warn!("management: cannot signal the thread: {error}");
        }
        if thread.join().is_err() {
            error!("management: the thread panicked");
        }
    }
}

#[cfg(test)]
mod tests;
