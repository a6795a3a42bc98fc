// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Methods that a device or the daemon adds to the control protocol.

use std::error::Error;

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

pub(super) const METHOD_NOT_FOUND: i64 = -32601;
pub(super) const INVALID_PARAMS: i64 = -32602;
pub(super) const FAILED: i64 = -32000;
pub(super) const UNAVAILABLE: i64 = -32001;

/// A method as `help` shows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct MethodInfo {
    /// Its name.
    pub name: &'static str,
    /// Its parameters, for people to read, like `size=BYTES`; empty: none.
    pub params: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
}

/// Methods that a device or the daemon adds to the control protocol.
///
/// They run on the management thread, one at a time, except those that [may wait](Self::may_wait):
/// what takes long there holds up other clients.
pub trait Manage: Send + Sync {
    /// The methods, for `help` and to find the one that a call names.
    fn methods(&self) -> &[MethodInfo];

    /// Whether a call of this method may wait for a device: it then has a thread of its own, beside
    /// others.
    fn may_wait(&self, _method: &str) -> bool {
        false
    }

    /// Serves a call of one of [`methods`](Self::methods).
    ///
    /// # Errors
    ///
    /// [`ManageError`], which becomes the error reply.
    fn call(&self, method: &str, params: &Value) -> Result<Value, ManageError>;
}

/// Why a method was not carried out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManageError {
    /// There is no such method.
    #[error("unknown method")]
    UnknownMethod,
    /// A parameter is missing.
    #[error("parameter {name} is missing")]
    MissingParam {
        /// Its name.
        name: &'static str,
    },
    /// A parameter that the method does not have.
    #[error("unknown parameter {name}")]
    UnknownParam {
        /// Its name.
        name: String,
    },
    /// A parameter has the wrong type or value.
    #[error("parameter {name}: expected {expected}")]
    InvalidParam {
        /// Its name.
        name: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
    /// Not possible in the present state.
    #[error("not possible now: {reason}")]
    Unavailable {
        /// Why not.
        reason: &'static str,
    },
    /// It was tried and failed.
    #[error(transparent)]
    Failed(#[from] Box<dyn Error + Send + Sync>),
}

impl ManageError {
    /// The codes of JSON-RPC 2.0, and two of the range it leaves to servers.
    pub(super) fn code(&self) -> i64 {
        match self {
            Self::UnknownMethod => METHOD_NOT_FOUND,
            Self::MissingParam { .. } | Self::UnknownParam { .. } | Self::InvalidParam { .. } => {
                INVALID_PARAMS
            }
            Self::Failed(_) => FAILED,
            Self::Unavailable { .. } => UNAVAILABLE,
        }
    }
}
