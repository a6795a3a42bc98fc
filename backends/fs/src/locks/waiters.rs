// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that wait for a lock.
//!
//! One thread tries them again: at once when a lock is given up on this device, else after 1 to
//! 50 ms, the longer the more often it was in vain: the holder of the lock may be elsewhere. It
//! sleeps while no request waits, and is started by the first that does.
//!
//! A request is tried under its own mutex, and a thread that wants it ended takes that too. So it
//! ends once, and a request that ended with `EINTR` has not got its lock after all.
//!
//! Interrupts come on a queue of their own, and may come before what they interrupt. Those that
//! no request waits for are kept for a while. Most are for requests that do not wait at all; they
//! are in no request's way, since a guest gives a number to one request only.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringside_common::limited;

use crate::error::{Errno, Result};

/// What is called with the result.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;
/// Tries to get the lock; `EAGAIN` if it is not free.
pub(super) type Retry = Box<dyn FnMut() -> Result<()> + Send>;

const FIRST_DELAY: Duration = Duration::from_millis(1);
const MAX_DELAY: Duration = Duration::from_millis(50);
/// Interrupts that are kept; the oldest gives way. Far more than come between the moment when a
/// request is sent and that when it waits.
const MAX_EARLY: usize = 64;

/// Which request waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ticket {
    /// On which queue it came.
    pub queue: usize,
    /// Its number (`unique`).
    pub unique: u64,
}

/// Requests that wait, and the thread that tries them.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Arc<Waiter>>,
    /// The numbers of requests that were interrupted and did not wait, the oldest first.
    early: VecDeque<u64>,
    /// All of them are tried at once.
    nudged: bool,
    ends: bool,
}

struct Waiter {
    ticket: Ticket,
    /// None once it is done.
    pending: Mutex<Option<(Retry, Done)>>,
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ticket.fmt(f)
    }
}

/// Nothing that can panic runs under these mutexes, except `Retry`, and that ends the process.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiter {
    /// Tries once. True if it is done.
    fn attempt(&self) -> bool {
        let mut pending = locked(&self.pending);
        let Some((retry, _)) = &mut *pending else {
            return true;
        };
        let result = retry();
        if result == Err(Errno::AGAIN) {
            return false;
        }
        let taken = pending.take();
        drop(pending);
        if let Some((retry, done)) = taken {
            drop(retry);
            done(result);
        }
        true
    }

    /// Ends it with an error. False if it was done.
    fn cancel(&self, error: Errno) -> bool {
        let taken = locked(&self.pending).take();
        let Some((retry, done)) = taken else {
            return false;
        };
        drop(retry);
        done(Err(error));
        true
    }
}

impl State {
    /// Takes out those chosen.
    fn take(&mut self, chosen: impl Fn(Ticket) -> bool) -> Vec<Arc<Waiter>> {
        let is_chosen = |waiter: &mut Arc<Waiter>| chosen(waiter.ticket);
        self.waiting.extract_if(.., is_chosen).collect()
    }

    /// Keeps an interrupt of a request that does not wait.
    fn note_early(&mut self, unique: u64) {
        if self.early.contains(&unique) {
            return;
        }
        if self.early.len() == MAX_EARLY {
            self.early.pop_front();
        }
        self.early.push_back(unique);
    }

    /// Whether a request was interrupted before.
    fn take_early(&mut self, unique: u64) -> bool {
        let at = self.early.iter().position(|early| *early == unique);
        at.and_then(|at| self.early.remove(at)).is_some()
    }
}

/// Ends them with an error, and says how many were not done.
fn cancel_all(taken: &[Arc<Waiter>], error: Errno) -> usize {
    taken.iter().filter(|waiter| waiter.cancel(error)).count()
}

impl Waiters {
    /// Waits for something that was tried in vain.
    pub(super) fn add(&self, ticket: Ticket, retry: Retry, done: Done) {
        if let Err(error) = self.start() {
            limited!(warn, "no thread to wait for locks: {error}");
            return done(Err(Errno::NOLCK));
        }
        let waiter = Waiter {
            ticket,
            pending: Mutex::new(Some((retry, done))),
        };
        let waiter = Arc::new(waiter);
        let mut state = locked(&self.shared.state);
        let is_interrupted = state.take_early(ticket.unique);
        if !is_interrupted {
            state.waiting.push(Arc::clone(&waiter));
        }
        drop(state);
        if is_interrupted {
            waiter.cancel(Errno::INTR);
            return;
        }
        // It may have been freed since.
        self.nudge();
    }

    fn start(&self) -> std::io::Result<()> {
        let mut thread = locked(&self.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let name = "fs-locks".to_owned();
            *thread = Some(
                thread::Builder::new()
                    .name(name)
                    .spawn(move || shared.run())?,
            );
        }
        Ok(())
    }

    /// A lock was given up.
    pub(super) fn nudge(&self) {
        let mut state = locked(&self.shared.state);
        if !state.waiting.is_empty() {
            state.nudged = true;
            self.shared.wake.notify_one();
        }
    }

    /// Ends the waiting of a request with `EINTR`, now or when it begins. True if it was now.
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        let mut state = locked(&self.shared.state);
        let taken = state.take(|waits| waits.unique == unique);
        if taken.is_empty() {
            state.note_early(unique);
        }
        drop(state);
        cancel_all(&taken, Errno::INTR) > 0
    }

    /// Ends the waiting of those chosen with an error.
    pub(super) fn cancel(&self, chosen: impl Fn(Ticket) -> bool, error: Errno) {
        let taken = locked(&self.shared.state).take(chosen);
        cancel_all(&taken, error);
    }

    /// Ends all waiting with `ENOLCK`. What comes next may have numbers that there were before.
    pub(super) fn clear(&self) {
        let mut state = locked(&self.shared.state);
        let taken = state.take(|_| true);
        state.early.clear();
        drop(state);
        cancel_all(&taken, Errno::NOLCK);
    }
}

impl Shared {
    fn run(&self) {
        let mut delay = FIRST_DELAY;
        while let Some((waiting, nudged)) = self.next(delay) {
            delay = if nudged {
                FIRST_DELAY
            } else {
                MAX_DELAY.min(delay * 2)
            };
            for waiter in &waiting {
                if waiter.attempt() {
                    let mut state = locked(&self.state);
                    state.waiting.retain(|other| !Arc::ptr_eq(other, waiter));
                }
            }
        }
    }

    /// The requests to be tried now, the oldest first, and whether because of a
    /// nudge; none at the end.
    fn next(&self, delay: Duration) -> Option<(Vec<Arc<Waiter>>, bool)> {
        let idle = |state: &mut State| state.waiting.is_empty() && !state.ends;
        let state = locked(&self.state);
        let state = self.wake.wait_while(state, idle);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let quiet = |state: &mut State| !state.nudged && !state.ends;
        let waited = self.wake.wait_timeout_while(state, delay, quiet);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.ends {
            return None;
        }
        let nudged = std::mem::take(&mut state.nudged);
        Some((state.waiting.clone(), nudged))
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        locked(&self.shared.state).ends = true;
        self.shared.wake.notify_one();
        let handle = locked(&self.thread).take();
        // What is called when a request is done may drop the last reference to the device.
        if let Some(handle) = handle.filter(|handle| handle.thread().id() != thread::current().id())
            && handle.join().is_err()
        {
            log::error!("the thread that waits for locks has panicked");
        }
        self.cancel(|_| true, Errno::NOLCK);
    }
}
