// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The watchdog: it looks after threads that may wait for longer than they mean to.
//!
//! A data thread writes to eventfds that a front-end has given. Whether such a write may wait is a
//! property of the file description, which the front-end has too: it can take `O_NONBLOCK` away and
//! fill the counter at any time, and there is neither a write that never waits (`RWF_NOWAIT` is not
//! for eventfds) nor a look before it that would still hold when it is made. So the write is made,
//! and the thread that is not back from it in time is taken out by a signal; its session ends.
//!
//! A data thread that serves requests by itself may have to wait for the host in one of them, for
//! as long as the host likes, and no signal takes it out of that: a file system that was quick is
//! frozen, or its disk hangs. It says when it goes ([`Pulse::errand`]), and leaves its vrings where
//! another thread finds them; one that stays away for [`STALLED`](pulse::STALLED) is relieved
//! ([`Relief`]).
//!
//! A control thread waits for a data thread, and that one for a disk, which may hang. A thread that
//! waits like that says it here ([`Watchdog::wait_for`]): once a second the log tells for what, and
//! after [`Watchdog::new`]'s limit the process ends with [`EXIT_STUCK`], as it does that long after
//! SIGTERM. No other thread could tell: those that might are waiting.
//!
//! The thread is there while there are data threads or a control thread waits. It ticks while
//! writes are made and errands run, [`TICK`] by tick, and sleeps without a timer when there was
//! none for a tick or two. On the hot path each costs two stores and a load.

mod pulse;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::EXIT_STUCK;
use crate::io::EpollLoop;
use crate::limited;
use crate::stats::QueueStats;
use crate::sys;
use crate::sys::signal::Signals;
use pulse::{Alarm, Look};
pub(crate) use pulse::{Pulse, Relief, Stuck};

/// A write to an eventfd takes less than a microsecond. One that is under way at two ticks waits.
const TICK: Duration = Duration::from_millis(20);
/// Until the next signal to a thread that is still there: the first one may have come before it
/// was in the system call.
const NUDGE: Duration = Duration::from_millis(2);
/// Between two lines that tell of the same wait.
const TELL: Duration = Duration::from_secs(1);

const WAKE: u64 = 0;
const SIGNAL: u64 = 1;

/// Something that a thread waits for.
#[derive(Debug)]
struct Wait {
    id: u64,
    what: Cow<'static, str>,
    /// Whether the process ends when it takes too long.
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
    /// How many need the thread.
    holds: usize,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    signals: Signals,
    limit: Option<Duration>,
    epoll: EpollLoop,
    alarm: Arc<Alarm>,
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
        let alarm = Arc::new(Alarm::new()?);
        let epoll = EpollLoop::new()?;
        epoll.add(alarm.fd(), WAKE)?;
        epoll.add(signals.fd(), SIGNAL)?;
        Ok(Self(Arc::new(Shared {
            signals,
            limit,
            epoll,
            alarm,
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
        let pulse = Arc::new(Pulse::of_this_thread(relief, &self.0.alarm));
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
        self.0.alarm.wake();
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
            self.0.alarm.wake();
            // It never waits for another thread.
            let _ = thread.map(JoinHandle::join);
        }
    }
}

impl Watchdog {
    /// A data thread can serve no more: the process ends, so that it is started again.
    pub(crate) fn fail(&self) {
        self.0.failed.store(true, Ordering::Release);
        self.0.signals.terminate();
    }

    /// Whether a data thread has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.failed.load(Ordering::Acquire)
    }
}

/// A thread waits.
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
            if let Err(error) = self.epoll.wait(pause, |_| ()) {
                limited!(error, "the watchdog waits no longer: {error}");
                return;
            }
        }
    }

    /// Interrupts the writes that wait, and has the threads relieved whose errands do. Returns when
    /// to look again.
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
            self.alarm.set_dormant(false);
            return Some(TICK);
        }
        // What began just before this is seen at the next tick: only then it may be long.
        let asleep = self.alarm.set_dormant(true);
        (!asleep).then_some(TICK)
    }

    /// Tells what is waited for. Returns whether anything is; nothing when the thread must end.
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
