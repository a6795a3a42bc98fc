// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who looks after threads that may wait for longer than they mean to.
//!
//! A data thread writes to eventfds that a front-end has given. Whether such a write may wait is a
//! property of the file description, which the front-end has too: it can take `O_NONBLOCK` away and
//! fill the counter at any time, and there is neither a write that never waits (`RWF_NOWAIT` is not
//! for eventfds) nor a look before it that would still hold when it is made. So the write is made,
//! and the thread that is not back from it in time is taken out by a signal; its session ends.
//!
//! A data thread that serves requests by itself may have to wait for the host in one of them, for as
//! long as the host likes, and no signal takes it out of that: a file system that was quick is
//! frozen, or its disk hangs. It says when it goes ([`Pulse::errand`]), and leaves its vrings where
//! another thread finds them; one that stays away for [`STALLED`] is relieved ([`Relief`]).
//!
//! A control thread waits for a data thread, and that one for a disk, which may hang. Whoever waits
//! so says it here ([`Watchdog::wait_for`]): once a second the log tells for what, and after
//! [`Watchdog::new`]'s limit the process ends with [`EXIT_STUCK`], as it does that long after
//! SIGTERM. Nobody else could tell: the threads that might are those that wait.
//!
//! The thread is there while there are data threads or somebody waits. It ticks while writes are
//! made and errands run, [`TICK`] by tick, and sleeps without a timer when there was none for a tick
//! or two. On the hot path each costs two stores and a load.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::thread::{Pid, gettid};

use crate::error::EXIT_STUCK;
use crate::io::EpollLoop;
use crate::limited;
use crate::stats::QueueStats;
use crate::sys;
use crate::sys::signal::Signals;

/// A write to an eventfd takes less than a microsecond. One that is under way at two ticks waits.
const TICK: Duration = Duration::from_millis(20);
/// An errand takes microseconds. One that is under way for so long waits for something.
const STALLED: Duration = Duration::from_millis(40);
/// One that is under way for so long keeps others waiting, whatever it does.
const LONG: Duration = Duration::from_millis(500);
/// Until the next signal to a thread that is still there: the first one may have come before it
/// was in the system call.
const NUDGE: Duration = Duration::from_millis(2);
/// Between two lines that tell of the same wait.
const TELL: Duration = Duration::from_secs(1);

const WAKE: u64 = 0;
const SIGNAL: u64 = 1;

/// The front-end has an eventfd to which a write would wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stuck;

/// Has somebody else go on with the vrings of a data thread.
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
    shared: Arc<Shared>,
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
    /// The number of what is done next.
    #[inline]
    fn next_number(&self) -> u64 {
        (self.act.load(Ordering::Relaxed) >> DESCRIPTOR_BITS).wrapping_add(1) << DESCRIPTOR_BITS
    }

    #[inline]
    fn begin(&self, act: u64) {
        self.act.store(act, Ordering::Relaxed);
        if self.shared.dormant.load(Ordering::Relaxed) {
            self.shared.rouse();
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

    /// Adds one to the counter of an eventfd that somebody else has as well. One that is full and
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
    fn look(&self, now: Instant) -> Look {
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
enum Look {
    /// It does nothing that might take long.
    Idle,
    /// It does.
    Busy,
    /// It waits in a write.
    Waits,
}

/// Something that somebody waits for.
#[derive(Debug)]
struct Wait {
    id: u64,
    what: Cow<'static, str>,
    /// Whether the process is to end when it takes too long.
    bounded: bool,
    /// Requests in flight, which are progress when they become fewer.
    progress: Option<Arc<QueueStats>>,
    in_flight: u64,
    since: Instant,
    /// Since when there was no progress.
    stalled_since: Instant,
    tell_at: Instant,
}

#[derive(Debug, Default)]
struct State {
    pulses: Vec<Arc<Pulse>>,
    waits: Vec<Wait>,
    next_id: u64,
    /// Who needs the thread.
    holds: usize,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    signals: Signals,
    limit: Option<Duration>,
    epoll: EpollLoop,
    wake: OwnedFd,
    /// Nothing is looked after: whatever begins next is to wake the thread.
    dormant: AtomicBool,
    failed: AtomicBool,
    state: Mutex<State>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// The watchdog of a process.
#[derive(Clone, Debug)]
pub(crate) struct Watchdog(Arc<Shared>);

impl Watchdog {
    /// One that ends the process after `limit` of a wait, or of an end, that does not come to its
    /// own end; never without one.
    pub(crate) fn new(signals: Signals, limit: Option<Duration>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = EpollLoop::new()?;
        epoll.add(wake.as_fd(), WAKE)?;
        epoll.add(signals.fd(), SIGNAL)?;
        Ok(Self(Arc::new(Shared {
            signals,
            limit,
            epoll,
            wake,
            dormant: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            state: Mutex::default(),
        })))
    }

    /// Keeps the watchdog's thread for a data thread, as long as what is returned is kept.
    pub(crate) fn hold(&self) -> io::Result<Hold> {
        let mut state = self.0.lock();
        if state.thread.is_none() {
            let shared = Arc::clone(&self.0);
            let thread = Builder::new()
                .name("watchdog".to_owned())
                .spawn(move || shared.watch())?;
            state.thread = Some(thread);
        }
        state.holds += 1;
        Ok(Hold(Arc::clone(&self.0)))
    }

    /// Looks after the calling thread from now on, until it [`leave`](Self::leave)s.
    pub(crate) fn join(&self, relief: Option<Arc<dyn Relief>>) -> Arc<Pulse> {
        let seen = Seen {
            act: 0,
            since: Instant::now(),
            relieved: false,
        };
        let pulse = Arc::new(Pulse {
            thread: gettid(),
            act: AtomicU64::new(0),
            called_off: AtomicU64::new(0),
            relief,
            seen: Mutex::new(seen),
            shared: Arc::clone(&self.0),
        });
        self.0.lock().pulses.push(Arc::clone(&pulse));
        pulse
    }

    /// The thread of `pulse` ends.
    pub(crate) fn leave(&self, pulse: &Arc<Pulse>) {
        self.0
            .lock()
            .pulses
            .retain(|other| !Arc::ptr_eq(other, pulse));
    }

    /// The caller waits for `what` from now on, until what is returned is dropped.
    pub(crate) fn wait_for(
        &self,
        what: impl Into<Cow<'static, str>>,
        since: Instant,
        bounded: bool,
        progress: Option<Arc<QueueStats>>,
    ) -> Waiting {
        let hold = self.hold();
        let hold = hold.inspect_err(|error| limited!(error, "waiting unwatched: {error}"));
        let mut state = self.0.lock();
        state.next_id += 1;
        let id = state.next_id;
        state.waits.push(Wait {
            id,
            what: what.into(),
            bounded,
            in_flight: progress.as_ref().map_or(0, |stats| stats.in_flight()),
            progress,
            since,
            stalled_since: since,
            tell_at: since + TELL,
        });
        drop(state);
        self.0.wake();
        Waiting {
            shared: Arc::clone(&self.0),
            id,
            _hold: hold.ok(),
        }
    }
}

/// A reason for the watchdog's thread to be there.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.holds -= 1;
        if state.holds == 0 {
            let thread = state.thread.take();
            drop(state);
            self.0.wake();
            // It never waits for anybody.
            let _ = thread.map(JoinHandle::join);
        }
    }
}

impl Watchdog {
    /// A data thread can serve no more: the process is to end, so that it is started again.
    pub(crate) fn fail(&self) {
        self.0.failed.store(true, Ordering::Release);
        self.0.signals.terminate();
    }

    /// Whether a data thread has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.failed.load(Ordering::Acquire)
    }
}

/// Somebody waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    id: u64,
    _hold: Option<Hold>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.lock().waits.retain(|wait| wait.id != id);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full means that a wake-up is due already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// A data thread does something again.
    #[cold]
    fn rouse(&self) {
        if self.dormant.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn watch(&self) {
        let mut ending = Ending::default();
        loop {
            let now = Instant::now();
            let acts = self.look_at_acts(now);
            let Some(waits) = self.look_at_waits(now) else {
                return;
            };
            let end = self.signals.terminating().then(|| ending.at(now));
            if let (Some(end), Some(limit)) = (end, self.limit)
                && now.duration_since(end) >= limit
            {
                give_up("the end of this process", limit);
            }
            let second = (waits || end.is_some()).then_some(TELL);
            let pause = acts.into_iter().chain(second).min();
            let pause_ns = pause.map(|pause| u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX));
            if let Err(error) = self.epoll.wait_ns(pause_ns, |_| ()) {
                limited!(error, "the watchdog waits no longer: {error}");
                return;
            }
        }
    }

    /// Calls off the writes that wait, and has those relieved who do. Returns when to look again.
    fn look_at_acts(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let (mut busy, mut waits) = (false, false);
        for pulse in &state.pulses {
            let look = pulse.look(now);
            busy |= look != Look::Idle;
            waits |= look == Look::Waits;
        }
        if waits {
            return Some(NUDGE);
        }
        if busy {
            self.dormant.store(false, Ordering::Relaxed);
            return Some(TICK);
        }
        // What began just before this is seen at the next tick: only then it may be long.
        let asleep = self.dormant.swap(true, Ordering::AcqRel);
        (!asleep).then_some(TICK)
    }

    /// Tells what is waited for. Returns whether anything is; nothing when the thread is to end.
    fn look_at_waits(&self, now: Instant) -> Option<bool> {
        let mut state = self.lock();
        if state.holds == 0 {
            return None;
        }
        for wait in &mut state.waits {
            wait.look(now, self.limit);
        }
        Some(!state.waits.is_empty())
    }
}

impl Wait {
    fn look(&mut self, now: Instant, limit: Option<Duration>) {
        let in_flight = self.progress.as_ref().map_or(0, |stats| stats.in_flight());
        if in_flight != self.in_flight {
            self.in_flight = in_flight;
            self.stalled_since = now;
        }
        if now >= self.tell_at {
            self.tell_at = now + TELL;
            let (what, seconds) = (&self.what, now.duration_since(self.since).as_secs());
            if self.progress.is_some() {
                log::warn!("waiting for {what}, {in_flight} requests in flight, for {seconds} s");
            } else {
                log::warn!("waiting for {what} for {seconds} s");
            }
        }
        if let Some(limit) = limit.filter(|_| self.bounded)
            && now.duration_since(self.stalled_since) >= limit
        {
            give_up(&self.what, limit);
        }
    }
}

/// When the process was told to end.
#[derive(Debug, Default)]
struct Ending(Option<Instant>);

impl Ending {
    fn at(&mut self, now: Instant) -> Instant {
        *self.0.get_or_insert(now)
    }
}

/// Ends the process where it stands: whatever would have to be waited for is what hangs.
fn give_up(what: &str, limit: Duration) -> ! {
    let seconds = limit.as_secs();
    log::error!("no progress with {what} in {seconds} s (--stop-timeout): this process ends");
    sys::exit_now(EXIT_STUCK)
}
