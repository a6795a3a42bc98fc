// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device's methods on the control socket.

use std::sync::Arc;

use ringside_common::daemon::{Control, DRAIN_PATIENCE};
use ringside_common::management::{Manage, ManageError, MethodInfo};
use serde_json::{Map, Value, json};

use crate::device::BlockDevice;
use crate::request::SECTOR_BYTES;

const METHODS: &[MethodInfo] = &[
    MethodInfo {
        name: "info",
        params: "",
        help: "what the disk is",
    },
    MethodInfo {
        name: "clear-error",
        params: "confirm=data-may-be-lost",
        help: "let flushes succeed again after a sync has failed and lost written data",
    },
    MethodInfo {
        name: "resize",
        params: "[size=BYTES] [shrink=true]",
        help: "make an image file that long, shorter with shrink=true only, or look at its size \
               again; tell the guest",
    },
];

/// The word that `clear-error` wants.
const CONFIRMATION: &str = "data-may-be-lost";

/// `info`, `resize` and `clear-error`.
#[derive(Debug)]
pub struct BlockManagement {
    device: Arc<BlockDevice>,
    control: Arc<Control>,
}

impl BlockManagement {
    /// Methods for `device`, whose requests `control` drains.
    #[must_use]
    pub fn new(device: Arc<BlockDevice>, control: Arc<Control>) -> Self {
        Self { device, control }
    }

    fn info(&self) -> Value {
        let shared = self.device.shared();
        let engine = shared.engine();
        let topology = engine.topology();
        json!({
            "size_bytes": engine.capacity_sectors() * SECTOR_BYTES,
            "logical_block_bytes": topology.logical_block_bytes,
            "physical_block_bytes": topology.physical_block_bytes,
            "read_only": engine.is_read_only(),
            "discard": engine.can_discard(),
            "write_cache": shared.write_cache().is_on(),
            "bounced_bytes": engine.bounced_bytes(),
            "lost_writes": shared.has_lost_writes(),
            "sync_error": shared.lost_writes_error().map(|error| error.to_string()),
        })
    }

    /// Whoever calls this has seen to it that the guest does not rely on what it flushed.
    fn clear_error(&self, params: &Value) -> Result<Value, ManageError> {
        match params.get("confirm").map(Value::as_str) {
            None => Err(ManageError::MissingParam { name: "confirm" }),
            Some(Some(CONFIRMATION)) => Ok(json!({ "cleared": self.device.clear_error() })),
            Some(_) => Err(ManageError::InvalidParam {
                name: "confirm",
                expected: CONFIRMATION,
            }),
        }
    }

    fn resize(&self, params: &Value) -> Result<Value, ManageError> {
        let known = |name: &str| matches!(name, "size" | "shrink");
        let mut names = params.as_object().into_iter().flat_map(Map::keys);
        if let Some(name) = names.find(|name| !known(name)) {
            return Err(ManageError::UnknownParam { name: name.clone() });
        }
        let may_shrink = match params.get("shrink") {
            None => false,
            Some(shrink) => shrink.as_bool().ok_or(ManageError::InvalidParam {
                name: "shrink",
                expected: "true or false",
            })?,
        };
        let sectors = match params.get("size") {
            None => self.device.refresh(),
            Some(size) => {
                let size_bytes = size
                    .as_u64()
                    .or_else(|| size.as_str().and_then(|text| text.parse().ok()))
                    .filter(|size_bytes| *size_bytes > 0)
                    .ok_or(ManageError::InvalidParam {
                        name: "size",
                        expected: "a number of bytes, more than 0",
                    })?;
                self.resize_to(size_bytes, may_shrink)?
            }
        };
        let sectors = sectors.map_err(|error| ManageError::Failed(Box::new(error)))?;
        Ok(json!({ "size_bytes": sectors * SECTOR_BYTES }))
    }

    fn resize_to(
        &self,
        size_bytes: u64,
        may_shrink: bool,
    ) -> Result<std::io::Result<u64>, ManageError> {
        let present_bytes = self.device.shared().engine().capacity_sectors() * SECTOR_BYTES;
        if size_bytes >= present_bytes {
            return Ok(self.device.resize(size_bytes));
        }
        if !may_shrink {
            return Err(ManageError::Unavailable {
                reason: "the disk is larger than that; what is behind the new end is lost with \
                         shrink=true",
            });
        }
        Ok(self.device.shrink(size_bytes, |cut| {
            self.control.while_drained(DRAIN_PATIENCE, cut).is_some()
        }))
    }
}

impl Manage for BlockManagement {
    fn methods(&self) -> &[MethodInfo] {
        METHODS
    }

    /// A resize asks the file system, after another one, and to make a disk smaller drains it.
    fn may_wait(&self, method: &str) -> bool {
        method == "resize"
    }

    fn call(&self, method: &str, params: &Value) -> Result<Value, ManageError> {
        match method {
            "info" => Ok(self.info()),
            "clear-error" => self.clear_error(params),
            "resize" => self.resize(params),
            _ => Err(ManageError::UnknownMethod),
        }
    }
}
