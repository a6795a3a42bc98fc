// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads that may wait for a file system.
//!
//! Every mount has a pool of its own, so that one that does not answer keeps its own threads only.
//! A pool has a bound of threads, and what it has none for waits in its queue, of which a guest can
//! fill as much as its rings hold. Threads are made when there is work and none is idle; one that
//! has been idle for a while ends. A thread is not joined: it may never end.
//!
//! A quarter of the threads is kept free of what changes something: a server that takes no changes
//! often answers questions.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use ringside_common::limited;

/// Threads of a pool, if nothing else is said. They wait for a disk or for another machine, not for
/// a processor: enough to keep one busy.
pub const DEFAULT_THREADS: usize = 16;

/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// The work. Its argument says whether it runs on a thread that may wait.
pub type Job = Box<dyn FnOnce(Fate) + Send>;

/// What becomes of a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It is done.
    Run,
    /// It is not, since there is no thread and none can be made.
    Refused,
}

/// What kind of work it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    /// It asks.
    Reads,
    /// It changes something, makes something stable, or closes it.
    Changes,
}

/// The threads of one mount.
pub struct Pool {
    max_threads: usize,
    jobs: Mutex<Jobs>,
    wake: Condvar,
}

#[derive(Default)]
struct Jobs {
    reads: VecDeque<Job>,
    changes: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Threads that are at a job that changes something.
    changing: usize,
    /// The last job was one that changes something.
    changed: bool,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jobs = self.lock();
        f.debug_struct("Pool")
            .field("max_threads", &self.max_threads)
            .field("threads", &jobs.threads)
            .field("waiting", &(jobs.reads.len() + jobs.changes.len()))
            .finish_non_exhaustive()
    }
}

impl Jobs {
    /// The next job that may be done with no more than `most` that change something.
    fn take(&mut self, most: usize) -> Option<(Job, Work)> {
        let may_change = self.changing < most && !self.changes.is_empty();
        let changes = may_change && (!self.changed || self.reads.is_empty());
        let (queue, work) = if changes {
            (&mut self.changes, Work::Changes)
        } else {
            (&mut self.reads, Work::Reads)
        };
        let job = queue.pop_front()?;
        self.changed = changes;
        self.changing += usize::from(changes);
        Some((job, work))
    }

    /// How many could be done now.
    fn ready(&self, most: usize) -> usize {
        let changes = most.saturating_sub(self.changing).min(self.changes.len());
        self.reads.len() + changes
    }
}

impl Pool {
    /// A pool of at most `max_threads`, at least one.
    #[must_use]
    pub fn new(max_threads: usize) -> Arc<Self> {
        Arc::new(Self {
            max_threads: max_threads.max(1),
            jobs: Mutex::default(),
            wake: Condvar::new(),
        })
    }

    /// Has a job done by one of the threads.
    pub fn run(self: &Arc<Self>, work: Work, job: Job) {
        let mut jobs = self.lock();
        match work {
            Work::Reads => jobs.reads.push_back(job),
            Work::Changes => jobs.changes.push_back(job),
        }
        let short = jobs.ready(self.max_changing()) > jobs.idle && jobs.threads < self.max_threads;
        jobs.threads += usize::from(short);
        drop(jobs);
        self.wake.notify_one();
        if short && let Err(error) = self.start_thread() {
            self.give_up(&error);
        }
    }

    /// Threads that may be at something that changes something.
    fn max_changing(&self) -> usize {
        self.max_threads - self.max_threads / 4
    }

    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let pool = Arc::clone(self);
        let name = "fs-wait".to_owned();
        Builder::new().name(name).spawn(move || pool.work())?;
        Ok(())
    }

    /// A thread could not be made. If there are others, they will do it.
    #[cold]
    fn give_up(&self, error: &io::Error) {
        let mut jobs = self.lock();
        jobs.threads -= 1;
        if jobs.threads > 0 {
            return;
        }
        let refused = std::mem::take(&mut *jobs);
        drop(jobs);
        limited!(debug, "no thread that may wait: {error}");
        for job in refused.reads.into_iter().chain(refused.changes) {
            job(Fate::Refused);
        }
    }

    fn work(&self) {
        while let Some((job, work)) = self.next() {
            job(Fate::Run);
            if work == Work::Changes {
                self.lock().changing -= 1;
            }
        }
    }

    fn next(&self) -> Option<(Job, Work)> {
        let mut jobs = self.lock();
        let mut waited = false;
        loop {
            if let Some(next) = jobs.take(self.max_changing()) {
                return Some(next);
            }
            if waited {
                jobs.threads -= 1;
                return None;
            }
            jobs.idle += 1;
            let woken = self.wake.wait_timeout(jobs, IDLE);
            let timeout;
            (jobs, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
            jobs.idle -= 1;
            waited = timeout.timed_out();
        }
    }

    /// Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Has `count` jobs wait until the sender is dropped; they say when they have begun.
    fn block(pool: &Arc<Pool>, work: Work, count: usize) -> (Sender<()>, Receiver<()>) {
        let (hold, held) = channel::<()>();
        let (begin, begun) = channel();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..count {
            let (held, begin) = (Arc::clone(&held), begin.clone());
            let job = move |fate| {
                assert_eq!(fate, Fate::Run);
                begin.send(()).unwrap();
                // Returns when the sender is gone.
                let _ = held.lock().unwrap().recv();
            };
            pool.run(work, Box::new(job));
        }
        (hold, begun)
    }

    fn answer(pool: &Arc<Pool>, work: Work) -> Receiver<()> {
        let (done, answered) = channel();
        pool.run(work, Box::new(move |_| done.send(()).unwrap()));
        answered
    }

    #[test]
    fn f4_4_changes_that_hang_leave_threads_to_who_asks() {
        let pool = Pool::new(16);
        let (hold, begun) = block(&pool, Work::Changes, 40);
        for _ in 0..12 {
            begun.recv().unwrap();
        }
        let late = answer(&pool, Work::Changes);
        answer(&pool, Work::Reads).recv().unwrap();
        assert!(late.try_recv().is_err() && begun.try_recv().is_err());
        assert!(pool.lock().threads <= 16);
        drop(hold);
        late.recv().unwrap();
        assert_eq!(begun.iter().count(), 28);
    }

    #[test]
    fn f4_4_pool_of_one_thread_does_everything_one_after_the_other() {
        let pool = Pool::new(0);
        let (hold, begun) = block(&pool, Work::Changes, 1);
        begun.recv().unwrap();
        let (read, change) = (answer(&pool, Work::Reads), answer(&pool, Work::Changes));
        assert!(read.try_recv().is_err() && change.try_recv().is_err());
        drop(hold);
        read.recv().unwrap();
        change.recv().unwrap();
        assert_eq!(pool.lock().threads, 1);
    }
}
