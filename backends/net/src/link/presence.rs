// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether the interface of a link is there, and how one that was deleted is found again.
//!
//! A data thread notices that the interface has gone, from its queue, and asks now and then for it to
//! be opened again by its name. That waits for the kernel's lock of all interfaces, so each attempt
//! is a thread of its own. Queues see by a number that there is another descriptor for them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Builder;

use ringside_common::logging::LogLimiter;

use super::error::LinkError;

static TROUBLE: LogLimiter = LogLimiter::new();
static RETURN: LogLimiter = LogLimiter::new();

/// Told of each loss and each return, on whatever thread; it must not wait.
type Observer = Box<dyn Fn() + Send + Sync>;

/// See above.
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

    /// That which was there after so many `changes` has gone. Only the first who says so counts.
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

/// A link whose interface can be opened again.
pub(super) trait Reopen: Send + Sync + 'static {
    fn presence(&self) -> &Presence;

    /// What it is called.
    fn name(&self) -> &str;

    /// Opens the interface again; false while there is none of its name. `done` is to be called when
    /// queues may be had of the new one, before anybody can ask for them.
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
            if let Some(suppressed) = RETURN.allow() {
                log::info!(
                    "{}: there is an interface of that name again, which is used now \
                     ({suppressed} more not shown)",
                    link.name()
                );
            }
            presence.tell();
        }
        Ok(false) => log::debug!("{}: no such interface yet", link.name()),
        Err(error) => {
            if let Some(suppressed) = TROUBLE.allow() {
                log::warn!(
                    "the interface cannot be opened again yet: {error} \
                     ({suppressed} more not shown)"
                );
            }
        }
    }
}
