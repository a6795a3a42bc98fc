// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the buffers of a request come to be: descriptor by descriptor, as the walk of its chain
//! reads them.

use std::rc::Rc;

use libc::iovec;

use super::{Buffers, Holes};
use crate::memory::Memory;

/// Where [`Buffers::resume`] found the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    iovecs: usize,
    last_len: usize,
    writable_bytes: u64,
}

impl Buffers {
    /// Forgets the last request and starts one whose buffers lie in `memory`.
    #[inline]
    pub(crate) fn begin(&mut self, memory: &Rc<Memory>) {
        if !self.lies_in(memory) {
            self.memory = Some(Rc::clone(memory));
        }
        self.clear();
    }

    #[inline]
    fn clear(&mut self) {
        self.iovecs.clear();
        self.readable_start = 0;
        self.split = 0;
        self.writable_start = 0;
        self.readable_bytes = 0;
        self.writable_bytes = 0;
        self.tail = std::ptr::null_mut();
        self.holes = None;
    }

    #[inline]
    fn lies_in(&self, memory: &Rc<Memory>) -> bool {
        self.memory
            .as_ref()
            .is_some_and(|own| Rc::ptr_eq(own, memory))
    }

    /// Goes on with another chain in `memory`, all of whose buffers are writable, so that several
    /// are one stream. None, with nothing done, when what is left here lies in another table.
    #[inline]
    pub(crate) fn resume(&mut self, memory: &Rc<Memory>) -> Option<Mark> {
        /// Consumed iovecs kept at the front before the rest is moved there.
        const STALE_IOVECS: usize = 256;
        if self.writable_bytes == 0 {
            self.begin(memory);
        } else if !self.lies_in(memory) {
            return None;
        } else if self.writable_start >= STALE_IOVECS {
            self.iovecs.drain(..self.writable_start);
            self.split = 0;
            self.readable_start = 0;
            self.writable_start = 0;
        }
        Some(Mark {
            iovecs: self.iovecs.len(),
            last_len: self.iovecs.last().map_or(0, |last| last.iov_len),
            writable_bytes: self.writable_bytes,
        })
    }

    /// Forgets what was added since.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.iovecs.truncate(mark.iovecs);
        if let Some(last) = self.iovecs.last_mut() {
            last.iov_len = mark.last_len;
        }
        self.writable_bytes = mark.writable_bytes;
        self.holes = None;
    }

    /// Adds one descriptor. Readable ones must come before writable ones; the caller checks it.
    ///
    /// Returns false, with the buffer left out, when it is not all guest memory.
    #[inline]
    pub(crate) fn push(
        &mut self,
        guest: u64,
        len_bytes: u32,
        writable: bool,
        hint: &mut usize,
    ) -> bool {
        if len_bytes == 0 {
            return true;
        }
        let sound = self.push_sound(guest, len_bytes, writable, hint);
        if !sound {
            self.note_hole(writable);
        } else if writable && let Some(holes) = &mut self.holes {
            holes.at_tail = false;
        }
        sound
    }

    #[inline]
    fn push_sound(&mut self, guest: u64, len_bytes: u32, writable: bool, hint: &mut usize) -> bool {
        let Some(memory) = &self.memory else {
            return false;
        };
        let want = u64::from(len_bytes);
        match memory.guest_run(guest, want, hint) {
            Some(run) if run.len_bytes as u64 == want => {
                let iov = iovec {
                    iov_base: run.start.cast(),
                    iov_len: run.len_bytes,
                };
                self.append(iov, writable);
                true
            }
            Some(_) => self.push_straddling(guest, want, writable, hint),
            None => false,
        }
    }

    /// A buffer was left out here.
    #[cold]
    fn note_hole(&mut self, writable: bool) {
        let holes = self.holes.get_or_insert(Holes {
            readable_bytes: u64::MAX,
            writable_bytes: u64::MAX,
            at_tail: false,
        });
        let (before, now) = if writable {
            (&mut holes.writable_bytes, self.writable_bytes)
        } else {
            (&mut holes.readable_bytes, self.readable_bytes)
        };
        *before = now.min(*before);
        holes.at_tail |= writable;
    }

    #[inline]
    pub(crate) fn note_descriptors(&mut self, descriptors: u32) {
        self.descriptors = descriptors;
    }

    #[inline]
    fn append(&mut self, iov: iovec, writable: bool) {
        let len_bytes = iov.iov_len as u64;
        if writable {
            self.writable_bytes += len_bytes;
        } else {
            self.readable_bytes += len_bytes;
        }
        // Buffers that touch become one iovec: fewer segments for the kernel to walk.
        let joins = self.iovecs.len() > self.split || !writable;
        if joins
            && let Some(last) = self.iovecs.last_mut()
            && last.iov_base.wrapping_byte_add(last.iov_len) == iov.iov_base
        {
            last.iov_len += iov.iov_len;
            return;
        }
        self.iovecs.push(iov);
        if !writable {
            self.split = self.iovecs.len();
            self.writable_start = self.split;
        }
    }

    #[cold]
    fn push_straddling(
        &mut self,
        mut guest: u64,
        mut left: u64,
        writable: bool,
        hint: &mut usize,
    ) -> bool {
        if self
            .memory
            .as_deref()
            .is_none_or(|memory| !covers(memory, guest, left, hint))
        {
            return false;
        }
        while left > 0 {
            let run = self
                .memory
                .as_deref()
                .and_then(|m| m.guest_run(guest, left, hint));
            let Some(run) = run else { return false };
            self.append(
                iovec {
                    iov_base: run.start.cast(),
                    iov_len: run.len_bytes,
                },
                writable,
            );
            guest = guest.wrapping_add(run.len_bytes as u64);
            left -= run.len_bytes as u64;
        }
        true
    }
}

/// Whether every byte of the range is guest memory.
fn covers(memory: &Memory, mut guest: u64, mut left: u64, hint: &mut usize) -> bool {
    while left > 0 {
        let Some(run) = memory.guest_run(guest, left, hint) else {
            return false;
        };
        left -= run.len_bytes as u64;
        guest = match guest.checked_add(run.len_bytes as u64) {
            Some(next) => next,
            None => return left == 0,
        };
    }
    true
}
