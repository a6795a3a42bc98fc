// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The payload of a request on its way to another thread.

use libc::iovec;

use super::Memory;
use super::copy::{copy_in, copy_out};

/// The payload of a request, for a blocking thread: it keeps the memory by itself.
#[derive(Debug)]
pub struct Payload {
    /// Keeps the mappings that the iovecs point into.
    _memory: Memory,
    iovecs: Vec<iovec>,
}

// SAFETY: the pointers lead into shared guest memory, for which no thread is special.
#[expect(unsafe_code, reason = "an iovec is not Send by itself")]
unsafe impl Send for Payload {}

impl Payload {
    pub(super) fn new(memory: Memory, iovecs: &[iovec]) -> Self {
        Self {
            _memory: memory,
            iovecs: iovecs.to_vec(),
        }
    }

    /// What it consists of.
    pub(super) fn iovecs(&self) -> &[iovec] {
        &self.iovecs
    }

    /// Copies from `offset` of the payload; returns how many bytes there were.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> usize {
        copy_out(&self.iovecs, offset, to)
    }

    /// Copies to `offset` of the payload; returns how many bytes fitted.
    pub fn write_at(&self, offset: usize, from: &[u8]) -> usize {
        copy_in(&self.iovecs, offset, from)
    }
}
