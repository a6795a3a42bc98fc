// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages from the back-end to the front-end (vhost-user.rst "Back-end message types").
//!
//! The `vhost` crate cannot send `CONFIG_CHANGE_MSG`, so this socket is our own duplicate of the
//! descriptor that came with `SET_BACKEND_REQ_FD`. The message asks for no reply and is sent without
//! blocking: a front-end that does not read misses it, and nobody waits.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::net::{RecvFlags, SendFlags};

/// `CONFIG_CHANGE_MSG`, version 1, no payload.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// The socket to the front-end, while there is one.
#[derive(Debug, Default)]
pub struct BackChannel {
    socket: Mutex<Option<OwnedFd>>,
}

impl BackChannel {
    /// Tells the front-end to read the configuration space again. Returns whether it was told.
    pub fn config_changed(&self) -> bool {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fd) = socket.as_ref() else {
            return false;
        };
        // Some front-ends answer although they were not asked to; the answers must not pile up.
        let mut reply = [0; 256];
        while rustix::net::recv(fd, &mut reply, RecvFlags::DONTWAIT).is_ok_and(|(n, _)| n > 0) {}
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(fd, &CONFIG_CHANGE, flags) {
            Ok(sent) if sent == CONFIG_CHANGE.len() => true,
            outcome => {
                log::warn!("the front-end was not told of a configuration change: {outcome:?}");
                false
            }
        }
    }

    pub(crate) fn set(&self, socket: Option<OwnedFd>) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn change_is_one_message_of_the_protocol() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let channel = BackChannel::default();
        assert!(!channel.config_changed());
        channel.set(Some(ours.into()));
        assert!(channel.config_changed());
        let mut got = [0; 12];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got, CONFIG_CHANGE);
    }

    #[test]
    fn peer_that_never_reads_does_not_block() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let channel = BackChannel::default();
        channel.set(Some(ours.into()));
        let refused = (0..100_000).any(|_| !channel.config_changed());
        assert!(refused, "the buffer of a socket is finite");
    }
}
