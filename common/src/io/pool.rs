// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocking threads for one data thread.
//!
//! Threads are made when there is work and none is idle, up to a bound; they end with the pool.
//! An idle one sleeps without a timeout, so that an idle device has no wake-ups.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};

use crate::limited;

/// A job for a blocking thread; returns bytes done or a negative errno.
pub type Job = Box<dyn FnOnce() -> i32 + Send>;

/// Threads of one pool. They wait for a disk, not for a processor: enough to keep one busy.
const MAX_THREADS: usize = 16;

#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    jobs: Mutex<Jobs>,
    wake: Condvar,
    done: Mutex<Vec<(u64, i32)>>,
    has_done: AtomicBool,
    /// Written when something was added to `done`.
    signal: OwnedFd,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<(Job, u64)>,
    idle: usize,
    closing: bool,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs")
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new() -> io::Result<Self> {
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared {
            jobs: Mutex::default(),
            wake: Condvar::new(),
            done: Mutex::default(),
            has_done: AtomicBool::new(false),
            signal,
        };
        Ok(Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
        })
    }

    /// Written to when a job is done.
    pub(super) fn fd(&self) -> io::Result<OwnedFd> {
        self.shared.signal.try_clone()
    }

    pub(super) fn run(&mut self, job: Job, token: u64) -> io::Result<()> {
        let mut jobs = lock(&self.shared.jobs);
        jobs.waiting.push_back((job, token));
        let short = jobs.waiting.len() > jobs.idle && self.threads.len() < MAX_THREADS;
        drop(jobs);
        self.shared.wake.notify_one();
        if short {
            match self.start_thread() {
                Ok(thread) => self.threads.push(thread),
                // Those there are will do it.
                Err(e) if !self.threads.is_empty() => limited!(debug, "no further I/O thread: {e}"),
                Err(e) => {
                    lock(&self.shared.jobs).waiting.pop_back();
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// A promise that `token` will be done, without a thread that works on it.
    pub(super) fn promise(&self, token: u64) -> Promise {
        Promise {
            shared: Arc::clone(&self.shared),
            token,
        }
    }

    pub(super) fn has_done(&self) -> bool {
        self.shared.has_done.load(Ordering::Acquire)
    }

    /// Calls `each` with the token and result of every job done.
    pub(super) fn collect(&self, mut each: impl FnMut(u64, i32)) {
        if !self.has_done() {
            return;
        }
        let mut done = lock(&self.shared.done);
        self.shared.has_done.store(false, Ordering::Release);
        for (token, result) in done.drain(..) {
            each(token, result);
        }
    }

    fn start_thread(&self) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        Builder::new()
            .name("blocking-io".to_owned())
            .spawn(move || shared.work())
    }
}

/// The duty to say, from any thread, how something ended.
#[derive(Debug)]
pub struct Promise {
    shared: Arc<Shared>,
    token: u64,
}

impl Promise {
    /// Says it: bytes, or a negative errno. Nothing happens if the data thread has ended.
    pub fn keep(self, result: i32) {
        self.shared.finish(self.token, result);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.jobs).closing = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there has ended the process already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some((job, token)) = self.next() {
            self.finish(token, job());
        }
    }

    fn finish(&self, token: u64, result: i32) {
        let mut done = lock(&self.done);
        done.push((token, result));
        self.has_done.store(true, Ordering::Release);
        drop(done);
        // Full means that a wake-up is due already.
        let _ = rustix::io::write(self.signal.as_fd(), &1_u64.to_ne_bytes());
    }

    fn next(&self) -> Option<(Job, u64)> {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            if jobs.closing {
                return None;
            }
            jobs.idle += 1;
            jobs = self.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            jobs.idle -= 1;
        }
    }
}

/// A panic while a lock is held ends the process, so a poisoned lock is never seen in earnest.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
