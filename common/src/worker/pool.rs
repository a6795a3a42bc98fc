// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which data thread serves which vring.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mailbox::Command;
use super::options::WorkerOptions;
use super::thread::{Awaited, Post, Thread, spawn};
use crate::device::Device;
use crate::error::HostError;
use crate::watchdog::Watchdog;

/// The data threads of a process.
#[derive(Debug)]
pub(crate) struct Pool<D: Device> {
    pub(super) options: WorkerOptions,
    watchdog: Watchdog,
    pub(super) sessions: AtomicU32,
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

    /// The watchdog of its threads.
    pub(crate) fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Thread<D>>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a vring to the thread of its group. One without a group goes to the thread with the
    /// fewest vrings, or to a new thread while there may be more. Returns the number of the thread
    /// and the way to it.
    pub(super) fn place(
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
    pub(super) fn leave(&self, at: usize, group: Option<u32>) {
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
    pub(super) fn tidy(&self) {
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
