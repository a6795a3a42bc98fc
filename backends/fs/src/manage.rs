// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fs device's methods on the control socket.

use std::sync::Arc;

use ringside_common::management::{Manage, ManageError, MethodInfo};
use serde_json::{Value, json};

use crate::device::FsDevice;

const METHODS: &[MethodInfo] = &[MethodInfo {
    name: "info",
    params: "",
    help: "what the guest has agreed to, knows and has open",
}];

/// `info`.
#[derive(Debug)]
pub struct FsManagement {
    device: Arc<FsDevice>,
}

impl FsManagement {
    /// Methods for `device`.
    #[must_use]
    pub fn new(device: Arc<FsDevice>) -> Self {
        Self { device }
    }

    fn info(&self) -> Value {
        let fs = self.device.file_system();
        let features: Vec<&str> = fs.negotiated().iter_names().map(|(name, _)| name).collect();
        json!({
            "nodes": fs.nodes.len(),
            "open": fs.handles.len(),
            "features": features,
            "read_only": fs.config.readonly,
        })
    }
}

impl Manage for FsManagement {
    fn methods(&self) -> &[MethodInfo] {
        METHODS
    }

    fn call(&self, method: &str, _params: &Value) -> Result<Value, ManageError> {
        match method {
            "info" => Ok(self.info()),
            _ => Err(ManageError::UnknownMethod),
        }
    }
}
