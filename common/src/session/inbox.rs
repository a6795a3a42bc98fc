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
use vhost::vhost_user::message::FrontendReq;

use super::SessionError;
use super::received::{Quarantine, Received};
use crate::error::{FrontEndError, HostError, MessageName};

/// Bytes of a message header: request, flags, size.
pub(super) const HEADER_BYTES: usize = 12;
/// Largest body the protocol's messages have.
const MAX_BODY_BYTES: u32 = 4096;
/// The most descriptors that the kernel hands over at once (`SCM_MAX_FD`). With room for them all,
/// one that is missing is for a lack of ours.
const MAX_AT_ONCE: usize = 253;
/// The most descriptors that a message has: those of a full `SET_MEM_TABLE`.
const MAX_DESCRIPTORS: usize = 32;

/// Version 1 in bits 0-1, the reply bit 2 clear, `NEED_REPLY` in bit 3, nothing above.
const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    size_bytes: u32,
}

impl Header {
    fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrontEndError> {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        let header = Self {
            request: u32::from_le_bytes([r0, r1, r2, r3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            size_bytes: u32::from_le_bytes([s0, s1, s2, s3]),
        };
        let flags_ok = header.flags & !FLAG_NEED_REPLY == VERSION;
        if flags_ok && header.size_bytes <= MAX_BODY_BYTES {
            return Ok(header);
        }
        Err(FrontEndError::Header {
            message: header.name(),
            flags: header.flags,
            size_bytes: header.size_bytes,
        })
    }

    /// That of the answer with a body of `size_bytes`.
    pub(super) fn of_reply(self, size_bytes: usize) -> [u8; HEADER_BYTES] {
        let size_bytes = u32::try_from(size_bytes).unwrap_or(u32::MAX);
        let fields = [self.request, VERSION | FLAG_REPLY, size_bytes];
        let mut bytes = [0; HEADER_BYTES];
        for (to, from) in bytes
            .iter_mut()
            .zip(fields.iter().flat_map(|f| f.to_le_bytes()))
        {
            *to = from;
        }
        bytes
    }

    pub(super) fn needs_reply(self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    pub(super) fn name(self) -> MessageName {
        MessageName(self.request)
    }

    /// None for a number that no message has.
    pub(super) fn kind(self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.request).ok()
    }
}

/// One whole message.
#[derive(Debug)]
pub(super) struct Message {
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
                return Err(SessionError::Host(HostError {
                    what: "receiving the descriptors of a message",
                    source: Errno::MFILE.into(),
                }));
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
            let body_bytes = usize::try_from(header.size_bytes).unwrap_or(0);
            self.parsed = Some((header, vec![0; body_bytes], 0));
        }
        Ok(())
    }

    /// Whether front-ends of this socket have handed over more of no use than is borne.
    pub(super) fn is_overfull(&self) -> bool {
        self.quarantine.is_full()
    }

    /// The message that has arrived.
    pub(super) fn take(&mut self) -> Option<Message> {
        let (header, body, _) = self.parsed.take()?;
        self.arrived_bytes = 0;
        Some(Message {
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
