// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals, turned into an eventfd the control thread waits on.
//!
//! SIGTERM and SIGINT ask for a clean exit; a second one, when the first takes too long, ends the
//! process at once. SIGHUP asks devices to look at their backing again. SIGBUS in guest memory is
//! repaired (see [`sigbus`](crate::memory::sigbus)) and reported the same way.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use libc::{c_int, c_void, siginfo_t};
use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::signal::register_signal_handler;

static TERMINATIONS: AtomicU32 = AtomicU32::new(0);
static RELOAD: AtomicBool = AtomicBool::new(false);
static TORN: AtomicBool = AtomicBool::new(false);
/// The number of the eventfd, for the handlers; -1 before they are installed.
static WAKE: AtomicI32 = AtomicI32::new(-1);
static WAKE_FD: OnceLock<OwnedFd> = OnceLock::new();

/// What signals have asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signals {
    wake: BorrowedFd<'static>,
}

impl Signals {
    /// Installs the handlers, once per process.
    pub(crate) fn install() -> io::Result<Self> {
        if let Some(fd) = WAKE_FD.get() {
            return Ok(Self { wake: fd.as_fd() });
        }
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let fd = WAKE_FD.get_or_init(|| fd);
        WAKE.store(fd.as_raw_fd(), Ordering::Release);
        for number in [libc::SIGTERM, libc::SIGINT] {
            register(number, on_terminate)?;
        }
        register(libc::SIGHUP, on_reload)?;
        register(libc::SIGBUS, on_bus_error)?;
        Ok(Self { wake: fd.as_fd() })
    }

    /// Readable when something was asked for.
    pub(crate) fn fd(self) -> BorrowedFd<'static> {
        self.wake
    }

    /// Resets the eventfd; the questions below keep their answers.
    pub(crate) fn acknowledge(self) {
        let mut count = [0; 8];
        // Empty already: somebody else woke us.
        let _ = rustix::io::read(self.fd(), &mut count);
    }

    /// Whether the process is to end.
    pub(crate) fn terminating(self) -> bool {
        TERMINATIONS.load(Ordering::Acquire) > 0
    }

    /// Whether SIGHUP came since the last call.
    pub(crate) fn take_reload(self) -> bool {
        RELOAD.swap(false, Ordering::AcqRel)
    }

    /// Whether guest memory was found truncated since the last call.
    pub(crate) fn take_torn(self) -> bool {
        TORN.swap(false, Ordering::AcqRel)
    }
}

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

fn register(number: c_int, handler: Handler) -> io::Result<()> {
    register_signal_handler(number, handler).map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

/// Async-signal-safe: one write to an eventfd.
fn wake() {
    let one: u64 = 1;
    let fd = WAKE.load(Ordering::Acquire);
    // SAFETY: the buffer is eight bytes of ours; the descriptor is never closed once published.
    let _ = unsafe { libc::write(fd, (&raw const one).cast(), size_of::<u64>()) };
}

extern "C" fn on_terminate(_number: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    if TERMINATIONS.fetch_add(1, Ordering::AcqRel) > 0 {
        // SAFETY: `_exit` is async-signal-safe and does not return.
        unsafe { libc::_exit(1) };
    }
    wake();
}

extern "C" fn on_reload(_number: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    RELOAD.store(true, Ordering::Release);
    wake();
}

extern "C" fn on_bus_error(number: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS the kernel has set the address.
    let address = unsafe { info.si_addr() };
    if crate::memory::sigbus::repair(address.addr()) {
        TORN.store(true, Ordering::Release);
        wake();
        return;
    }
    // SAFETY: restoring the default action is async-signal-safe; the access faults again and the
    // kernel ends the process with the right status.
    unsafe { libc::signal(number, libc::SIG_DFL) };
}
