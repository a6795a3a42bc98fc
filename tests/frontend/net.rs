// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-net driver on the rings of one vhost-user connection (virtio 1.3 §5.1).
//!
//! [`NetPort`] is a connection with its pairs of queues. [`TxQueue`] sends frames in chains of any
//! [`Shape`]; [`RxQueue`] posts buffers, puts frames together again and holds the device to the
//! rules for merged buffers: the number in the header is the number used, all but the last are
//! full, and all are published at once. A [`Flow`] makes frames whose every byte is known, so that
//! a lost, repeated or damaged one is found out.
//!
//! Sending and receiving allocate nothing once the vectors have grown.

mod control;
mod fault;
mod flow;
mod header;
mod messages;
mod port;
mod receive;
mod shape;
mod transmit;

pub use control::{ControlQueue, ack, class};
pub use fault::NetFault;
pub use flow::{Flow, Mac, SMALLEST_FRAME_BYTES};
pub use header::{HEADER_LEGACY_BYTES, HEADER_MODERN_BYTES, NetHeader, gso, header_flag};
pub use messages::NetMessages;
pub use port::{NetConfig, NetPort, Pair, Start};
pub use receive::{Received, RxConfig, RxQueue};
pub use shape::Shape;
pub use transmit::{TxConfig, TxQueue};

/// Feature bits of a network device, as masks (virtio 1.3 §5.1.3).
#[expect(
    missing_docs,
    reason = "the names are the specification's and explained there"
)]
pub mod net_feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const GUEST_UFO: u64 = 1 << 10;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const HOST_UFO: u64 = 1 << 14;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;

    /// Everything that lets a frame differ from what goes over a wire.
    pub const OFFLOADS: u64 = CSUM
        | GUEST_CSUM
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | GUEST_UFO
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | HOST_UFO
        | GUEST_USO4
        | GUEST_USO6
        | HOST_USO;
}
