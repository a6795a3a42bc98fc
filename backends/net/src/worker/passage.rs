// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A frame on its way: what it is, where it comes from, and what becomes of it.

use std::error::Error;

use ringside_common::limited;

use crate::counters::{Direction, DropReason};
use crate::header::NetHeader;
use crate::hub::Hub;
use crate::link::Payload;
use crate::mac_table::PortId;
use crate::port::Port;

/// How many bytes of a frame are looked at: enough for the ports of TCP over IPv6 in a VLAN.
pub(super) const PEEK_BYTES: usize = 80;

/// The pair of queues of a frame that is not kept to be sent again.
pub(super) const NO_PAIR: u16 = u16::MAX;

/// A frame on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) header: NetHeader,
    pub(super) payload: Payload<'a>,
    pub(super) bytes: usize,
    /// Its first bytes.
    pub(super) start: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A frame whose bytes are in our memory.
    #[inline]
    pub(super) fn of(header: NetHeader, bytes: &'a [u8]) -> Self {
        Self {
            header,
            payload: Payload::Bytes(bytes),
            bytes: bytes.len(),
            start: bytes.get(..PEEK_BYTES).unwrap_or(bytes),
        }
    }
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) port: PortId,
    /// The pair of queues it was sent on, or [`NO_PAIR`].
    pub(super) pair: u16,
    pub(super) vlan: u16,
    pub(super) isolated: bool,
}

/// What becomes of a frame at one station of its way: a receive queue, the link, the switch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Passage {
    /// It is there, or on its way: this station is done with it.
    Passed,
    /// There is no room for it yet. It stays where it is, and may be tried again.
    Waits,
    /// It cannot pass; the caller counts that.
    Lost(DropReason),
}

impl Passage {
    /// How a frame that is not tried again is counted as lost; nothing if it has passed.
    #[inline]
    pub(super) fn loss(self) -> Option<DropReason> {
        match self {
            Self::Passed => None,
            Self::Waits => Some(DropReason::NoBuffer),
            Self::Lost(reason) => Some(reason),
        }
    }
}

/// The address that a frame is for.
#[inline]
pub(super) fn destination(start: &[u8]) -> [u8; 6] {
    start.first_chunk().copied().unwrap_or_default()
}

/// Shows a frame that passes to a capture, if one runs.
#[inline]
pub(super) fn captured(
    hub: &Hub,
    port: PortId,
    direction: Direction,
    now_ns: u64,
    payload: Payload<'_>,
) {
    if hub.capture.is_on() {
        let bytes = payload.bytes();
        hub.capture
            .frame(port.0, direction, now_ns, bytes, |at, to| {
                payload.copy_to(at, to)
            });
    }
}

/// How a frame that breaks the rules is counted; what is wrong with it is for a log of this level.
#[cold]
pub(super) fn malformed(port: &Port, fault: &dyn Error) -> DropReason {
    limited!(
        debug,
        "port {}: a frame is dropped: {fault}",
        port.options.name
    );
    DropReason::Malformed
}
