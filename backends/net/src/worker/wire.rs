// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queues of the link, as the data thread that has them at present sees them.
//!
//! A queue is taken from the hub with the first vring that uses it and put back with the last, so
//! that a tap keeps its descriptor and a stream its connection from one front-end to the next. A
//! queue of a tap is attached while its pair has a receive vring that is enabled and has had
//! buffers: the kernel spreads flows over the attached ones, and what is sent to a queue that
//! nobody empties is lost. The first is always attached.

use std::io;
use std::os::fd::BorrowedFd;

use ringside_common::io::{IoQueue, Readiness, WatchId};
use ringside_common::logging::LogLimiter;

use super::{NetTurn, NetWorker, Side};
use crate::hub::Fabric;
use crate::link::{LinkQueue, Sent};

static TROUBLE: LogLimiter = LogLimiter::new();
static GONE: LogLimiter = LogLimiter::new();

/// See above.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) queue: LinkQueue,
    /// Vrings that use it.
    users: usize,
    /// The connection that is watched.
    generation: u64,
    readable_watch: Option<WatchId>,
    writable_watch: Option<WatchId>,
    readable: bool,
    blocked: bool,
    attached: bool,
}

impl Wire {
    fn new(queue: LinkQueue, io: &mut IoQueue) -> io::Result<Self> {
        let mut wire = Self {
            generation: queue.generation(),
            queue,
            users: 0,
            readable_watch: None,
            writable_watch: None,
            readable: true,
            blocked: false,
            attached: false,
        };
        wire.watch(io)?;
        Ok(wire)
    }

    fn watch(&mut self, io: &mut IoQueue) -> io::Result<()> {
        self.readable_watch = match self.queue.descriptor() {
            Some(fd) => Some(io.watch_for(duplicate(fd)?, Readiness::Readable)?),
            None => None,
        };
        if let Some(returns) = self.queue.is_lost()
            && let Some(suppressed) = GONE.allow()
        {
            let until = if returns {
                "there is one of its name again"
            } else {
                "the back-end is started again with other descriptors"
            };
            log::warn!(
                "the interface of the link was deleted: frames are dropped until {until} \
                 ({suppressed} more not shown)"
            );
        }
        Ok(())
    }

    fn unwatch(&mut self, io: &mut IoQueue) {
        for watch in [self.readable_watch.take(), self.writable_watch.take()]
            .into_iter()
            .flatten()
        {
            if let Err(error) = io.unwatch(watch) {
                complain("the link is still watched", &error);
            }
        }
    }

    /// Whether there may be frames to be read.
    #[inline]
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// All frames were read.
    #[inline]
    pub(super) fn set_drained(&mut self) {
        self.readable = false;
    }

    /// Whether it takes no frames at present.
    #[inline]
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// It took no frame: nothing more is sent before it is writable.
    pub(super) fn block(&mut self, io: &mut IoQueue) {
        let watched = match self.queue.descriptor() {
            Some(fd) if self.writable_watch.is_none() => {
                duplicate(fd).and_then(|fd| io.watch_for(fd, Readiness::Writable))
            }
            _ => return,
        };
        match watched {
            Ok(watch) => {
                self.writable_watch = Some(watch);
                self.blocked = true;
            }
            // Not to wait is to be busy, but to go on.
            Err(error) => complain("waiting for the link", &error),
        }
    }

    /// Follows a connection that was lost or made; returns when it will be tried again.
    fn tend(&mut self, io: &mut IoQueue, now_ns: u64) -> Option<u64> {
        let retry_at_ns = self.queue.retry_at_ns();
        if retry_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            self.queue.retry(now_ns);
        }
        if self.queue.generation() != self.generation {
            self.generation = self.queue.generation();
            self.unwatch(io);
            self.blocked = false;
            self.readable = true;
            if let Err(error) = self.watch(io) {
                complain("watching the link", &error);
            }
        }
        self.queue.retry_at_ns()
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> io::Result<std::os::fd::OwnedFd> {
    fd.try_clone_to_owned()
}

fn complain(what: &str, error: &dyn std::error::Error) {
    if let Some(suppressed) = TROUBLE.allow() {
        log::warn!("{what}: {error} ({suppressed} more not shown)");
    }
}

impl NetWorker {
    /// The link queue that a vring uses, and whether the vring is the one that is filled from it.
    fn link_use(&self, turn: &NetTurn<'_>, slot: usize) -> Option<(usize, Option<u16>)> {
        if self.hub.link_count() == 0 {
            return None;
        }
        let place = turn.vrings.get(slot)?;
        match &place.queue.side {
            Side::Receive(rx) => Some((self.hub.link_of(rx.pair), Some(rx.pair))),
            Side::Transmit(tx) => Some((self.hub.link_of(tx.pair), None)),
            Side::Control(_) => None,
        }
    }

    /// A vring has started: takes the link queue it uses.
    pub(super) fn start_wire(&mut self, turn: &mut NetTurn<'_>, slot: usize) -> io::Result<()> {
        let Some((index, _)) = self.link_use(turn, slot) else {
            return Ok(());
        };
        if self.wires.get(index).is_some_and(Option::is_none) {
            let Some(queue) = self
                .hub
                .link()
                .and_then(|link| link.queue(u16::try_from(index).ok()?))
            else {
                return Err(io::Error::other(
                    "the link queue is in use by another thread",
                ));
            };
            let wire = Wire::new(queue, turn.io)?;
            if let Some(place) = self.wires.get_mut(index) {
                *place = Some(wire);
            }
        }
        if let Some(Some(wire)) = self.wires.get_mut(index) {
            wire.users += 1;
        }
        if self.hub.fabric() == Fabric::Wire
            && let Some(place) = turn.vrings.get_mut(slot)
        {
            match &mut place.queue.side {
                Side::Receive(rx) => rx.wire = Some(index),
                Side::Transmit(tx) => tx.wire = Some(index),
                Side::Control(_) => {}
            }
        }
        Ok(())
    }

    /// A vring leaves.
    pub(super) fn stop_wire(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        let Some((index, pair)) = self.link_use(turn, slot) else {
            return;
        };
        if let Some(pair) = pair {
            self.detach(pair);
        }
        let Some(place) = self.wires.get_mut(index) else {
            return;
        };
        let Some(wire) = place else { return };
        wire.users = wire.users.saturating_sub(1);
        if wire.users == 0
            && let Some(mut wire) = place.take()
        {
            wire.unwatch(turn.io);
        }
    }

    /// A vring was enabled or disabled.
    pub(super) fn follow_enabled(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        let Some(place) = turn.vrings.get_mut(slot) else {
            return;
        };
        let enabled = place.vring.is_enabled();
        if let Side::Receive(rx) = &mut place.queue.side
            && !enabled
        {
            rx.window.release(&mut place.vring);
            rx.used = false;
            let pair = rx.pair;
            self.detach(pair);
        }
    }

    /// The driver uses a pair: frames may come to its link queue.
    pub(super) fn attach(&mut self, pair: u16) {
        self.set_attached(pair, true);
    }

    fn detach(&mut self, pair: u16) {
        self.set_attached(pair, false);
    }

    fn set_attached(&mut self, pair: u16, attached: bool) {
        let index = self.hub.link_of(pair);
        if self.hub.fabric() != Fabric::Wire || index == 0 {
            return;
        }
        let (Some(link), Some(Some(wire))) = (self.hub.link(), self.wires.get_mut(index)) else {
            return;
        };
        if wire.attached == attached {
            return;
        }
        match link.attach(pair, attached) {
            Ok(()) => {
                wire.attached = attached;
                wire.readable = true;
            }
            Err(error) => complain("attaching a queue of the link", &error),
        }
    }

    /// A descriptor of a link has become ready.
    pub(super) fn wire_ready(&mut self, turn: &mut NetTurn<'_>, watch: WatchId) {
        for wire in self.wires.iter_mut().flatten() {
            if wire.readable_watch == Some(watch) {
                wire.readable = true;
            } else if wire.writable_watch == Some(watch) {
                wire.writable_watch = None;
                if let Err(error) = turn.io.unwatch(watch) {
                    complain("the link is still watched", &error);
                }
                wire.blocked = false;
                if wire.queue.flush() == Sent::Blocked {
                    wire.block(turn.io);
                }
            }
        }
    }

    /// Follows connections that were lost or made.
    pub(super) fn tend_wires(&mut self, turn: &mut NetTurn<'_>) {
        let now_ns = turn.now_ns();
        let mut next_ns = None;
        for wire in self.wires.iter_mut().flatten() {
            if let Some(at_ns) = wire.tend(turn.io, now_ns) {
                next_ns = Some(next_ns.map_or(at_ns, |earlier: u64| earlier.min(at_ns)));
            }
        }
        if let Some(at_ns) = next_ns {
            self.wake_at(at_ns);
        }
    }
}
