// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands from the control thread to a data thread.
//!
//! The control thread answers the front-end only after the owner of the vring has acknowledged, so
//! every command carries a way to reply.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::device::vring::{Health, VringId};
use crate::error::{FrontEndError, HostError};
use crate::memory::Memory;
use crate::ring::{RingAddresses, RingFeatures};
use crate::stats::QueueStats;

/// Everything a vring starts with.
#[derive(Debug)]
pub(crate) struct VringStart<S> {
    pub(crate) id: VringId,
    pub(crate) addresses: RingAddresses,
    pub(crate) features: RingFeatures,
    /// What `SET_VRING_BASE` said.
    pub(crate) next_avail: u16,
    /// Whether the used index counts instead.
    pub(crate) in_order: bool,
    pub(crate) enabled: bool,
    pub(crate) paused: bool,
    pub(crate) kick: Option<OwnedFd>,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) err: Option<OwnedFd>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) stats: Arc<QueueStats>,
    /// What the control side of the device has for the data side.
    pub(crate) seed: S,
}

/// What a data thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command<S> {
    /// Serve a vring.
    Start(Box<VringStart<S>>, Arc<Health>),
    /// Complete what is in flight on a vring and let go of it.
    Stop(VringId),
    /// Enable or disable a vring.
    Enable(VringId, bool),
    /// Watch another kick descriptor.
    SetKick(VringId, Option<OwnedFd>),
    /// Use another call descriptor.
    SetCall(VringId, Option<OwnedFd>),
    /// Use another error descriptor.
    SetErr(VringId, Option<OwnedFd>),
    /// The ring has moved.
    SetAddresses(VringId, RingAddresses),
    /// The memory table of a session has changed.
    SetMemory { session: u32, memory: Arc<Memory> },
    /// Take no more chains of a session, and complete those in flight; or go on.
    Pause { session: u32, paused: bool },
    /// End. All vrings have been stopped.
    Exit,
}

/// The answer of a data thread.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Done.
    Done,
    /// A vring has stopped here: the next available entry.
    Stopped { next_avail: u16 },
    /// The front-end's values do not do.
    Refused(FrontEndError),
    /// The host refused.
    Failed(HostError),
}

/// A command and where its answer goes.
pub(super) type Letter<S> = (Command<S>, SyncSender<Reply>);

/// The way to the thread that has the vrings of a data thread.
#[derive(Debug)]
pub(crate) struct Mailbox<S, B> {
    letters: Mutex<VecDeque<Letter<S>>>,
    /// What threads have brought from errands that had the vrings before.
    brought: Mutex<Vec<B>>,
    /// Read in every turn of the data thread, without a lock.
    has_letters: AtomicBool,
    /// Wakes it when it sleeps.
    signal: OwnedFd,
}

impl<S, B> Mailbox<S, B> {
    pub(super) fn new() -> io::Result<Self> {
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            letters: Mutex::default(),
            brought: Mutex::default(),
            has_letters: AtomicBool::new(false),
            signal,
        })
    }

    pub(super) fn fd(&self) -> io::Result<OwnedFd> {
        self.signal.try_clone()
    }

    pub(super) fn post(&self, letter: Letter<S>) {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        letters.push_back(letter);
        drop(letters);
        self.wake();
    }

    /// Leaves what an errand has brought.
    pub(super) fn bring(&self, brought: B) {
        let mut all = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(brought);
        drop(all);
        self.wake();
    }

    fn wake(&self) {
        self.has_letters.store(true, Ordering::Release);
        // Full means that a wake-up is due already.
        let _ = rustix::io::write(self.signal.as_fd(), &1_u64.to_ne_bytes());
    }

    #[inline]
    pub(super) fn has_letters(&self) -> bool {
        self.has_letters.load(Ordering::Acquire)
    }

    /// What has come. What comes while this is read is there the next time.
    pub(super) fn take(&self) -> (VecDeque<Letter<S>>, Vec<B>) {
        self.has_letters.swap(false, Ordering::AcqRel);
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let letters = std::mem::take(&mut *letters);
        let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        (letters, std::mem::take(&mut *brought))
    }
}
