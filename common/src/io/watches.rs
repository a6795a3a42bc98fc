// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors that a data thread watches.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use super::driver::Driver;
use crate::limited;
use crate::num::usize_of;
use crate::sys::Readiness;
use crate::sys::uring::Completion;

/// A watched descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WatchId(pub(super) usize);

/// Marks the tokens of watches; those of I/O are below.
pub(super) const WATCH_TOKEN: u64 = 1 << 63;
/// The completion of a cancellation; nothing to do.
pub(super) const CANCEL_TOKEN: u64 = u64::MAX;

#[derive(Debug)]
struct Watch {
    /// Kept open until the engine has let go of it.
    fd: OwnedFd,
    readiness: Readiness,
    /// False once cancelled.
    wanted: bool,
}

/// All that one data thread watches; a [`WatchId`] is an index.
#[derive(Debug, Default)]
pub(super) struct Watches(Vec<Option<Watch>>);

impl Watches {
    pub(super) fn add(
        &mut self,
        driver: &mut Driver,
        fd: OwnedFd,
        readiness: Readiness,
    ) -> io::Result<WatchId> {
        let index = match self.0.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.0.push(None);
                self.0.len() - 1
            }
        };
        driver.watch(fd.as_fd(), readiness, WATCH_TOKEN | index as u64)?;
        if let Some(slot) = self.0.get_mut(index) {
            *slot = Some(Watch {
                fd,
                readiness,
                wanted: true,
            });
        }
        Ok(WatchId(index))
    }

    pub(super) fn remove(&mut self, driver: &mut Driver, id: WatchId) -> io::Result<()> {
        let Some(slot) = self.0.get_mut(id.0) else {
            return Ok(());
        };
        let Some(watch) = slot else { return Ok(()) };
        match driver {
            Driver::Uring(ring) => {
                // Freed when the poll itself completes, see `event`.
                watch.wanted = false;
                ring.cancel(WATCH_TOKEN | id.0 as u64, CANCEL_TOKEN)
            }
            Driver::Epoll(poll) => {
                poll.remove(watch.fd.as_fd())?;
                *slot = None;
                Ok(())
            }
        }
    }

    /// Has another engine watch all of them.
    pub(super) fn arm_again(&mut self, driver: &mut Driver) -> io::Result<()> {
        for (index, slot) in self.0.iter_mut().enumerate() {
            // Nobody else can tell that the engine before has let go of those that are cancelled.
            *slot = slot.take().filter(|watch| watch.wanted);
            if let Some(watch) = slot {
                let token = WATCH_TOKEN | index as u64;
                driver.watch(watch.fd.as_fd(), watch.readiness, token)?;
            }
        }
        Ok(())
    }

    /// An engine has reported `done`; returns what is ready, if it is still watched.
    pub(super) fn event(
        &mut self,
        driver: &mut Driver,
        done: Completion,
    ) -> io::Result<Option<WatchId>> {
        let index = usize_of(done.token & !WATCH_TOKEN);
        let Some(slot) = self.0.get_mut(index) else {
            return Ok(None);
        };
        let Some(watch) = slot else { return Ok(None) };
        if !watch.wanted {
            if !done.more {
                *slot = None;
            }
            return Ok(None);
        }
        if !done.more {
            // The kernel ended the multishot, as it may at any time.
            let fd = watch.fd.as_raw_fd();
            limited!(trace, "watch {index} of descriptor {fd} armed again");
            if let Driver::Uring(ring) = driver {
                ring.watch(watch.fd.as_fd(), watch.readiness, done.token)?;
            }
        }
        Ok(Some(WatchId(index)))
    }

    #[cfg(test)]
    pub(super) fn is_free(&self, id: WatchId) -> bool {
        self.0.get(id.0).is_some_and(Option::is_none)
    }
}
