// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A data thread as others see it: how it is started, asked and awaited.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::data::{DataThread, Rest};
use super::mailbox::{Command, Mailbox, Reply};
use super::{SeedOf, WorkerOptions};
use crate::device::Device;
use crate::error::HostError;
use crate::io::IoQueue;
use crate::limited;
use crate::stats::QueueStats;
use crate::watchdog::{Hold, Watchdog};

/// How long a thread that serves one vring alone naps after work.
const NAP_NS: u64 = 200_000;

#[derive(Debug)]
pub(super) struct Thread<D: Device> {
    pub(super) post: Arc<Post<D>>,
    pub(super) handle: JoinHandle<()>,
    _hold: Hold,
    pub(super) vrings: usize,
    /// It serves one vring, and naps instead of polling: what is served alone is not to hold up
    /// others either.
    pub(super) alone: bool,
    /// The groups of those that belong together.
    pub(super) groups: BTreeMap<u32, usize>,
}

/// The way to a data thread.
#[derive(Debug)]
pub(super) struct Post<D: Device> {
    mailbox: Mailbox<SeedOf<D>>,
    ended: AtomicBool,
}

/// How long an answer may take before something is said of it.
const PROMPT: Duration = Duration::from_secs(1);

/// What a control thread waits for.
pub(super) struct Awaited {
    pub(super) what: String,
    /// Whether the process is to end when it does not come.
    pub(super) bounded: bool,
    /// Whose requests in flight it is, where it is that.
    pub(super) progress: Option<Arc<QueueStats>>,
}

impl Awaited {
    pub(super) fn of(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            bounded: true,
            progress: None,
        }
    }
}

impl<D: Device> Post<D> {
    /// Has the thread do something, and waits until it is done; the watchdog is told of a wait
    /// that is long.
    pub(super) fn ask(
        &self,
        command: Command<SeedOf<D>>,
        watchdog: &Watchdog,
        awaited: impl FnOnce() -> Awaited,
    ) -> Result<Reply, HostError> {
        let asked = Instant::now();
        let (reply_to, reply) = sync_channel(1);
        self.mailbox.post((command, reply_to));
        let (mut awaited, mut _waiting) = (Some(awaited), None);
        // A thread that failed keeps its letters, so ask whether it still runs while waiting.
        loop {
            let ended = self.ended.load(Ordering::Acquire);
            let pause = if ended { Duration::ZERO } else { PROMPT };
            match reply.recv_timeout(pause) {
                Ok(reply) => return Ok(reply),
                Err(_) if ended => return Err(HostError::data_thread_ended()),
                Err(_) => {}
            }
            if let Some(awaited) = awaited.take() {
                let Awaited {
                    what,
                    bounded,
                    progress,
                } = awaited();
                _waiting = Some(watchdog.wait_for(what, asked, bounded, progress));
            }
        }
    }
}

/// Starts data thread `number`.
pub(super) fn spawn<D: Device>(
    device: &Arc<D>,
    options: &WorkerOptions,
    watchdog: &Watchdog,
    number: usize,
    alone: bool,
) -> Result<Thread<D>, HostError> {
    let hold = watchdog.hold();
    let hold = hold.map_err(HostError::of("starting the watchdog"))?;
    let mailbox = Mailbox::new().map_err(HostError::of("making an eventfd"))?;
    let post = Arc::new(Post {
        mailbox,
        ended: AtomicBool::new(false),
    });
    let device = Arc::clone(device);
    let cpus = options.cpus.clone();
    let rest = Rest {
        max_poll_ns: if alone { 0 } else { options.max_poll_ns },
        nap_ns: if alone { NAP_NS } else { 0 },
    };
    let watchdog = watchdog.clone();
    let theirs = Arc::clone(&post);
    let (report, ready) = sync_channel(1);
    let handle = Builder::new()
        .name(format!("data-{number}"))
        .spawn(move || {
            pin(&cpus, number);
            let pulse = watchdog.join();
            // The io_uring belongs to the thread that makes it, so it is made in here.
            let made = IoQueue::new(device.engine(), device.files()).and_then(|io| {
                let pulse = Arc::clone(&pulse);
                DataThread::new(device.worker()?, io, &theirs.mailbox, pulse, rest)
            });
            match made {
                Ok(mut thread) => {
                    let _ = report.send(Ok(()));
                    if let Err(error) = thread.run() {
                        limited!(
                            error,
                            "data thread {number} ended, and the process with it: {error}"
                        );
                        theirs.ended.store(true, Ordering::Release);
                        watchdog.fail();
                        // The kernel may still work on what the thread has started.
                        loop {
                            std::thread::park();
                        }
                    }
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
            watchdog.leave(&pulse);
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
        _hold: hold,
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
        limited!(
            warn,
            "data thread {number} is not bound to processor {cpu}: {error}"
        );
    }
}
