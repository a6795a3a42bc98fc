// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The back-channel: messages the back-end sends on its own (`SET_BACKEND_REQ_FD`).

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::error::{FrontendError, Result};
use super::ids::{backend_request, header_flag};
use super::raw::{Header, Message, RawClient};

/// Our end of the back-channel.
#[derive(Debug)]
pub struct BackChannel {
    client: RawClient,
}

impl BackChannel {
    /// A connected pair: our end, and the end to hand to the back-end.
    ///
    /// # Errors
    ///
    /// When the kernel has no more sockets for us.
    pub fn pair() -> Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair().map_err(FrontendError::io("socketpair"))?;
        let client = RawClient::from_stream(ours)?;
        Ok((Self { client }, theirs))
    }

    /// Receives the next message, and answers it with success if the back-end asks for an answer.
    ///
    /// # Errors
    ///
    /// When none comes in time or the back-end closes its end.
    pub fn recv(&self, timeout: Duration) -> Result<Message> {
        let message = self.client.recv(timeout)?;
        if message.header.flags & header_flag::NEED_REPLY != 0 {
            let mut reply = Header::new(message.header.request, 8);
            reply.flags |= header_flag::REPLY;
            self.client.send(reply, &0_u64.to_ne_bytes(), &[])?;
        }
        Ok(message)
    }

    /// Waits for `CONFIG_CHANGE_MSG`; other messages are answered and passed over.
    ///
    /// # Errors
    ///
    /// As [`BackChannel::recv`].
    pub fn wait_config_change(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.recv(left)?.header.request == backend_request::CONFIG_CHANGE_MSG {
                return Ok(());
            }
        }
    }

    /// The connection itself, for tests that misbehave on it.
    #[must_use]
    pub fn raw(&self) -> &RawClient {
        &self.client
    }
}
