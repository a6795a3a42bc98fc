// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every Ringside back-end shares.

#[cfg(target_endian = "big")]
compile_error!("virtio is little-endian; this crate reads its fields as they are");

pub mod backchannel;
pub mod chain;
pub mod cli;
pub mod daemon;
pub mod device;
pub mod error;
pub mod io;
pub mod logging;
pub mod management;
pub mod memory;
pub mod ring;
mod session;
pub mod socket;
pub mod stats;
mod sys;
pub mod worker;
