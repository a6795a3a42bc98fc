// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a request can fail.

use crate::error::FrontendError;

/// What a request came to.
pub type FuseResult<T> = Result<T, FuseError>;

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// The device says so.
    #[error("the device answers errno {0}")]
    Errno(i32),
    /// The ring or the connection failed.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// The reply is not as the protocol wants it.
    #[error("reply with wrong {what}: {found} instead of {expected}")]
    Reply {
        /// What is wrong.
        what: &'static str,
        /// What the reply has.
        found: u64,
        /// What it must have.
        expected: u64,
    },
}

impl FuseError {
    /// The errno, if that is what the device answered.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Errno(errno) => Some(*errno),
            _ => None,
        }
    }
}
