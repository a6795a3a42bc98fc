// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An epoll instance whose descriptor is owned, on the `epoll` crate.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use epoll::{ControlOptions, Event, Events};

/// Events taken at once; what does not fit comes with the next wait.
const BATCH: usize = 64;

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct EpollLoop {
    epoll: OwnedFd,
}

impl EpollLoop {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: crate::sys::epoll_instance()?,
        })
    }

    /// Reports each new event on `fd` once, as `token`.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add_for(
            fd,
            Events::EPOLLIN | Events::EPOLLRDHUP | Events::EPOLLET,
            token,
        )
    }

    /// Reports `events` on `fd` as `token`.
    pub(crate) fn add_for(&self, fd: BorrowedFd<'_>, events: Events, token: u64) -> io::Result<()> {
        let event = Event::new(events, token);
        epoll::ctl(
            self.epoll.as_raw_fd(),
            ControlOptions::EPOLL_CTL_ADD,
            fd.as_raw_fd(),
            event,
        )
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let event = Event::new(Events::empty(), 0);
        epoll::ctl(
            self.epoll.as_raw_fd(),
            ControlOptions::EPOLL_CTL_DEL,
            fd.as_raw_fd(),
            event,
        )
    }

    /// Sleeps until there is an event, which stays, or for `pause`.
    pub(crate) fn wait_for(&self, pause: std::time::Duration) -> io::Result<()> {
        let mut event = [Event { events: 0, data: 0 }];
        let timeout_ms = i32::try_from(pause.as_millis()).unwrap_or(i32::MAX);
        match epoll::wait(self.epoll.as_raw_fd(), timeout_ms, &mut event) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            _ => Ok(()),
        }
    }

    /// Calls `each` with the token of each event. Sleeps until there is one, at most for `pause_ns`
    /// where given.
    pub(crate) fn wait(&self, pause_ns: Option<u64>, mut each: impl FnMut(u64)) -> io::Result<()> {
        let mut events = [Event { events: 0, data: 0 }; BATCH];
        let timeout_ms = pause_ns.map_or(-1, |ns| {
            i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let count = match epoll::wait(self.epoll.as_raw_fd(), timeout_ms, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        for event in events.iter().take(count) {
            each(event.data);
        }
        Ok(())
    }
}
