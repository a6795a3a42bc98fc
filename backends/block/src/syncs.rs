// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Syncs that are under way together.
//!
//! A sync is an operation whose success says that data is stable: an fdatasync, or a write to the
//! page cache that must be stable (`RWF_DSYNC`), which ends in one. If a page does not reach the
//! disk, the kernel reports that to one sync of an open file, once. Of several syncs under way
//! together it may be any: the sync whose data is lost can succeed, because the one beside it got
//! the report.
//!
//! So a sync is answered as good only after all syncs have ended that were under way when it ended,
//! and only if none of those beside it has failed. Syncs that begin later do not matter: they
//! cannot have got the report that was meant for an earlier one.
//!
//! Writes that need not be stable never come here. A sync takes a lock twice, each time for as long
//! as a few numbers are compared; beside the wait for the disk that is nothing.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringside_common::io::Promise;

/// All syncs of one image.
#[derive(Debug, Default)]
pub(crate) struct Syncs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next one.
    next: u64,
    /// Those under way, in the order they began.
    running: Vec<u64>,
    /// Every sync with a lower number that is under way was under way beside one that has failed.
    failed_before: u64,
    held: Vec<Held>,
}

/// A sync that has ended well and waits for those that were under way beside it.
#[derive(Debug)]
struct Held {
    /// They have lower numbers.
    until: u64,
    good: bool,
    waiter: Waiter,
}

/// What is told whether a sync was good.
#[derive(Debug)]
enum Waiter {
    /// The data thread of a request: the request's own result if the sync was good.
    Request(Promise, i32),
    /// A thread that waits.
    Thread(SyncSender<bool>),
}

impl Waiter {
    fn tell(self, good: bool) {
        match self {
            Self::Request(promise, result) => promise.keep(if good { result } else { -libc::EIO }),
            // The receiver exists: its thread waits.
            Self::Thread(answer) => drop(answer.send(good)),
        }
    }
}

/// How a sync ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ended {
    Well,
    /// It may have got the report of what others have lost.
    Failed,
    /// It ended before the kernel could report anything to it.
    Void,
}

/// What is known of a sync that has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Good,
    Bad,
    /// It is known later.
    Later,
}

/// A sync under way. One that is dropped has failed: nobody knows how it ended.
#[derive(Debug)]
pub(crate) struct Sync {
    syncs: Arc<Syncs>,
    number: u64,
}

impl Syncs {
    /// A sync is about to begin.
    pub(crate) fn begin(self: &Arc<Self>) -> Sync {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.running.push(number);
        Sync {
            syncs: Arc::clone(self),
            number,
        }
    }

    /// How many have ended well and wait for others.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().held.len()
    }

    /// Ends sync `number`; `hold` says whom to tell if that has to wait.
    fn end(
        &self,
        number: u64,
        ended: Ended,
        hold: impl FnOnce() -> Option<Waiter>,
    ) -> Option<Verdict> {
        let mut state = self.lock();
        let at = state.running.iter().position(|other| *other == number)?;
        state.running.remove(at);
        if ended == Ended::Failed {
            state.failed_before = state.next;
            for held in &mut state.held {
                held.good &= held.until <= number;
            }
        }
        let verdict = if ended != Ended::Well || number < state.failed_before {
            Verdict::Bad
        } else if state.running.is_empty() {
            Verdict::Good
        } else {
            match hold() {
                Some(waiter) => {
                    let until = state.next;
                    state.held.push(Held {
                        until,
                        good: true,
                        waiter,
                    });
                    Verdict::Later
                }
                None => Verdict::Bad,
            }
        };
        let first = state.running.first().copied().unwrap_or(state.next);
        let due: Vec<Held> = state
            .held
            .extract_if(.., |held| !held.good || held.until <= first)
            .collect();
        drop(state);
        for held in due {
            held.waiter.tell(held.good);
        }
        Some(verdict)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sync {
    /// It has ended. The verdict comes at once, or through the promise that `hold` makes: `result`
    /// if it was good, else `-EIO`.
    pub(crate) fn end(
        self,
        ended: Ended,
        result: i32,
        hold: impl FnOnce() -> Option<Promise>,
    ) -> Verdict {
        let waiter = || hold().map(|promise| Waiter::Request(promise, result));
        self.syncs
            .end(self.number, ended, waiter)
            .unwrap_or(Verdict::Bad)
    }

    /// It has ended; waits until it is known whether it was good.
    pub(crate) fn end_and_wait(self, ended: Ended) -> bool {
        let (answer, told) = sync_channel(1);
        let waiter = || Some(Waiter::Thread(answer));
        match self.syncs.end(self.number, ended, waiter) {
            Some(Verdict::Good) => true,
            Some(Verdict::Later) => told.recv().unwrap_or(false),
            Some(Verdict::Bad) | None => false,
        }
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        // Has no effect on a sync that has ended.
        self.syncs.end(self.number, Ended::Failed, || None);
    }
}
