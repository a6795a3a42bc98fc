// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a request is refused before it is served.

use thiserror::Error;

use super::lengths::{
    NAME_MAX_BYTES, TARGET_MAX_BYTES, XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES,
};

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NameError {
    /// No bytes.
    #[error("an empty name")]
    Empty,
    /// "." or "..".
    #[error("a name of dots")]
    Dots,
    /// A slash in it.
    #[error("a name with a slash")]
    Slash,
    /// More than 4095 bytes.
    #[error("a name of more than {NAME_MAX_BYTES} bytes")]
    TooLong,
}

/// Why a request is not one.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ParseError {
    /// An operation that is not known, or not served: `BMAP`, `POLL`.
    #[error("operation {opcode} is not served")]
    Unsupported {
        /// What was asked for.
        opcode: u32,
    },
    /// Too few bytes, or too many for fields of fixed size.
    #[error("{len_bytes} bytes are not the length of these fields")]
    Length {
        /// Bytes that there are.
        len_bytes: usize,
    },
    /// Bytes behind the end.
    #[error("{len_bytes} bytes behind the end")]
    Trailing {
        /// How many.
        len_bytes: usize,
    },
    /// A string without an end.
    #[error("a string without NUL")]
    NoNul,
    /// A name that no directory entry can have.
    #[error("{0}")]
    Name(#[from] NameError),
    /// A symbolic link to nothing.
    #[error("an empty target")]
    TargetEmpty,
    /// A symbolic link to more than 4095 bytes.
    #[error("a target of more than {TARGET_MAX_BYTES} bytes")]
    TargetTooLong,
    /// A name of an extended attribute that is empty or has more than 255 bytes.
    #[error("a name of an attribute that has not 1 to {XATTR_NAME_MAX_BYTES} bytes")]
    XattrName,
    /// A value of an extended attribute with more than 65536 bytes.
    #[error("a value of more than {XATTR_VALUE_MAX_BYTES} bytes")]
    ValueTooLong,
    /// Another number of entries than there are bytes for.
    #[error("{count} entries claimed in {len_bytes} bytes")]
    Count {
        /// The number claimed.
        count: u32,
        /// Bytes that there are.
        len_bytes: usize,
    },
    /// Extensions that are malformed, unknown, repeated or were not agreed.
    #[error("malformed extensions")]
    Extension,
}

impl ParseError {
    /// The number of the error that the driver gets, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Unsupported { .. } => libc::ENOSYS,
            Self::Name(NameError::TooLong) | Self::TargetTooLong => libc::ENAMETOOLONG,
            Self::XattrName => libc::ERANGE,
            Self::ValueTooLong => libc::E2BIG,
            _ => libc::EINVAL,
        }
    }
}
