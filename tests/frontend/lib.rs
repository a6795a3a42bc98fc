// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user front-end for tests, in the process of the test: it takes the place of the VMM and
//! of the guest's driver. It knows no back-end, so that it tests any of them.
//!
//! This writes to a disk that a running back-end serves, and reads it again:
//!
//! ```no_run
//! use std::os::unix::net::UnixStream;
//!
//! use ringside_frontend::blk::{BlkConfig, BlkDriver};
//! use ringside_frontend::session::Session;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let stream = UnixStream::connect("/tmp/blk.sock")?;
//!     // Negotiates features and shares guest memory; the builder changes either.
//!     let mut session = Session::builder().queues(1).from_stream(stream)?;
//!     let vring = session.start_all()?.remove(0);
//!     let mut disk = BlkDriver::new(vring, BlkConfig::default())?;
//!
//!     disk.write(0, &[7; 4096])?.ok()?;
//!     disk.flush()?.ok()?;
//!     let mut data = [0; 4096];
//!     disk.read(0, &mut data)?.ok()?;
//!     assert_eq!(data, [7; 4096]);
//!     Ok(())
//! }
//! ```
//!
//! There are two ways in:
//!
//! * **A sound front-end**: [`session::Session`] negotiates and shares [`memory::GuestMemory`];
//!   [`vring::Vring`] is one started queue, whose [`ring::SplitRing`] holds the driver side; on top
//!   [`blk::BlkDriver`] speaks virtio-blk, and [`load`] keeps it busy and verifies content;
//!   [`net::NetPort`] speaks virtio-net, [`fuse::FuseClient`] virtio-fs.
//! * **A hostile one**: [`raw::RawClient`] sends any bytes and file descriptors, the raw setters of
//!   [`ring::SplitRing`] write any value into a ring, and [`session::Session::frontend_mut`] sends
//!   any message out of order.
//!
//! Data flows `blk -> vring -> ring -> memory`; only `memory::mapping` holds `unsafe`. Layouts and
//! numbers are written here from the specifications, not taken from a back-end: a mistake there
//! must not hide itself.

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
