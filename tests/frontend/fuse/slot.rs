// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory of one request and of its reply.

use super::framing::{Framing, HEAD_BYTES, PAGE_BYTES, Parts};
use crate::error::{FrontendError, Result};
use crate::fuse::flags::OUT_HEADER_BYTES;
use crate::memory::{GuestMemory, GuestSlice};

/// A request slot of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseSlot(pub(super) u16);

impl FuseSlot {
    /// Number of the slot, from 0 to the queue's depth.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// `struct fuse_out_header`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyHeader {
    /// Bytes of the reply, this header included.
    pub len_bytes: u32,
    /// 0, or the errno, negative.
    pub error: i32,
    /// The number of the request.
    pub unique: u64,
}

/// One direction of a slot: the head, and pages for data behind it.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) gpa: u64,
    window: GuestSlice,
    data: GuestSlice,
    /// What it holds now.
    pub(super) parts: Parts,
    framing: Framing,
}

impl Area {
    pub(super) fn new(memory: &GuestMemory, data_bytes: usize) -> Result<Self> {
        let data_bytes = data_bytes.next_multiple_of(PAGE_BYTES);
        let gpa = memory.alloc(HEAD_BYTES + data_bytes, PAGE_BYTES)?;
        let window = memory.slice(gpa, HEAD_BYTES + data_bytes)?;
        Ok(Self {
            gpa,
            data: window.sub(HEAD_BYTES, data_bytes),
            window,
            parts: Parts::default(),
            framing: Framing::default(),
        })
    }

    /// Says what the area is to hold.
    ///
    /// # Errors
    ///
    /// When it is too small.
    #[inline]
    pub(super) fn set(&mut self, parts: Parts, framing: Framing) -> Result<()> {
        if parts.args > HEAD_BYTES - 64 || parts.data > self.data.len_bytes() {
            return Err(FrontendError::OutOfGuestMemory {
                bytes: parts.total(),
            });
        }
        self.parts = parts;
        self.framing = framing;
        Ok(())
    }

    /// The pages for data.
    #[inline]
    pub(super) fn data(&self) -> &GuestSlice {
        &self.data
    }

    #[inline]
    pub(super) fn write_header(&self, header: &[u8]) {
        self.window
            .write(self.parts.offsets(self.framing).0, header);
    }

    #[inline]
    pub(super) fn write_args(&self, args: &[u8]) {
        self.window.write(self.parts.offsets(self.framing).1, args);
    }

    /// The header of a reply; zeros where there was no room for it.
    #[inline]
    pub(super) fn reply_header(&self) -> ReplyHeader {
        let mut bytes = [0; OUT_HEADER_BYTES];
        let offset = self.parts.offsets(self.framing).0;
        if let Some(part) = bytes.get_mut(..self.parts.header) {
            self.window.read(offset, part);
        }
        let [a, b, c, d, e, f, g, h, unique @ ..] = bytes;
        ReplyHeader {
            len_bytes: u32::from_le_bytes([a, b, c, d]),
            error: i32::from_le_bytes([e, f, g, h]),
            unique: u64::from_le_bytes(unique),
        }
    }

    /// Copies out what lies behind the header, as much as `into` takes or there is.
    pub(super) fn read_payload(&self, into: &mut [u8]) {
        let most = into.len().min(self.parts.args + self.parts.data);
        let in_args = most.min(self.parts.args);
        let (args, data) = into.split_at_mut(in_args);
        self.window.read(self.parts.offsets(self.framing).1, args);
        if let Some(data) = data.get_mut(..most - in_args) {
            self.data.read(0, data);
        }
    }

    /// Sets everything that the device may write to `value`.
    pub(super) fn fill(&self, value: u8) {
        let (header, args) = self.parts.offsets(self.framing);
        self.window.fill(header, self.parts.header, value);
        self.window.fill(args, self.parts.args, value);
        self.data.fill(0, self.parts.data, value);
    }
}
