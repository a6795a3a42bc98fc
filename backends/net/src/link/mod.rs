// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ways out of the process: tap devices, packet sockets, stream and datagram sockets.
//!
//! A [`Link`] is what the control thread has: it is opened once, from a [`LinkSpec`], and stays
//! open from session to session. A [`LinkQueue`] is one of its queues, lent to the data thread
//! that serves the queue pair; dropped, it goes back with all its state, so that a connection
//! outlives a reset of the guest. A queue moves one frame per call and never waits.
//!
//! | module | link |
//! |---|---|
//! | `device` | [`Link`] and [`LinkQueue`]: one of those below |
//! | [`tap`] | a tap or macvtap interface; many queues, offloads |
//! | [`packet`] | a packet socket on an interface of the host; offloads |
//! | [`stream`] | QEMU's stream protocol, which passt speaks |
//! | [`dgram`] | one frame per Unix datagram |
//! | `frame` | a frame on its way into a link or out of it, and what becomes of it |
//! | `transfer` | one frame in one call of the kernel |
//! | `namespace` | opening in another network namespace |
//! | `netlink` | what the kernel says of an interface |
//! | `presence` | an interface that was deleted, and is there again |
//! | [`error`] | why a link cannot be had |

mod device;
pub mod dgram;
pub mod error;
mod frame;
mod namespace;
mod netlink;
pub mod packet;
mod presence;
pub mod stream;
pub mod tap;
mod transfer;

#[cfg(test)]
mod testing;

pub use self::device::{Link, LinkQueue, LinkSpec};
pub use self::error::RETRY_NS;
pub use self::frame::{Payload, Received, Room, SPARE_BYTES, SendLoss, Sent};

/// Bytes of the longest frame.
pub use crate::header::MAX_FRAME_BYTES;
