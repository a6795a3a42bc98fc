// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue of the link, while a data thread has it.

use std::io;
use std::os::fd::BorrowedFd;

use ringside_common::io::{IoQueue, Readiness, WatchId};
use ringside_common::limited;
use ringside_common::memory::Buffers;

use super::passage::Passage;
use crate::counters::DropReason;
use crate::header::NetHeader;
use crate::link::{LinkQueue, Payload, Received, Room, SendLoss, Sent};

/// The hold of a data thread on a queue of the link.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) queue: LinkQueue,
    /// Vrings that use it.
    pub(super) users: usize,
    /// The connection that is watched.
    generation: u64,
    readable_watch: Option<WatchId>,
    writable_watch: Option<WatchId>,
    readable: bool,
    blocked: bool,
    /// Whether the kernel gives it frames, where that can be chosen.
    pub(super) attached: bool,
}

impl Attachment {
    pub(super) fn new(queue: LinkQueue, io: &mut IoQueue) -> io::Result<Self> {
        let mut attachment = Self {
            generation: queue.generation(),
            queue,
            users: 0,
            readable_watch: None,
            writable_watch: None,
            readable: true,
            blocked: false,
            attached: false,
        };
        attachment.watch(io)?;
        Ok(attachment)
    }

    fn watch(&mut self, io: &mut IoQueue) -> io::Result<()> {
        self.readable_watch = match self.queue.descriptor() {
            Some(fd) => Some(io.watch_for(duplicate(fd)?, Readiness::Readable)?),
            None => None,
        };
        if let Some(returns) = self.queue.is_lost() {
            let until = if returns {
                "there is one of its name again"
            } else {
                "the back-end is started again with other descriptors"
            };
            limited!(
                warn,
                "the interface of the link was deleted: frames are dropped until {until}"
            );
        }
        Ok(())
    }

    pub(super) fn unwatch(&mut self, io: &mut IoQueue) {
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

    /// Frames may have come.
    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Drops frames that wait, as many as there are or `most`; returns how many.
    pub(super) fn lose_waiting(&mut self, spare: &mut [u8], most: usize) -> usize {
        let nowhere = Buffers::default();
        let mut frames = 0;
        while frames < most {
            let room = Room {
                window: &nowhere,
                skip_bytes: 0,
                limit_bytes: 0,
                spare: &mut *spare,
            };
            match self.queue.receive(room) {
                Received::Frame { .. } => frames += 1,
                Received::Empty | Received::Down => {
                    self.set_drained();
                    break;
                }
            }
        }
        frames
    }

    /// Whether it takes no frames at present.
    #[inline]
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends a frame; one that waits may be sent again when the link is writable.
    #[inline]
    pub(super) fn send(
        &mut self,
        io: &mut IoQueue,
        header: &NetHeader,
        payload: Payload<'_>,
    ) -> Passage {
        let sent = self.queue.send(header, payload);
        self.follow(io, sent)
    }

    /// Follows what has become of a frame that was sent on the queue.
    #[inline]
    pub(super) fn follow(&mut self, io: &mut IoQueue, sent: Sent) -> Passage {
        match sent {
            Sent::Done => {
                if self.queue.has_unsent() {
                    self.block(io);
                }
                Passage::Passed
            }
            Sent::Blocked => {
                self.block(io);
                Passage::Waits
            }
            Sent::Dropped(loss) => Passage::Lost(reason_of(loss)),
        }
    }

    /// A watched descriptor has become ready.
    pub(super) fn ready(&mut self, io: &mut IoQueue, watch: WatchId) {
        if self.readable_watch == Some(watch) {
            self.readable = true;
        } else if self.writable_watch == Some(watch) {
            self.writable_watch = None;
            if let Err(error) = io.unwatch(watch) {
                complain("the link is still watched", &error);
            }
            self.blocked = false;
            if self.queue.flush() == Sent::Blocked {
                self.block(io);
            }
        }
    }

    /// It took no frame: nothing more is sent before it is writable.
    fn block(&mut self, io: &mut IoQueue) {
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
            // Without the wait the thread is busy, but goes on.
            Err(error) => complain("waiting for the link", &error),
        }
    }

    /// Follows a connection that was lost or made; returns when it will be tried again.
    pub(super) fn tend(&mut self, io: &mut IoQueue, now_ns: u64) -> Option<u64> {
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

pub(super) fn complain(what: &str, error: &dyn std::error::Error) {
    limited!(warn, "{what}: {error}");
}

fn reason_of(loss: SendLoss) -> DropReason {
    match loss {
        SendLoss::Invalid => DropReason::Refused,
        SendLoss::Down => DropReason::LinkDown,
        SendLoss::NoBuffer => DropReason::NoBuffer,
        SendLoss::Failed => DropReason::HostError,
    }
}
