// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ways out of the process: tap devices, packet sockets, stream and datagram sockets.
//!
//! A link moves one frame per call and never waits. It is owned by one data thread at a time.

pub mod dgram;
pub mod packet;
pub mod stream;
pub mod tap;

use ringside_common::memory::Buffers;

/// A frame to be sent, without its virtio header.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// What is left of the device-readable bytes of a chain.
    Guest(&'a Buffers),
    /// Bytes of ours.
    Bytes(&'a [u8]),
}

/// Where a received frame goes, without its virtio header: guest memory, then what does not fit.
#[derive(Debug)]
pub struct Room<'a> {
    /// The chains that wait for packets, as one stream.
    pub window: &'a Buffers,
    /// Bytes at its front that are left for the virtio header.
    pub skip_bytes: usize,
    /// Bytes behind those that may be filled.
    pub limit_bytes: usize,
    /// Room for the rest.
    pub spare: &'a mut [u8],
}

/// What came of sending a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sent {
    /// It is on its way.
    Done,
    /// There is no room now; to be tried again when the descriptor is writable.
    Blocked,
    /// It was lost, for this reason.
    Dropped(SendLoss),
}

/// Why a frame was not sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SendLoss {
    /// The kernel calls it malformed.
    Invalid,
    /// Nobody takes it: the interface is down, the peer has gone.
    Down,
    /// The host has no memory for it.
    NoBuffer,
    /// Another error of the host.
    Failed,
}

/// What came of receiving.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Received {
    /// A frame of so many bytes, perhaps more than the room had.
    Frame {
        /// Its header; all zero where the link has none.
        header: crate::header::NetHeader,
        /// Its length.
        bytes: usize,
    },
    /// There is none; the descriptor becomes readable when there is.
    Empty,
    /// The link has gone; see its `retry`.
    Down,
}
