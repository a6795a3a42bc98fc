// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Settings of sockets and taps that no crate has a function for.
#![expect(unsafe_code, reason = "ioctl(2) and setsockopt(2) with codes of Linux")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// `TUNSETSNDBUF`: bytes that may be on their way before a write to a tap would block.
pub(crate) fn set_send_buffer(tap: impl AsFd, bytes: c_int) -> Result<(), Errno> {
    const TUNSETSNDBUF: Opcode = opcode::write::<c_int>(b'T', 212);
    // SAFETY: the code reads one C int and writes no memory.
    let setter = unsafe { Setter::<TUNSETSNDBUF, c_int>::new(bytes) };
    // SAFETY: the setter describes the call; a descriptor of another kind fails with an error.
    unsafe { ioctl(tap, setter) }
}

/// `UDP_SEGMENT`: payload of each datagram that a longer one is cut into (`udp(7)`).
pub(crate) fn set_segment(socket: impl AsFd, bytes: c_int) -> io::Result<()> {
    let (length, value) = (size_of::<c_int>(), &raw const bytes);
    let length = u32::try_from(length).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads the C int, which lives.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_UDP, libc::UDP_SEGMENT, value.cast(), length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
