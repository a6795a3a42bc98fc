// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue of a tap, as the data thread that serves it has it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Device;
use crate::header::{HEADER_BYTES, NetHeader};
use crate::link::presence;
use crate::link::transfer::{Transfer, is_frame, not_received, sent};
use crate::link::{Payload, RETRY_NS, Received, Room, SendLoss, Sent};

/// One queue of a tap.
#[derive(Debug)]
pub struct TapQueue {
    device: Arc<Device>,
    pair: u16,
    fd: Arc<OwnedFd>,
    /// How often the interface had gone and come back when this was its descriptor.
    changes: u64,
    gone: bool,
    retry_at_ns: u64,
    transfer: Transfer,
}

impl TapQueue {
    pub(super) fn new(device: &Arc<Device>, pair: u16) -> Option<Self> {
        let state = device.state();
        let fd = Arc::clone(state.queues.get(usize::from(pair))?);
        let changes = device.presence.changes();
        Some(Self {
            device: Arc::clone(device),
            pair,
            fd,
            // If it has gone, this is a queue of what was there before.
            changes: changes & !1,
            gone: !changes.is_multiple_of(2),
            retry_at_ns: 0,
            transfer: Transfer::new(),
        })
    }

    /// What to wait on.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Grows when the interface is found to have gone, and when there is another one.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.changes | u64::from(self.gone)
    }

    /// Whether the interface was deleted, and if so, whether one of its name will be opened.
    #[must_use]
    pub fn is_lost(&self) -> Option<bool> {
        self.gone.then(|| self.device.origin.is_some())
    }

    /// Whether the interface is there. The descriptor of one that was deleted has an error for
    /// ever, without anything to wait for.
    pub fn check(&mut self) -> bool {
        if !self.gone {
            let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
            let at_once = Timespec::default();
            let found = poll(&mut fds, Some(&at_once)).is_ok();
            let [fd] = fds;
            if found && fd.revents().contains(PollFlags::ERR) {
                self.lose();
            }
        }
        !self.gone
    }

    /// When to [`retry`](Self::retry); none while it is there, and where it does not come back.
    #[must_use]
    #[inline]
    pub fn retry_at_ns(&self) -> Option<u64> {
        let changes = self.device.presence.changes();
        if changes == self.changes || self.device.origin.is_none() {
            return None;
        }
        // Also where this queue has not noticed yet.
        let is_back = changes.is_multiple_of(2);
        Some(if is_back { 0 } else { self.retry_at_ns })
    }

    /// Has somebody look for an interface of the name, if it is time, or takes its queue of the one
    /// that was found; returns whether there is one.
    pub fn retry(&mut self, now_ns: u64) -> bool {
        let changes = self.device.presence.changes();
        if changes == self.changes {
            return true;
        }
        if changes.is_multiple_of(2)
            && let Some(fd) = self.device.fd(self.pair)
        {
            self.fd = fd;
            self.changes = changes;
            self.gone = false;
            return true;
        }
        self.gone = true;
        if now_ns >= self.retry_at_ns && self.device.origin.is_some() {
            self.retry_at_ns = now_ns.saturating_add(RETRY_NS);
            presence::seek(&self.device);
        }
        false
    }

    #[cold]
    fn lose(&mut self) {
        self.gone = true;
        self.retry_at_ns = 0;
        self.device.presence.lose(self.changes);
    }

    /// Sends a frame by `writev(2)`. The kernel checks the header: what it does not take is
    /// [`SendLoss::Invalid`].
    #[inline]
    pub fn send(&mut self, header: &NetHeader, payload: Payload<'_>) -> Sent {
        if !is_frame(payload) {
            return Sent::Dropped(SendLoss::Invalid);
        }
        let fd = self.fd.as_fd();
        let result = self
            .transfer
            .send(&header.encode(), payload, |gather| gather.write_to(fd));
        if let Err(error) = &result
            && !self.gone
            // Of a tap and of a macvtap that were deleted; one that is down says something else.
            && matches!(Errno::from_io_error(error), Some(Errno::BADFD | Errno::NOLINK))
        {
            self.lose();
        }
        sent(result)
    }

    /// Receives a frame by `readv(2)`. [`Received::Down`]: the interface was deleted.
    #[inline]
    pub fn receive(&mut self, room: Room<'_>) -> Received {
        if self.gone {
            return Received::Down;
        }
        let mut header = [0; HEADER_BYTES];
        let fd = self.fd.as_fd();
        let result = self
            .transfer
            .receive(&mut header, room, |scatter| scatter.read_from(fd));
        match result {
            Ok(bytes) => Received::Frame {
                header: NetHeader::decode(header),
                bytes: bytes.saturating_sub(HEADER_BYTES),
            },
            Err(error) => {
                let received = not_received(&error);
                if received == Received::Down {
                    self.lose();
                }
                received
            }
        }
    }
}
