// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that have no safe wrapper: `io_uring`, positioned vector I/O on guest memory,
//! signal handlers, the page that repairs a SIGBUS, and the process that closes what no thread can
//! close; and what goes from thread to thread although it is counted without atomics.

#![expect(unsafe_code, reason = "this module is where the raw system calls are")]

pub(crate) mod berth;
pub(crate) mod heir;
pub(crate) mod signal;
pub(crate) mod uring;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, iovec};

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Readiness {
    /// There is something to read.
    Readable,
    /// There is room to write.
    Writable,
}

/// A table of iovecs on its way to another thread or to the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoVecs {
    base: *const iovec,
    count: u32,
}

// SAFETY: the table and the guest memory it names are kept by the request that the I/O belongs to,
// which is not released before the I/O is done (see `worker::RequestCx`); nobody writes the table
// meanwhile.
unsafe impl Send for IoVecs {}

/// The kernel takes no more segments at once (`IOV_MAX`); the rest is a short transfer, continued.
const MAX_SEGMENTS: usize = 1024;

impl IoVecs {
    pub(crate) fn new(iovecs: &[iovec]) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "it is at most 1024")]
        let count = iovecs.len().min(MAX_SEGMENTS) as u32;
        Self {
            base: iovecs.as_ptr(),
            count,
        }
    }

    fn count_c(self) -> c_int {
        self.count.cast_signed()
    }
}

/// The number of segments, clamped to what a call takes; the kernel refuses more than 1024.
#[inline]
fn count_of(iovecs: &[iovec]) -> c_int {
    c_int::try_from(iovecs.len()).unwrap_or(c_int::MAX)
}

/// Turns the return value of a system call into bytes done or a negative errno, as `io_uring` does.
fn outcome(result: isize) -> i32 {
    if result < 0 {
        return -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
    }
    // One call moves at most 0x7ffff000 bytes: nothing is clamped.
    i32::try_from(result).unwrap_or(i32::MAX)
}

/// `preadv(2)`; bytes read or a negative errno.
pub(crate) fn read_vectored(fd: BorrowedFd<'_>, to: IoVecs, offset: i64) -> i32 {
    // SAFETY: see `IoVecs`: the table and its buffers outlive the call. The kernel checks every
    // address and answers EFAULT for one that is gone.
    let result = unsafe { libc::preadv(fd.as_raw_fd(), to.base, to.count_c(), offset) };
    outcome(result)
}

/// `pwritev2(2)`; bytes written or a negative errno.
pub(crate) fn write_vectored(fd: BorrowedFd<'_>, from: IoVecs, offset: i64, flags: c_int) -> i32 {
    // SAFETY: as in `read_vectored`.
    let result =
        unsafe { libc::pwritev2(fd.as_raw_fd(), from.base, from.count_c(), offset, flags) };
    outcome(result)
}

/// What the calls below return: a count, or the errno.
#[inline]
fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_e| io::Error::last_os_error())
}

/// `writev(2)`.
#[inline]
pub(crate) fn writev(fd: BorrowedFd<'_>, from: &[iovec]) -> io::Result<usize> {
    let count = count_of(from);
    // SAFETY: see `memory::Gather`, which borrows what it names.
    counted(unsafe { libc::writev(fd.as_raw_fd(), from.as_ptr(), count) })
}

/// `readv(2)`.
#[inline]
pub(crate) fn readv(fd: BorrowedFd<'_>, to: &[iovec]) -> io::Result<usize> {
    let count = count_of(to);
    // SAFETY: see `memory::Scatter`, which borrows what it names.
    counted(unsafe { libc::readv(fd.as_raw_fd(), to.as_ptr(), count) })
}

/// `preadv2(2)`.
#[inline]
pub(crate) fn preadv2(
    fd: BorrowedFd<'_>,
    to: &[iovec],
    offset: i64,
    flags: c_int,
) -> io::Result<usize> {
    if let ([to], 0) = (to, flags) {
        // Without a table to read, the kernel is faster.
        // SAFETY: see `memory::Scatter`, which borrows what it names.
        return counted(unsafe { libc::pread64(fd.as_raw_fd(), to.iov_base, to.iov_len, offset) });
    }
    let count = count_of(to);
    // SAFETY: as above.
    counted(unsafe { libc::preadv2(fd.as_raw_fd(), to.as_ptr(), count, offset, flags) })
}

/// `pwritev2(2)`.
#[inline]
pub(crate) fn pwritev2(
    fd: BorrowedFd<'_>,
    from: &[iovec],
    offset: i64,
    flags: c_int,
) -> io::Result<usize> {
    if let ([from], 0) = (from, flags) {
        // SAFETY: see `memory::Gather`, which borrows what it names.
        return counted(unsafe {
            libc::pwrite64(fd.as_raw_fd(), from.iov_base, from.iov_len, offset)
        });
    }
    let count = count_of(from);
    // SAFETY: as above.
    counted(unsafe { libc::pwritev2(fd.as_raw_fd(), from.as_ptr(), count, offset, flags) })
}

fn message(iovecs: &[iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a message of nothing, to nobody.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len();
    message
}

/// `sendmsg(2)` without waiting.
#[inline]
pub(crate) fn sendmsg(fd: BorrowedFd<'_>, from: &[iovec]) -> io::Result<usize> {
    let message = message(from);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: see `memory::Gather`; the kernel does not write the table.
    counted(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// `recvmsg(2)` without waiting; the length is that of the whole datagram.
#[inline]
pub(crate) fn recvmsg(fd: BorrowedFd<'_>, to: &[iovec]) -> io::Result<usize> {
    let mut message = message(to);
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: see `memory::Scatter`; the kernel does not write the table.
    counted(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })
}

/// Has the processor fetch the cache line at `address`, which may be anything.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; an address that is not mapped is ignored.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`prefetch`], for a line that will be written: it is taken from the processor that has it.
#[inline]
pub(crate) fn prefetch_to_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; an address that is not mapped is ignored, as is the hint where the processor
    // does not know it.
    unsafe {
        // The intrinsic becomes a prefetch to read unless the target is told to have PRFCHW.
        core::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Whether a write to descriptor `fd` would not wait now. It may be closed meanwhile, or be
/// another.
pub(crate) fn is_writable(fd: c_int) -> bool {
    let mut one = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, which is ours; poll takes any number for a descriptor.
    let ready = unsafe { libc::poll(&raw mut one, 1, 0) };
    ready != 0
}

/// Ends the process at once, without a destructor. Async-signal-safe.
pub(crate) fn exit_now(status: u8) -> ! {
    heir::tell_parent(status);
    // SAFETY: `_exit` takes nothing from anybody who goes on: nobody does.
    unsafe { libc::_exit(c_int::from(status)) }
}

/// A new epoll instance, whose bare descriptor from the `epoll` crate gets an owner.
pub(crate) fn epoll_instance() -> io::Result<OwnedFd> {
    let fd = epoll::create(true)?;
    // SAFETY: the descriptor was just made and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts anonymous zeroes in the place of the pages from `start` on. Async-signal-safe.
pub(crate) fn patch(start: usize, len_bytes: usize) -> bool {
    let place = std::ptr::with_exposed_provenance_mut::<c_void>(start);
    // Pages come as they are touched.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: `sigbus` has found a fault within a mapping of guest memory, and this range to be a
    // page of it or all of it; its guard keeps it mapped. What is there may change at any time, as
    // the front-end has it: zeroes harm only the front-end that has truncated the file.
    let mapped = unsafe {
        libc::mmap(
            place,
            len_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    mapped == place
}
