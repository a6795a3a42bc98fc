// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data threads.
//!
//! A vring belongs to one data thread from start to stop; nobody else touches it. The control
//! thread changes it by command and goes on only when the owner has acknowledged. That rule makes
//! `GET_VRING_BASE` an exact drain and a move of the ring safe. Threads are made for started vrings,
//! up to a bound, and end with the session.

mod data;
mod mailbox;
mod poll;
mod vring;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::device::Device;
use crate::error::HostError;
use crate::io::IoQueue;
use data::DataThread;
use mailbox::Mailbox;
pub(crate) use mailbox::{Command, Reply, VringStart};
pub use vring::{Counted, RequestCx};

/// How data threads are made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerOptions {
    /// The most there are.
    pub max_threads: usize,
    /// Processors they are bound to in turn; empty for any.
    pub cpus: Vec<usize>,
    /// The longest they poll before they sleep.
    pub max_poll_ns: u64,
}

/// The data threads of one session.
#[derive(Debug)]
pub(crate) struct Workers<D: Device> {
    device: Arc<D>,
    options: WorkerOptions,
    threads: Vec<Thread>,
    /// Which thread has a vring.
    owners: BTreeMap<u16, usize>,
    paused: bool,
}

#[derive(Debug)]
struct Thread {
    mailbox: Arc<Mailbox>,
    handle: JoinHandle<()>,
    vrings: usize,
}

impl<D: Device> Workers<D> {
    pub(crate) fn new(device: Arc<D>, options: WorkerOptions) -> Self {
        Self {
            device,
            options,
            threads: Vec::new(),
            owners: BTreeMap::new(),
            paused: false,
        }
    }

    /// Gives a vring to the thread with the fewest, or to a new one while there may be more.
    pub(crate) fn start(&mut self, start: VringStart) -> Result<Reply, HostError> {
        let index = start.index;
        let least = self
            .threads
            .iter()
            .enumerate()
            .min_by_key(|(_, thread)| thread.vrings);
        let thread = match least {
            Some((at, thread)) if thread.vrings == 0 => at,
            Some((at, _)) if self.threads.len() >= self.options.max_threads.max(1) => at,
            _ => self.spawn()?,
        };
        let reply = self.ask(thread, Command::Start(Box::new(start)))?;
        if matches!(reply, Reply::Done) {
            self.owners.insert(index, thread);
            if let Some(thread) = self.threads.get_mut(thread) {
                thread.vrings += 1;
            }
        }
        Ok(reply)
    }

    /// Stops a vring once what is in flight on it is done; returns the next available entry.
    pub(crate) fn stop(&mut self, index: u16) -> Result<Option<u16>, HostError> {
        let Some(owner) = self.owners.remove(&index) else {
            return Ok(None);
        };
        if let Some(thread) = self.threads.get_mut(owner) {
            thread.vrings -= 1;
        }
        match self.ask(owner, Command::Stop { index })? {
            Reply::Stopped { next_avail } => Ok(Some(next_avail)),
            _ => Ok(None),
        }
    }

    /// Tells the owner of a vring something; nothing happens to one that is not started.
    pub(crate) fn tell(&self, index: u16, command: Command) -> Result<Reply, HostError> {
        match self.owners.get(&index) {
            Some(owner) => self.ask(*owner, command),
            None => Ok(Reply::Done),
        }
    }

    /// Tells all threads of a new memory table.
    pub(crate) fn set_memory(&self, memory: &Arc<crate::memory::Memory>) -> Result<(), HostError> {
        for thread in 0..self.threads.len() {
            self.ask(thread, Command::SetMemory(Arc::clone(memory)))?;
        }
        Ok(())
    }

    /// Stops taking chains, and returns when those in flight are done; or goes on.
    pub(crate) fn pause(&mut self, paused: bool) -> Result<(), HostError> {
        self.paused = paused;
        for thread in 0..self.threads.len() {
            self.ask(thread, Command::Pause(paused))?;
        }
        Ok(())
    }

    /// Stops all vrings and ends all threads.
    pub(crate) fn shut_down(&mut self) {
        let indices: Vec<u16> = self.owners.keys().copied().collect();
        for index in indices {
            if let Err(error) = self.stop(index) {
                log::error!("vring {index} was not stopped: {error}");
            }
        }
        for thread in 0..self.threads.len() {
            // One that has ended already does not answer.
            let _ = self.ask(thread, Command::Exit);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.handle.join();
        }
    }

    fn ask(&self, thread: usize, command: Command) -> Result<Reply, HostError> {
        const WHAT: &str = "a data thread has ended";
        let gone = || HostError {
            what: WHAT,
            source: io::ErrorKind::BrokenPipe.into(),
        };
        let thread = self.threads.get(thread).ok_or_else(gone)?;
        let (reply_to, reply) = sync_channel(1);
        thread.mailbox.post((command, reply_to));
        // A thread that ended drops its letters with the mailbox only when we let go of it, so
        // ask whether it still runs while waiting.
        loop {
            match reply.recv_timeout(std::time::Duration::from_secs(1)) {
                Ok(reply) => return Ok(reply),
                Err(_) if thread.handle.is_finished() => {
                    return reply.try_recv().map_err(|_e| gone());
                }
                Err(_) => {}
            }
        }
    }

    fn spawn(&mut self) -> Result<usize, HostError> {
        let mailbox = Arc::new(Mailbox::new().map_err(HostError::of("making an eventfd"))?);
        let device = Arc::clone(&self.device);
        let options = self.options.clone();
        let number = self.threads.len();
        let theirs = Arc::clone(&mailbox);
        let (report, ready) = sync_channel(1);
        let handle = Builder::new()
            .name(format!("data-{number}"))
            .spawn(move || {
                pin(&options.cpus, number);
                // The io_uring belongs to the thread that makes it, so it is made in here.
                let made = IoQueue::new(device.engine(), device.files()).and_then(|io| {
                    DataThread::new(device.worker(), io, theirs, options.max_poll_ns)
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
            })
            .map_err(HostError::of("starting a data thread"))?;
        let made = ready
            .recv()
            .map_err(|_e| io::Error::from(io::ErrorKind::BrokenPipe));
        made.and_then(|made| made)
            .map_err(HostError::of("setting up a data thread"))?;
        self.threads.push(Thread {
            mailbox,
            handle,
            vrings: 0,
        });
        if self.paused {
            self.ask(number, Command::Pause(true))?;
        }
        Ok(number)
    }
}

impl<D: Device> Drop for Workers<D> {
    fn drop(&mut self) {
        self.shut_down();
    }
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
