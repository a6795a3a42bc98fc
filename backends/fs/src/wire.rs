// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The FUSE protocol, version 7.45, as bytes: parser of requests, encoder of replies, constants.
//!
//! Pure: bytes in, value or typed error out. Nothing here knows of virtqueues, of `/dev/fuse` or of
//! files. Numbers and layouts are those of Linux' `include/uapi/linux/fuse.h`.

mod bytes;
pub mod dirents;
pub mod error;
mod extension;
pub mod flags;
pub mod header;
pub mod lengths;
pub mod limits;
pub mod name;
pub mod operation;
pub mod parse;
pub mod reply;
#[cfg(test)]
mod tests;
