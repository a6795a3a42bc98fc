// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a data thread waits on, and the I/O it has started.
//!
//! An [`IoQueue`] belongs to one data thread. It starts I/O on the device's files, watches
//! eventfds (kicks, the mailbox) and tells what has happened. Two engines do the same work:
//!
//! * `Uring`: one `io_uring`; a batch of requests is one system call, which is also the one that
//!   sleeps;
//! * epoll and a pool of blocking threads, where `io_uring` is forbidden or `--aio=threads` is
//!   asked for.
//!
//! Work that no engine can do without blocking (ioctls, bounce buffers) goes to the same pool.
//!
//! Watches are edge-triggered and never read the eventfd. So every watch of it sees every write to
//! it, two vrings may share one, and a watch costs nothing per event.

mod batching;
mod driver;
mod epoll;
mod pool;
mod watches;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use libc::iovec;
use rustix::fs::{OFlags, fcntl_getfl};

use crate::num::usize_of;
use crate::sys::IoVecs;
pub use crate::sys::Readiness;
use crate::sys::uring::{Completion, MAX_IN_FLIGHT};
use batching::Batching;
pub(crate) use driver::Driver;
pub use driver::Engine;
pub(crate) use epoll::EpollLoop;
use pool::Pool;
pub use pool::{Job, Promise};
pub use watches::WatchId;
use watches::{CANCEL_TOKEN, WATCH_TOKEN, Watches};

/// Payload started before a turn is due. What is in the page cache is copied while it is submitted:
/// with large requests the first of a batch would wait for the copies of all the others.
pub(crate) const MAX_QUEUED_BYTES: u64 = 256 << 10;

/// The longest wait for a batch of completions. A request waits this long at most, whose driver
/// does not kick because it takes the thread for awake.
const MAX_BATCH_WAIT_NS: u64 = 100_000;

/// A file of the device, as registered with [`IoQueue::new`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileId(u32);

impl FileId {
    /// The `index`-th of the files given to [`IoQueue::new`].
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }
}

/// Something that has happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    /// I/O started with this token is done: bytes, or a negative errno.
    Done { token: u64, result: i32 },
    /// A watched eventfd was written to.
    Signalled(WatchId),
}

/// What [`IoQueue::turn`] waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wait {
    /// Nothing; or, with much in flight, a part of it, and not for long.
    Batch,
    /// For anything, without a limit.
    Event,
    /// For anything, for this many nanoseconds at most.
    For(u64),
}

/// Marks the tokens of writes that the kernel's own threads are likely to do.
const HANDED_WRITE_TOKEN: u64 = 1 << 62;
/// Marks the tokens of promises, which are no I/O and have no bound.
const PROMISE_TOKEN: u64 = 1 << 61;

/// How calls on files are made where `io_uring` does not make them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Calls {
    /// On a blocking thread.
    Handed,
    /// At once.
    Inline,
}

/// I/O and events of one data thread.
#[derive(Debug)]
pub struct IoQueue {
    driver: Driver,
    calls: Calls,
    files: Vec<Arc<OwnedFd>>,
    /// Results of calls made at once, until the next turn.
    finished: Vec<(u64, i32)>,
    watches: Watches,
    pool: Pool,
    pool_watch: WatchId,
    in_flight: usize,
    /// Those of them that are writes to the page cache.
    handed_writes: usize,
    /// Whether writes go to the page cache: no file is open with `O_DIRECT`.
    buffered: bool,
    /// Payload of what was started since the last turn.
    queued_bytes: u64,
    batching: Batching,
    completions: Vec<Completion>,
}

impl IoQueue {
    /// A queue for `files`, made on the thread that will use it.
    ///
    /// # Errors
    /// When neither engine can be set up.
    pub fn new(engine: Engine, files: Vec<Arc<OwnedFd>>) -> io::Result<Self> {
        let mut driver = Driver::new(engine, &files)?;
        let direct =
            |fd: &Arc<OwnedFd>| fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::DIRECT));
        let buffered = !files.iter().any(direct);
        let pool = Pool::new()?;
        let mut watches = Watches::default();
        let pool_watch = watches.add(&mut driver, pool.fd()?, Readiness::Readable)?;
        Ok(Self {
            driver,
            calls: if engine == Engine::Inline {
                Calls::Inline
            } else {
                Calls::Handed
            },
            files,
            finished: Vec::with_capacity(MAX_IN_FLIGHT),
            watches,
            pool,
            pool_watch,
            in_flight: 0,
            handed_writes: 0,
            buffered,
            queued_bytes: 0,
            batching: Batching::default(),
            completions: Vec::with_capacity(MAX_IN_FLIGHT),
        })
    }

    /// Goes on with an engine of the calling thread, where the one so far is another's, in which no
    /// I/O on files may be under way: there are none. All that is watched is as if just written to.
    ///
    /// # Errors
    /// When something cannot be watched.
    pub(crate) fn move_here(&mut self, driver: Driver) -> io::Result<()> {
        if !self.files.is_empty() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        self.driver = driver;
        self.watches.arm_again(&mut self.driver)
    }

    /// Starts a read at `offset_bytes` of `file` into `to`, which must stay until it is done.
    pub(crate) fn read(
        &mut self,
        file: FileId,
        to: &[iovec],
        offset_bytes: u64,
        token: u64,
    ) -> io::Result<()> {
        let to = IoVecs::new(to);
        let started = match &mut self.driver {
            Driver::Uring(ring) => ring.read(file.0, to, offset_bytes, token),
            Driver::Epoll(_) => {
                let offset = offset(offset_bytes)?;
                self.on_file(file, token, move |fd| {
                    crate::sys::read_vectored(fd, to, offset)
                })
            }
        };
        self.count(started)
    }

    /// Starts a write of `from` at `offset_bytes` of `file`; with `dsync` it is done when the
    /// data is on stable storage.
    pub(crate) fn write(
        &mut self,
        file: FileId,
        from: &[iovec],
        offset_bytes: u64,
        dsync: bool,
        token: u64,
    ) -> io::Result<()> {
        let from = IoVecs::new(from);
        let flags = if dsync { libc::RWF_DSYNC } else { 0 };
        let started = match &mut self.driver {
            Driver::Uring(ring) if self.buffered && !dsync => {
                let token = token | HANDED_WRITE_TOKEN;
                let started = ring.write(file.0, from, offset_bytes, flags, token);
                self.handed_writes += usize::from(started.is_ok());
                started
            }
            Driver::Uring(ring) => ring.write(file.0, from, offset_bytes, flags, token),
            Driver::Epoll(_) => {
                let offset = offset(offset_bytes)?;
                self.on_file(file, token, move |fd| {
                    crate::sys::write_vectored(fd, from, offset, flags)
                })
            }
        };
        self.count(started)
    }

    /// Whether calls on files are made on blocking threads.
    #[inline]
    pub(crate) fn hands_calls_over(&self) -> bool {
        self.calls == Calls::Handed && matches!(self.driver, Driver::Epoll(_))
    }

    /// As [`write`](Self::write) on a blocking thread, which first makes a guard and keeps it
    /// meanwhile.
    pub(crate) fn write_guarded<G>(
        &mut self,
        file: FileId,
        from: &[iovec],
        (offset_bytes, dsync): (u64, bool),
        token: u64,
        guard: impl FnOnce() -> G + Send + 'static,
    ) -> io::Result<()> {
        let fd = (self.file(file)).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        let from = IoVecs::new(from);
        let flags = if dsync { libc::RWF_DSYNC } else { 0 };
        let offset = offset(offset_bytes)?;
        let job = move || {
            let _guard = guard();
            crate::sys::write_vectored(fd.as_fd(), from, offset, flags)
        };
        self.run(Box::new(job), token)
    }

    /// Starts an fdatasync of `file`.
    pub(crate) fn fdatasync(&mut self, file: FileId, token: u64) -> io::Result<()> {
        let started = match &mut self.driver {
            Driver::Uring(ring) => ring.fdatasync(file.0, token),
            Driver::Epoll(_) => {
                self.on_file(file, token, |fd| errno_result(rustix::fs::fdatasync(fd)))
            }
        };
        self.count(started)
    }

    /// Runs `job` on a blocking thread.
    pub(crate) fn run(&mut self, job: Job, token: u64) -> io::Result<()> {
        let started = self.pool.run(job, token);
        self.count(started)
    }

    /// A promise that `token` will be done by someone, sometime; until then it takes nothing that
    /// other I/O needs.
    pub(crate) fn promise(&self, token: u64) -> Promise {
        self.pool.promise(token | PROMISE_TOKEN)
    }

    #[inline]
    fn count(&mut self, started: io::Result<()>) -> io::Result<()> {
        self.in_flight += usize::from(started.is_ok());
        started
    }

    /// A descriptor of the file `file`, for a job.
    #[must_use]
    pub fn file(&self, file: FileId) -> Option<Arc<OwnedFd>> {
        self.files.get(usize_of(file.0.into())).map(Arc::clone)
    }

    /// Whether there is room for `more` I/Os beside those started.
    #[must_use]
    #[inline]
    pub fn has_room(&self, more: usize) -> bool {
        self.in_flight + more <= MAX_IN_FLIGHT
    }

    /// Whether more may be started before the next [`turn`](Self::turn).
    #[inline]
    pub(crate) fn may_start(&self) -> bool {
        self.queued_bytes < MAX_QUEUED_BYTES && self.has_room(1)
    }

    /// Takes note of `bytes` that were started to move.
    #[inline]
    pub(crate) fn add_bytes(&mut self, bytes: u64) {
        self.queued_bytes = self.queued_bytes.saturating_add(bytes);
    }

    /// Reports each write to the eventfd `fd` from now on.
    pub(crate) fn watch(&mut self, fd: OwnedFd) -> io::Result<WatchId> {
        self.watch_for(fd, Readiness::Readable)
    }

    /// Reports when `fd` is ready, at once if it is, and then whenever it becomes ready again.
    /// `fd` is a duplicate that stays open while it is watched.
    ///
    /// # Errors
    /// When the kernel does not watch it.
    pub fn watch_for(&mut self, fd: OwnedFd, readiness: Readiness) -> io::Result<WatchId> {
        self.watches.add(&mut self.driver, fd, readiness)
    }

    /// Stops reporting on it.
    ///
    /// # Errors
    /// When the kernel does not let go of it.
    pub fn unwatch(&mut self, id: WatchId) -> io::Result<()> {
        self.watches.remove(&mut self.driver, id)
    }

    /// Whether [`turn`](Self::turn) has something to report at once.
    #[inline]
    pub(crate) fn is_ready(&mut self) -> bool {
        match &mut self.driver {
            Driver::Uring(ring) => ring.has_completions(),
            Driver::Epoll(_) => self.pool.has_done(),
        }
    }

    /// Submits what was started and appends what has happened to `events`.
    pub(crate) fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        // More may be waiting in the rings: no time for a batch of completions.
        let laden = self.queued_bytes >= MAX_QUEUED_BYTES;
        self.queued_bytes = 0;
        match &mut self.driver {
            Driver::Uring(ring) => {
                let batch = match wait {
                    Wait::Batch if !laden => self.batching.size(self.handed_writes),
                    Wait::Batch | Wait::Event | Wait::For(_) => None,
                };
                if let Some(count) = batch {
                    ring.enter_for(count, MAX_BATCH_WAIT_NS)?;
                } else if wait == Wait::Event {
                    ring.enter(true)?;
                } else if let Wait::For(pause_ns) = wait {
                    ring.enter_for(1, pause_ns)?;
                } else if ring.queued() > 0 || ring.has_completions() {
                    ring.enter(false)?;
                }
                ring.reap(&mut completions);
                if let Some(count) = batch {
                    self.batching.observe(count, completions.len());
                }
            }
            Driver::Epoll(poll) => {
                let (in_flight, finished) = (&mut self.in_flight, &mut self.finished);
                let any = !finished.is_empty();
                for (token, result) in finished.drain(..) {
                    *in_flight = in_flight.saturating_sub(1);
                    events.push(Event::Done { token, result });
                }
                // With results at hand there is no need to ask the kernel for more.
                if !any {
                    let pause_ns = match wait {
                        Wait::Batch => Some(0),
                        Wait::Event => None,
                        Wait::For(pause_ns) => Some(pause_ns),
                    };
                    poll.wait_ns(pause_ns, |token| {
                        completions.push(Completion {
                            token,
                            result: 0,
                            more: true,
                        });
                    })?;
                }
                self.collect_pool(events);
            }
        }
        for completion in completions.drain(..) {
            self.completed(completion, events)?;
        }
        self.completions = completions;
        Ok(())
    }

    fn completed(&mut self, done: Completion, events: &mut Vec<Event>) -> io::Result<()> {
        if done.token == CANCEL_TOKEN {
            return Ok(());
        }
        if done.token & WATCH_TOKEN == 0 {
            self.in_flight = self.in_flight.saturating_sub(1);
            if done.token & HANDED_WRITE_TOKEN != 0 {
                self.handed_writes = self.handed_writes.saturating_sub(1);
            }
            events.push(Event::Done {
                token: done.token & !HANDED_WRITE_TOKEN,
                result: done.result,
            });
            return Ok(());
        }
        if let Some(watch) = self.watches.event(&mut self.driver, done)? {
            if watch == self.pool_watch {
                self.collect_pool(events);
            } else {
                events.push(Event::Signalled(watch));
            }
        }
        Ok(())
    }

    fn collect_pool(&mut self, events: &mut Vec<Event>) {
        let in_flight = &mut self.in_flight;
        self.pool.collect(|token, result| {
            if token & PROMISE_TOKEN == 0 {
                *in_flight = in_flight.saturating_sub(1);
            }
            let token = token & !PROMISE_TOKEN;
            events.push(Event::Done { token, result });
        });
    }

    fn on_file(
        &mut self,
        file: FileId,
        token: u64,
        work: impl FnOnce(BorrowedFd<'_>) -> i32 + Send + 'static,
    ) -> io::Result<()> {
        let fd = self
            .file(file)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        if self.calls == Calls::Inline {
            self.finished.push((token, work(fd.as_fd())));
            return Ok(());
        }
        self.pool.run(Box::new(move || work(fd.as_fd())), token)
    }
}

fn offset(offset_bytes: u64) -> io::Result<i64> {
    i64::try_from(offset_bytes).map_err(|_e| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The result of a call without a count, in the form the engines use.
#[must_use]
pub fn errno_result(result: rustix::io::Result<()>) -> i32 {
    result.map_or_else(|e| -e.raw_os_error(), |()| 0)
}

#[cfg(test)]
mod tests;
