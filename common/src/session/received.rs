// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors that a front-end has handed over, and how unwanted ones are closed.
//!
//! `close(2)` of a file on FUSE sends its server a message and waits for the answer; any process can
//! be that server, the front-end too. `close(2)` of a socket can wait until sent bytes arrive. A
//! control thread must do neither. So a descriptor is a [`Received`] until it is known to be of the
//! kind that the message needs. An unwanted one is closed by a thread made for that. Where even that
//! thread might never end, the descriptor stays open and is closed when this process has ended
//! ([`heir`]). Both are bounded: beyond the bound the connection ends, and that socket serves no
//! front-end from then on ([`Quarantine::is_full`]).

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::descriptors::Kind;
use crate::error::RegionFault;
use crate::limited;
use crate::logging::LogLimiter;
use crate::sys::heir;

/// Descriptors that one socket may have kept for good.
const MAX_KEPT: usize = 64;
/// Those that it may have waiting for their close, which is over at once but for few kinds.
const MAX_CLOSING: usize = 512;

/// A descriptor from a front-end, of any kind.
#[derive(Debug)]
pub(crate) struct Received {
    fd: Option<OwnedFd>,
    quarantine: Arc<Quarantine>,
}

impl Received {
    pub(super) fn new(fd: OwnedFd, quarantine: &Arc<Quarantine>) -> Self {
        Self {
            fd: Some(fd),
            quarantine: Arc::clone(quarantine),
        }
    }

    fn into_kind(mut self, wanted: impl Fn(Kind) -> bool) -> Option<OwnedFd> {
        let fits = self.fd.as_ref().is_some_and(|fd| wanted(Kind::of(fd)));
        if fits { self.fd.take() } else { None }
    }

    /// The file behind a region; with `on_disk` also one that is not in memory.
    pub(super) fn into_memory(self, on_disk: bool) -> Result<File, RegionFault> {
        let fits = |kind| kind == Kind::Memory || on_disk && kind == Kind::DiskFile;
        let file = self.into_kind(fits).ok_or(RegionFault::NotMemory)?;
        Ok(file.into())
    }

    /// An eventfd; anything else could block a data thread or never be ready.
    pub(super) fn into_eventfd(self) -> Option<OwnedFd> {
        self.into_kind(|kind| kind == Kind::EventFd)
    }

    /// A connection within this machine.
    pub(super) fn into_stream(self) -> Option<UnixStream> {
        let socket = self.into_kind(|kind| kind == Kind::UnixStream)?;
        Some(socket.into())
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.quarantine.dispose(fd);
        }
    }
}

/// What front-ends of one socket have handed over and is not closed.
#[derive(Debug)]
pub(crate) struct Quarantine {
    /// What log lines begin with.
    name: String,
    told: LogLimiter,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Waiting for the closing thread.
    closing: VecDeque<OwnedFd>,
    /// Whether there is one.
    busy: bool,
    /// How many stay open.
    kept: usize,
}

impl Quarantine {
    /// One of the socket whose log lines begin with `name`.
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            told: LogLimiter::new(),
            held: Mutex::default(),
        }
    }

    /// Whether no front-end can be served any further: each could add to it.
    pub(crate) fn is_full(&self) -> bool {
        let held = self.lock();
        heir::is_full() || held.kept >= MAX_KEPT || held.closing.len() >= MAX_CLOSING
    }

    /// Closes `fd` without waiting for it.
    fn dispose(self: &Arc<Self>, fd: OwnedFd) {
        match Kind::of(&fd) {
            // The kernel closes these alone.
            Kind::Memory | Kind::EventFd => drop(fd),
            Kind::UnixStream | Kind::DiskFile | Kind::Other => self.close_later(fd),
            Kind::Unclosable => self.keep(fd),
        }
    }

    /// Leaves `fd` open.
    fn keep(&self, fd: OwnedFd) {
        heir::keep(fd);
        let mut held = self.lock();
        held.kept += 1;
        limited!(
            self.told,
            warn,
            "{}a front-end has handed over a file whose close may never end: {} of {MAX_KEPT} stay \
             open",
            self.name,
            held.kept
        );
    }

    /// Has a thread close `fd`.
    fn close_later(self: &Arc<Self>, fd: OwnedFd) {
        let mut held = self.lock();
        held.closing.push_back(fd);
        if std::mem::replace(&mut held.busy, true) {
            return;
        }
        drop(held);
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name("closing".to_owned());
        if let Err(error) = thread.spawn(move || own.close_all()) {
            // The next one tries again.
            limited!(
                warn,
                "descriptors of a front-end stay open for now: {error}"
            );
            self.lock().busy = false;
        }
    }

    fn close_all(&self) {
        loop {
            let mut held = self.lock();
            let Some(fd) = held.closing.pop_front() else {
                held.busy = false;
                return;
            };
            drop(held);
            drop(fd);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Quarantine {
    /// The process ends and must not wait.
    fn drop(&mut self) {
        let held = self.held.get_mut();
        for fd in held
            .unwrap_or_else(PoisonError::into_inner)
            .closing
            .drain(..)
        {
            let _ = fd.into_raw_fd();
        }
    }
}
