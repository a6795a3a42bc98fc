// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong between the test front-end and a back-end.

use std::io;
use std::time::Duration;

use super::net::NetFault;

/// Result of a front-end operation.
pub type Result<T> = std::result::Result<T, FrontendError>;

/// An error of the test front-end.
///
/// Variants that speak of the used ring are findings about the back-end, not of the test.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendError {
    /// A system call failed.
    #[error("{action} failed")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A vhost-user message could not be sent, or its answer was a refusal or nonsense.
    #[error("vhost-user {message} failed")]
    Message {
        /// The message's name in the specification.
        message: &'static str,
        /// What the vhost crate says.
        #[source]
        source: vhost::Error,
    },
    /// A message that this crate sends itself was answered with a refusal.
    #[error("vhost-user {message} refused")]
    Refused {
        /// The message.
        message: &'static str,
    },
    /// The awaited event did not come in time.
    #[error("no {event} within {timeout:?}")]
    Timeout {
        /// What was awaited.
        event: &'static str,
        /// For how long.
        timeout: Duration,
    },
    /// The peer closed the connection.
    #[error("the peer closed the connection after {received} bytes of a message")]
    Closed {
        /// Bytes of the unfinished message.
        received: usize,
    },
    /// The peer announced a message longer than any in the protocol.
    #[error("message of {bytes} bytes announced")]
    Oversized {
        /// The length in the header.
        bytes: u32,
    },
    /// The back-end does not offer virtio features the test insists on.
    #[error("virtio features {missing:#x} not offered")]
    MissingFeatures {
        /// The bits not offered.
        missing: u64,
    },
    /// The back-end does not offer protocol features the test insists on.
    #[error("protocol features {missing:#x} not offered")]
    MissingProtocolFeatures {
        /// The bits not offered.
        missing: u64,
    },
    /// The back-end offers fewer queues than asked for.
    #[error("{asked} queues asked for, {offered} offered")]
    TooFewQueues {
        /// Queues the test wants.
        asked: usize,
        /// Queues the back-end has.
        offered: u64,
    },
    /// No region covers the guest-physical range.
    #[error("guest range {gpa:#x}+{bytes:#x} is not mapped")]
    NotMapped {
        /// Start of the range.
        gpa: u64,
        /// Its length.
        bytes: u64,
    },
    /// The bump allocator has no contiguous room left.
    #[error("no {bytes} contiguous bytes left in guest memory")]
    OutOfGuestMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// No unused border between adjacent regions is left, or its reserve is too small.
    #[error("no border between regions takes {before} + {after} bytes")]
    NoBorder {
        /// Bytes wanted below the border.
        before: usize,
        /// Bytes wanted above it.
        after: usize,
    },
    /// A memory layout or ring size that makes no sense.
    #[error("unusable {what}: {value}")]
    Unusable {
        /// What is unusable.
        what: &'static str,
        /// The value given.
        value: u64,
    },
    /// Too few free descriptors (or room in the indirect table) for the chain.
    #[error("chain of {needed} descriptors does not fit: {free} free")]
    RingFull {
        /// Descriptors needed.
        needed: usize,
        /// Descriptors available.
        free: usize,
    },
    /// All request slots are in use.
    #[error("all {slots} request slots are in use")]
    NoFreeSlot {
        /// Slots of the driver.
        slots: usize,
    },
    /// The back-end published more used entries than there are descriptors.
    #[error("used idx {used_idx} runs {ahead} ahead of {next_used}")]
    UsedIdxJump {
        /// The index in the used ring.
        used_idx: u16,
        /// The next entry the driver expects.
        next_used: u16,
        /// Their distance.
        ahead: u16,
    },
    /// The back-end returned a head that is not outstanding: out of range or completed twice.
    #[error("used ring returns head {id}, which is not outstanding")]
    UnknownHead {
        /// The id of the used element.
        id: u32,
    },
    /// The device answered with another status than OK.
    #[error("request type {kind} at sector {sector}: status {status}, used length {used_len}")]
    Status {
        /// Request type.
        kind: u32,
        /// First sector.
        sector: u64,
        /// The status byte.
        status: u8,
        /// Length in the used element.
        used_len: u32,
    },
    /// Data read back differs from data written.
    #[error("sector {sector}, byte {offset}: read {found:#04x}, expected {expected:#04x}")]
    Mismatch {
        /// First sector of the request.
        sector: u64,
        /// First differing byte.
        offset: usize,
        /// The byte read.
        found: u8,
        /// The byte written.
        expected: u8,
    },
    /// A frame or its buffers are not as the network device has to make them.
    #[error(transparent)]
    Net(#[from] NetFault),
}

impl FrontendError {
    /// Wraps an operating-system error, for use with `map_err`.
    pub fn io<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            source: source.into(),
        }
    }

    /// Wraps an error of the vhost crate, for use with `map_err`.
    pub(crate) fn message(message: &'static str) -> impl FnOnce(vhost::Error) -> Self {
        move |source| Self::Message { message, source }
    }
}
