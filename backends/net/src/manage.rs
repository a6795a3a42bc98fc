// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network's methods on the control socket.
//!
//! [`NetManagement`] reads parameters and writes replies; what is behind them is [`Ports`], which
//! the device implements, and [`CaptureControl`].

mod params;

use std::sync::Arc;

use ringside_common::limit::{Limits, Rate};
use ringside_common::management::{Manage, ManageError, MethodInfo};
use serde_json::{Map, Value, json};

use self::params::{Params, invalid};
use crate::capture::{CaptureControl, CaptureError, CaptureOptions, MAX_SNAPLEN_BYTES};
use crate::counters::Direction;
use crate::options::mac_text;

const METHODS: &[MethodInfo] = &[
    MethodInfo {
        name: "info",
        params: "",
        help: "what is behind the ports",
    },
    MethodInfo {
        name: "ports",
        params: "",
        help: "the ports: connection, link, addresses, limits",
    },
    MethodInfo {
        name: "link",
        params: "port=NAME|INDEX state=up|down",
        help: "take the link of a port up or down, as its guest sees it",
    },
    MethodInfo {
        name: "limit",
        params: "port=NAME|INDEX direction=rx|tx [bytes=RATE|off] [burst_bytes=N] \
                 [packets=RATE|off] [burst_packets=N]",
        help: "limit what the guest of a port receives (rx) or sends (tx) in a second; with \
               nothing to change: tell it",
    },
    MethodInfo {
        name: "capture-start",
        params: "path=PATH [port=NAME|INDEX] [snaplen=BYTES] [max_bytes=BYTES|off] [files=N]",
        help: "capture frames into a pcapng file, which is replaced, and when it is full into \
               PATH.1 and so on, in turn",
    },
    MethodInfo {
        name: "capture-stop",
        params: "",
        help: "finish the file; tells what was captured",
    },
    MethodInfo {
        name: "mac-table",
        params: "",
        help: "the MAC addresses that the switch has learned, and those of its ports",
    },
    MethodInfo {
        name: "mac-flush",
        params: "[port=NAME|INDEX]",
        help: "forget what was learned, all or of a port; tells how much",
    },
];

/// The ports of the process, for management. Called on the management thread.
///
/// A port is meant by its index in [`names`](Self::names), which the capture shares. An uplink is
/// a port like others, after those of the guests.
pub trait Ports: Send + Sync {
    /// The names of the ports, no two the same; they never change.
    fn names(&self) -> &[String];

    /// What is behind the ports, an object.
    fn info(&self) -> Value;

    /// The state of a port.
    fn state(&self, port: usize) -> PortState;

    /// Takes the link of a port up or down.
    ///
    /// # Errors
    /// [`ManageError::Unavailable`] where that is not possible.
    fn set_link(&self, port: usize, up: bool) -> Result<(), ManageError>;

    /// What a port is limited to.
    fn limits(&self, port: usize, direction: Direction) -> Limits;

    /// Replaces what a port is limited to.
    ///
    /// # Errors
    /// [`ManageError::Unavailable`] where that is not possible.
    fn set_limits(
        &self,
        port: usize,
        direction: Direction,
        limits: Limits,
    ) -> Result<(), ManageError>;

    /// What the switch has learned.
    ///
    /// # Errors
    /// [`ManageError::Unavailable`] where there is no switch.
    fn mac_table(&self) -> Result<Vec<MacEntry>, ManageError>;

    /// Makes the switch forget what it has learned, on one port or on all, and returns how much
    /// that was.
    ///
    /// # Errors
    /// [`ManageError::Unavailable`] where there is no switch.
    fn flush_macs(&self, port: Option<usize>) -> Result<usize, ManageError>;
}

/// What a port is at the moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PortState {
    /// Whether a front-end is connected.
    pub connected: bool,
    /// Whether the guest sees a link.
    pub link_up: bool,
    /// Pairs of queues that are started.
    pub queue_pairs: u16,
    /// The address of the guest, as far as it is known.
    pub mac: Option<[u8; 6]>,
    /// The MTU that the guest was told.
    pub mtu: Option<u16>,
    /// The VLAN of the port.
    pub vlan: Option<u16>,
    /// The virtio features that were negotiated.
    pub features: u64,
}

/// One address that a switch has learned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MacEntry {
    /// The address.
    pub mac: [u8; 6],
    /// Its VLAN; 0: none.
    pub vlan: u16,
    /// The port behind which it is.
    pub port: usize,
    /// Seconds since it was last heard of.
    pub age_s: u64,
    /// Whether it was not learned, but is the port's `mac`.
    pub configured: bool,
}

/// The methods of a network.
pub struct NetManagement {
    ports: Arc<dyn Ports>,
    capture: Arc<CaptureControl>,
}

impl std::fmt::Debug for NetManagement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetManagement")
            .field("ports", &self.ports.names())
            .finish_non_exhaustive()
    }
}

impl NetManagement {
    /// Methods for `ports`, of whose frames `capture` makes captures.
    #[must_use]
    pub fn new(ports: Arc<dyn Ports>, capture: Arc<CaptureControl>) -> Self {
        Self { ports, capture }
    }

    fn list(&self) -> Value {
        let names = self.ports.names().iter().enumerate();
        let ports = names.map(|(port, name)| {
            let state = self.ports.state(port);
            json!({
                "port": name,
                "connected": state.connected,
                "link": if state.link_up { "up" } else { "down" },
                "queue_pairs": state.queue_pairs,
                "mac": state.mac.map(mac_text),
                "mtu": state.mtu,
                "vlan": state.vlan,
                "features": format!("{:#x}", state.features),
                "limits": {
                    "rx": limits_json(self.ports.limits(port, Direction::Rx)),
                    "tx": limits_json(self.ports.limits(port, Direction::Tx)),
                },
            })
        });
        ports.collect()
    }

    fn link(&self, params: &Params<'_>) -> Result<Value, ManageError> {
        params.only(&["port", "state"])?;
        let port = self.port(params)?;
        let up = match params.required("state")?.as_str() {
            Some("up") => true,
            Some("down") => false,
            _ => return Err(invalid("state", "up or down")),
        };
        self.ports.set_link(port, up)?;
        Ok(json!({ "link": if up { "up" } else { "down" } }))
    }

    fn limit(&self, params: &Params<'_>) -> Result<Value, ManageError> {
        params.only(&[
            "port",
            "direction",
            "bytes",
            "burst_bytes",
            "packets",
            "burst_packets",
        ])?;
        let port = self.port(params)?;
        let direction = match params.required("direction")?.as_str() {
            Some("rx") => Direction::Rx,
            Some("tx") => Direction::Tx,
            _ => return Err(invalid("direction", "rx or tx")),
        };
        let before = self.ports.limits(port, direction);
        let limits = Limits {
            bytes: params.bytes_limit(before.bytes)?,
            operations: params.packets_limit(before.operations)?,
        };
        if limits != before {
            self.ports.set_limits(port, direction, limits)?;
        }
        Ok(limits_json(limits))
    }

    fn capture_start(&self, params: &Params<'_>) -> Result<Value, ManageError> {
        params.only(&["path", "port", "snaplen", "max_bytes", "files"])?;
        let path = params.absolute_path("path")?;
        let port = match params.get("port") {
            Some(_) => Some(self.port(params)?),
            None => None,
        };
        let most = u64::from(MAX_SNAPLEN_BYTES);
        let snaplen_bytes = params
            .amount("snaplen")?
            .unwrap_or(most)
            .try_into()
            .ok()
            .filter(|bytes| (1..=MAX_SNAPLEN_BYTES).contains(bytes))
            .ok_or_else(|| invalid("snaplen", "a number of bytes from 1 to 65558"))?;
        let rotation = params.rotation()?;
        let options = CaptureOptions {
            path,
            rotation,
            snaplen_bytes,
            port: port.and_then(|port| u16::try_from(port).ok()),
        };
        self.capture.start(&options).map_err(of_capture)?;
        Ok(json!({
            "path": options.path,
            "snaplen": snaplen_bytes,
            "max_bytes": rotation.max_bytes,
            "files": rotation.files,
        }))
    }

    fn capture_stop(&self) -> Result<Value, ManageError> {
        let summary = self.capture.stop().map_err(of_capture)?;
        Ok(json!({ "frames": summary.frames, "dropped": summary.dropped }))
    }

    fn mac_table(&self) -> Result<Value, ManageError> {
        let entries = self.ports.mac_table()?;
        let entries = entries.into_iter().map(|entry| {
            json!({
                "mac": mac_text(entry.mac),
                "vlan": entry.vlan,
                "port": self.ports.names().get(entry.port),
                "age_s": entry.age_s,
                "configured": entry.configured,
            })
        });
        Ok(entries.collect())
    }

    fn mac_flush(&self, params: &Params<'_>) -> Result<Value, ManageError> {
        params.only(&["port"])?;
        let port = match params.get("port") {
            Some(_) => Some(self.port(params)?),
            None => None,
        };
        let flushed = self.ports.flush_macs(port)?;
        Ok(json!({ "flushed": flushed }))
    }

    /// The index of the port that is meant by a name, or by a number.
    fn port(&self, params: &Params<'_>) -> Result<usize, ManageError> {
        let names = self.ports.names();
        let port = match params.required("port")? {
            Value::String(wanted) => names.iter().position(|name| name == wanted),
            number => number
                .as_u64()
                .and_then(|index| usize::try_from(index).ok())
                .filter(|index| *index < names.len()),
        };
        port.ok_or_else(|| invalid("port", "the name or the index of a port; see ports"))
    }
}

impl Manage for NetManagement {
    fn methods(&self) -> &[MethodInfo] {
        METHODS
    }

    /// Files are opened, written and closed by the file system, which may not answer; the kernel
    /// shows a carrier when nobody else changes interfaces, and data threads notice a cable first.
    fn may_wait(&self, method: &str) -> bool {
        matches!(method, "capture-start" | "capture-stop" | "link")
    }

    fn call(&self, method: &str, params: &Value) -> Result<Value, ManageError> {
        let params = &Params::new(params);
        match method {
            "link" => self.link(params),
            "limit" => self.limit(params),
            "capture-start" => self.capture_start(params),
            "mac-flush" => self.mac_flush(params),
            _ => {
                params.only(&[])?;
                match method {
                    "info" => Ok(self.ports.info()),
                    "ports" => Ok(self.list()),
                    "capture-stop" => self.capture_stop(),
                    "mac-table" => self.mac_table(),
                    _ => Err(ManageError::UnknownMethod),
                }
            }
        }
    }
}

/// Under the names of the parameters of `limit`; what is not limited is left out.
fn limits_json(limits: Limits) -> Value {
    let mut object = Map::new();
    let mut add = |rate: Option<Rate>, name: &str, burst_name: &str| {
        if let Some(Rate { per_s, burst }) = rate {
            object.insert(name.to_owned(), per_s.get().into());
            if let Some(burst) = burst {
                object.insert(burst_name.to_owned(), burst.into());
            }
        }
    };
    add(limits.bytes, "bytes", "burst_bytes");
    add(limits.operations, "packets", "burst_packets");
    object.into()
}

fn of_capture(error: CaptureError) -> ManageError {
    match error {
        CaptureError::Running => ManageError::Unavailable {
            reason: "a capture is running already",
        },
        CaptureError::NotRunning => ManageError::Unavailable {
            reason: "no capture is running",
        },
        CaptureError::Busy => ManageError::Unavailable {
            reason: "a capture is just being started or stopped",
        },
        other => ManageError::Failed(Box::new(other)),
    }
}

#[cfg(test)]
mod tests;
