// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The messages of network devices, and others the vhost crate's front-end does not send.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::flow::Mac;
use crate::error::{FrontendError, Result};
use crate::ids::request;
use crate::raw::{Header, RawClient};

/// A second hand on the connection of a session: to be used while the session itself is silent.
#[derive(Debug)]
pub struct NetMessages {
    client: RawClient,
    timeout: Duration,
}

impl NetMessages {
    /// Uses another descriptor of the session's socket.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn beside(stream: &UnixStream, timeout: Duration) -> Result<Self> {
        let stream = stream.try_clone().map_err(FrontendError::io("dup"))?;
        let client = RawClient::from_stream(stream)?;
        Ok(Self { client, timeout })
    }

    /// `NET_SET_MTU`: whether the back-end can do that MTU.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn set_mtu(&self, mtu: u64) -> Result<bool> {
        self.asked(request::NET_SET_MTU, &mtu.to_ne_bytes())
    }

    /// `SEND_RARP`: whether the back-end announces that address.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn send_rarp(&self, mac: Mac) -> Result<bool> {
        let mut body = [0; 8];
        body[..6].copy_from_slice(&mac);
        self.asked(request::SEND_RARP, &body)
    }

    /// `SET_VRING_ENABLE`: whether it was taken.
    ///
    /// # Errors
    ///
    /// When the back-end does not answer.
    pub fn enable(&self, vring: u32, enable: u32) -> Result<bool> {
        let body = [vring.to_ne_bytes(), enable.to_ne_bytes()].concat();
        self.asked(request::SET_VRING_ENABLE, &body)
    }

    /// `SET_STATUS`: whether it was taken.
    ///
    /// # Errors
    ///
    /// When the back-end does not answer.
    pub fn set_status(&self, status: u64) -> Result<bool> {
        self.asked(request::SET_STATUS, &status.to_ne_bytes())
    }

    /// `GET_STATUS`.
    ///
    /// # Errors
    ///
    /// When the back-end does not answer with a number.
    pub fn status(&self) -> Result<u64> {
        let answer = self.client.call(request::GET_STATUS, &[], self.timeout)?;
        answer.u64_at(0).ok_or(FrontendError::Refused {
            message: "GET_STATUS",
        })
    }

    /// Sends a message that asks for an answer, and whether that is a success.
    ///
    /// # Errors
    ///
    /// When none comes: `REPLY_ACK` must have been agreed on.
    pub fn asked(&self, request: u32, body: &[u8]) -> Result<bool> {
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let header = Header::new(request, size).need_reply();
        self.client.send(header, body, &[])?;
        Ok(self.client.recv(self.timeout)?.u64_at(0) == Some(0))
    }

    /// The connection, for messages without manners.
    #[must_use]
    pub fn raw(&self) -> &RawClient {
        &self.client
    }
}
