// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests to the control threads: pause, and go on.
//!
//! A request begins a round and wakes all control threads; each does what is wanted and says so. The
//! last of them wakes the thread that has asked. If that thread has given up meanwhile, the round
//! goes on without it.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Value, json};

use crate::management::{Manage, ManageError, MethodInfo};
use crate::sys::signal::Signals;

/// Requests to the control threads from other threads of the process.
#[derive(Debug)]
pub struct Control {
    pause: Mutex<Pause>,
    /// Held for writing while something relies on the pause, so that no other request ends it.
    relied_on: RwLock<()>,
    changed: Condvar,
    /// Written to for every request, and never read: every control thread watches it.
    pub(super) signal: OwnedFd,
    pub(super) signals: Signals,
}

#[derive(Debug, Default)]
struct Pause {
    wanted: bool,
    /// Counts the requests.
    round: u64,
    /// Control threads, and how many of them have not yet done what was asked for last.
    threads: usize,
    behind: usize,
    /// A device could not make stable what it had written.
    flush_failed: bool,
}

impl Control {
    /// A handle for one [`serve`](super::serve). From here on signals wait for `serve` instead of
    /// ending the process. So it must be made before any socket: a process that sees the socket may
    /// send a signal.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        let signals = Signals::install(crate::memory::sigbus::repair)?;
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            pause: Mutex::default(),
            relied_on: RwLock::default(),
            changed: Condvar::new(),
            signal,
            signals,
        })
    }

    /// Stops taking requests and returns when those in flight are done; or goes on.
    ///
    /// Returns false when that took longer than `patience`, and is then still under way; or when
    /// what was acknowledged could not be made stable; or when someone else has asked for the
    /// opposite meanwhile.
    pub fn pause(&self, paused: bool, patience: Duration) -> bool {
        let _unused = self.relied_on.read();
        self.request(paused, patience)
    }

    fn request(&self, paused: bool, patience: Duration) -> bool {
        let mut state = self.lock();
        state.wanted = paused;
        state.round += 1;
        state.behind = state.threads;
        state.flush_failed = false;
        // Full means that a wake-up is due already.
        let _ = rustix::io::write(&self.signal, &1_u64.to_ne_bytes());
        // Others may wait for the opposite.
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, patience, |state| {
            state.wanted == paused && state.behind > 0
        });
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.wanted == paused && state.behind == 0 && !state.flush_failed
    }

    /// Runs `work` while no request is in flight and none is taken. Does not run it if that takes
    /// longer than `patience`, or if what was acknowledged could not be made stable. A pause that was
    /// there before stays.
    pub fn while_drained<T>(&self, patience: Duration, work: impl FnOnce() -> T) -> Option<T> {
        let _relied_on = self.relied_on.write();
        let was_paused = self.lock().wanted;
        let result = self.request(true, patience).then(work);
        if !was_paused {
            self.request(false, Duration::ZERO);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A control thread begins.
    pub(super) fn join(&self) -> Participant<'_> {
        let mut state = self.lock();
        state.threads += 1;
        Participant {
            control: self,
            round: Cell::new(state.round),
        }
    }
}

/// How long `drain` waits for requests in flight before it says that they are not done yet.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

const METHODS: &[MethodInfo] = &[
    MethodInfo {
        name: "drain",
        params: "",
        help: "complete what is in flight, make a disk stable and take no more until resume",
    },
    MethodInfo {
        name: "resume",
        params: "",
        help: "go on after drain",
    },
];

impl Manage for Control {
    fn methods(&self) -> &[MethodInfo] {
        METHODS
    }

    /// Both do: what is asked for is done by the control threads.
    fn may_wait(&self, _method: &str) -> bool {
        true
    }

    fn call(&self, method: &str, params: &Value) -> Result<Value, ManageError> {
        if let Some(name) = params.as_object().and_then(|all| all.keys().next()) {
            return Err(ManageError::UnknownParam { name: name.clone() });
        }
        let paused = match method {
            "drain" => true,
            "resume" => false,
            _ => return Err(ManageError::UnknownMethod),
        };
        Ok(json!({ "done": self.pause(paused, DRAIN_PATIENCE) }))
    }
}

/// One control thread, as one of those that requests are for.
#[derive(Debug)]
pub(super) struct Participant<'a> {
    control: &'a Control,
    /// The last one it has done.
    round: Cell<u64>,
}

impl Participant<'_> {
    pub(super) fn wanted(&self) -> (bool, u64) {
        let state = self.control.lock();
        (state.wanted, state.round)
    }

    /// Request `round` is done.
    pub(super) fn reached(&self, round: u64, flush_failed: bool) {
        if self.round.replace(round) == round {
            return;
        }
        let mut state = self.control.lock();
        // A later one counts all threads anew.
        if state.round == round {
            state.behind = state.behind.saturating_sub(1);
            state.flush_failed |= flush_failed;
            drop(state);
            self.control.changed.notify_all();
        }
    }
}

impl Drop for Participant<'_> {
    fn drop(&mut self) {
        let mut state = self.control.lock();
        state.threads -= 1;
        if self.round.get() != state.round {
            state.behind = state.behind.saturating_sub(1);
        }
        drop(state);
        self.control.changed.notify_all();
    }
}
