// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many requests, as many in flight as there are slots.

use super::error::{FuseError, FuseResult};
use super::queue::{Completion, FuseQueue};
use super::request::Request;
use super::slot::FuseSlot;

impl FuseQueue {
    /// Sends all requests of `requests`, and gives `each` what lies behind the header of their
    /// replies, with the number of the request, in the order in which they come. Those without a
    /// reply have an empty one.
    ///
    /// Only sound while nothing else is in flight on the queue.
    ///
    /// # Errors
    ///
    /// When the ring or the connection fails, or a reply is none; errnos go to `each`.
    pub fn call_many(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        mut each: impl FnMut(usize, Result<Vec<u8>, i32>),
    ) -> FuseResult<()> {
        let mut in_slot: Vec<(usize, bool)> = vec![(0, false); usize::from(self.config().depth)];
        let mut requests = requests.into_iter().enumerate();
        loop {
            let mut added = false;
            while self.in_flight() < in_slot.len()
                && let Some((number, request)) = requests.next()
            {
                let slot = self.acquire()?;
                in_slot[slot.index()] = (number, request.wants_reply());
                self.submit(slot, &request)?;
                added = true;
            }
            if added {
                self.publish()?;
            }
            if self.in_flight() == 0 {
                return Ok(());
            }
            let mut next = Some(self.wait()?);
            while let Some(completion) = next {
                let (number, wants_reply) = in_slot[completion.slot.index()];
                each(number, self.outcome(completion, wants_reply)?);
                next = self.poll()?;
            }
        }
    }

    fn outcome(
        &mut self,
        completion: Completion,
        wants_reply: bool,
    ) -> FuseResult<Result<Vec<u8>, i32>> {
        let slot: FuseSlot = completion.slot;
        let reply = if wants_reply {
            self.reply(completion)
        } else {
            Ok(Vec::new())
        };
        self.release(slot);
        match reply {
            Ok(reply) => Ok(Ok(reply)),
            Err(FuseError::Errno(errno)) => Ok(Err(errno)),
            Err(error) => Err(error),
        }
    }
}
