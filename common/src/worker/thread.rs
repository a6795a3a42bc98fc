// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A data thread as others see it: how it is started, asked and awaited.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::data::{DataThread, Hand, Rest};
use super::mailbox::{Command, Mailbox, Reply};
use super::options::WorkerOptions;
use crate::device::{BroughtOf, Device, DeviceWorker as _, SeedOf, WhileAway};
use crate::error::HostError;
use crate::io::{Driver, IoQueue};
use crate::limited;
use crate::stats::QueueStats;
use crate::sys::berth::Berth;
use crate::watchdog::{Hold, Pulse, Relief, Watchdog};

/// How long a thread that serves one vring alone naps after work.
const NAP_NS: u64 = 200_000;

#[derive(Debug)]
pub(super) struct Thread<D: Device> {
    pub(super) post: Arc<Post<D>>,
    _hold: Hold,
    pub(super) vrings: usize,
    /// It serves one vring, and naps instead of polling, so that it takes no processor from others.
    pub(super) alone: bool,
    /// How many of its vrings each group has ([`Device::group`]).
    pub(super) groups: BTreeMap<u32, usize>,
}

/// The way to a data thread.
#[derive(Debug)]
pub(super) struct Post<D: Device> {
    mailbox: Arc<Mailbox<SeedOf<D>, BroughtOf<D>>>,
    ended: AtomicBool,
    /// Of the thread, and of those that have gone on for it.
    handles: Mutex<Vec<JoinHandle<()>>>,
}

/// How long an answer may take before something is said of it.
const PROMPT: Duration = Duration::from_secs(1);

/// What a control thread waits for.
pub(super) struct Awaited {
    pub(super) what: String,
    /// Whether the process ends when it does not come within `--stop-timeout`.
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

impl<D: Device> Thread<D> {
    /// Waits for the end of a thread that was told to end. Those that it went on for have brought
    /// what they were away for.
    pub(super) fn join(&self) {
        let handles = std::mem::take(&mut *self.post.handles());
        for handle in handles {
            let _ = handle.join();
        }
    }
}

impl<D: Device> Post<D> {
    fn handles(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

/// What each thread needs that serves as data thread `number`.
struct Kit<D: Device> {
    device: Arc<D>,
    options: WorkerOptions,
    watchdog: Watchdog,
    post: Arc<Post<D>>,
    number: usize,
    alone: bool,
}

impl<D: Device> Clone for Kit<D> {
    fn clone(&self) -> Self {
        Self {
            device: Arc::clone(&self.device),
            options: self.options.clone(),
            watchdog: self.watchdog.clone(),
            post: Arc::clone(&self.post),
            ..*self
        }
    }
}

type BerthOf<D> = Arc<Berth<DataThread<<D as Device>::Worker>>>;

/// What a thread has before it has vrings.
struct Fresh<D: Device> {
    worker: D::Worker,
    berth: BerthOf<D>,
    pulse: Arc<Pulse>,
    watchdog: Watchdog,
}

/// A thread, and what it serves.
type Manned<D> = (Fresh<D>, Box<DataThread<<D as Device>::Worker>>);

impl<D: Device> Drop for Fresh<D> {
    fn drop(&mut self) {
        self.watchdog.leave(&self.pulse);
    }
}

impl<D: Device> Kit<D> {
    /// Starts a thread that does `work`, whose handle is the post's.
    fn start(&self, work: impl FnOnce(&Self) + Send + 'static) -> io::Result<()> {
        let kit = self.clone();
        let handle = Builder::new()
            .name(format!("data-{}", self.number))
            .spawn(move || {
                pin(&kit.options.cpus, kit.number);
                work(&kit);
            })?;
        let mut handles = self.post.handles();
        handles.retain(|handle| !handle.is_finished());
        handles.push(handle);
        Ok(())
    }

    /// Sets up the calling thread.
    fn set_up(&self) -> io::Result<Fresh<D>> {
        let worker = self.device.worker()?;
        let berth = BerthOf::<D>::default();
        let relief = worker.while_away().map(|away| -> Arc<dyn Relief> {
            Arc::new(Successor {
                kit: self.clone(),
                berth: Arc::clone(&berth),
                away,
                starting: Arc::default(),
            })
        });
        Ok(Fresh {
            worker,
            berth,
            pulse: self.watchdog.join(relief),
            watchdog: self.watchdog.clone(),
        })
    }

    /// The first of them, which has no vrings yet.
    fn begin(&self) -> io::Result<Manned<D>> {
        let fresh = self.set_up()?;
        // The io_uring belongs to the thread that makes it, so it is made in here.
        let io = IoQueue::new(self.device.engine(), self.device.files())?;
        let rest = Rest {
            max_poll_ns: if self.alone {
                0
            } else {
                self.options.max_poll_ns
            },
            nap_ns: if self.alone { NAP_NS } else { 0 },
        };
        let pulse = Arc::clone(&fresh.pulse);
        let thread = DataThread::new(io, Arc::clone(&self.post.mailbox), pulse, rest)?;
        Ok((fresh, Box::new(thread)))
    }

    /// Serves until there is nothing to serve.
    fn serve(&self, mut fresh: Fresh<D>, thread: Box<DataThread<D::Worker>>) {
        let ended = thread.run(&mut Hand {
            worker: &mut fresh.worker,
            mailbox: &self.post.mailbox,
            pulse: &fresh.pulse,
            berth: &fresh.berth,
        });
        if let Err(error) = ended {
            self.fail(&error);
        }
    }

    fn fail(&self, error: &io::Error) -> ! {
        let number = self.number;
        limited!(
            error,
            "data thread {number} ended, and the process with it: {error}"
        );
        self.post.ended.store(true, Ordering::Release);
        self.watchdog.fail();
        // The kernel may still work on what the thread has started.
        loop {
            std::thread::park();
        }
    }
}

/// Starts the thread that takes the vrings of one that does not come back from an errand.
struct Successor<D: Device> {
    kit: Kit<D>,
    berth: BerthOf<D>,
    away: Arc<dyn WhileAway>,
    /// It was started, and has not looked yet whether there is something to take.
    starting: Arc<AtomicBool>,
}

impl<D: Device> fmt::Debug for Successor<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.kit.number;
        f.debug_struct("Successor")
            .field("number", &number)
            .finish_non_exhaustive()
    }
}

impl<D: Device> Relief for Successor<D> {
    fn relieve(&self, long: bool) -> bool {
        if !long && !self.away.waits() {
            return false;
        }
        if self.starting.swap(true, Ordering::AcqRel) {
            return false;
        }
        if self.berth.is_empty() {
            self.starting.store(false, Ordering::Release);
            return true;
        }
        let (berth, starting) = (Arc::clone(&self.berth), Arc::clone(&self.starting));
        let away = Arc::clone(&self.away);
        let started = self.kit.start(move |kit| {
            let taken = kit.take_over(&berth, &*away);
            starting.store(false, Ordering::Release);
            drop((berth, away));
            if let Some((fresh, thread)) = taken {
                kit.serve(fresh, thread);
            }
        });
        if let Err(error) = started {
            self.starting.store(false, Ordering::Release);
            no_successor(&error);
        }
        false
    }
}

impl<D: Device> Kit<D> {
    /// Takes what another thread has left, if it is still there once everything is ready for it.
    fn take_over(&self, berth: &BerthOf<D>, away: &dyn WhileAway) -> Option<Manned<D>> {
        let ready = self.set_up().and_then(|fresh| {
            let driver = Driver::new(self.device.engine(), &self.device.files())?;
            Ok((fresh, driver))
        });
        let (fresh, driver) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                no_successor(&error);
                return None;
            }
        };
        let mut thread = berth.take()?;
        away.relieved();
        let number = self.number;
        limited!(
            warn,
            "data thread {number} waits for the host in a request; another one goes on for it"
        );
        if let Err(error) = thread.move_here(driver, &fresh.pulse) {
            Box::leak(thread);
            self.fail(&error);
        }
        Some((fresh, thread))
    }
}

#[cold]
fn no_successor(error: &io::Error) {
    limited!(
        error,
        "no thread for what one waits that serves requests: {error}"
    );
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
        mailbox: Arc::new(mailbox),
        ended: AtomicBool::new(false),
        handles: Mutex::default(),
    });
    let kit = Kit {
        device: Arc::clone(device),
        options: options.clone(),
        watchdog: watchdog.clone(),
        post: Arc::clone(&post),
        number,
        alone,
    };
    let (report, ready) = sync_channel(1);
    let started = kit.start(move |kit| match kit.begin() {
        Ok((fresh, thread)) => {
            let _ = report.send(Ok(()));
            kit.serve(fresh, thread);
        }
        Err(error) => {
            let _ = report.send(Err(error));
        }
    });
    started.map_err(HostError::of("starting a data thread"))?;
    let made = ready
        .recv()
        .map_err(|_e| io::Error::from(io::ErrorKind::BrokenPipe));
    made.and_then(|made| made)
        .map_err(HostError::of("setting up a data thread"))?;
    Ok(Thread {
        post,
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
