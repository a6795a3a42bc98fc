// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The buffers of one request, translated to host addresses.
//!
//! A [`Buffers`] is made once per descriptor head and used again for every request that comes
//! with that head, so that serving a request allocates nothing. It holds the memory snapshot its
//! pointers were translated with: as long as it has pointers, they are valid.
//!
//! virtio 1.3 §2.7.4: all device-readable bytes come before all device-writable ones. Each of the
//! two is one stream of bytes; a device takes its header off the front of the first and its
//! status byte off the end of the second, and what is left is the payload, as iovecs that go to
//! the kernel as they are.

mod filling;

use std::rc::Rc;

use libc::iovec;

use super::Memory;
use super::copy::{copy_in, copy_out, each_piece};
use super::payload::Payload;
use crate::num::usize_of;

/// iovecs kept from request to request. A chain of more gives its memory back, so that a guest
/// cannot make every head of a queue hold the largest table there is.
const KEPT_IOVECS: usize = 256;

/// The device-readable and device-writable bytes of one request.
#[derive(Debug)]
pub struct Buffers {
    memory: Option<Rc<Memory>>,
    /// Readable ones first.
    iovecs: Vec<iovec>,
    /// Index of the first readable iovec not yet consumed.
    readable_start: usize,
    /// Index of the first writable iovec; the readable ones end here.
    split: usize,
    /// Index of the first writable iovec not yet consumed.
    writable_start: usize,
    readable_bytes: u64,
    writable_bytes: u64,
    /// Of the chain read last.
    descriptors: u32,
    /// The last byte of the chain, once taken off the writable stream.
    tail: *mut u8,
    /// Where a buffer was left out.
    holes: Option<Holes>,
}

/// Buffers that are not guest memory and were left out.
#[derive(Clone, Copy, Debug)]
struct Holes {
    /// The bytes of each stream before its first one; `u64::MAX`: it has none.
    readable_bytes: u64,
    writable_bytes: u64,
    /// Whether the last writable buffer is one.
    at_tail: bool,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            memory: None,
            iovecs: Vec::new(),
            readable_start: 0,
            split: 0,
            writable_start: 0,
            readable_bytes: 0,
            writable_bytes: 0,
            descriptors: 0,
            tail: std::ptr::null_mut(),
            holes: None,
        }
    }
}

impl Buffers {
    /// Lets go of guest memory; nothing is left to read or to write.
    #[inline]
    pub fn release(&mut self) {
        self.iovecs.clear();
        if self.iovecs.capacity() > KEPT_IOVECS {
            self.iovecs = Vec::new();
        }
        self.memory = None;
        self.readable_bytes = 0;
        self.writable_bytes = 0;
        self.tail = std::ptr::null_mut();
    }

    /// Drops what lies behind the first buffer that was left out because it is not guest memory, in
    /// each of the streams: what is left is where the driver has it. To be called before anything
    /// is taken.
    pub fn keep_front(&mut self) {
        let Some(holes) = self.holes else {
            return;
        };
        self.truncate_readable(self.readable_bytes.saturating_sub(holes.readable_bytes));
        self.truncate_writable(self.writable_bytes.saturating_sub(holes.writable_bytes));
    }

    /// Segments that there is memory for, whether they are used or not.
    #[must_use]
    #[inline]
    pub(crate) fn held_segments(&self) -> usize {
        self.iovecs.capacity()
    }

    /// Descriptors of the chain read last, sound or not: what it has cost to read it.
    #[must_use]
    #[inline]
    pub fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// Bytes the driver has for the device, less those taken.
    #[must_use]
    #[inline]
    pub fn readable_bytes(&self) -> u64 {
        self.readable_bytes
    }

    /// Bytes the device may write, less those taken.
    #[must_use]
    #[inline]
    pub fn writable_bytes(&self) -> u64 {
        self.writable_bytes
    }

    /// The readable payload left, for the kernel to read from.
    #[must_use]
    #[inline]
    pub fn readable(&self) -> &[iovec] {
        self.iovecs
            .get(self.readable_start..self.split)
            .unwrap_or_default()
    }

    /// The writable payload left, for the kernel to write to.
    #[must_use]
    #[inline]
    pub fn writable(&self) -> &[iovec] {
        self.iovecs.get(self.writable_start..).unwrap_or_default()
    }

    /// Takes `N` bytes off the front of the readable stream; none when there are fewer.
    ///
    /// The bytes are copied once: what the driver writes there later does not matter.
    #[inline]
    pub fn take_header<const N: usize>(&mut self) -> Option<[u8; N]> {
        let header = self.peek()?;
        self.consume_readable(N);
        Some(header)
    }

    /// Takes bytes off the front of the readable stream, as many as there are and fit, copied once
    /// as by [`take_header`](Self::take_header); returns how many.
    #[inline]
    pub fn take_front(&mut self, to: &mut [u8]) -> usize {
        let taken = copy_out(self.readable(), 0, to);
        self.consume_readable(taken);
        taken
    }

    /// Copies `N` bytes from the front of the readable stream; none when there are fewer.
    #[inline]
    #[must_use]
    pub fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.readable_bytes < N as u64 {
            return None;
        }
        if let Some(first) = self.readable().first()
            && first.iov_len >= N
        {
            // SAFETY: the iovec has `N` bytes of a run of the snapshot held, and an array of bytes
            // needs no alignment.
            #[expect(unsafe_code, reason = "a copy out of guest memory")]
            return Some(unsafe { first.iov_base.cast::<[u8; N]>().read_unaligned() });
        }
        let mut bytes = [0; N];
        copy_out(self.readable(), 0, &mut bytes);
        Some(bytes)
    }

    /// Takes the last byte off the writable stream, for a later [`put_tail`](Self::put_tail).
    /// Returns false where there is none, or it is not guest memory.
    #[inline]
    pub fn take_tail(&mut self) -> bool {
        if self.writable_bytes == 0 || self.holes.is_some_and(|holes| holes.at_tail) {
            return false;
        }
        let Some(last) = self.iovecs.last_mut() else {
            return false;
        };
        last.iov_len -= 1;
        self.tail = last.iov_base.cast::<u8>().wrapping_add(last.iov_len);
        if last.iov_len == 0 {
            self.iovecs.pop();
        }
        self.writable_bytes -= 1;
        true
    }

    /// Writes the byte that [`take_tail`](Self::take_tail) took; without one nothing happens.
    #[inline]
    pub fn put_tail(&mut self, value: u8) {
        if self.tail.is_null() {
            return;
        }
        // SAFETY: a non-null tail points into a buffer that `push` found in the snapshot that
        // `self.memory` still holds; `release` and `begin` reset the two together.
        #[expect(unsafe_code, reason = "a store to guest memory")]
        unsafe {
            self.tail.write_volatile(value);
        }
    }

    /// Copies from `offset` of the readable stream; returns how many bytes there were.
    #[inline]
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> usize {
        copy_out(self.readable(), offset, to)
    }

    /// Copies `bytes` to the front of the writable stream, as far as they fit.
    #[inline]
    pub fn write_front<const N: usize>(&self, bytes: [u8; N]) {
        let to = self.writable();
        match to.first() {
            Some(first) if first.iov_len >= N => {
                // SAFETY: the iovec has room for `N` bytes in a run of the snapshot held, and an
                // array of bytes needs no alignment.
                #[expect(unsafe_code, reason = "a copy into guest memory")]
                unsafe {
                    first.iov_base.cast::<[u8; N]>().write_unaligned(bytes);
                }
            }
            _ => {
                copy_in(to, 0, &bytes);
            }
        }
    }

    /// Copies back from `offset` of the writable stream; returns how many bytes there were.
    #[inline]
    pub fn written_at(&self, offset: usize, to: &mut [u8]) -> usize {
        copy_out(self.writable(), offset, to)
    }

    /// Copies to `offset` of the writable stream; returns how many bytes fitted.
    #[inline]
    pub fn write_at(&self, offset: usize, from: &[u8]) -> usize {
        copy_in(self.writable(), offset, from)
    }

    /// Fills `len_bytes` from `offset` of the writable stream with zeroes.
    pub fn zero_at(&mut self, offset: usize, len_bytes: usize) {
        let zeroes = [0; 512];
        let mut done = 0;
        while done < len_bytes {
            let step = (len_bytes - done).min(zeroes.len());
            let wrote = self.write_at(offset + done, zeroes.get(..step).unwrap_or_default());
            if wrote == 0 {
                break;
            }
            done += wrote;
        }
    }

    /// Drops `bytes` from the front of the readable stream.
    #[inline]
    pub fn consume_readable(&mut self, bytes: usize) {
        let taken = consume(
            &mut self.iovecs,
            &mut self.readable_start,
            self.split,
            bytes,
        );
        self.readable_bytes -= taken as u64;
    }

    /// Drops `bytes` from the front of the writable stream.
    #[inline]
    pub fn consume_writable(&mut self, bytes: usize) {
        let end = self.iovecs.len();
        let taken = consume(&mut self.iovecs, &mut self.writable_start, end, bytes);
        self.writable_bytes -= taken as u64;
    }

    /// Drops `bytes` from the end of the writable stream.
    pub fn truncate_writable(&mut self, bytes: u64) {
        let mut left = bytes.min(self.writable_bytes);
        self.writable_bytes -= left;
        while left > 0 {
            let Some(last) = self.iovecs.last_mut() else {
                return;
            };
            if left < last.iov_len as u64 {
                last.iov_len -= usize_of(left);
                return;
            }
            left -= last.iov_len as u64;
            self.iovecs.pop();
        }
    }

    fn truncate_readable(&mut self, bytes: u64) {
        let mut left = bytes.min(self.readable_bytes);
        self.readable_bytes -= left;
        while left > 0 {
            let Some(at) = self.split.checked_sub(1) else {
                return;
            };
            let Some(last) = self.iovecs.get_mut(at) else {
                return;
            };
            if left < last.iov_len as u64 {
                last.iov_len -= usize_of(left);
                return;
            }
            left -= last.iov_len as u64;
            self.iovecs.remove(at);
            self.split = at;
            self.writable_start -= 1;
        }
    }

    /// Copies up to `len_bytes` from `from_offset` of the readable stream of `from` to `offset` of
    /// the writable stream here; returns how many there were and fitted.
    #[inline]
    pub fn copy_from(
        &mut self,
        offset: usize,
        from: &Self,
        from_offset: usize,
        len_bytes: usize,
    ) -> usize {
        let to = self.writable();
        let mut done = 0;
        each_piece(
            from.readable(),
            from_offset,
            len_bytes,
            |source, at, len| {
                if at != done {
                    return;
                }
                done += each_piece(to, offset + at, len, |target, within, len| {
                    // SAFETY: both are pieces of iovecs that `push` made from runs of snapshots
                    // still held, `len` bytes each; two guests may share memory, so they may
                    // overlap.
                    #[expect(unsafe_code, reason = "a copy between guests")]
                    unsafe {
                        std::ptr::copy(source.wrapping_add(within), target, len);
                    }
                });
            },
        );
        done
    }

    /// The readable payload left, for a blocking thread.
    #[must_use]
    pub fn readable_payload(&self) -> Option<Payload> {
        self.payload(self.readable())
    }

    /// The writable payload left, for a blocking thread.
    #[must_use]
    pub fn writable_payload(&self) -> Option<Payload> {
        self.payload(self.writable())
    }

    fn payload(&self, iovecs: &[iovec]) -> Option<Payload> {
        let memory = self.memory.as_deref()?.clone();
        Some(Payload::new(memory, iovecs))
    }
}

#[inline]
fn consume(iovecs: &mut [iovec], start: &mut usize, end: usize, bytes: usize) -> usize {
    let mut left = bytes;
    while left > 0 && *start < end {
        let Some(iov) = iovecs.get_mut(*start) else {
            break;
        };
        if left < iov.iov_len {
            iov.iov_base = iov.iov_base.wrapping_byte_add(left);
            iov.iov_len -= left;
            return bytes;
        }
        // One that is all consumed stays as it is: nothing looks in front of `start`.
        left -= iov.iov_len;
        *start += 1;
    }
    bytes - left
}
