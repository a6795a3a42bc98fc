// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The in-process vhost-user front-end.
//!
//! Two ways in, by what a test is about:
//!
//! * **A sound front-end**: [`session::Session`] negotiates and shares [`memory::GuestMemory`];
//!   [`vring::Vring`] is one started queue, whose [`ring::SplitRing`] holds the driver side; on top
//!   [`blk::BlkDriver`] speaks virtio-blk, and [`load`] keeps it busy and verifies content;
//!   [`net::NetPort`] speaks virtio-net, [`fuse::FuseClient`] virtio-fs.
//! * **A hostile one**: [`raw::RawClient`] sends any bytes and file descriptors, the raw setters of
//!   [`ring::SplitRing`] write any value into a ring, and [`session::Session::frontend_mut`] sends
//!   any message out of order.
//!
//! Data flows `blk -> vring -> ring -> memory`; only `memory::mapping` holds `unsafe`.

pub mod back_channel;
pub mod blk;
pub mod error;
pub mod fuse;
pub mod ids;
pub mod load;
pub mod memory;
pub mod net;
pub mod raw;
pub mod ring;
pub mod session;
pub mod vring;
pub mod window;

pub use error::{FrontendError, Result};
