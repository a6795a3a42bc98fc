// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Feeding the `vhost` crate from a socket without ever blocking on it.
//!
//! `BackendReqHandler::handle_request` reads a message with blocking calls and answers likewise.
//! So it is called only when a whole message has arrived and a whole answer fits the socket: a
//! front-end that sends half a header, or never reads, keeps its connection and nothing else.
//!
//! # The peek step
//! Before that, the header is looked at with `MSG_PEEK`. It is checked here for all messages; some
//! are consumed here because the crate refuses what real front-ends send (QEMU's network device
//! sends `SET_VRING_ENABLE` before the features it depends on) or does not know the message
//! (`SEND_RARP`, `NET_SET_MTU`, `SET_STATUS`, `GET_STATUS`); the descriptor of `SET_BACKEND_REQ_FD` is
//! duplicated, since the crate keeps it to itself; and descriptors where there may be none, or too
//! many, are refused: more than the crate has room for would make it wait for the header for ever.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::IoSliceMut;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recv, recvmsg,
};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::{Session, SessionError};
use crate::device::Device;
use crate::error::{FrontEndError, HostError};
use crate::logging::LogLimiter;
use crate::worker::Pool;

/// Bytes of a message header: request, flags, size.
const HEADER_BYTES: usize = 12;
/// Largest body the protocol's messages have; the crate's bound too.
const MAX_BODY_BYTES: u32 = 4096;
/// Version 1 in bits 0-1, the reply bit 2 clear, `NEED_REPLY` in bit 3, nothing above.
const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// Vring descriptors: the index in bits 0-7, "no descriptor" in bit 8 (vhost-user.rst).
const VRING_FD_BITS: u64 = 0x1ff;

/// The most descriptors a message has: those of a full `SET_MEM_TABLE`; the crate's bound too.
const MAX_DESCRIPTORS: usize = 32;
/// The messages that descriptors may come with.
const WITH_DESCRIPTORS: [FrontendReq; 12] = [
    FrontendReq::SET_MEM_TABLE,
    FrontendReq::SET_LOG_BASE,
    FrontendReq::SET_LOG_FD,
    FrontendReq::SET_VRING_KICK,
    FrontendReq::SET_VRING_CALL,
    FrontendReq::SET_VRING_ERR,
    FrontendReq::SET_BACKEND_REQ_FD,
    FrontendReq::SET_INFLIGHT_FD,
    FrontendReq::GPU_SET_SOCKET,
    FrontendReq::ADD_MEM_REG,
    FrontendReq::REM_MEM_REG,
    FrontendReq::SET_DEVICE_STATE_FD,
];

static REFUSED: LogLimiter = LogLimiter::new();
static REFUSED_CONFIG: LogLimiter = LogLimiter::new();

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

/// Messages that are answered before the control thread looks at signals and other requests.
const MAX_MESSAGES: usize = 64;

/// One connection and its session.
pub(crate) struct Connection<D: Device> {
    socket: UnixStream,
    session: Arc<Mutex<Session<D>>>,
    handler: BackendReqHandler<Mutex<Session<D>>>,
    device: Arc<D>,
}

impl<D: Device + std::fmt::Debug> std::fmt::Debug for Connection<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
struct Header {
    request: u32,
    flags: u32,
    size_bytes: u32,
}

impl Header {
    fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        Self {
            request: u32::from_le_bytes([r0, r1, r2, r3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            size_bytes: u32::from_le_bytes([s0, s1, s2, s3]),
        }
    }

    fn check(self) -> Result<(), FrontEndError> {
        let flags_ok = self.flags & !FLAG_NEED_REPLY == VERSION;
        if flags_ok && self.size_bytes <= MAX_BODY_BYTES {
            return Ok(());
        }
        let Self {
            request,
            flags,
            size_bytes,
        } = self;
        Err(FrontEndError::Header {
            request,
            flags,
            size_bytes,
        })
    }

    fn is(self, request: FrontendReq) -> bool {
        self.request == request as u32
    }
}

impl<D: Device> Connection<D> {
    pub(crate) fn new(
        socket: UnixStream,
        device: Arc<D>,
        pool: Arc<Pool<D>>,
    ) -> Result<Self, HostError> {
        let session = Session::new(Arc::clone(&device), pool)?;
        let session = Arc::new(Mutex::new(session));
        let ours = socket
            .try_clone()
            .map_err(HostError::of("duplicating the connection"))?;
        let handler = BackendReqHandler::from_stream(ours, Arc::clone(&session));
        Ok(Self {
            socket,
            session,
            handler,
            device,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn session(&self) -> MutexGuard<'_, Session<D>> {
        // A panic ends the process, so the lock is never poisoned.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the messages that have arrived in full, up to a bound.
    ///
    /// # Errors
    /// What the connection is to be closed for.
    pub(crate) fn proceed(&mut self) -> Result<Progress, Error> {
        for _ in 0..MAX_MESSAGES {
            let Some((header, has_descriptors)) = self.peek_header()? else {
                return Ok(if self.is_hung_up()? {
                    Progress::Closed
                } else {
                    Progress::Waiting
                });
            };
            header.check()?;
            let body_bytes = usize::try_from(header.size_bytes).unwrap_or(usize::MAX);
            if self.arrived_bytes()? < HEADER_BYTES + body_bytes {
                return Ok(if self.is_hung_up()? {
                    Progress::Closed
                } else {
                    Progress::Waiting
                });
            }
            if !self.can_answer()? {
                return Ok(Progress::Blocked);
            }
            let descriptors = if has_descriptors {
                self.peek_descriptors(header)?
            } else {
                Vec::new()
            };
            // With more behind it, they may be those of a later message.
            let alone = self.arrived_bytes()? == HEADER_BYTES + body_bytes;
            if alone && !descriptors.is_empty() && !takes_descriptors(header) {
                let request = header.request;
                return self.refuse(header, FrontEndError::Descriptors { request });
            }
            if !self.consume(header)? {
                self.hand_over(header, descriptors)?;
            }
        }
        Ok(Progress::Busy)
    }

    /// The header at the head of the socket, and whether descriptors came with it or with a
    /// message behind it: looking on, the kernel goes as far as the first descriptors there are.
    fn peek_header(&self) -> Result<Option<(Header, bool)>, Error> {
        let mut bytes = [0; HEADER_BYTES];
        // Without room for descriptors the kernel only says that there are some.
        let peeked = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut RecvAncillaryBuffer::default(),
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        );
        match peeked {
            Ok(seen) if seen.bytes == HEADER_BYTES => {
                let has_descriptors = seen.flags.contains(ReturnFlags::CTRUNC);
                Ok(Some((Header::parse(bytes), has_descriptors)))
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(e) => Err(Error::SocketError(e.into())),
        }
    }

    fn arrived_bytes(&self) -> Result<usize, Error> {
        let bytes = rustix::io::ioctl_fionread(&self.socket);
        let bytes = bytes.map_err(|e| Error::SocketError(e.into()))?;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// A stream socket is writable when a good part of its buffer is free, many times the largest
    /// answer.
    fn can_answer(&self) -> Result<bool, Error> {
        Ok(self
            .poll(PollFlags::OUT)?
            .intersects(PollFlags::OUT | PollFlags::ERR))
    }

    fn is_hung_up(&self) -> Result<bool, Error> {
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        Ok(self.poll(PollFlags::RDHUP)?.intersects(gone))
    }

    fn poll(&self, flags: PollFlags) -> Result<PollFlags, Error> {
        let mut fds = [PollFd::new(&self.socket, flags)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::SocketError(e.into())),
        }
        let [fd] = fds;
        Ok(fd.revents())
    }

    /// Deals with a message the crate cannot carry; returns whether it was one.
    fn consume(&mut self, header: Header) -> Result<bool, Error> {
        let (features, protocol) = {
            let session = self.session();
            (session.features, session.protocol_features)
        };
        let acked = |bit: VhostUserProtocolFeatures| protocol & bit.bits() != 0;
        if header.is(FrontendReq::SET_VRING_ENABLE) && features.is_none() {
            let state = self.take_body(header)?;
            let (index, enable) = (state & 0xffff_ffff, state >> 32);
            if enable > 1 {
                return Err(payload_error(header, state));
            }
            let done = self.session().enable(index, enable == 1);
            return self.acknowledge(header, done);
        }
        if header.is(FrontendReq::SEND_RARP) && acked(VhostUserProtocolFeatures::RARP) {
            let mac = self.take_body(header)?.to_le_bytes();
            let [m0, m1, m2, m3, m4, m5, ..] = mac;
            let done = self.device.send_rarp([m0, m1, m2, m3, m4, m5]);
            return self.acknowledge(header, done.map_err(SessionError::from));
        }
        if header.is(FrontendReq::NET_SET_MTU) && acked(VhostUserProtocolFeatures::MTU) {
            let mtu = self.take_body(header)?;
            let done = self.device.set_mtu(mtu);
            return self.refusable(header, done);
        }
        if header.is(FrontendReq::SET_STATUS) && acked(VhostUserProtocolFeatures::STATUS) {
            let status = self.take_body(header)?;
            let done = self.device.set_status(status);
            return self.acknowledge(header, done.map_err(SessionError::from));
        }
        if header.is(FrontendReq::GET_STATUS) && acked(VhostUserProtocolFeatures::STATUS) {
            self.take(header, &mut [])?;
            let status = self.device.status()?;
            self.reply(header, status)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Gives the message to the crate.
    fn hand_over(&mut self, header: Header, descriptors: Vec<OwnedFd>) -> Result<(), Error> {
        self.check_vring_fd(header)?;
        let back_channel = descriptors
            .into_iter()
            .next()
            .filter(|_| header.is(FrontendReq::SET_BACKEND_REQ_FD));
        if back_channel.as_ref().is_some_and(|fd| self.leads_here(fd)) {
            return self.refuse(header, FrontEndError::OwnConnection);
        }
        match self.handler.handle_request() {
            // What a guest writes to its configuration space is handed on as it is; it must not be
            // able to take its device away. The crate has said no, where that was asked for.
            Err(Error::ReqHandlerError(error)) if header.is(FrontendReq::SET_CONFIG) => {
                if let Some(suppressed) = REFUSED_CONFIG.allow() {
                    log::debug!("SET_CONFIG ignored: {error} ({suppressed} more not shown)");
                }
            }
            done => done?,
        }
        if let Some(fd) = back_channel {
            let bits = self.session().protocol_features;
            let features = VhostUserProtocolFeatures::from_bits_truncate(bits);
            self.device.back_channel().set(fd, features);
        }
        Ok(())
    }

    /// Whether `fd` is the other end of a connection to our socket, by its name. We would hold
    /// this connection open ourselves, and never learn that the front-end has gone.
    fn leads_here(&self, fd: &OwnedFd) -> bool {
        let Ok(other) = fd.try_clone().map(UnixStream::from) else {
            return false;
        };
        let (Ok(to), Ok(here)) = (other.peer_addr(), self.socket.local_addr()) else {
            return false;
        };
        to.as_pathname()
            .is_some_and(|path| Some(path) == here.as_pathname())
    }

    /// Answers that the message failed, where that is asked for, and is the error.
    fn refuse<T>(&self, header: Header, error: FrontEndError) -> Result<T, Error> {
        self.answer_ack(header, true)?;
        Err(error.into())
    }

    /// The crate takes the low byte for the vring index and ignores the rest.
    fn check_vring_fd(&self, header: Header) -> Result<(), Error> {
        let with_fd = [
            FrontendReq::SET_VRING_KICK,
            FrontendReq::SET_VRING_CALL,
            FrontendReq::SET_VRING_ERR,
        ];
        if !with_fd.iter().any(|request| header.is(*request)) {
            return Ok(());
        }
        let mut message = [0; HEADER_BYTES + 8];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let seen = recv(&self.socket, &mut message, flags);
        let (_, seen) = seen.map_err(|e| Error::SocketError(e.into()))?;
        // Too short, or cut by descriptors: the crate finds that.
        let (_, body) = message.split_at(HEADER_BYTES);
        let Some(body) = body.first_chunk().filter(|_| seen == HEADER_BYTES + 8) else {
            return Ok(());
        };
        let value = u64::from_le_bytes(*body);
        if value & !VRING_FD_BITS != 0 {
            let request = header.request;
            return self.refuse(header, FrontEndError::Payload { request, value });
        }
        Ok(())
    }

    /// Duplicates of the first descriptors on the socket, those of this message or of a later one.
    ///
    /// More than any message has close the connection, whichever message they are with.
    fn peek_descriptors(&self, header: Header) -> Result<Vec<OwnedFd>, Error> {
        let request = header.request;
        let mut space =
            [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let seen = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            flags,
        )
        .map_err(|e| Error::SocketError(e.into()))?;
        let mut found = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                found.extend(fds);
            }
        }
        // Alignment may leave room for one more.
        if found.len() > MAX_DESCRIPTORS || seen.flags.contains(ReturnFlags::CTRUNC) {
            return self.refuse(header, FrontEndError::Descriptors { request });
        }
        Ok(found)
    }

    /// Takes a message with a body of one number off the socket.
    fn take_body(&self, header: Header) -> Result<u64, Error> {
        let mut body = [0; 8];
        self.take(header, &mut body)?;
        Ok(u64::from_le_bytes(body))
    }

    /// Takes a message off the socket; descriptors that came with it are closed by the kernel.
    fn take(&self, header: Header, body: &mut [u8]) -> Result<(), Error> {
        if u32::try_from(body.len()).ok() != Some(header.size_bytes) {
            return Err(payload_error(header, u64::from(header.size_bytes)));
        }
        let mut message = [0; HEADER_BYTES + 8];
        let mut done = 0;
        let all = HEADER_BYTES + body.len();
        while done < all {
            let part = message.get_mut(done..all).unwrap_or_default();
            match recv(&self.socket, part, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(Error::Disconnected),
                Ok((n, _)) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::SocketError(e.into())),
            }
        }
        let (_, got) = message.split_at(HEADER_BYTES);
        for (to, from) in body.iter_mut().zip(got) {
            *to = *from;
        }
        Ok(())
    }

    /// Answers a consumed message as `REPLY_ACK` asks for, then passes an error on.
    fn acknowledge(&self, header: Header, done: Result<(), SessionError>) -> Result<bool, Error> {
        self.answer_ack(header, done.is_err())?;
        done?;
        Ok(true)
    }

    /// As [`acknowledge`](Self::acknowledge), for a message whose refusal the front-end expects:
    /// with `REPLY_ACK` it learns of it and goes on.
    fn refusable(&self, header: Header, done: Result<(), FrontEndError>) -> Result<bool, Error> {
        let told = self.answer_ack(header, done.is_err())?;
        match done {
            Err(error) if !told => Err(error.into()),
            Err(error) => {
                if let Some(suppressed) = REFUSED.allow() {
                    let request = header.request;
                    log::info!("message {request} refused: {error} ({suppressed} more not shown)");
                }
                Ok(true)
            }
            Ok(()) => Ok(true),
        }
    }

    fn answer_ack(&self, header: Header, failed: bool) -> Result<bool, Error> {
        let protocol = self.session().protocol_features;
        let asked = header.flags & FLAG_NEED_REPLY != 0;
        if !asked || protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() == 0 {
            return Ok(false);
        }
        self.reply(header, u64::from(failed))?;
        Ok(true)
    }

    fn reply(&self, header: Header, value: u64) -> Result<(), Error> {
        let mut message = [0; HEADER_BYTES + 8];
        let parts = [header.request, VERSION | FLAG_REPLY, 8]
            .map(u32::to_le_bytes)
            .concat();
        for (to, from) in message
            .iter_mut()
            .zip(parts.iter().chain(&value.to_le_bytes()))
        {
            *to = *from;
        }
        // `can_answer` has found the room; a short send means the peer has gone.
        match rustix::net::send(
            &self.socket,
            &message,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(sent) if sent == message.len() => Ok(()),
            Ok(_) => Err(Error::PartialMessage),
            Err(e) => Err(Error::SocketError(io::Error::from(e))),
        }
    }
}

fn takes_descriptors(header: Header) -> bool {
    WITH_DESCRIPTORS.iter().any(|request| header.is(*request))
}

fn payload_error(header: Header, value: u64) -> Error {
    FrontEndError::Payload {
        request: header.request,
        value,
    }
    .into()
}
