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
mod turn;
mod vring;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::device::Device;
use crate::error::HostError;
use crate::io::IoQueue;
use data::DataThread;
use mailbox::Mailbox;
pub(crate) use mailbox::{Command, Reply, VringId, VringStart};
pub use requests::{Counted, RequestCx, RequestQueue, RequestWorker, Requests};
pub use turn::{DeviceWorker, Place, Turn, Vrings, monotonic_ns};
pub use vring::Vring;

/// How data threads are made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerOptions {
    /// The most there are, but for those of vrings that are served alone.
    pub max_threads: usize,
    /// Processors they are bound to in turn; empty for any.
    pub cpus: Vec<usize>,
    /// The longest they poll before they sleep.
    pub max_poll_ns: u64,
}

/// What a device's control side hands to its data side for a vring.
pub(crate) type SeedOf<D> = <<D as Device>::Worker as DeviceWorker>::Seed;

/// How long a thread that serves one vring alone naps after work.
const NAP_NS: u64 = 200_000;

/// The data threads of a process.
#[derive(Debug)]
pub(crate) struct Pool<D: Device> {
    options: WorkerOptions,
    sessions: AtomicU32,
    threads: Mutex<Vec<Option<Thread<D>>>>,
}

#[derive(Debug)]
struct Thread<D: Device> {
    post: Arc<Post<D>>,
    handle: JoinHandle<()>,
    vrings: usize,
    /// It serves one vring, and naps instead of polling: what is served alone is not to hold up
    /// others either.
    alone: bool,
    /// The groups of those that belong together.
    groups: BTreeMap<u32, usize>,
}

/// The way to a data thread.
#[derive(Debug)]
struct Post<D: Device> {
    mailbox: Mailbox<SeedOf<D>>,
    ended: AtomicBool,
}

impl<D: Device> Pool<D> {
    pub(crate) fn new(options: WorkerOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            sessions: AtomicU32::new(0),
            threads: Mutex::default(),
        })
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
                let thread = spawn(device, &self.options, at, alone)?;
                match threads.get_mut(at) {
                    Some(place) => *place = Some(thread),
                    None => threads.push(Some(thread)),
                }
                at
            }
        };
        let gone = HostError {
            what: GONE,
            source: io::ErrorKind::BrokenPipe.into(),
        };
        let thread = threads.get_mut(at).and_then(Option::as_mut).ok_or(gone)?;
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
            // One that has ended already does not answer.
            let _ = thread.post.ask(Command::Exit);
            let _ = thread.handle.join();
        }
    }
}

const GONE: &str = "a data thread has ended";

impl<D: Device> Post<D> {
    fn ask(&self, command: Command<SeedOf<D>>) -> Result<Reply, HostError> {
        let (reply_to, reply) = sync_channel(1);
        self.mailbox.post((command, reply_to));
        // A thread that ended drops its letters with the mailbox only when we let go of it, so
        // ask whether it still runs while waiting.
        loop {
            match reply.recv_timeout(std::time::Duration::from_secs(1)) {
                Ok(reply) => return Ok(reply),
                Err(_) if self.ended.load(Ordering::Acquire) => {
                    return reply.try_recv().map_err(|_e| HostError {
                        what: GONE,
                        source: io::ErrorKind::BrokenPipe.into(),
                    });
                }
                Err(_) => {}
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
        }
    }

    /// How data threads know a vring of this session.
    pub(crate) fn id(&self, index: u16) -> VringId {
        VringId {
            session: self.session,
            index,
        }
    }

    /// Gives a vring to a data thread.
    pub(crate) fn start(&mut self, mut start: VringStart<SeedOf<D>>) -> Result<Reply, HostError> {
        let index = start.id.index;
        let group = self.device.group(index);
        start.paused = self.paused;
        let alone = self.device.serves_alone(index);
        let (thread, post) = self.pool.place(&self.device, group, alone)?;
        let reply = post.ask(Command::Start(Box::new(start)));
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
        let reply = owner.post.ask(Command::Stop(self.id(index)));
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
            Some(owner) => owner.post.ask(command(self.id(index))),
            None => Ok(Reply::Done),
        }
    }

    /// Tells all threads that serve this session.
    fn tell_all(&self, command: impl Fn() -> Command<SeedOf<D>>) -> Result<(), HostError> {
        let posts: BTreeMap<usize, &Arc<Post<D>>> = self
            .owners
            .values()
            .map(|owner| (owner.thread, &owner.post))
            .collect();
        for post in posts.values() {
            post.ask(command())?;
        }
        Ok(())
    }

    /// Tells them of a new memory table.
    pub(crate) fn set_memory(&self, memory: &Arc<crate::memory::Memory>) -> Result<(), HostError> {
        self.tell_all(|| Command::SetMemory {
            session: self.session,
            memory: Arc::clone(memory),
        })
    }

    /// Stops taking chains, and returns when those in flight are done; or goes on.
    pub(crate) fn pause(&mut self, paused: bool) -> Result<(), HostError> {
        self.paused = paused;
        self.tell_all(|| Command::Pause {
            session: self.session,
            paused,
        })
    }

    /// Stops all vrings, and ends the threads that only served them.
    pub(crate) fn shut_down(&mut self) {
        let indices: Vec<u16> = self.owners.keys().copied().collect();
        for index in indices {
            if let Err(error) = self.stop(index) {
                log::error!("vring {index} was not stopped: {error}");
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

fn spawn<D: Device>(
    device: &Arc<D>,
    options: &WorkerOptions,
    number: usize,
    alone: bool,
) -> Result<Thread<D>, HostError> {
    let mailbox = Mailbox::new().map_err(HostError::of("making an eventfd"))?;
    let post = Arc::new(Post {
        mailbox,
        ended: AtomicBool::new(false),
    });
    let device = Arc::clone(device);
    let options = options.clone();
    let (max_poll_ns, nap_ns) = if alone {
        (0, NAP_NS)
    } else {
        (options.max_poll_ns, 0)
    };
    let theirs = Arc::clone(&post);
    let (report, ready) = sync_channel(1);
    let handle = Builder::new()
        .name(format!("data-{number}"))
        .spawn(move || {
            pin(&options.cpus, number);
            // The io_uring belongs to the thread that makes it, so it is made in here.
            let made = IoQueue::new(device.engine(), device.files()).and_then(|io| {
                DataThread::new(device.worker(), io, &theirs.mailbox, max_poll_ns, nap_ns)
            });
            match made {
                Ok(thread) => {
                    let _ = report.send(Ok(()));
                    if let Err(error) = thread.run() {
                        log::error!("data thread {number} ended: {error}");
                    }
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
            theirs.ended.store(true, Ordering::Release);
        })
        .map_err(HostError::of("starting a data thread"))?;
    let made = ready
        .recv()
        .map_err(|_e| io::Error::from(io::ErrorKind::BrokenPipe));
    made.and_then(|made| made)
        .map_err(HostError::of("setting up a data thread"))?;
    Ok(Thread {
        post,
        handle,
        vrings: 0,
        alone,
        groups: BTreeMap::new(),
    })
}

/// Binds this thread to the `number`-th of `cpus`.
fn pin(cpus: &[usize], number: usize) {
    let Some(cpu) = number.checked_rem(cpus.len()).and_then(|at| cpus.get(at)) else {
        return;
    };
    let mut set = CpuSet::new();
    set.set(*cpu);
    if let Err(error) = sched_setaffinity(None, &set) {
        log::warn!("data thread {number} is not bound to processor {cpu}: {error}");
    }
}
