// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages as they arrive.
//!
//! All that is called here returns at once. A message is given out when it has arrived whole, so
//! that a front-end that sends half a header keeps its connection and nothing else.
//!
//! The kernel hands descriptors over with the first byte that they were sent with, and never reads
//! on behind them. So the header is read by itself: what comes with it is of this message. What comes
//! later belongs to none.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::SessionError;
use super::message::{HEADER_BYTES, Header};
use super::received::{Quarantine, Received};
use crate::error::{FrontEndError, HostError};

/// The most descriptors that the kernel hands over at once (`SCM_MAX_FD`). With room for them all,
/// one is missing only because we have no free descriptor.
const MAX_AT_ONCE: usize = 253;
/// The most descriptors that a message has: those of a full `SET_MEM_TABLE`.
const MAX_DESCRIPTORS: usize = 32;

/// One whole message, as it came.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) descriptors: Vec<Received>,
}

/// What [`Inbox::receive`] has found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Arrival {
    /// There is a message to [`take`](Inbox::take).
    Message,
    /// There is none yet.
    Nothing,
    /// There will be no more.
    End,
}

/// The message that is arriving.
#[derive(Debug)]
pub(super) struct Inbox {
    header: [u8; HEADER_BYTES],
    /// Of the header.
    arrived_bytes: usize,
    /// Once the header is there: what it says, its body, and how much of that is there.
    parsed: Option<(Header, Vec<u8>, usize)>,
    descriptors: Vec<Received>,
    quarantine: Arc<Quarantine>,
}

impl Inbox {
    pub(super) fn new(quarantine: Arc<Quarantine>) -> Self {
        Self {
            header: [0; HEADER_BYTES],
            arrived_bytes: 0,
            parsed: None,
            descriptors: Vec::new(),
            quarantine,
        }
    }

    /// Reads on, at most to the end of one message.
    pub(super) fn receive(&mut self, socket: &UnixStream) -> Result<Arrival, SessionError> {
        loop {
            if let Some((_, body, arrived_bytes)) = &self.parsed
                && *arrived_bytes == body.len()
            {
                return Ok(Arrival::Message);
            }
            let in_header = self.parsed.is_none();
            let into = match &mut self.parsed {
                None => self.header.get_mut(self.arrived_bytes..),
                Some((_, body, arrived_bytes)) => body.get_mut(*arrived_bytes..),
            };
            let got = match receive_some(socket, into.unwrap_or_default()) {
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(Arrival::Nothing),
                Err(Errno::CONNRESET) => return Ok(Arrival::End),
                Err(errno) => return Err(SessionError::Socket(errno.into())),
            };
            let stray = !in_header && !got.fds.is_empty();
            let received = got.fds.into_iter();
            self.descriptors
                .extend(received.map(|fd| Received::new(fd, &self.quarantine)));
            if let Some((header, ..)) = self.parsed.as_ref().filter(|_| stray) {
                let message = header.name();
                return Err(FrontEndError::Descriptors { message }.into());
            }
            if self.descriptors.len() > MAX_DESCRIPTORS {
                return Err(FrontEndError::TooManyDescriptors.into());
            }
            if got.lacking {
                let host = HostError::of("receiving the descriptors of a message");
                return Err(SessionError::Host(host(Errno::MFILE)));
            }
            if got.bytes == 0 {
                return Ok(Arrival::End);
            }
            self.note(got.bytes)?;
        }
    }

    fn note(&mut self, bytes: usize) -> Result<(), FrontEndError> {
        if let Some((_, _, arrived_bytes)) = &mut self.parsed {
            *arrived_bytes += bytes;
            return Ok(());
        }
        self.arrived_bytes += bytes;
        if self.arrived_bytes == HEADER_BYTES {
            let header = Header::parse(self.header)?;
            self.parsed = Some((header, vec![0; header.size_bytes as usize], 0));
        }
        Ok(())
    }

    /// Whether front-ends of this socket have handed over more of no use than is borne.
    pub(super) fn is_overfull(&self) -> bool {
        self.quarantine.is_full()
    }

    /// The message that has arrived.
    pub(super) fn take(&mut self) -> Option<Arrived> {
        let (header, body, _) = self.parsed.take()?;
        self.arrived_bytes = 0;
        Some(Arrived {
            header,
            body,
            descriptors: std::mem::take(&mut self.descriptors),
        })
    }
}

struct Got {
    bytes: usize,
    fds: Vec<OwnedFd>,
    /// There were more descriptors than we could take.
    lacking: bool,
}

fn receive_some(socket: &UnixStream, into: &mut [u8]) -> Result<Got, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_AT_ONCE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let seen = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut ancillary, flags)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(Got {
        bytes: seen.bytes,
        fds,
        lacking: seen.flags.contains(ReturnFlags::CTRUNC),
    })
}
