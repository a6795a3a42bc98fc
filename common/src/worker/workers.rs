// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a session asks of the data threads that serve its vrings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::mailbox::{Command, Reply, VringStart};
use super::pool::Pool;
use super::thread::{Awaited, Post};
use crate::device::vring::{Health, VringId};
use crate::device::{Device, SeedOf};
use crate::error::HostError;
use crate::limited;
use crate::memory::Memory;

/// The data threads, as one session sees them.
#[derive(Debug)]
pub(crate) struct Workers<D: Device> {
    device: Arc<D>,
    pool: Arc<Pool<D>>,
    session: u32,
    /// The data threads of the vrings.
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

    /// See [`WorkerOptions::file_memory`](super::WorkerOptions::file_memory).
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
        post.ask(command, self.pool.watchdog(), || {
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
    pub(crate) fn set_memory(&self, memory: &Arc<Memory>) -> Result<(), HostError> {
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
            // The client that asked for it is told that it takes long.
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
