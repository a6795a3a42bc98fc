// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every Ringside back-end shares.

#[cfg(target_endian = "big")]
compile_error!("virtio is little-endian; this crate reads its fields as they are");

pub mod chain;
pub mod error;
pub mod io;
pub mod memory;
pub mod ring;
mod sys;
