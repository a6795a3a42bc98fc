// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The few system calls that no safe wrapper covers: open-file-description locks and two ioctls
//! of block devices.
#![expect(unsafe_code, reason = "raw fcntl and ioctl calls, one per block")]

use std::ffi::{c_int, c_short};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `BLKROGET`: is the device write-protected?
const BLKROGET: Opcode = opcode::none(0x12, 94);
/// `BLKDISCARD`: forget a range, given as `[u64; 2]` of offset and length in bytes.
pub(crate) const BLKDISCARD: Opcode = opcode::none(0x12, 119);

/// Whether a block device refuses writes.
pub(crate) fn block_device_is_read_only(fd: impl AsFd) -> Result<bool, Errno> {
    // SAFETY: (1) the opcode is BLKROGET; (2) it stores one C int, which is the output type.
    let getter = unsafe { Getter::<BLKROGET, c_int>::new() };
    // SAFETY: the getter describes what BLKROGET does; on a file that is no block device the
    // kernel fails with ENOTTY and stores nothing.
    let read_only = unsafe { ioctl(fd, getter)? };
    Ok(read_only != 0)
}

/// Discards a range of a block device; its contents are undefined afterwards.
pub(crate) fn block_device_discard(
    fd: impl AsFd,
    offset_bytes: u64,
    len_bytes: u64,
) -> Result<(), Errno> {
    // SAFETY: (1) the opcode is BLKDISCARD; (2) it reads two u64 and writes no memory.
    let setter = unsafe { Setter::<BLKDISCARD, [u64; 2]>::new([offset_bytes, len_bytes]) };
    // SAFETY: the setter describes what BLKDISCARD does; the kernel checks the range itself.
    unsafe { ioctl(fd, setter) }
}

/// Takes a shared lock of one byte, owned by the open file description: it lasts until the last
/// duplicate of `fd` is closed.
pub(crate) fn ofd_lock_shared(fd: impl AsFd, byte: u8) -> Result<(), Errno> {
    let mut lock = one_byte(libc::F_RDLCK, byte)?;
    ofd_fcntl(fd, libc::F_OFD_SETLK, &mut lock)
}

/// Whether another open file description holds any lock of a byte.
pub(crate) fn ofd_is_locked_by_other(fd: impl AsFd, byte: u8) -> Result<bool, Errno> {
    let mut lock = one_byte(libc::F_WRLCK, byte)?;
    ofd_fcntl(fd, libc::F_OFD_GETLK, &mut lock)?;
    Ok(c_int::from(lock.l_type) != libc::F_UNLCK)
}

fn one_byte(lock_type: c_int, byte: u8) -> Result<libc::flock, Errno> {
    Ok(libc::flock {
        l_type: c_short::try_from(lock_type).or(Err(Errno::INVAL))?,
        l_whence: c_short::try_from(libc::SEEK_SET).or(Err(Errno::INVAL))?,
        l_start: byte.into(),
        l_len: 1,
        l_pid: 0, // demanded of OFD locks
    })
}

fn ofd_fcntl(fd: impl AsFd, command: c_int, lock: &mut libc::flock) -> Result<(), Errno> {
    // SAFETY: (1) the descriptor is borrowed, so it is open during the call; (2) both commands
    // used take a pointer to one `flock`, valid for reads and writes here.
    let returned = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, &raw mut *lock) };
    if returned == -1 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}
