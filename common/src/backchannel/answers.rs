// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the front-end says on the back channel: answers.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Bytes of an answer: request, flags, size, and a number.
const ANSWER_BYTES: usize = 20;
/// Version 1, and the reply bit.
const IS_ANSWER: u32 = 1 | 1 << 2;
/// Reads at once: one that sends without end does not keep us.
const MAX_READS: usize = 64;

/// The answers of one socket, of which one may be awaited.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The request whose answer has not come yet.
    owed: Option<u32>,
    /// The answer to the last one that was awaited.
    value: Option<u64>,
    /// The beginning of an answer.
    part: Vec<u8>,
    /// What came was none; what comes has no meaning any more.
    is_broken: bool,
}

impl Answers {
    /// Whether an answer is still to come, or can never be told from others.
    pub(super) fn is_owed(&self) -> bool {
        self.owed.is_some() || self.is_broken
    }

    /// Waits for the answer to `request`, which was just sent.
    ///
    /// # Errors
    /// ETIMEDOUT; ECONNRESET when the front-end has gone, EPROTO when it talks nonsense.
    pub(super) fn wait(
        &mut self,
        socket: BorrowedFd<'_>,
        request: u32,
        deadline: Instant,
    ) -> Result<u64, Errno> {
        self.owed = Some(request);
        self.value = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::TIMEDOUT);
            }
            let timeout = Timespec::try_from(left).map_err(|_e| Errno::INVAL)?;
            let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            let is_open = self.take_arrived(socket);
            if let Some(value) = self.value.take() {
                return Ok(value);
            }
            if self.is_broken {
                return Err(Errno::PROTO);
            }
            if !is_open {
                return Err(Errno::CONNRESET);
            }
        }
    }

    /// Takes what has arrived, without waiting; returns whether more may come.
    pub(super) fn take_arrived(&mut self, socket: BorrowedFd<'_>) -> bool {
        for _ in 0..MAX_READS {
            let mut bytes = [0; 256];
            match recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((read, _)) => self.take(bytes.get(..read).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.is_broken {
            return;
        }
        self.part.extend_from_slice(bytes);
        while let Some(answer) = self.part.first_chunk::<ANSWER_BYTES>() {
            match parse(answer) {
                Some((request, value)) if self.owed == Some(request) => {
                    self.owed = None;
                    self.value = Some(value);
                }
                // To what does not need one.
                Some(_) => {}
                None => {
                    self.is_broken = true;
                    self.part = Vec::new();
                    return;
                }
            }
            self.part.drain(..ANSWER_BYTES);
        }
    }
}

/// The request that is answered, and the answer.
fn parse(answer: &[u8; ANSWER_BYTES]) -> Option<(u32, u64)> {
    let field = |at: usize| {
        let bytes = answer.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let (request, flags, size_bytes) = (field(0)?, field(4)?, field(8)?);
    let value = u64::from_le_bytes(*answer.last_chunk()?);
    (flags == IS_ANSWER && size_bytes == 8).then_some((request, value))
}
