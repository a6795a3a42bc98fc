// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages from the back-end to the front-end (vhost-user.rst "Back-end message types").
//!
//! The `vhost` crate cannot send `CONFIG_CHANGE_MSG`, and waits for answers without end. So this
//! socket is our own duplicate of the descriptor that came with `SET_BACKEND_REQ_FD`.
//!
//! # Without an answer
//! `CONFIG_CHANGE_MSG` asks for no reply and is sent without blocking: a front-end that does not
//! read misses it.
//!
//! # With an answer
//! `SHMEM_MAP` and `SHMEM_UNMAP` put a file into a window of the guest and take it out again. The
//! caller waits for the answer, on a thread that may block, for [`ANSWER_TIME`] at most. One such
//! message is under way at a time. Answers come in the order of the messages. A late one must not be
//! taken for the answer to another message: until it has come, nothing more is sent, and callers get
//! an error at once. The end of the session wakes a caller that waits.

mod answers;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown,
};
use thiserror::Error;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserProtocolFeatures};
use vm_memory::ByteValued as _;

use crate::limited;
use answers::Answers;

/// How long a front-end may take for an answer: it maps a file and tells the hypervisor.
pub const ANSWER_TIME: Duration = Duration::from_secs(5);

/// `CONFIG_CHANGE_MSG`, version 1, no payload.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
const SHMEM_MAP: u32 = 9;
const SHMEM_UNMAP: u32 = 10;
/// Version 1, `NEED_REPLY`.
const ASKING: u32 = 1 | 1 << 3;
/// Bytes of [`VhostUserMMap`].
const MMAP_BYTES: u32 = 40;

/// What came of `SHMEM_MAP` or `SHMEM_UNMAP`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShmemError {
    /// There is no front-end that has agreed to it.
    #[error("the front-end has no SHMEM")]
    NotNegotiated,
    /// It was not sent.
    #[error("the front-end was not asked")]
    Unsent(#[source] Errno),
    /// The front-end owes the answer to an earlier one, so this was not sent.
    #[error("the front-end has not answered yet what it was asked before")]
    Busy,
    /// The front-end has refused.
    #[error("the front-end refused: {0}")]
    Refused(u64),
    /// It was sent, and what became of it is not known.
    #[error("the front-end did not answer")]
    Unanswered(#[source] Errno),
}

/// The socket to the front-end, while there is one.
#[derive(Debug, Default)]
pub struct BackChannel {
    link: Mutex<Option<Arc<Link>>>,
}

/// One socket.
#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    /// `CONFIG` was negotiated.
    has_config: bool,
    /// `SHMEM` was negotiated, and `REPLY_ACK`.
    has_shmem: bool,
    /// Held while waiting for an answer.
    answers: Mutex<Answers>,
}

impl BackChannel {
    /// Tells the front-end to read the configuration space again. Returns whether it was told.
    pub fn config_changed(&self) -> bool {
        let Some(link) = self.link().filter(|link| link.has_config) else {
            return false;
        };
        // Some front-ends answer although they were not asked to; the answers must not pile up.
        // A thread that waits for another answer takes them too.
        if let Ok(mut answers) = link.answers.try_lock() {
            answers.take_arrived(link.socket.as_fd());
        }
        match send(&link.socket, &CONFIG_CHANGE, None) {
            Ok(()) => true,
            Err(error) => {
                limited!(
                    warn,
                    "the front-end was not told of a configuration change: {error}"
                );
                false
            }
        }
    }

    /// Whether the front-end has agreed to `SHMEM_MAP` and `SHMEM_UNMAP`.
    pub fn has_shmem(&self) -> bool {
        self.link().is_some_and(|link| link.has_shmem)
    }

    /// `SHMEM_MAP`: has the front-end map `file` as `mapping` says; waits for its answer.
    ///
    /// # Errors
    /// [`ShmemError`]
    pub fn shmem_map(
        &self,
        mapping: &VhostUserMMap,
        file: BorrowedFd<'_>,
    ) -> Result<(), ShmemError> {
        self.ask(SHMEM_MAP, mapping, Some(file))
    }

    /// `SHMEM_UNMAP`: has the front-end take away what was mapped; waits for its answer.
    ///
    /// # Errors
    /// [`ShmemError`]
    pub fn shmem_unmap(&self, mapping: &VhostUserMMap) -> Result<(), ShmemError> {
        self.ask(SHMEM_UNMAP, mapping, None)
    }

    fn ask(
        &self,
        request: u32,
        mapping: &VhostUserMMap,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), ShmemError> {
        let link = self.link().filter(|link| link.has_shmem);
        let link = link.ok_or(ShmemError::NotNegotiated)?;
        let socket = link.socket.as_fd();
        let mut answers = lock(&link.answers);
        answers.take_arrived(socket);
        if answers.is_owed() {
            return Err(ShmemError::Busy);
        }
        let mut message = Vec::with_capacity(52);
        for field in [request, ASKING, MMAP_BYTES] {
            message.extend(field.to_le_bytes());
        }
        message.extend(mapping.as_slice());
        send(&link.socket, &message, file).map_err(ShmemError::Unsent)?;
        match answers.wait(socket, request, Instant::now() + ANSWER_TIME) {
            Ok(0) => Ok(()),
            Ok(refusal) => Err(ShmemError::Refused(refusal)),
            Err(errno) => Err(ShmemError::Unanswered(errno)),
        }
    }

    fn link(&self) -> Option<Arc<Link>> {
        lock(&self.link).clone()
    }

    /// Replaces the socket. Only messages that belong to `features` are sent on it. It stays open even
    /// if there are none, since QEMU takes its end for an error. A thread that waits for an answer on
    /// the socket before gets an error.
    pub(crate) fn set(&self, socket: OwnedFd, features: VhostUserProtocolFeatures) {
        let has = |feature| features.contains(feature);
        let link = Link {
            socket,
            has_config: has(VhostUserProtocolFeatures::CONFIG),
            has_shmem: has(VhostUserProtocolFeatures::SHMEM | VhostUserProtocolFeatures::REPLY_ACK),
            answers: Mutex::default(),
        };
        self.replace(Some(Arc::new(link)));
    }

    /// The front-end has gone.
    pub(crate) fn close(&self) {
        self.replace(None);
    }

    fn replace(&self, link: Option<Arc<Link>>) {
        let before = std::mem::replace(&mut *lock(&self.link), link);
        if let Some(before) = before
            && let Err(error) = shutdown(&before.socket, Shutdown::Both)
        {
            limited!(debug, "the back channel had gone already: {error}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a message at once, or not at all.
fn send(socket: &OwnedFd, message: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(Errno::NOBUFS);
    }
    let slices = [std::io::IoSlice::new(message)];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(socket, &slices, &mut control, flags) {
        Ok(sent) if sent == message.len() => Ok(()),
        // Nothing that follows would be understood.
        Ok(_) => shutdown(socket, Shutdown::Both).and(Err(Errno::MSGSIZE)),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests;
