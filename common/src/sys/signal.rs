// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals, turned into an eventfd the control thread waits on.
//!
//! SIGTERM and SIGINT ask for a clean exit; a second one, when the first takes too long, ends the
//! process at once. One that the parent process of the sandbox passes on is counted by itself: a
//! service manager may have sent the same to both. SIGHUP asks devices to look at their backing
//! again. SIGBUS in guest memory is repaired (see [`sigbus`](crate::memory::sigbus)) and reported
//! the same way. A real-time signal takes a thread out of a system call (see
//! [`watchdog`](crate::watchdog)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::{c_int, c_void, siginfo_t};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::getpid;
use rustix::thread::Pid;
use vmm_sys_util::signal::register_signal_handler;

static TERMINATIONS: AtomicU32 = AtomicU32::new(0);
static FORWARDED_TERMINATIONS: AtomicU32 = AtomicU32::new(0);
static RELOADS: AtomicU32 = AtomicU32::new(0);
static TEARS: AtomicU32 = AtomicU32::new(0);
/// The number of the eventfd, for the handlers; -1 before they are installed.
static WAKE: AtomicI32 = AtomicI32::new(-1);
static WAKE_FD: OnceLock<OwnedFd> = OnceLock::new();
/// Repairs the memory at the address of a SIGBUS; returns whether it could.
static REPAIR: OnceLock<fn(usize) -> bool> = OnceLock::new();

/// What signals have asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signals {
    wake: BorrowedFd<'static>,
}

impl Signals {
    /// Installs the handlers, once per process. `repair` is called with the address of a SIGBUS and
    /// returns whether it has repaired the memory there; it must be async-signal-safe.
    pub(crate) fn install(repair: fn(usize) -> bool) -> io::Result<Self> {
        if let Some(fd) = WAKE_FD.get() {
            return Ok(Self { wake: fd.as_fd() });
        }
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let fd = WAKE_FD.get_or_init(|| fd);
        REPAIR.get_or_init(|| repair);
        WAKE.store(fd.as_raw_fd(), Ordering::Release);
        for number in [libc::SIGTERM, libc::SIGINT] {
            register(number, on_terminate)?;
        }
        register(libc::SIGHUP, on_reload)?;
        register(libc::SIGBUS, on_bus_error)?;
        register(nudge_number(), on_nudge)?;
        Ok(Self { wake: fd.as_fd() })
    }

    /// Written to whenever something is asked for, and never read: every control thread watches it.
    pub(crate) fn fd(self) -> BorrowedFd<'static> {
        self.wake
    }

    /// Whether the process was asked to end.
    pub(crate) fn terminating(self) -> bool {
        [&TERMINATIONS, &FORWARDED_TERMINATIONS]
            .iter()
            .any(|count| count.load(Ordering::Acquire) > 0)
    }

    /// Asks the process to end, as SIGTERM does.
    pub(crate) fn terminate(self) {
        TERMINATIONS.fetch_add(1, Ordering::AcqRel);
        wake();
    }

    /// How often SIGHUP came.
    pub(crate) fn reloads(self) -> u32 {
        RELOADS.load(Ordering::Acquire)
    }

    /// How often guest memory was found truncated.
    pub(crate) fn tears(self) -> u32 {
        TEARS.load(Ordering::Acquire)
    }
}

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

fn register(number: c_int, handler: Handler) -> io::Result<()> {
    register_signal_handler(number, handler).map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

/// The signal that takes a thread out of a system call.
fn nudge_number() -> c_int {
    libc::SIGRTMIN()
}

/// Takes `thread`, one of ours, out of the system call it waits in: that ends with EINTR, as the
/// handler is installed without `SA_RESTART`.
pub(crate) fn nudge(thread: Pid) {
    let (process, thread) = (getpid().as_raw_nonzero(), thread.as_raw_nonzero());
    // SAFETY: three numbers. A thread that has ended is not found within this process.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            process.get(),
            thread.get(),
            nudge_number(),
        )
    };
}

/// A session has ended otherwise than by its socket.
pub(crate) fn tell_control_threads() {
    wake();
}

/// Async-signal-safe: one write to an eventfd.
fn wake() {
    let one: u64 = 1;
    let fd = WAKE.load(Ordering::Acquire);
    // SAFETY: the buffer is eight bytes of ours; the descriptor is never closed once published.
    let _ = unsafe { libc::write(fd, (&raw const one).cast(), size_of::<u64>()) };
}

extern "C" fn on_terminate(_number: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let info = unsafe { &*info };
    let count = match info.si_code {
        libc::SI_QUEUE => &FORWARDED_TERMINATIONS,
        _ => &TERMINATIONS,
    };
    if count.fetch_add(1, Ordering::AcqRel) > 0 {
        super::exit_now(1);
    }
    wake();
}

/// To have come is all that the signal is for.
extern "C" fn on_nudge(_number: c_int, _info: *mut siginfo_t, _context: *mut c_void) {}

extern "C" fn on_reload(_number: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    RELOADS.fetch_add(1, Ordering::AcqRel);
    wake();
}

extern "C" fn on_bus_error(number: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS the kernel has set the address.
    let address = unsafe { info.si_addr() };
    if REPAIR.get().is_some_and(|repair| repair(address.addr())) {
        TEARS.fetch_add(1, Ordering::AcqRel);
        wake();
        return;
    }
    // SAFETY: restoring the default action is async-signal-safe; the access faults again and the
    // kernel ends the process with the right status.
    unsafe { libc::signal(number, libc::SIG_DFL) };
}

/// Signals that are kept waiting for the calling thread, and for threads that it makes, while this
/// exists.
#[derive(Debug)]
pub(crate) struct HeldSignals {
    before: libc::sigset_t,
}

impl HeldSignals {
    /// Those with these numbers.
    pub(crate) fn of(numbers: &[c_int]) -> io::Result<Self> {
        let mut held = empty_set();
        for number in numbers {
            // SAFETY: an initialised set of ours.
            if unsafe { libc::sigaddset(&raw mut held, *number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Self::hold(&held)
    }

    /// All there are.
    pub(crate) fn all() -> io::Result<Self> {
        let mut held = empty_set();
        // SAFETY: the set is ours.
        unsafe { libc::sigfillset(&raw mut held) };
        Self::hold(&held)
    }

    fn hold(held: &libc::sigset_t) -> io::Result<Self> {
        let mut before = empty_set();
        // SAFETY: both sets are ours.
        let errno = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, held, &raw mut before) };
        match errno {
            0 => Ok(Self { before }),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        let before = &raw const self.before;
        // SAFETY: the set is the one that `pthread_sigmask` has filled in.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
    }
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: a plain structure of integers.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::sigemptyset(&raw mut set) };
    set
}
