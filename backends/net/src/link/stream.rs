// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's stream protocol (`-netdev stream`), which passt speaks: each frame behind its length, in
//! 4 bytes, big-endian, on a Unix stream socket that the peer listens on.
//!
//! * What the kernel takes of a frame may end anywhere. The rest is kept and goes first; until it
//!   has gone, no other frame is taken.
//! * One read brings many frames; they are handed out one by one.
//! * The connection is made, and made again when it breaks, by the owner calling
//!   [`StreamQueue::retry`] when it is time. Connecting to a Unix socket does not wait.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ringside_common::limited;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

use super::error::{LinkError, RETRY_NS, address_of};
use super::frame::{Payload, Received, Room, SendLoss, Sent};
use super::transfer::{Transfer, is_frame, not_sent};
use crate::header::{MAX_FRAME_BYTES, NetHeader};

/// Bytes of the length in front of each frame.
const LENGTH_BYTES: usize = 4;
/// Bytes read at once: four of the longest frames, or what a socket usually holds.
const BUFFER_BYTES: usize = 256 << 10;

/// What the bytes at the front of a stream are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Front {
    /// A frame, behind its length.
    Frame(usize),
    /// A part of one.
    Partial,
    /// No length that a frame may have: what follows cannot be understood.
    Garbage(u32),
}

/// Says what comes first in `stream`.
#[must_use]
#[inline]
pub fn front(stream: &[u8]) -> Front {
    let Some((length, rest)) = stream.split_first_chunk::<LENGTH_BYTES>() else {
        return Front::Partial;
    };
    let length = u32::from_be_bytes(*length);
    match usize::try_from(length) {
        Ok(bytes @ 1..=MAX_FRAME_BYTES) if bytes <= rest.len() => Front::Frame(bytes),
        Ok(1..=MAX_FRAME_BYTES) => Front::Partial,
        _ => Front::Garbage(length),
    }
}

/// A stream, connected or not.
#[derive(Debug)]
pub struct StreamQueue {
    path: PathBuf,
    address: SocketAddrUnix,
    socket: Option<OwnedFd>,
    generation: u64,
    /// While not connected.
    retry_at_ns: u64,
    transfer: Transfer,
    /// The frame that is partly sent, and where the rest of it is.
    unsent: Vec<u8>,
    unsent_start: usize,
    unsent_end: usize,
    /// What was read, and where that is of which nothing was handed out.
    read: Vec<u8>,
    read_start: usize,
    read_end: usize,
}

impl StreamQueue {
    /// A stream to the socket at `path`, not connected yet.
    ///
    /// # Errors
    /// [`LinkError::System`]: the path is too long for a socket.
    pub fn new(path: &Path) -> Result<Self, LinkError> {
        Ok(Self {
            path: path.to_owned(),
            address: address_of(path)?,
            socket: None,
            generation: 0,
            retry_at_ns: 0,
            transfer: Transfer::new(),
            unsent: vec![0; LENGTH_BYTES + MAX_FRAME_BYTES],
            unsent_start: 0,
            unsent_end: 0,
            read: vec![0; BUFFER_BYTES],
            read_start: 0,
            read_end: 0,
        })
    }

    /// The connection, if there is one.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(OwnedFd::as_fd)
    }

    /// How many connections there have been.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When to try to connect; none while connected.
    #[must_use]
    #[inline]
    pub fn retry_at_ns(&self) -> Option<u64> {
        self.socket.is_none().then_some(self.retry_at_ns)
    }

    /// Tries to connect, if it is time; returns whether there is a connection.
    pub fn retry(&mut self, now_ns: u64) -> bool {
        if self.socket.is_some() {
            return true;
        }
        if now_ns < self.retry_at_ns {
            return false;
        }
        // Also for a connection that breaks at once.
        self.retry_at_ns = now_ns.saturating_add(RETRY_NS);
        match self.connect() {
            Ok(socket) => {
                limited!(info, "{}: connected", self.path.display());
                self.socket = Some(socket);
                self.generation = self.generation.wrapping_add(1);
                true
            }
            Err(errno) => {
                limited!(
                    debug,
                    "{}: cannot connect yet: {errno}",
                    self.path.display()
                );
                false
            }
        }
    }

    /// Whether a part of a frame is still here.
    #[must_use]
    #[inline]
    pub fn has_unsent(&self) -> bool {
        self.unsent_start < self.unsent_end
    }

    /// Sends what is left of a frame; [`Sent::Blocked`] if not all could be.
    #[inline]
    pub fn flush(&mut self) -> Sent {
        while self.has_unsent() {
            let Some(socket) = &self.socket else {
                return Sent::Dropped(SendLoss::Down);
            };
            let rest = self.unsent.get(self.unsent_start..self.unsent_end);
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(socket, rest.unwrap_or_default(), flags) {
                Ok(bytes) => self.unsent_start += bytes,
                Err(errno) => return self.send_failed(errno),
            }
        }
        Sent::Done
    }

    /// Sends a frame, by one `sendmsg(2)` if nothing is left of the last one. It may be
    /// [`Sent::Done`] with a part of it still here: see [`has_unsent`](Self::has_unsent).
    #[inline]
    pub fn send(&mut self, payload: Payload<'_>) -> Sent {
        if !is_frame(payload) {
            return Sent::Dropped(SendLoss::Invalid);
        }
        let flushed = self.flush();
        if flushed != Sent::Done {
            return flushed;
        }
        let Some(socket) = &self.socket else {
            return Sent::Dropped(SendLoss::Down);
        };
        let socket = socket.as_fd();
        let Ok(length) = u32::try_from(payload.bytes()) else {
            return Sent::Dropped(SendLoss::Invalid);
        };
        let length = length.to_be_bytes();
        let result = self
            .transfer
            .send(&length, payload, |gather| gather.send_to(socket));
        match result {
            Ok(bytes) => {
                if bytes < LENGTH_BYTES + payload.bytes() {
                    self.keep(length, payload, bytes);
                }
                Sent::Done
            }
            Err(error) => self.send_failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    /// Receives a frame, with a read only if there is none here.
    #[inline]
    pub fn receive(&mut self, room: Room<'_>) -> Received {
        // Ends: each read brings a byte of a frame that fits, or nothing.
        loop {
            let stream = self.read.get(self.read_start..self.read_end);
            match front(stream.unwrap_or_default()) {
                Front::Frame(bytes) => {
                    let start = self.read_start + LENGTH_BYTES;
                    self.read_start = start + bytes;
                    let frame = self.read.get(start..self.read_start);
                    self.transfer.deliver(room, frame.unwrap_or_default());
                    return Received::Frame {
                        header: NetHeader::default(),
                        bytes,
                    };
                }
                Front::Partial => {}
                Front::Garbage(length) => {
                    let path = self.path.display();
                    limited!(
                        warn,
                        "{path}: a frame of {length} bytes is announced; closed"
                    );
                    self.disconnect();
                    return Received::Down;
                }
            }
            if let Some(outcome) = self.fill() {
                return outcome;
            }
        }
    }

    /// Reads more; something else if there is no more.
    fn fill(&mut self) -> Option<Received> {
        let Some(socket) = &self.socket else {
            return Some(Received::Down);
        };
        if self.read_start > 0 {
            // What moves is less than a frame, and most often nothing.
            self.read.copy_within(self.read_start..self.read_end, 0);
            self.read_end -= self.read_start;
            self.read_start = 0;
        }
        let space = self.read.get_mut(self.read_end..).unwrap_or_default();
        match recv(socket, space, RecvFlags::DONTWAIT) {
            Ok((0, _)) => limited!(info, "{}: the peer has closed", self.path.display()),
            Ok((bytes, _)) => {
                self.read_end += bytes;
                return None;
            }
            Err(Errno::AGAIN) => return Some(Received::Empty),
            Err(errno) => limited!(
                info,
                "{}: the connection broke: {errno}",
                self.path.display()
            ),
        }
        self.disconnect();
        Some(Received::Down)
    }

    /// Keeps what the kernel has not taken of a frame.
    #[cold]
    fn keep(&mut self, length: [u8; LENGTH_BYTES], payload: Payload<'_>, taken_bytes: usize) {
        let Some((front, rest)) = self.unsent.split_first_chunk_mut::<LENGTH_BYTES>() else {
            return;
        };
        *front = length;
        self.unsent_end = LENGTH_BYTES + payload.copy_to(0, rest);
        self.unsent_start = taken_bytes;
    }

    #[cold]
    fn send_failed(&mut self, errno: Errno) -> Sent {
        let sent = not_sent(&errno.into());
        if sent == Sent::Dropped(SendLoss::Down) {
            limited!(
                info,
                "{}: the connection broke: {errno}",
                self.path.display()
            );
            self.disconnect();
        }
        sent
    }

    /// Forgets the connection, and what belonged to it.
    fn disconnect(&mut self) {
        self.socket = None;
        self.unsent_start = 0;
        self.unsent_end = 0;
        self.read_start = 0;
        self.read_end = 0;
    }

    fn connect(&self) -> Result<OwnedFd, Errno> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        connect(&socket, &self.address)?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests;
