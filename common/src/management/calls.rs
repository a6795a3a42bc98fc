// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls that may wait, each on a thread of its own: the management thread waits for none.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use super::manage::ManageError;
use super::protocol::Call;

/// Calls that may wait at once; one more is refused.
pub(super) const MAX_CALLS: usize = 8;

/// Replies on their way from the threads of the calls to the management thread.
#[derive(Debug)]
struct Replies {
    /// With the token of the client that waits for it.
    ready: Mutex<Vec<(u64, Vec<u8>)>>,
    /// Readable when there are some.
    wake: OwnedFd,
}

impl Replies {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Vec<u8>)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The calls that are under way.
#[derive(Debug)]
pub(super) struct Calls {
    replies: Arc<Replies>,
    running: usize,
}

impl Calls {
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let ready = Mutex::default();
        Ok(Self {
            replies: Arc::new(Replies { ready, wake }),
            running: 0,
        })
    }

    pub(super) const fn are_none(&self) -> bool {
        self.running == 0
    }

    /// Begins a call for the client `token`, unless there are too many or we are `stopping`.
    ///
    /// # Errors
    /// With the reply, when it cannot be begun.
    pub(super) fn begin(&mut self, token: u64, call: Call, stopping: bool) -> Result<(), Vec<u8>> {
        if self.running >= MAX_CALLS || stopping {
            return Err(call.refusal(&ManageError::Unavailable {
                reason: "busy: too many calls are under way that wait",
            }));
        }
        let failed = |error: io::Error| ManageError::Failed(Box::new(error));
        let unstarted = call.clone();
        let promise = Promise {
            token,
            reply: call.refusal(&failed(io::Error::other("the method has failed"))),
            replies: Arc::clone(&self.replies),
        };
        let started = thread::Builder::new()
            .name("call".to_owned())
            .spawn(move || promise.keep(&call));
        match started {
            // It is not joined: its reply says that it has ended.
            Ok(_) => {
                self.running += 1;
                Ok(())
            }
            Err(error) => {
                // The promise was broken with the closure, and its reply is for no client.
                self.replies.lock().retain(|(other, _)| *other != token);
                Err(unstarted.refusal(&failed(error)))
            }
        }
    }

    /// The replies that have come in.
    pub(super) fn finished(&mut self) -> Vec<(u64, Vec<u8>)> {
        // Before the replies are taken: what comes after that wakes again.
        let _ = rustix::io::read(&self.replies.wake, &mut [0; 8]);
        let finished = mem::take(&mut *self.replies.lock());
        self.running = self.running.saturating_sub(finished.len());
        finished
    }
}

impl AsFd for Calls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.replies.wake.as_fd()
    }
}

/// A reply is sent whatever becomes of the method, even if it panics.
struct Promise {
    token: u64,
    reply: Vec<u8>,
    replies: Arc<Replies>,
}

impl Promise {
    fn keep(mut self, call: &Call) {
        self.reply = call.run();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let reply = mem::take(&mut self.reply);
        self.replies.lock().push((self.token, reply));
        // Full means that a wake-up is due already.
        let _ = rustix::io::write(&self.replies.wake, &1_u64.to_ne_bytes());
    }
}
