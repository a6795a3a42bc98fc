// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An eventfd that makes whoever writes to it wait.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::{PATIENCE, Result, TestResult};
use ringside_frontend::raw::{Header, RawClient};

/// The most an eventfd counts to; a write of one more waits.
const FULL: u64 = u64::MAX - 1;

/// The front-end's end of an eventfd that was given to a back-end.
#[derive(Debug)]
pub struct Trap(OwnedFd);

impl Trap {
    /// An eventfd that is like any other until it is [`spring`](Self::spring)ed.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left.
    pub fn new() -> Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    /// Gives it to the back-end, by a message that has the index of a vring and a descriptor.
    ///
    /// # Errors
    ///
    /// When the back-end does not take it.
    pub fn give(&self, client: &RawClient, request: u32, vring: u64) -> TestResult {
        let header = Header::new(request, 8).need_reply();
        client.send(header, &vring.to_ne_bytes(), &[self.0.as_fd()])?;
        match client.recv(PATIENCE)?.u64_at(0) {
            Some(0) => Ok(()),
            answer => Err(format!("the eventfd is refused: {answer:?}").into()),
        }
    }

    /// From now on a write waits: the flags and the counter are those of the file description,
    /// which the back-end has as well.
    ///
    /// # Errors
    ///
    /// When the kernel does not allow it.
    pub fn spring(&self) -> TestResult {
        let flags = fcntl_getfl(&self.0)?;
        fcntl_setfl(&self.0, flags | OFlags::NONBLOCK)?;
        // Whatever was counted.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
        rustix::io::write(&self.0, &FULL.to_ne_bytes())?;
        fcntl_setfl(&self.0, flags - OFlags::NONBLOCK)?;
        Ok(())
    }
}
