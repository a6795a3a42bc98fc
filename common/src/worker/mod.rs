// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data threads.
//!
//! A vring belongs to one data thread from start to stop; nobody else touches it. The control
//! thread changes it by command and goes on only when the owner has acknowledged. That rule makes
//! `GET_VRING_BASE` an exact drain and a move of the ring safe. Threads are made for started vrings,
//! up to a bound, and end with the sessions they serve.
//!
//! A pool has the threads of a process. Sessions that have to do with each other, such as the
//! ports of a switch, share it: a group of vrings ([`Device::group`]) is served by one thread,
//! whichever session they belong to.

mod data;
mod mailbox;
mod poll;
mod requests;
mod thread;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::device::Device;
use crate::device::vring::{Health, VringId};
pub use crate::device::{DeviceWorker, Place, Turn, Vring, Vrings, WhileAway, monotonic_ns};
use crate::error::HostError;
use crate::limited;
use crate::watchdog::Watchdog;
pub(crate) use mailbox::{Command, Reply, VringStart};
pub use requests::{Brought, Counted, RequestCx, RequestQueue, RequestWorker, Requests};
use thread::{Awaited, Post, Thread, spawn};

/// How data threads are made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerOptions {
    /// The most there are, but for those of vrings that are served alone.
    pub max_threads: usize,
    /// Processors they are bound to in turn; empty for any.
    pub cpus: Vec<usize>,
    /// The longest they poll before they sleep.
    pub max_poll_ns: u64,
    /// How long the process waits for requests that do not end, when it has to; none: for ever.
    pub stop_timeout: Option<Duration>,
    /// Whether guest memory may be in a file on a local disk, for which they may have to wait.
    pub file_memory: bool,
}

/// What a device's control side hands to its data side for a vring.
pub(crate) type SeedOf<D> = <<D as Device>::Worker as DeviceWorker>::Seed;

/// What an errand of a device's data side brings.
pub(crate) type BroughtOf<D> = <<D as Device>::Worker as DeviceWorker>::Brought;

/// The data threads of a process.
#[derive(Debug)]
pub(crate) struct Pool<D: Device> {
    options: WorkerOptions,
    watchdog: Watchdog,
    sessions: AtomicU32,
    threads: Mutex<Vec<Option<Thread<D>>>>,
}

impl<D: Device> Pool<D> {
    pub(crate) fn new(options: WorkerOptions, watchdog: Watchdog) -> Arc<Self> {
        Arc::new(Self {
            options,
            watchdog,
            sessions: AtomicU32::new(0),
            threads: Mutex::default(),
        })
    }

    /// Who looks after the threads that wait.
    pub(crate) fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Thread<D>>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a vring to the thread of its group; or, without one, to the thread with the fewest,
    /// or to a new one while there may be more. Returns the thread's number and the way to it.
    fn place(
        &self,
        device: &Arc<D>,
        group: Option<u32>,
        alone: bool,
    ) -> Result<(usize, Arc<Post<D>>), HostError> {
        let mut threads = self.lock();
        // Those that it may share.
        let running = || {
            threads
                .iter()
                .enumerate()
                .filter_map(|(at, thread)| Some((at, thread.as_ref()?)))
                .filter(|(_, thread)| thread.alone == alone && !(alone && thread.vrings > 0))
        };
        let of_group =
            group.and_then(|group| running().find(|(_, t)| t.groups.contains_key(&group)));
        let least = running().min_by_key(|(_, thread)| thread.vrings);
        let full = running().count() >= self.options.max_threads.max(1);
        let found = match (of_group, least) {
            (Some((at, _)), _) => Some(at),
            (None, Some((at, thread))) if thread.vrings == 0 || full => Some(at),
            _ => None,
        };
        let at = match found {
            Some(at) => at,
            None => {
                let free = threads.iter().position(Option::is_none);
                let at = free.unwrap_or(threads.len());
                let thread = spawn(device, &self.options, &self.watchdog, at, alone)?;
                match threads.get_mut(at) {
                    Some(place) => *place = Some(thread),
                    None => threads.push(Some(thread)),
                }
                at
            }
        };
        let thread = threads.get_mut(at).and_then(Option::as_mut);
        let thread = thread.ok_or_else(HostError::data_thread_ended)?;
        thread.vrings += 1;
        if let Some(group) = group {
            *thread.groups.entry(group).or_default() += 1;
        }
        Ok((at, Arc::clone(&thread.post)))
    }

    /// Takes back what `place` has counted.
    fn leave(&self, at: usize, group: Option<u32>) {
        if let Some(thread) = self.lock().get_mut(at).and_then(Option::as_mut) {
            thread.vrings = thread.vrings.saturating_sub(1);
            if let Some(group) = group
                && let Some(count) = thread.groups.get_mut(&group)
            {
                *count -= 1;
                if *count == 0 {
                    thread.groups.remove(&group);
                }
            }
        }
    }

    /// Ends the threads that have nothing to do.
    fn tidy(&self) {
        let mut ending = Vec::new();
        for place in self.lock().iter_mut() {
            if place.as_ref().is_some_and(|thread| thread.vrings == 0) {
                ending.extend(place.take());
            }
        }
        for thread in ending {
            let end = || Awaited::of("a data thread to end");
            // One that has failed does not answer, and stays until the process ends.
            if thread.post.ask(Command::Exit, &self.watchdog, end).is_ok() {
                thread.join();
            }
        }
    }
}

/// The data threads, as one session sees them.
#[derive(Debug)]
pub(crate) struct Workers<D: Device> {
    device: Arc<D>,
    pool: Arc<Pool<D>>,
    session: u32,
    /// Who has a vring.
    owners: BTreeMap<u16, Owner<D>>,
    paused: bool,
    health: Arc<Health>,
}

#[derive(Debug)]
struct Owner<D: Device> {
    thread: usize,
    post: Arc<Post<D>>,
    group: Option<u32>,
}

impl<D: Device> Workers<D> {
    pub(crate) fn new(device: Arc<D>, pool: Arc<Pool<D>>) -> Self {
        Self {
            device,
            session: pool.sessions.fetch_add(1, Ordering::Relaxed),
            pool,
            owners: BTreeMap::new(),
            paused: false,
            health: Arc::default(),
        }
    }

    /// See [`WorkerOptions::file_memory`].
    pub(crate) fn takes_file_memory(&self) -> bool {
        self.pool.options.file_memory
    }

    /// How data threads know a vring of this session.
    pub(crate) fn id(&self, index: u16) -> VringId {
        VringId {
            session: self.session,
            index,
        }
    }

    /// Whether a data thread would have to wait to signal this session.
    pub(crate) fn is_stuck(&self) -> bool {
        self.health.is_stuck()
    }

    /// Has a data thread do something.
    fn ask(
        &self,
        post: &Post<D>,
        command: Command<SeedOf<D>>,
        awaited: impl FnOnce() -> Awaited,
    ) -> Result<Reply, HostError> {
        post.ask(command, &self.pool.watchdog, || {
            let mut awaited = awaited();
            let name = self.device.name();
            if !name.is_empty() {
                awaited.what = format!("{} of {name}", awaited.what);
            }
            awaited
        })
    }

    /// Gives a vring to a data thread.
    pub(crate) fn start(&mut self, mut start: VringStart<SeedOf<D>>) -> Result<Reply, HostError> {
        let index = start.id.index;
        let group = self.device.group(index);
        start.paused = self.paused;
        let alone = self.device.serves_alone(index);
        let (thread, post) = self.pool.place(&self.device, group, alone)?;
        let command = Command::Start(Box::new(start), Arc::clone(&self.health));
        let what = || Awaited::of(format!("the start of vring {index}"));
        let reply = self.ask(&post, command, what);
        if matches!(reply, Ok(Reply::Done)) {
            let owner = Owner {
                thread,
                post,
                group,
            };
            self.owners.insert(index, owner);
        } else {
            self.pool.leave(thread, group);
        }
        reply
    }

    /// Stops a vring once what is in flight on it is done; returns the next available entry.
    pub(crate) fn stop(&mut self, index: u16) -> Result<Option<u16>, HostError> {
        let Some(owner) = self.owners.remove(&index) else {
            return Ok(None);
        };
        let reply = self.ask(&owner.post, Command::Stop(self.id(index)), || Awaited {
            progress: Some(self.device.stats().queue(index)),
            ..Awaited::of(format!("the stop of vring {index}"))
        });
        self.pool.leave(owner.thread, owner.group);
        match reply? {
            Reply::Stopped { next_avail } => Ok(Some(next_avail)),
            _ => Ok(None),
        }
    }

    /// Tells the owner of a vring something; nothing happens to one that is not started.
    pub(crate) fn tell(
        &self,
        index: u16,
        command: impl FnOnce(VringId) -> Command<SeedOf<D>>,
    ) -> Result<Reply, HostError> {
        match self.owners.get(&index) {
            Some(owner) => self.ask(&owner.post, command(self.id(index)), || {
                Awaited::of(format!("the data thread of vring {index}"))
            }),
            None => Ok(Reply::Done),
        }
    }

    /// Tells all threads that serve this session.
    fn tell_all(
        &self,
        command: impl Fn() -> Command<SeedOf<D>>,
        awaited: impl Fn() -> Awaited,
    ) -> Result<(), HostError> {
        let posts: BTreeMap<usize, &Arc<Post<D>>> = self
            .owners
            .values()
            .map(|owner| (owner.thread, &owner.post))
            .collect();
        for post in posts.values() {
            self.ask(post, command(), &awaited)?;
        }
        Ok(())
    }

    /// Tells them of a new memory table.
    pub(crate) fn set_memory(&self, memory: &Arc<crate::memory::Memory>) -> Result<(), HostError> {
        let command = || Command::SetMemory {
            session: self.session,
            memory: Arc::clone(memory),
        };
        self.tell_all(command, || Awaited::of("a data thread to take new memory"))
    }

    /// Stops taking chains, and returns when those in flight are done; or goes on.
    pub(crate) fn pause(&mut self, paused: bool) -> Result<(), HostError> {
        self.paused = paused;
        let command = || Command::Pause {
            session: self.session,
            paused,
        };
        self.tell_all(command, || Awaited {
            // Who asked for it is told that it takes long.
            bounded: false,
            ..Awaited::of("requests in flight to end")
        })
    }

    /// Stops all vrings, and ends the threads that only served them.
    pub(crate) fn shut_down(&mut self) {
        let indices: Vec<u16> = self.owners.keys().copied().collect();
        for index in indices {
            if let Err(error) = self.stop(index) {
                limited!(error, "vring {index} was not stopped: {error}");
            }
        }
        self.pool.tidy();
    }
}

impl<D: Device> Drop for Workers<D> {
    fn drop(&mut self) {
        self.shut_down();
    }
}
