// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors that nobody dares to close, and who closes them when this process has ended.
//!
//! `close(2)` of a file of FUSE waits for its server, whoever that is, and no signal ends that wait.
//! So does the end of a process that has one open. Only who is last to have a table of descriptors
//! (`CLONE_FILES`) closes what is in it. So with the first descriptor that is kept comes an *heir*:
//! a process that shares descriptors and memory with this one, and waits until it is gone, by
//! whatever end. Then the heir closes all but what is kept, so that locks and sockets are free, and
//! ends: it is the one that waits, with nothing but these files, and nobody waits for it.
//!
//! Where the sandbox has left a parent outside, that one is told of our end, and waits for it only for
//! a while ([`leave_to_parent`]). There is no heir then: it would be in our namespace of processes,
//! which ends with the last of them.

use std::io::{self, PipeWriter, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_uint, c_void};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::set_name;

use super::signal::HeldSignals;
use crate::limited;

/// The most descriptors that are kept: each of 256 sockets has its share.
const MOST: usize = 1 << 14;
/// Of the heir's stack.
const STACK_BYTES: usize = 64 << 10;

/// The numbers of what is kept, counted from 1; the heir reads them when all threads that could
/// hold a lock are gone.
static KEPT: [AtomicI32; MOST] = [const { AtomicI32::new(0) }; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Whether there is an heir.
static MADE: Mutex<bool> = Mutex::new(false);
/// Where a parent is told how this process ends.
static PARENT: OnceLock<PipeWriter> = OnceLock::new();

/// Whether nothing more can be kept.
pub(crate) fn is_full() -> bool {
    COUNT.load(Ordering::Acquire) >= MOST
}

/// Keeps `fd` open for as long as this process lives.
pub(crate) fn keep(fd: OwnedFd) {
    let number = fd.into_raw_fd();
    let slot = KEPT.get(COUNT.fetch_add(1, Ordering::AcqRel));
    if let Some(slot) = slot {
        slot.store(number + 1, Ordering::Release);
    }
    if PARENT.get().is_some() {
        return;
    }
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if *made {
        return;
    }
    match make() {
        Ok(()) => *made = true,
        // The next one tries again.
        Err(error) => limited!(
            error,
            "the end of this process may have to wait for a file that was handed over: {error}"
        ),
    }
}

/// A parent waits for the end of this process, and is told of it through `parent` before.
pub(crate) fn leave_to_parent(parent: PipeWriter) {
    // There is one sandbox in the life of a process.
    let _ = PARENT.set(parent);
}

/// Tells the parent, if there is one, that this process is about to end with `status`.
/// Async-signal-safe.
pub(crate) fn tell_parent(status: u8) {
    if let Some(mut parent) = PARENT.get() {
        // It has room for one byte, or the parent has gone.
        let _ = parent.write(&[status]);
    }
}

fn make() -> io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let held = HeldSignals::all()?;
    let mut stack = vec![0_u8; STACK_BYTES];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let argument = std::ptr::without_provenance_mut(usize::try_from(own.as_raw_fd()).unwrap_or(0));
    // No signal when it ends: nobody is to wait for it.
    let flags = libc::CLONE_VM | libc::CLONE_FILES;
    // SAFETY: the stack is the heir's for good; what it runs takes no lock, allocates nothing, and
    // uses no variable of a thread, since it has those of this one, which may be gone by then.
    let heir = unsafe { libc::clone(inherit, top, flags, argument) };
    let error = io::Error::last_os_error();
    drop(held);
    if heir < 0 {
        return Err(error);
    }
    // Both are in use until this process has ended.
    let _ = (stack.leak(), own.into_raw_fd());
    Ok(())
}

/// The life of the heir. Its calls go to the kernel without the C library, or do not fail: `errno` is
/// a variable of a thread.
extern "C" fn inherit(process: *mut c_void) -> c_int {
    let _ = set_name(c"ringside-heir");
    let process = RawFd::try_from(process.addr()).unwrap_or(-1);
    // SAFETY: it is open until the loop below has ended: `make` has given it away.
    let process = unsafe { BorrowedFd::borrow_raw(process) };
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], None) {
            Err(Errno::INTR) => {}
            Ok(_) => break,
            // It cannot tell when, and must not close what is in use.
            Err(_) => return 1,
        }
    }
    let mut first = 0;
    while let Some(kept) = next_kept(first) {
        if kept > first {
            close_range(first, kept - 1);
        }
        first = kept + 1;
    }
    close_range(first, c_uint::MAX);
    0
}

/// The smallest number that is kept and not below `first`.
fn next_kept(first: c_uint) -> Option<c_uint> {
    let count = COUNT.load(Ordering::Acquire);
    let numbers = KEPT.iter().take(count);
    numbers
        .filter_map(|slot| c_uint::try_from(slot.load(Ordering::Acquire) - 1).ok())
        .filter(|number| *number >= first)
        .min()
}

fn close_range(first: c_uint, last: c_uint) {
    // SAFETY: nobody else uses these descriptors: the process that did has ended.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}
