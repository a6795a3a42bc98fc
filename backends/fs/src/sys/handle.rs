// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! File handles: numbers that find a node again although nothing holds it (`open_by_handle_at(2)`).
#![expect(unsafe_code, reason = "two system calls, one per block")]

use std::ffi::{CStr, c_int, c_uint};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use ringside_common::num::usize_of;
use rustix::fs::{AtFlags, OFlags};

use super::statx_at;
use crate::error::{Errno, Result};

/// `MAX_HANDLE_SZ`.
pub const MAX_HANDLE_BYTES: usize = 128;
/// The same as the kernel takes it.
const MAX_HANDLE_SIZE: c_uint = 128;
/// Bytes of handles that need no memory of their own; those of ext4, xfs and btrfs mostly fit.
const INLINE_BYTES: usize = 20;
/// `AT_HANDLE_MNT_ID_UNIQUE`, Linux 6.12.
const AT_HANDLE_MNT_ID_UNIQUE: AtFlags = AtFlags::from_bits_retain(1);

/// Names a node of a file system, also after it was forgotten. Its file system makes it up; equal
/// handles are the same node, of the same generation.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FileHandle {
    kind: i32,
    bytes: Bytes,
}

/// Short ones are always inline and filled up with zeros, so that equal means equal.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Bytes {
    Inline(u8, [u8; INLINE_BYTES]),
    Boxed(Box<[u8]>),
}

impl FileHandle {
    /// A handle of a type and at most [`MAX_HANDLE_BYTES`] bytes, as the file system gave it.
    #[must_use]
    pub fn new(kind: i32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_HANDLE_BYTES {
            return None;
        }
        let mut inline = [0; INLINE_BYTES];
        let bytes = match (inline.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(to), Ok(len)) => {
                to.copy_from_slice(bytes);
                Bytes::Inline(len, inline)
            }
            _ => Bytes::Boxed(bytes.into()),
        };
        Some(Self { kind, bytes })
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Inline(len, bytes) => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Bytes::Boxed(bytes) => bytes,
        }
    }
}

/// `struct file_handle` with room for the longest.
#[repr(C)]
struct RawHandle {
    handle_bytes: c_uint,
    handle_type: c_int,
    f_handle: [u8; MAX_HANDLE_BYTES],
}

const _: () = assert!(offset_of!(RawHandle, f_handle) == size_of::<libc::file_handle>());

/// The handle of what `name` is in `directory`, or of what the descriptor holds if the name is
/// empty, and the number of its mount as [`super::statx_at`] has it.
///
/// # Errors
/// Of `name_to_handle_at(2)`; `EOPNOTSUPP` where the file system has none.
pub fn name_to_handle(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: AtFlags,
) -> Result<(FileHandle, u64)> {
    static NOT_UNIQUE: AtomicBool = AtomicBool::new(false);

    let flags = flags | AtFlags::EMPTY_PATH;
    if !NOT_UNIQUE.load(Ordering::Relaxed) {
        let mut mount = 0_u64;
        match raw_handle(directory, name, flags | AT_HANDLE_MNT_ID_UNIQUE, &mut mount) {
            Ok(handle) => return Ok((handle, mount)),
            Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    let found = name_to_handle_before_6_12(directory, name, flags)?;
    NOT_UNIQUE.store(true, Ordering::Relaxed);
    Ok(found)
}

/// Where the call gives a number of the mount that may be another than that of statx.
pub(super) fn name_to_handle_before_6_12(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: AtFlags,
) -> Result<(FileHandle, u64)> {
    let handle = raw_handle(directory, name, flags, &mut 0)?;
    Ok((handle, statx_at(directory, name)?.stx_mnt_id))
}

fn raw_handle(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: AtFlags,
    mount: &mut u64,
) -> Result<FileHandle> {
    let mut raw = RawHandle {
        handle_bytes: MAX_HANDLE_SIZE,
        handle_type: 0,
        f_handle: [0; MAX_HANDLE_BYTES],
    };
    // SAFETY: (1) `raw` is a `struct file_handle` with as many bytes behind it as it says; (2) 32
    // or, with AT_HANDLE_MNT_ID_UNIQUE, 64 bits are written to `mount`; (3) `name` ends with NUL.
    let done = unsafe {
        libc::name_to_handle_at(
            directory.as_raw_fd(),
            name.as_ptr(),
            (&raw mut raw).cast(),
            std::ptr::from_mut(mount).cast(),
            flags.bits().cast_signed(),
        )
    };
    if done < 0 {
        return Err(last_error());
    }
    let bytes = raw.f_handle.get(..usize_of(raw.handle_bytes.into()));
    bytes
        .and_then(|bytes| FileHandle::new(raw.handle_type, bytes))
        .ok_or(Errno::OVERFLOW)
}

/// Opens the node that a handle names; `mount` is any descriptor, not `O_PATH`, of its file system.
///
/// # Errors
/// Of `open_by_handle_at(2)`: `ESTALE` if the node is gone, `EPERM` without
/// `CAP_DAC_READ_SEARCH`.
pub fn open_by_handle(
    mount: BorrowedFd<'_>,
    handle: &FileHandle,
    flags: OFlags,
) -> Result<OwnedFd> {
    let bytes = handle.bytes();
    let mut raw = RawHandle {
        // Clamped: no handle has more bytes.
        handle_bytes: c_uint::try_from(bytes.len()).unwrap_or(MAX_HANDLE_SIZE),
        handle_type: handle.kind,
        f_handle: [0; MAX_HANDLE_BYTES],
    };
    for (to, from) in raw.f_handle.iter_mut().zip(bytes) {
        *to = *from;
    }
    // SAFETY: `raw` is a `struct file_handle` with as many bytes behind it as it says.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut raw).cast(),
            flags.bits().cast_signed(),
        )
    };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the kernel just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the last call of the C library failed with.
pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
