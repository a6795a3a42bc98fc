// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Vector I/O on a mixture of our own bytes and guest memory, in one call of the kernel.
//!
//! A packet's header is ours, its payload is the guest's, and what does not fit goes to a spare
//! buffer: [`Gather`] is what a call reads, [`Scatter`] what it fills. Both borrow what they name,
//! so that nothing goes away before the call.

use std::io;
use std::os::fd::BorrowedFd;

use libc::{c_int, iovec};
use rustix::io::ReadWriteFlags;

use super::{Buffers, Payload};
use crate::sys;

/// The kernel takes no more segments at once (`IOV_MAX`).
const MAX_SEGMENTS: usize = 1024;

/// Space for the segments of one call, kept from call to call.
#[derive(Debug, Default)]
pub struct IoScratch(Vec<iovec>);

// SAFETY: between two calls the table is empty; `gather` and `scatter` clear it first.
#[expect(unsafe_code, reason = "an iovec is not Send by itself")]
unsafe impl Send for IoScratch {}

impl IoScratch {
    /// An empty list of bytes for the kernel to read.
    #[inline]
    pub fn gather(&mut self) -> Gather<'_> {
        self.0.clear();
        Gather(Segments {
            iovecs: &mut self.0,
            bytes: 0,
        })
    }

    /// An empty list of bytes for the kernel to fill.
    #[inline]
    pub fn scatter(&mut self) -> Scatter<'_> {
        self.0.clear();
        Scatter(Segments {
            iovecs: &mut self.0,
            bytes: 0,
        })
    }
}

#[derive(Debug)]
struct Segments<'a> {
    iovecs: &'a mut Vec<iovec>,
    bytes: usize,
}

impl Segments<'_> {
    #[inline]
    fn push(&mut self, base: *mut u8, len_bytes: usize) {
        if len_bytes == 0 || self.iovecs.len() == MAX_SEGMENTS {
            return;
        }
        self.iovecs.push(iovec {
            iov_base: base.cast(),
            iov_len: len_bytes,
        });
        self.bytes += len_bytes;
    }

    /// Names up to `limit_bytes` of a stream of guest memory, after the first `skip_bytes`.
    #[inline]
    fn push_stream(&mut self, stream: &[iovec], mut skip_bytes: usize, mut limit_bytes: usize) {
        for segment in stream {
            if limit_bytes == 0 {
                return;
            }
            if skip_bytes >= segment.iov_len {
                skip_bytes -= segment.iov_len;
                continue;
            }
            let len_bytes = (segment.iov_len - skip_bytes).min(limit_bytes);
            let base = segment.iov_base.cast::<u8>().wrapping_add(skip_bytes);
            self.push(base, len_bytes);
            limit_bytes -= len_bytes;
            skip_bytes = 0;
        }
    }
}

/// Bytes for the kernel to read, in order.
#[derive(Debug)]
pub struct Gather<'a>(Segments<'a>);

impl<'a> Gather<'a> {
    /// Adds bytes of ours.
    #[inline]
    pub fn push(&mut self, bytes: &'a [u8]) {
        self.0.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// Adds what is left of the device-readable bytes of a chain.
    #[inline]
    pub fn push_readable(&mut self, buffers: &'a Buffers) {
        self.0.push_stream(buffers.readable(), 0, usize::MAX);
    }

    /// How many bytes there are. A chain of more segments than the kernel takes at once is cut:
    /// compare with what was meant to be added.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// `writev(2)`.
    ///
    /// # Errors
    /// Of the call; EAGAIN as [`io::ErrorKind::WouldBlock`].
    #[inline]
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        sys::writev(fd, self.0.iovecs)
    }

    /// Adds up to `limit_bytes` of the device-readable bytes, behind the first `skip_bytes`.
    #[inline]
    pub fn push_part(&mut self, buffers: &'a Buffers, skip_bytes: usize, limit_bytes: usize) {
        self.0
            .push_stream(buffers.readable(), skip_bytes, limit_bytes);
    }

    /// The same of a payload on its way to another thread.
    pub fn push_payload(&mut self, payload: &'a Payload, skip_bytes: usize, limit_bytes: usize) {
        self.0
            .push_stream(payload.iovecs(), skip_bytes, limit_bytes);
    }

    /// `pwritev2(2)` at `offset_bytes` of a file.
    ///
    /// # Errors
    /// Of the call; EINVAL for an offset that files do not have.
    #[inline]
    pub fn write_at(
        &self,
        fd: BorrowedFd<'_>,
        offset_bytes: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize> {
        sys::pwritev2(fd, self.0.iovecs, offset(offset_bytes)?, call_flags(flags))
    }

    /// `sendmsg(2)` that neither waits nor raises SIGPIPE.
    ///
    /// # Errors
    /// As [`write_to`](Self::write_to).
    #[inline]
    pub fn send_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        sys::sendmsg(fd, self.0.iovecs)
    }
}

/// Bytes for the kernel to fill, in order.
#[derive(Debug)]
pub struct Scatter<'a>(Segments<'a>);

impl<'a> Scatter<'a> {
    /// Adds bytes of ours.
    #[inline]
    pub fn push(&mut self, bytes: &'a mut [u8]) {
        self.0.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// Adds up to `limit_bytes` of what is left of the device-writable bytes, behind the first
    /// `skip_bytes`.
    #[inline]
    pub fn push_writable(&mut self, buffers: &'a Buffers, skip_bytes: usize, limit_bytes: usize) {
        self.0
            .push_stream(buffers.writable(), skip_bytes, limit_bytes);
    }

    /// The same of a payload on its way to another thread.
    pub fn push_payload(&mut self, payload: &'a Payload, skip_bytes: usize, limit_bytes: usize) {
        self.0
            .push_stream(payload.iovecs(), skip_bytes, limit_bytes);
    }

    /// `preadv2(2)` at `offset_bytes` of a file.
    ///
    /// # Errors
    /// Of the call; EAGAIN as [`io::ErrorKind::WouldBlock`]; EINVAL for an offset that files do not
    /// have.
    #[inline]
    pub fn read_at(
        &self,
        fd: BorrowedFd<'_>,
        offset_bytes: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize> {
        sys::preadv2(fd, self.0.iovecs, offset(offset_bytes)?, call_flags(flags))
    }

    /// How many bytes there is room for.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// `readv(2)`.
    ///
    /// # Errors
    /// Of the call; EAGAIN as [`io::ErrorKind::WouldBlock`].
    #[inline]
    pub fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        sys::readv(fd, self.0.iovecs)
    }

    /// `recvmsg(2)` that does not wait; with `MSG_TRUNC` the length of a datagram is its own, which
    /// may be more than fitted.
    ///
    /// # Errors
    /// As [`read_from`](Self::read_from).
    #[inline]
    pub fn receive_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        sys::recvmsg(fd, self.0.iovecs)
    }

    /// Copies `bytes` in, as far as there is room; returns how many fitted.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        super::copy::copy_in(self.0.iovecs, 0, bytes)
    }
}

fn offset(offset_bytes: u64) -> io::Result<i64> {
    i64::try_from(offset_bytes).map_err(|_e| io::Error::from_raw_os_error(libc::EINVAL))
}

fn call_flags(flags: ReadWriteFlags) -> c_int {
    flags.bits().cast_signed()
}
