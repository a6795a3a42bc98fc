// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A message client without manners: any header, any body, any file descriptors, any fragment.
//!
//! [`RawClient`] never reads unless told to and never checks what it sends.

mod wire;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

pub use wire::{Ending, HEADER_BYTES, Header, Message};

use super::error::{FrontendError, Result};
use super::ids::request;

/// The most file descriptors the kernel attaches to one message (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// No message of the protocol is longer; a peer announcing more would make us allocate.
const MAX_BODY_BYTES: u32 = 1 << 20;

/// A peer that does not read must not hang the test for ever.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a back-end that sends exactly what it is told to.
#[derive(Debug)]
pub struct RawClient {
    stream: UnixStream,
}

impl RawClient {
    /// Connects once; it does not wait for a back-end that starts.
    ///
    /// # Errors
    ///
    /// When nobody listens at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(FrontendError::io("connect"))?;
        Self::from_stream(stream)
    }

    /// Uses a connected stream.
    ///
    /// # Errors
    ///
    /// When the stream is no socket any more.
    pub fn from_stream(stream: UnixStream) -> Result<Self> {
        stream
            .set_write_timeout(Some(SEND_TIMEOUT))
            .map_err(FrontendError::io("SO_SNDTIMEO"))?;
        Ok(Self { stream })
    }

    /// The stream itself.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends header, body and descriptors in one `sendmsg`; nothing is checked or completed.
    ///
    /// # Errors
    ///
    /// When the socket does not take it all.
    pub fn send(&self, header: Header, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(body);
        self.send_bytes(&bytes, fds)
    }

    /// Sends a sound message: version 1, size of the body, no descriptors.
    ///
    /// # Errors
    ///
    /// As [`RawClient::send`].
    pub fn request(&self, request: u32, body: &[u8]) -> Result<()> {
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        self.send(Header::new(request, size), body, &[])
    }

    /// Sends any bytes: half a header, two messages at once.
    ///
    /// # Errors
    ///
    /// When the peer has closed or does not read for 10 seconds.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(FrontendError::Unusable {
                what: "number of file descriptors",
                value: fds.len() as u64,
            });
        }
        let mut sent = 0;
        // Also an empty slice goes out once: descriptors need at least the attempt.
        while sent < bytes.len() || sent == 0 {
            let slice = [IoSlice::new(&bytes[sent..])];
            match rustix::net::sendmsg(&self.stream, &slice, &mut control, SendFlags::NOSIGNAL) {
                Ok(0) => break,
                Ok(more) => sent += more,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(FrontendError::io("sendmsg")(errno)),
            }
            // The descriptors went with the first byte.
            control.clear();
        }
        Ok(())
    }

    /// Receives one whole message.
    ///
    /// # Errors
    ///
    /// When it does not come in time, the peer closes, or announces more than a mebibyte.
    pub fn recv(&self, timeout: Duration) -> Result<Message> {
        let deadline = Instant::now() + timeout;
        let mut fds = Vec::new();
        let mut bytes = [0; HEADER_BYTES];
        self.recv_exact(&mut bytes, &mut fds, (deadline, timeout))?;
        let header = Header::from_bytes(&bytes);
        if header.size > MAX_BODY_BYTES {
            return Err(FrontendError::Oversized { bytes: header.size });
        }
        let mut body = vec![0; header.size as usize];
        self.recv_exact(&mut body, &mut fds, (deadline, timeout))?;
        Ok(Message { header, body, fds })
    }

    /// Sends a request that is always answered and receives the answer.
    ///
    /// # Errors
    ///
    /// As [`RawClient::send`] and [`RawClient::recv`].
    pub fn call(&self, request: u32, body: &[u8], timeout: Duration) -> Result<Message> {
        self.request(request, body)?;
        self.recv(timeout)
    }

    /// Whether the back-end still answers `GET_FEATURES` on this connection.
    #[must_use]
    pub fn is_alive(&self, timeout: Duration) -> bool {
        self.call(request::GET_FEATURES, &[], timeout)
            .is_ok_and(|answer| answer.header.request == request::GET_FEATURES)
    }

    /// Waits until the peer closes the connection; what it sends before is returned.
    ///
    /// # Errors
    ///
    /// [`FrontendError::Timeout`] when the connection is still open then.
    pub fn expect_closed(&self, timeout: Duration) -> Result<Ending> {
        let deadline = Instant::now() + timeout;
        let mut bytes = Vec::new();
        loop {
            wait_readable(self.stream.as_fd(), "close", (deadline, timeout))?;
            let mut chunk = [0; 4096];
            match self.recv_some(&mut chunk, &mut Vec::new()) {
                Ok(0) => {
                    return Ok(Ending {
                        bytes,
                        reset: false,
                    });
                }
                Ok(more) => bytes.extend_from_slice(&chunk[..more]),
                Err(Errno::CONNRESET) => return Ok(Ending { bytes, reset: true }),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(FrontendError::io("recvmsg")(errno)),
            }
        }
    }

    /// Closes the sending side only: the peer sees the end, answers still arrive.
    ///
    /// # Errors
    ///
    /// When the socket is not connected any more.
    pub fn shutdown_write(&self) -> Result<()> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(FrontendError::io("shutdown"))
    }

    fn recv_exact(
        &self,
        into: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        limit: (Instant, Duration),
    ) -> Result<()> {
        let mut received = 0;
        while received < into.len() {
            wait_readable(self.stream.as_fd(), "message", limit)?;
            match self.recv_some(&mut into[received..], fds) {
                Ok(0) | Err(Errno::CONNRESET) => return Err(FrontendError::Closed { received }),
                Ok(more) => received += more,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(FrontendError::io("recvmsg")(errno)),
            }
        }
        Ok(())
    }

    fn recv_some(&self, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut slice = [IoSliceMut::new(into)];
        let got = rustix::net::recvmsg(&self.stream, &mut slice, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok(got.bytes)
    }
}

/// Waits until `fd` is readable or the `(deadline, timeout)` pair has passed.
pub(crate) fn wait_readable(
    fd: BorrowedFd<'_>,
    event: &'static str,
    (deadline, timeout): (Instant, Duration),
) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(0) => return Err(FrontendError::Timeout { event, timeout }),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(FrontendError::io("poll")(errno)),
        }
    }
}
