// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A frame on its way into a link or out of it, and what becomes of it.

use ringside_common::memory::Buffers;
use ringside_common::num::usize_of;

use crate::header::NetHeader;

/// Bytes that [`Room::spare`] must have for no frame to be cut unseen: a tap hands out up to 65535
/// bytes of IP, with an Ethernet header and VLAN tags in front, and cuts without a word.
pub const SPARE_BYTES: usize = 65536 + 64;

/// A frame to be sent, without its virtio header.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Device-readable bytes of a chain. What was looked at is sent as it was then: the driver may
    /// have changed it since.
    Guest {
        /// The first bytes, copied and taken off the chain.
        head: &'a [u8],
        /// The others.
        rest: &'a Buffers,
    },
    /// Bytes of ours.
    Bytes(&'a [u8]),
}

impl Payload<'_> {
    /// Its length.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Guest { head, rest } => {
                head.len().saturating_add(usize_of(rest.readable_bytes()))
            }
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// The byte at `offset_bytes`, if there is one.
    #[must_use]
    pub fn byte(&self, offset_bytes: usize) -> Option<u8> {
        let mut byte = [0];
        (self.copy_to(offset_bytes, &mut byte) == 1).then(|| {
            let [byte] = byte;
            byte
        })
    }

    /// Copies from `offset_bytes` on; returns how many bytes there were and fitted.
    pub fn copy_to(&self, offset_bytes: usize, to: &mut [u8]) -> usize {
        match self {
            Self::Guest { head, rest } => {
                let copied = copy(head, offset_bytes, to);
                let behind = to.get_mut(copied..).unwrap_or_default();
                copied + rest.read_at(offset_bytes.saturating_sub(head.len()), behind)
            }
            Self::Bytes(bytes) => copy(bytes, offset_bytes, to),
        }
    }
}

fn copy(from: &[u8], offset_bytes: usize, to: &mut [u8]) -> usize {
    let from = from.get(offset_bytes..).unwrap_or_default();
    let bytes = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..bytes), from.get(..bytes)) {
        to.copy_from_slice(from);
    }
    bytes
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
    /// Room for the rest; [`SPARE_BYTES`] of it hold any frame.
    pub spare: &'a mut [u8],
}

impl Room<'_> {
    /// Bytes of guest memory that may be filled.
    #[inline]
    pub(super) fn window_bytes(&self) -> usize {
        usize_of(self.window.writable_bytes())
            .saturating_sub(self.skip_bytes)
            .min(self.limit_bytes)
    }
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
    /// There is no taker: the interface is down, the peer has gone.
    Down,
    /// The host has no memory for it.
    NoBuffer,
    /// Another error of the host.
    Failed,
}

/// What came of receiving.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Received {
    /// A frame of `bytes`, perhaps more than the room had.
    ///
    /// It may be shorter than an Ethernet header: a peer may send anything, and a frame of no
    /// bytes is one that the kernel lost on its way here. Such frames must be dropped.
    Frame {
        /// Its header; all zero where the link has none.
        header: NetHeader,
        /// Its length.
        bytes: usize,
    },
    /// There is none; the descriptor becomes readable when there is.
    Empty,
    /// The link has gone; see its `retry`.
    Down,
}
