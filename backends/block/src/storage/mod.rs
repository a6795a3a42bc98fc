// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the bytes of a disk are kept. Nothing in this folder knows of virtio, of requests, or of
//! the command line.
//!
//! | module | does |
//! |---|---|
//! | `topology` | block sizes, which the driver of the disk uses as hints |
//! | [`alignment`] | what a file demands of the addresses of an I/O |
//! | `aligned_buf` | memory at aligned addresses |
//! | `range_locks` | keep one write from undoing another in the same block |
//! | [`layer`] | blocking access to one file of a disk |
//! | [`bounce`] | I/O of any alignment on a layer |
//! | `options`, `error` | how to open an image, and why that fails |
//! | `create`, `lock`, `probe` | a new file; QEMU's locks; what an open file can do |
//! | `image`, `size` | an open image; how it becomes larger or smaller |
//! | `raw` | an image as a layer: its bytes are the bytes of the disk |
//! | `open`, `memory` | an image from a file or block device, or from anonymous memory |
//! | `sys` | system calls that no safe wrapper covers |

mod aligned_buf;
pub mod alignment;
pub mod bounce;
mod create;
mod error;
mod image;
pub mod layer;
mod lock;
mod memory;
mod open;
mod options;
mod probe;
mod range_locks;
mod raw;
mod size;
mod sys;
mod topology;

pub use aligned_buf::AlignedBuf;
pub use alignment::Alignment;
pub use bounce::{Bounce, BounceError};
pub use error::ImageError;
pub use image::Image;
pub use layer::Layer;
pub use options::{CacheMode, DiscardMode, ImageOptions};
pub use range_locks::{RangeGuard, RangeLocks};
pub(crate) use sys::BLKDISCARD;
pub use topology::{SECTOR_BYTES, Topology};

#[cfg(test)]
mod tests;
