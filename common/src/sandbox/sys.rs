// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls of the sandbox that have no safe wrapper.

#![expect(
    unsafe_code,
    reason = "forking, signals of a waiting parent, and calls that no crate wraps"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, c_void, siginfo_t};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use vmm_sys_util::signal::register_signal_handler;

use crate::sys::signal::HeldSignals;

/// What a waiting parent passes on to the process that serves.
const FORWARDED: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The process that signals are passed on to; 0 before there is one.
static CHILD: AtomicI32 = AtomicI32::new(0);

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Threads this process has.
fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// A copy of this process with new `namespaces` of its own: the child, or `None` in the child.
///
/// # Errors
/// When there is no room for a process or it may not have them, or when this one has several
/// threads: locks that another thread holds would never be unlocked in the child.
pub(super) fn fork(namespaces: UnshareFlags) -> io::Result<Option<Pid>> {
    if threads()? != 1 {
        return Err(io::Error::other("there are other threads already"));
    }
    if namespaces.is_empty() {
        // SAFETY: there is no other thread, so the child is as whole as its parent.
        let pid = checked(unsafe { libc::fork() })?;
        return Ok(Pid::from_raw(pid));
    }
    let signal = libc::c_ulong::from(libc::SIGCHLD.unsigned_abs());
    let flags = libc::c_ulong::from(namespaces.bits()) | signal;
    let none: libc::c_ulong = 0;
    // SAFETY: as above. Without a stack of its own the child gets a copy of ours, as by `fork`;
    // no memory is shared.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(c_int::try_from(pid).ok().and_then(Pid::from_raw))
}

/// `mount_setattr(2)` on the mount at `mount` and all below it.
pub(super) fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path and the structure are ours and are only read; the size is that of the
    // structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The signals that are passed on are kept waiting while what is returned exists.
pub(super) fn hold_signals() -> io::Result<HeldSignals> {
    HeldSignals::of(&FORWARDED)
}

/// From here on the signals that end or reload a back-end go to `child`.
pub(super) fn forward_signals(child: Pid) -> io::Result<()> {
    CHILD.store(child.as_raw_nonzero().get(), Ordering::Release);
    for signal in FORWARDED {
        register_signal_handler(signal, forward)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

/// Queued rather than sent, so that the receiver can tell it from one that a service manager sends
/// to all processes of the service; see `sys::signal`.
extern "C" fn forward(number: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let value = libc::sigval {
        sival_ptr: std::ptr::null_mut(),
    };
    // SAFETY: async-signal-safe; the child is not waited for before it has ended, so no other
    // process has its number.
    unsafe { libc::sigqueue(CHILD.load(Ordering::Acquire), number, value) };
}
