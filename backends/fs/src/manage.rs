// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fs device's methods on the control socket.

use std::sync::Arc;
use std::time::Duration;

use ringside_common::daemon::Control;
use ringside_common::management::{Manage, ManageError, MethodInfo};
use serde_json::{Value, json};

use crate::device::FsDevice;

/// How long `drain` waits for requests in flight before it says that they are not done yet.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

const METHODS: &[MethodInfo] = &[
    MethodInfo {
        name: "info",
        params: "",
        help: "what the guest has agreed to, knows and has open",
    },
    MethodInfo {
        name: "drain",
        params: "",
        help: "complete what is in flight and take no more until resume",
    },
    MethodInfo {
        name: "resume",
        params: "",
        help: "go on after drain",
    },
];

/// `info`, `drain` and `resume`.
#[derive(Debug)]
pub struct FsManagement {
    device: Arc<FsDevice>,
    control: Arc<Control>,
}

impl FsManagement {
    /// Methods for `device`, whose data threads `control` reaches.
    #[must_use]
    pub fn new(device: Arc<FsDevice>, control: Arc<Control>) -> Self {
        Self { device, control }
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

    fn pause(&self, paused: bool) -> Value {
        json!({ "done": self.control.pause(paused, DRAIN_PATIENCE) })
    }
}

impl Manage for FsManagement {
    fn methods(&self) -> &[MethodInfo] {
        METHODS
    }

    fn call(&self, method: &str, _params: &Value) -> Result<Value, ManageError> {
        match method {
            "info" => Ok(self.info()),
            "drain" => Ok(self.pause(true)),
            "resume" => Ok(self.pause(false)),
            _ => Err(ManageError::UnknownMethod),
        }
    }
}
