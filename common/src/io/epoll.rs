// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An epoll instance whose descriptor is owned, on the `epoll` crate.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use epoll::{ControlOptions, Event, Events};

use crate::num::ns_of;

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
        self.control(ControlOptions::EPOLL_CTL_ADD, fd, events, token)
    }

    /// Reports these `events` from here on.
    pub(crate) fn modify(&self, fd: BorrowedFd<'_>, events: Events, token: u64) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_MOD, fd, events, token)
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_DEL, fd, Events::empty(), 0)
    }

    fn control(
        &self,
        operation: ControlOptions,
        fd: BorrowedFd<'_>,
        events: Events,
        token: u64,
    ) -> io::Result<()> {
        let event = Event::new(events, token);
        epoll::ctl(self.epoll.as_raw_fd(), operation, fd.as_raw_fd(), event)
    }

    /// Sleeps until there is an event, which stays, or for `pause`.
    pub(crate) fn wait_for(&self, pause: Duration) -> io::Result<()> {
        let mut event = [Event { events: 0, data: 0 }];
        self.wait_into(&mut event, Some(ns_of(pause))).map(drop)
    }

    /// As [`wait_ns`](Self::wait_ns).
    pub(crate) fn wait(&self, pause: Option<Duration>, each: impl FnMut(u64)) -> io::Result<()> {
        self.wait_ns(pause.map(ns_of), each)
    }

    /// Calls `each` with the token of each event. Sleeps until there is one, at most for `pause_ns`
    /// where given.
    pub(crate) fn wait_ns(
        &self,
        pause_ns: Option<u64>,
        mut each: impl FnMut(u64),
    ) -> io::Result<()> {
        let mut events = [Event { events: 0, data: 0 }; BATCH];
        let count = self.wait_into(&mut events, pause_ns)?;
        for event in events.iter().take(count) {
            each(event.data);
        }
        Ok(())
    }

    /// Returns the number of events; none after a signal.
    fn wait_into(&self, events: &mut [Event], pause_ns: Option<u64>) -> io::Result<usize> {
        // Rounded up, lest the wait end just before its time and the caller then spin up to it;
        // clamped to 24 days.
        let timeout_ms = pause_ns.map_or(-1, |ns| {
            i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        match epoll::wait(self.epoll.as_raw_fd(), timeout_ms, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }
}
