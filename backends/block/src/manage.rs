// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device's methods on the control socket.

use std::sync::Arc;
use std::time::Duration;

use ringside_common::daemon::Control;
use ringside_common::management::{Manage, ManageError, MethodInfo};
use serde_json::{Value, json};

use crate::device::BlockDevice;
use crate::request::SECTOR_BYTES;

/// How long `drain` waits for requests in flight before it says that they are not done yet.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

const METHODS: &[MethodInfo] = &[
    MethodInfo {
        name: "info",
        params: "",
        help: "what the disk is",
    },
    MethodInfo {
        name: "resize",
        params: "[size=BYTES]",
        help: "make an image file that long, or look at its size again, and tell the guest",
    },
    MethodInfo {
        name: "drain",
        params: "",
        help: "complete what is in flight, make it stable and take no more until resume",
    },
    MethodInfo {
        name: "resume",
        params: "",
        help: "go on after drain",
    },
];

/// `info`, `resize`, `drain` and `resume`.
#[derive(Debug)]
pub struct BlockManagement {
    device: Arc<BlockDevice>,
    control: Arc<Control>,
}

impl BlockManagement {
    /// Methods for `device`, whose data threads `control` reaches.
    #[must_use]
    pub fn new(device: Arc<BlockDevice>, control: Arc<Control>) -> Self {
        Self { device, control }
    }

    fn info(&self) -> Value {
        let engine = &self.device.shared().engine;
        let topology = engine.topology();
        json!({
            "size_bytes": engine.capacity_sectors() * SECTOR_BYTES,
            "logical_block_bytes": topology.logical_block_bytes,
            "physical_block_bytes": topology.physical_block_bytes,
            "read_only": engine.is_read_only(),
            "discard": engine.can_discard(),
            "write_cache": self.device.shared().is_writeback(),
            "bounced_bytes": engine.bounced_bytes(),
            "lost_writes": self.device.shared().has_lost_writes(),
        })
    }

    fn resize(&self, params: &Value) -> Result<Value, ManageError> {
        let sectors = match params.get("size") {
            None => self.device.refresh(),
            Some(size) => {
                let size_bytes = size
                    .as_u64()
                    .or_else(|| size.as_str().and_then(|text| text.parse().ok()))
                    .ok_or(ManageError::InvalidParam {
                        name: "size",
                        expected: "a number of bytes",
                    })?;
                self.device.resize(size_bytes)
            }
        };
        let sectors = sectors.map_err(|error| ManageError::Failed(Box::new(error)))?;
        Ok(json!({ "size_bytes": sectors * SECTOR_BYTES }))
    }

    fn pause(&self, paused: bool) -> Value {
        json!({ "done": self.control.pause(paused, DRAIN_PATIENCE) })
    }
}

impl Manage for BlockManagement {
    fn methods(&self) -> &[MethodInfo] {
        METHODS
    }

    fn call(&self, method: &str, params: &Value) -> Result<Value, ManageError> {
        match method {
            "info" => Ok(self.info()),
            "resize" => self.resize(params),
            "drain" => Ok(self.pause(true)),
            "resume" => Ok(self.pause(false)),
            _ => Err(ManageError::UnknownMethod),
        }
    }
}
