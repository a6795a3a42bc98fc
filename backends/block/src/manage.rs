// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device's methods on the control socket.

use std::sync::Arc;

use ringside_common::management::{Manage, ManageError, MethodInfo};
use serde_json::{Value, json};

use crate::device::BlockDevice;
use crate::request::SECTOR_BYTES;

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
];

/// `info` and `resize`.
#[derive(Debug)]
pub struct BlockManagement {
    device: Arc<BlockDevice>,
}

impl BlockManagement {
    /// Methods for `device`.
    #[must_use]
    pub fn new(device: Arc<BlockDevice>) -> Self {
        Self { device }
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
}

impl Manage for BlockManagement {
    fn methods(&self) -> &[MethodInfo] {
        METHODS
    }

    fn call(&self, method: &str, params: &Value) -> Result<Value, ManageError> {
        match method {
            "info" => Ok(self.info()),
            "resize" => self.resize(params),
            _ => Err(ManageError::UnknownMethod),
        }
    }
}
