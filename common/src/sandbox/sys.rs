// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls of the sandbox that have no safe wrapper.

#![expect(
    unsafe_code,
    reason = "forking, signals of a waiting parent, and calls that no crate wraps"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, c_void, siginfo_t};
use rustix::fs::{Dir, FileType, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
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
/// threads: locks that another thread holds would stay locked in the child for ever.
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

/// The numbers of the descriptors that are open.
pub(super) fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let listed = OwnedFd::from(File::open("/proc/self/fd")?);
    let own = listed.as_raw_fd();
    let mut numbers = Vec::new();
    for entry in Dir::new(listed)? {
        let number = entry?.file_name().to_str().map(str::parse::<RawFd>);
        numbers.extend(number.ok().and_then(Result::ok).filter(|fd| *fd != own));
    }
    Ok(numbers)
}

/// No program that this process starts gets this descriptor, which may be none.
pub(super) fn close_on_exec(fd: RawFd) {
    // SAFETY: by contract of `Inherited`, nobody closes it meanwhile.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // It fails where there is no such descriptor; whoever uses it will say so.
    let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
}

/// Whether the descriptor is one of a regular file.
pub(super) fn is_file(fd: RawFd) -> bool {
    // SAFETY: by contract of `Inherited`, it is open, and nobody closes it meanwhile.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
}

/// Closes one that was inherited.
pub(super) fn close_inherited(fd: RawFd) {
    // SAFETY: by contract of `Inherited`, which is made first of all in `main`, nobody in this
    // process owns what was open by then.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
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
    // SAFETY: async-signal-safe; the child is not waited for before it has ended, so the number is
    // nobody else's.
    unsafe { libc::sigqueue(CHILD.load(Ordering::Acquire), number, value) };
}
