// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One queue of a tap, as the data thread that serves it has it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Device;
use crate::header::{HEADER_BYTES, NetHeader};
use crate::link::frame::{Payload, Received, Room, SendLoss, Sent};
use crate::link::presence::{Sight, seek};
use crate::link::transfer::{Transfer, is_frame, not_received, sent};

/// One queue of a tap.
#[derive(Debug)]
pub struct TapQueue {
    device: Arc<Device>,
    pair: u16,
    fd: Arc<OwnedFd>,
    sight: Sight,
    transfer: Transfer,
}

impl TapQueue {
    pub(super) fn new(device: &Arc<Device>, pair: u16) -> Option<Self> {
        let state = device.state();
        let fd = Arc::clone(state.queues.get(usize::from(pair))?);
        Some(Self {
            device: Arc::clone(device),
            pair,
            fd,
            sight: Sight::new(&device.presence),
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
        self.sight.generation()
    }

    /// Whether the interface was deleted, and if so, whether one of its name will be opened.
    #[must_use]
    pub fn is_lost(&self) -> Option<bool> {
        self.sight.is_gone().then(|| self.device.origin.is_some())
    }

    /// Whether the interface is there. The descriptor of one that was deleted has an error from
    /// then on, without anything to wait for.
    pub fn check(&mut self) -> bool {
        if !self.sight.is_gone() {
            let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
            let at_once = Timespec::default();
            let found = poll(&mut fds, Some(&at_once)).is_ok();
            let [fd] = fds;
            if found && fd.revents().contains(PollFlags::ERR) {
                self.sight.lose(&self.device.presence);
            }
        }
        !self.sight.is_gone()
    }

    /// When to [`retry`](Self::retry); none while it is there, and where it does not come back.
    #[must_use]
    #[inline]
    pub fn retry_at_ns(&self) -> Option<u64> {
        self.device.origin.as_ref()?;
        self.sight.retry_at_ns(&self.device.presence)
    }

    /// Has somebody look for an interface of the name, if it is time, or takes its queue of the one
    /// that was found; returns whether there is one.
    pub fn retry(&mut self, now_ns: u64) -> bool {
        if self.sight.is_same(&self.device.presence) {
            return true;
        }
        let found = self.sight.follow(&self.device.presence, || {
            let fd = self.device.fd(self.pair);
            fd.map(|fd| self.fd = fd).is_some()
        });
        if !found && self.device.origin.is_some() && self.sight.is_due(now_ns) {
            seek(&self.device);
        }
        found
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
            && !self.sight.is_gone()
            // Of a tap and of a macvtap that were deleted; one that is down says something else.
            && matches!(Errno::from_io_error(error), Some(Errno::BADFD | Errno::NOLINK))
        {
            self.sight.lose(&self.device.presence);
        }
        sent(result)
    }

    /// Receives a frame by `readv(2)`. [`Received::Down`]: the interface was deleted.
    #[inline]
    pub fn receive(&mut self, room: Room<'_>) -> Received {
        if self.sight.is_gone() {
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
                    self.sight.lose(&self.device.presence);
                }
                received
            }
        }
    }
}
