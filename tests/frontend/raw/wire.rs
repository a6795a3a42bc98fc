// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages as they lie on the wire.

use std::os::fd::OwnedFd;

use crate::ids::header_flag;

/// Length of a message header.
pub const HEADER_BYTES: usize = 12;

/// The header of a vhost-user message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message id, see [`crate::ids::request`].
    pub request: u32,
    /// Version and flags, see [`header_flag`].
    pub flags: u32,
    /// Announced length of the body.
    pub size: u32,
}

impl Header {
    /// A sound header: version 1, no flags.
    #[must_use]
    pub fn new(request: u32, size: u32) -> Self {
        Self {
            request,
            flags: header_flag::VERSION,
            size,
        }
    }

    /// The same header with `NEED_REPLY` set.
    #[must_use]
    pub fn need_reply(mut self) -> Self {
        self.flags |= header_flag::NEED_REPLY;
        self
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        Self {
            request: word(0),
            flags: word(4),
            size: word(8),
        }
    }
}

/// A message received from the back-end.
#[derive(Debug)]
pub struct Message {
    /// The header as received.
    pub header: Header,
    /// The body.
    pub body: Vec<u8>,
    /// The attached file descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The 64-bit number at byte `at` of the body; `None` when the body is too short.
    #[must_use]
    pub fn u64_at(&self, at: usize) -> Option<u64> {
        let bytes = self.body.get(at..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    }

    /// The 32-bit number at byte `at` of the body; `None` when the body is too short.
    #[must_use]
    pub fn u32_at(&self, at: usize) -> Option<u32> {
        let bytes = self.body.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    }
}

/// How a connection ended.
#[derive(Debug)]
pub struct Ending {
    /// What the peer still sent.
    pub bytes: Vec<u8>,
    /// Whether the end was a reset (unread data was thrown away) and not an orderly close.
    pub reset: bool,
}
