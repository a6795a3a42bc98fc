// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection: messages are taken from its [`Inbox`], told to the [`Session`] and answered.
//!
//! Nothing here blocks on the socket: a message is dealt with when it has arrived whole and its answer
//! fits. A front-end that never reads keeps its connection and nothing else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::inbox::{Arrival, Arrived, Inbox};
use super::message::{Header, Rules};
use super::messages::Answer;
use super::received::Quarantine;
use super::{Session, SessionError};
use crate::device::Device;
use crate::error::FrontEndError;
use crate::limited;
use crate::logging::LogLimiter;
use crate::worker::Pool;

static REFUSED: LogLimiter = LogLimiter::new();

/// Messages dealt with before the control thread looks at its other duties.
const MESSAGES_AT_A_TIME: usize = 64;

/// How a connection goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Progress {
    /// All messages that were complete have been answered.
    Waiting,
    /// The next message is here, but the front-end has not read our answers.
    Blocked,
    /// There may be more messages.
    Busy,
    /// The front-end has gone.
    Closed,
}

/// One connection and its session.
#[derive(Debug)]
pub(crate) struct Connection<D: Device> {
    socket: UnixStream,
    inbox: Inbox,
    session: Session<D>,
}

impl<D: Device> Connection<D> {
    pub(crate) fn new(
        socket: UnixStream,
        device: Arc<D>,
        pool: Arc<Pool<D>>,
        quarantine: Arc<Quarantine>,
    ) -> Self {
        Self {
            socket,
            inbox: Inbox::new(quarantine),
            session: Session::new(device, pool),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn session(&mut self) -> &mut Session<D> {
        &mut self.session
    }

    /// Answers the messages that have arrived in full, up to a number.
    ///
    /// # Errors
    /// Why the connection must be closed.
    pub(crate) fn proceed(&mut self) -> Result<Progress, SessionError> {
        for _ in 0..MESSAGES_AT_A_TIME {
            match self.inbox.receive(&self.socket)? {
                Arrival::Message => {}
                Arrival::Nothing => return Ok(Progress::Waiting),
                Arrival::End => return Ok(Progress::Closed),
            }
            if !self.can_answer()? {
                return Ok(Progress::Blocked);
            }
            if let Some(message) = self.inbox.take() {
                self.deal_with(message)?;
                if self.inbox.is_overfull() {
                    return Err(FrontEndError::TooManyKept.into());
                }
            }
        }
        Ok(Progress::Busy)
    }

    /// A stream socket is writable when a good part of its buffer is free, many times the largest
    /// answer.
    fn can_answer(&self) -> Result<bool, SessionError> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(SessionError::Socket(e.into())),
        }
        let [fd] = fds;
        Ok(fd.revents().intersects(PollFlags::OUT | PollFlags::ERR))
    }

    fn deal_with(&mut self, message: Arrived) -> Result<(), SessionError> {
        let header = message.header;
        match self.session.answer(message, &self.socket) {
            Ok(Answer::Done) => self.acknowledge(header, false).map(|_told| ()),
            Ok(Answer::Ignored(error)) => {
                self.acknowledge(header, true)?;
                limited!(REFUSED, debug, "{} refused: {error}", header.name());
                Ok(())
            }
            // With REPLY_ACK the front-end learns of it and goes on.
            Ok(Answer::Refused(error)) => {
                if !self.acknowledge(header, true)? {
                    return Err(error);
                }
                limited!(REFUSED, info, "{} refused: {error}", header.name());
                Ok(())
            }
            Ok(Answer::Number(value)) => self.reply(header, &value.to_le_bytes()),
            Ok(Answer::Bytes(bytes)) => self.reply(header, &bytes),
            Err(error) => {
                // A message without a meaning has no answer either.
                let rules = header.request().map(Rules::of);
                if rules.is_some_and(|rules| !rules.has_answer) {
                    self.acknowledge(header, true)?;
                }
                Err(error)
            }
        }
    }

    /// Answers as `REPLY_ACK` asks for, if it does; returns whether it does.
    fn acknowledge(&self, header: Header, failed: bool) -> Result<bool, SessionError> {
        let asked = header.needs_reply();
        if !asked || !self.session.has(VhostUserProtocolFeatures::REPLY_ACK) {
            return Ok(false);
        }
        self.reply(header, &u64::from(failed).to_le_bytes())?;
        Ok(true)
    }

    fn reply(&self, header: Header, body: &[u8]) -> Result<(), SessionError> {
        let message = header.reply(body);
        // `can_answer` has found the room; a short send means the peer has gone.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.socket, &message, flags) {
            Ok(sent) if sent == message.len() => Ok(()),
            Ok(_) => Err(SessionError::Socket(io::ErrorKind::WriteZero.into())),
            Err(e) => Err(SessionError::Socket(e.into())),
        }
    }
}
