// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One frame per Unix datagram: QEMU's `-netdev dgram` with paths, and gvproxy's `--listen-vfkit`.
//!
//! There is no greeting. gvproxy releases that wait for one ("VFKT") are not served; later ones
//! take the first frame for it.
//!
//! The socket is connected to the peer's, so that it is writable when the peer has room. That ties
//! it to the peer's socket, not to its path: a peer that has been started anew is refused by the
//! kernel until the next frame that we send finds the old one gone. Then [`DgramQueue::retry`]
//! connects again. Meanwhile a socket with a path takes frames from anyone who may write to that;
//! one without has no name, so that nobody can send to it: it gets one when it is connected, which
//! anyone of the host could send to before.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ringside_common::limited;
use rustix::fs::{FileType, Stat, lstat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, connect_unspec,
    socket_with,
};

use super::error::{LinkError, RETRY_NS, address_of, system};
use super::frame::{Payload, Received, Room, SendLoss, Sent};
use super::transfer::{Transfer, is_frame, not_received, not_sent};
use crate::header::NetHeader;

/// A datagram socket, connected or not.
#[derive(Debug)]
pub struct DgramQueue {
    path: PathBuf,
    address: SocketAddrUnix,
    socket: OwnedFd,
    connected: bool,
    /// Counts the sockets there have been.
    generation: u64,
    /// While not connected.
    retry_at_ns: u64,
    transfer: Transfer,
    /// Removes the file of our own socket.
    bound: Option<BoundPath>,
}

impl DgramQueue {
    /// A socket bound to `local`, or to a name that the kernel chooses when it is connected; not
    /// yet connected to the one at `path`. A socket file at `local` that nobody has is replaced.
    ///
    /// # Errors
    /// [`LinkError::PathInUse`] and [`LinkError::System`].
    pub fn open(path: &Path, local: Option<&Path>) -> Result<Self, LinkError> {
        let address = address_of(path)?;
        let socket = new_socket().map_err(system("datagram socket", "make one"))?;
        let bound = match local {
            Some(local) => Some(bind_path(&socket, local)?),
            None => None,
        };
        Ok(Self {
            path: path.to_owned(),
            address,
            socket,
            connected: false,
            generation: 0,
            retry_at_ns: 0,
            transfer: Transfer::new(),
            bound,
        })
    }

    /// What to wait on.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Grows when [`descriptor`](Self::descriptor) is another one.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When to try to connect; none while connected.
    #[must_use]
    #[inline]
    pub fn retry_at_ns(&self) -> Option<u64> {
        (!self.connected).then_some(self.retry_at_ns)
    }

    /// Tries to connect, if it is time; returns whether there is a connection.
    pub fn retry(&mut self, now_ns: u64) -> bool {
        if self.connected || now_ns < self.retry_at_ns {
            return self.connected;
        }
        self.retry_at_ns = now_ns.saturating_add(RETRY_NS);
        match self.connect() {
            Ok(()) => {
                limited!(info, "{}: connected", self.path.display());
                self.connected = true;
            }
            Err(errno) => limited!(
                debug,
                "{}: cannot connect yet: {errno}",
                self.path.display()
            ),
        }
        self.connected
    }

    /// Connects, and then has the kernel choose a name where there is no path: nobody but the peer
    /// can send to a socket that is connected.
    fn connect(&self) -> Result<(), Errno> {
        connect(&self.socket, &self.address)?;
        match &self.bound {
            Some(_) => Ok(()),
            None => match bind(&self.socket, &SocketAddrUnix::new_unnamed()) {
                // It was connected before, and has its name.
                Err(Errno::INVAL) => Ok(()),
                result => result,
            },
        }
    }

    /// Disconnects: by a socket without a name, where there is no path to be kept.
    fn disconnect(&mut self) -> Result<(), Errno> {
        if self.bound.is_some() {
            return connect_unspec(&self.socket);
        }
        self.socket = new_socket()?;
        self.generation += 1;
        Ok(())
    }

    /// Sends a frame by `sendmsg(2)`.
    #[inline]
    pub fn send(&mut self, payload: Payload<'_>) -> Sent {
        if !is_frame(payload) {
            return Sent::Dropped(SendLoss::Invalid);
        }
        if !self.connected {
            return Sent::Dropped(SendLoss::Down);
        }
        let socket = self.socket.as_fd();
        match self
            .transfer
            .send(&[], payload, |gather| gather.send_to(socket))
        {
            Ok(_) => Sent::Done,
            Err(error) => self.send_failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    /// Receives a frame by `recvmsg(2)`. A peer may send whether we are connected or not.
    #[inline]
    pub fn receive(&mut self, room: Room<'_>) -> Received {
        let socket = self.socket.as_fd();
        let result = self.transfer.receive(&mut [], room, |scatter| {
            match scatter.receive_from(socket) {
                // Left behind, once, by a peer that was connected to us and is not any more.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    scatter.receive_from(socket)
                }
                result => result,
            }
        });
        match result {
            Ok(bytes) => Received::Frame {
                header: NetHeader::default(),
                bytes,
            },
            Err(error) => not_received(&error),
        }
    }

    #[cold]
    fn send_failed(&mut self, errno: Errno) -> Sent {
        let sent = not_sent(&errno.into());
        // EPERM: the peer has connected to someone else.
        if errno != Errno::PERM && sent != Sent::Dropped(SendLoss::Down) {
            return sent;
        }
        limited!(info, "{}: the peer has gone: {errno}", self.path.display());
        self.connected = false;
        if let Err(errno) = self.disconnect() {
            limited!(debug, "{}: cannot disconnect: {errno}", self.path.display());
        }
        Sent::Dropped(SendLoss::Down)
    }
}

/// The file of a socket of ours, removed at drop.
#[derive(Debug)]
struct BoundPath {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        if lstat(&self.path).is_ok_and(|stat| identity(&stat) == self.file) {
            // Nobody is left to be told.
            let _ = unlink(&self.path);
        }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn new_socket() -> Result<OwnedFd, Errno> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

fn bind_path(socket: &OwnedFd, path: &Path) -> Result<BoundPath, LinkError> {
    let address = address_of(path)?;
    let name = path.display().to_string();
    let mut bound = bind(socket, &address);
    if bound == Err(Errno::ADDRINUSE) {
        remove_stale(path, &address)?;
        bound = bind(socket, &address);
    }
    bound.map_err(system(&name, "bind"))?;
    let stat = lstat(path).map_err(system(&name, "stat"))?;
    Ok(BoundPath {
        path: path.to_owned(),
        file: identity(&stat),
    })
}

/// Removes the socket file at `path` if nobody has it. Only a plain refusal says so.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), LinkError> {
    let name = path.display().to_string();
    let stat = lstat(path).map_err(system(&name, "stat"))?;
    let probe = new_socket().map_err(system("datagram socket", "make one"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket
        || connect(&probe, address) != Err(Errno::CONNREFUSED)
    {
        return Err(LinkError::PathInUse {
            path: path.to_owned(),
        });
    }
    unlink(path).map_err(system(&name, "remove the stale socket"))
}

#[cfg(test)]
mod tests;
