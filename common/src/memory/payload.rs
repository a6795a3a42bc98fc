// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The payload of a request on its way to another thread.

use std::mem::ManuallyDrop;
use std::ops::Deref;

use libc::iovec;

use super::copy::{copy_in, copy_out};
use super::{Buffers, Memory};

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

    /// Its parts.
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

/// The buffers of a request, lent to the thread that serves it without its vring: the thread that
/// owns that may be another one by the time they are given back. How many handles of the memory
/// there are is counted by the owner alone, without atomics; so nothing is let go of here. What is
/// never given back stays mapped.
#[derive(Debug)]
pub struct Lent(ManuallyDrop<Buffers>);

// SAFETY: nothing but `owned` and `exchange` gives the handle of the memory away, and a `&Buffers`
// cannot be used to clone or drop it. What the pointers lead to is shared guest memory, see
// `Payload`.
#[expect(unsafe_code, reason = "an iovec is not Send by itself, nor is an Rc")]
unsafe impl Send for Lent {}

impl Lent {
    /// Lends `buffers`.
    #[inline]
    pub(crate) fn new(buffers: Buffers) -> Self {
        Self(ManuallyDrop::new(buffers))
    }

    /// What is lent, for the thread that owns the vring.
    #[inline]
    pub(crate) fn owned(&mut self) -> &mut Buffers {
        &mut self.0
    }

    /// Lends others, and gives those back: for the thread that owns the vring.
    #[inline]
    pub(crate) fn exchange(&mut self, buffers: &mut Buffers) {
        std::mem::swap(&mut *self.0, buffers);
    }

    /// [`Buffers::take_header`]
    #[inline]
    pub fn take_header<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.0.take_header()
    }

    /// [`Buffers::keep_front`]
    #[inline]
    pub fn keep_front(&mut self) {
        self.0.keep_front();
    }
}

impl Deref for Lent {
    type Target = Buffers;

    #[inline]
    fn deref(&self) -> &Buffers {
        &self.0
    }
}
