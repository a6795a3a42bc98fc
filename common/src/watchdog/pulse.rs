// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a data thread does at the moment, and what the watchdog makes of it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::thread::{Pid, gettid};

use crate::sys;

/// An errand takes microseconds. One that is under way for this long waits for something.
pub(super) const STALLED: Duration = Duration::from_millis(40);
/// One that is under way for this long keeps others waiting, whatever it does.
const LONG: Duration = Duration::from_millis(500);

/// The front-end has an eventfd to which a write would wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stuck;

/// Has another thread go on with the vrings of a data thread.
pub(crate) trait Relief: fmt::Debug + Send + Sync {
    /// The thread is on an errand that does not end: one that only waits for its processor is left
    /// alone, if that does not take `long`. Returns whether its vrings have another thread.
    fn relieve(&self, long: bool) -> bool;
}

/// What a data thread does at the moment, for the watchdog to see.
#[derive(Debug)]
pub(crate) struct Pulse {
    thread: Pid,
    /// The number of what it does in the upper half. In the lower half is the descriptor it writes
    /// to, counted from 1, or [`ERRAND`]; zero when the thread is back.
    act: AtomicU64,
    /// The number of the write that was called off.
    called_off: AtomicU64,
    relief: Option<Arc<dyn Relief>>,
    seen: Mutex<Seen>,
    alarm: Arc<Alarm>,
}

/// What the watchdog has seen of a [`Pulse`].
#[derive(Debug)]
struct Seen {
    act: u64,
    since: Instant,
    /// The thread has been relieved.
    relieved: bool,
}

/// Width of the descriptor in [`Pulse::act`].
const DESCRIPTOR_BITS: u32 = 32;
const DESCRIPTOR: u64 = (1 << DESCRIPTOR_BITS) - 1;
/// Where the descriptor would be while the thread is on an errand.
const ERRAND: u64 = DESCRIPTOR;

impl Pulse {
    /// Of the calling thread.
    pub(super) fn of_this_thread(relief: Option<Arc<dyn Relief>>, alarm: &Arc<Alarm>) -> Self {
        let seen = Seen {
            act: 0,
            since: Instant::now(),
            relieved: false,
        };
        Self {
            thread: gettid(),
            act: AtomicU64::new(0),
            called_off: AtomicU64::new(0),
            relief,
            seen: Mutex::new(seen),
            alarm: Arc::clone(alarm),
        }
    }

    /// The number of what is done next.
    #[inline]
    fn next_number(&self) -> u64 {
        (self.act.load(Ordering::Relaxed) >> DESCRIPTOR_BITS).wrapping_add(1) << DESCRIPTOR_BITS
    }

    #[inline]
    fn begin(&self, act: u64) {
        self.act.store(act, Ordering::Relaxed);
        if self.alarm.dormant.load(Ordering::Relaxed) {
            self.alarm.rouse();
        }
    }

    /// Runs an errand, for which others may come to wait. The thread's vrings are where its
    /// [`Relief`] finds them.
    #[inline]
    pub(crate) fn errand(&self, run: impl FnOnce()) {
        let number = self.next_number();
        self.begin(number | ERRAND);
        run();
        self.act.store(number, Ordering::Relaxed);
    }

    /// Adds one to the counter of an eventfd that the front-end has as well. One that is full and
    /// does not block has a wake-up pending anyway.
    ///
    /// # Errors
    /// [`Stuck`] when it waited, and was called off.
    #[inline]
    pub(crate) fn signal(&self, fd: &OwnedFd) -> Result<(), Stuck> {
        let number = self.next_number();
        let descriptor = u64::from(fd.as_raw_fd().unsigned_abs()) + 1;
        self.begin(number | descriptor);
        let mut result = rustix::io::write(fd, &1_u64.to_ne_bytes());
        // Another signal than the watchdog's is no reason to lose a call.
        while result == Err(Errno::INTR) && self.called_off.load(Ordering::Acquire) != number {
            result = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
        self.act.store(number, Ordering::Relaxed);
        match result {
            Err(Errno::INTR) => Err(Stuck),
            _ => Ok(()),
        }
    }

    /// Does something about what the thread has not come back from since the last look.
    pub(super) fn look(&self, now: Instant) -> Look {
        let act = self.act.load(Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.act != act {
            *seen = Seen {
                act,
                since: now,
                relieved: false,
            };
            return Look::Busy;
        }
        match act & DESCRIPTOR {
            0 => Look::Idle,
            ERRAND => {
                let away = now.duration_since(seen.since);
                if away >= STALLED
                    && !seen.relieved
                    && let Some(relief) = &self.relief
                {
                    seen.relieved = relief.relieve(away >= LONG);
                }
                // Its vrings have a pulse of their own.
                if seen.relieved {
                    Look::Idle
                } else {
                    Look::Busy
                }
            }
            _ => {
                self.call_off(act);
                Look::Waits
            }
        }
    }

    /// Takes the thread out of `write`, if that is where it waits.
    fn call_off(&self, write: u64) {
        let descriptor = (write & DESCRIPTOR).saturating_sub(1);
        let waits = i32::try_from(descriptor).is_ok_and(|fd| !sys::is_writable(fd));
        // One that is only kept from its processor is left alone: the signal might hit what it
        // does next.
        if waits && self.act.load(Ordering::Relaxed) == write {
            let number = write >> DESCRIPTOR_BITS << DESCRIPTOR_BITS;
            self.called_off.store(number, Ordering::Release);
            sys::signal::nudge(self.thread);
        }
    }
}

/// What the watchdog makes of a data thread.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Look {
    /// It does nothing that might take long.
    Idle,
    /// It does.
    Busy,
    /// It waits in a write.
    Waits,
}

/// Wakes the thread of the watchdog.
#[derive(Debug)]
pub(super) struct Alarm {
    wake: OwnedFd,
    /// Nothing is looked after: whatever begins next must wake the thread.
    dormant: AtomicBool,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            dormant: AtomicBool::new(false),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn wake(&self) {
        // Full means that a wake-up is due already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Whether whatever begins next must wake the thread; returns what it was before.
    pub(super) fn set_dormant(&self, dormant: bool) -> bool {
        self.dormant.swap(dormant, Ordering::AcqRel)
    }

    /// A data thread does something again.
    #[cold]
    fn rouse(&self) {
        if self.set_dormant(false) {
            self.wake();
        }
    }
}
