// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether the interface of a link is there, and how one that was deleted is found again.
//!
//! A data thread notices that the interface has gone, from its queue, and asks now and then for it
//! to be opened again by its name. That waits for the kernel's lock of all interfaces, so each
//! attempt is a thread of its own. Queues see by a number that there is another descriptor for
//! them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Builder;

use ringside_common::limited;

use super::error::{LinkError, RETRY_NS};

/// Told of each loss and each return, on whatever thread; it must not wait.
type Observer = Box<dyn Fn() + Send + Sync>;

/// Whether an interface is there, and its losses and returns.
#[derive(Default)]
pub(super) struct Presence {
    /// Even while it is there: each loss and each return adds one.
    changes: AtomicU64,
    is_sought: AtomicBool,
    observer: OnceLock<Observer>,
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence")
            .field("changes", &self.changes)
            .finish_non_exhaustive()
    }
}

impl Presence {
    /// How often it has gone and come back, and whether it is there.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn is_there(&self) -> bool {
        self.changes().is_multiple_of(2)
    }

    /// The interface that was there after as many `changes` has gone. Only the first call that says
    /// so counts.
    pub(super) fn lose(&self, changes: u64) {
        let (order, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        let next = changes.wrapping_add(1);
        if self
            .changes
            .compare_exchange(changes, next, order, failed)
            .is_ok()
        {
            self.tell();
        }
    }

    /// There is another one.
    fn regain(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Has `observer` told of all changes from now on; only the first one is.
    pub(super) fn observe(&self, observer: Observer) {
        // The first stays.
        let _ = self.observer.set(observer);
    }

    fn tell(&self) {
        if let Some(observer) = self.observer.get() {
            observer();
        }
    }
}

/// What a queue knows of the interface that it has a descriptor of.
#[derive(Debug)]
pub(super) struct Sight {
    /// How often the interface had gone and come back when the descriptor was made.
    changes: u64,
    gone: bool,
    look_at_ns: u64,
}

impl Sight {
    /// With a descriptor of now.
    pub(super) fn new(presence: &Presence) -> Self {
        let changes = presence.changes();
        Self {
            // If it has gone, the descriptor is of what was there before.
            changes: changes & !1,
            gone: !changes.is_multiple_of(2),
            look_at_ns: 0,
        }
    }

    /// Grows when the interface is found to have gone, and when there is another one.
    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.changes | u64::from(self.gone)
    }

    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether nobody has noticed that it has gone.
    #[inline]
    pub(super) fn is_same(&self, presence: &Presence) -> bool {
        presence.changes() == self.changes
    }

    /// It has gone.
    #[cold]
    pub(super) fn lose(&mut self, presence: &Presence) {
        self.gone = true;
        self.look_at_ns = 0;
        presence.lose(self.changes);
    }

    /// When it [`is_due`](Self::is_due).
    #[inline]
    pub(super) fn look_at_ns(&self) -> u64 {
        self.look_at_ns
    }

    /// Whether it is time to look at the interface, or for another one. Not for a while, after
    /// that.
    pub(super) fn is_due(&mut self, now_ns: u64) -> bool {
        if now_ns < self.look_at_ns {
            return false;
        }
        self.look_at_ns = now_ns.saturating_add(RETRY_NS);
        true
    }

    /// When there may be another interface to go over to; none while this one is there, as far as
    /// anybody has noticed.
    #[inline]
    pub(super) fn retry_at_ns(&self, presence: &Presence) -> Option<u64> {
        let changes = presence.changes();
        // Also where this queue has not noticed yet.
        let is_back = changes.is_multiple_of(2);
        (changes != self.changes).then_some(if is_back { 0 } else { self.look_at_ns })
    }

    /// Goes over to the interface that is there now, if there is one; `take` takes the descriptor
    /// of it, and says whether there is one.
    pub(super) fn follow(&mut self, presence: &Presence, take: impl FnOnce() -> bool) -> bool {
        let changes = presence.changes();
        let found = changes.is_multiple_of(2) && take();
        if found {
            self.changes = changes;
        }
        self.gone = !found;
        found
    }
}

/// A link whose interface can be opened again.
pub(super) trait Reopen: Send + Sync + 'static {
    fn presence(&self) -> &Presence;

    /// What it is called.
    fn name(&self) -> &str;

    /// Opens the interface again; false while there is none of its name. It must call `done` when
    /// queues of the new one can be had, before any caller can ask for them.
    fn reopen(&self, done: &dyn Fn()) -> Result<bool, LinkError>;
}

/// Has somebody see whether the interface of `link` can be opened again.
pub(super) fn seek<L: Reopen>(link: &Arc<L>) {
    let presence = link.presence();
    if presence.is_there() || presence.is_sought.swap(true, Ordering::AcqRel) {
        return;
    }
    let seeker = Arc::clone(link);
    let spawned = Builder::new().name("link-again".to_owned()).spawn(move || {
        attempt(&*seeker);
        seeker.presence().is_sought.store(false, Ordering::Release);
    });
    if spawned.is_err() {
        // To be asked again.
        presence.is_sought.store(false, Ordering::Release);
    }
}

fn attempt(link: &impl Reopen) {
    let presence = link.presence();
    match link.reopen(&|| presence.regain()) {
        Ok(true) => {
            limited!(
                info,
                "{}: there is an interface of that name again, which is used now",
                link.name()
            );
            presence.tell();
        }
        Ok(false) => limited!(debug, "{}: no such interface yet", link.name()),
        Err(error) => limited!(warn, "the interface cannot be opened again yet: {error}"),
    }
}
