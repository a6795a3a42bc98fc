// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One frame, in one call of the kernel, and what its answers mean.
//!
//! In the usual case the kernel reads and writes guest memory itself. It takes no more than 1024
//! segments, though, and a guest may cut a frame into more: then the frame goes through a buffer
//! of ours.

use std::io;

use ringside_common::memory::{Gather, IoScratch, Scatter};
use rustix::io::Errno;

use super::frame::{Payload, Received, Room, SPARE_BYTES, SendLoss, Sent};
use crate::header::{HEADER_BYTES, MAX_FRAME_BYTES, NetHeader};
use crate::offload::MAX_HEADERS_BYTES;

/// Room for a virtio header and all headers of a long packet.
const FRONT_BYTES: usize = HEADER_BYTES + MAX_HEADERS_BYTES;

/// What one link queue needs to move frames.
#[derive(Debug)]
pub(super) struct Transfer {
    scratch: IoScratch,
    /// A prefix and the first bytes of a frame, so that they are one segment for the kernel.
    front: [u8; FRONT_BYTES],
    /// For frames in too many segments.
    bounce: Vec<u8>,
}

impl Transfer {
    pub(super) fn new() -> Self {
        Self {
            scratch: IoScratch::default(),
            front: [0; FRONT_BYTES],
            bounce: vec![0; SPARE_BYTES],
        }
    }

    /// Sends `prefix` and `payload` by `call`; returns what it returns.
    #[inline]
    pub(super) fn send(
        &mut self,
        prefix: &[u8],
        payload: Payload<'_>,
        call: impl FnOnce(&Gather<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut gather = self.scratch.gather();
        match payload {
            Payload::Guest { head: [], rest } => {
                gather.push(prefix);
                gather.push_readable(rest);
            }
            Payload::Guest { head, rest } => {
                match joined(&mut self.front, prefix, head) {
                    Some(front) => gather.push(front),
                    None => {
                        gather.push(prefix);
                        gather.push(head);
                    }
                }
                gather.push_readable(rest);
            }
            Payload::Bytes(bytes) => {
                gather.push(prefix);
                gather.push(bytes);
            }
        }
        if gather.bytes() == prefix.len() + payload.bytes() {
            return call(&gather);
        }
        let copied = payload.copy_to(0, &mut self.bounce);
        let mut gather = self.scratch.gather();
        gather.push(prefix);
        gather.push(self.bounce.get(..copied).unwrap_or_default());
        call(&gather)
    }

    /// Receives into `prefix` and `room` by `call`; returns what it returns.
    #[inline]
    pub(super) fn receive(
        &mut self,
        prefix: &mut [u8],
        mut room: Room<'_>,
        call: impl FnOnce(&mut Scatter<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let prefix_bytes = prefix.len();
        let wanted = prefix_bytes + room.window_bytes() + room.spare.len();
        let mut scatter = self.scratch.scatter();
        scatter.push(&mut *prefix);
        scatter.push_writable(room.window, room.skip_bytes, room.limit_bytes);
        scatter.push(&mut *room.spare);
        if scatter.bytes() == wanted {
            return call(&mut scatter);
        }
        let mut scatter = self.scratch.scatter();
        scatter.push(prefix);
        scatter.push(&mut self.bounce);
        let bytes = call(&mut scatter)?;
        let frame = self.bounce.get(..bytes.saturating_sub(prefix_bytes));
        deliver(&mut self.scratch, &mut room, frame.unwrap_or(&self.bounce));
        Ok(bytes)
    }

    /// Copies a frame of ours to `room`, as far as there is any.
    #[inline]
    pub(super) fn deliver(&mut self, mut room: Room<'_>, frame: &[u8]) {
        deliver(&mut self.scratch, &mut room, frame);
    }
}

/// `prefix` and `head` behind each other in `front`, if it has room for both.
#[inline]
fn joined<'a>(front: &'a mut [u8], prefix: &[u8], head: &[u8]) -> Option<&'a [u8]> {
    let front = front.get_mut(..prefix.len() + head.len())?;
    let (first, second) = front.split_at_mut(prefix.len());
    first.copy_from_slice(prefix);
    second.copy_from_slice(head);
    Some(front)
}

fn deliver(scratch: &mut IoScratch, room: &mut Room<'_>, frame: &[u8]) {
    let in_window = frame.len().min(room.window_bytes());
    let (front, rest) = frame.split_at_checked(in_window).unwrap_or_default();
    let mut done = 0;
    // More than one round only if the window has more segments than fit in a call.
    while let Some(left) = front.get(done..).filter(|left| !left.is_empty()) {
        let mut scatter = scratch.scatter();
        scatter.push_writable(room.window, room.skip_bytes + done, left.len());
        let step = scatter.fill(left);
        if step == 0 {
            return;
        }
        done += step;
    }
    let len_bytes = rest.len().min(room.spare.len());
    if let (Some(to), Some(from)) = (room.spare.get_mut(..len_bytes), rest.get(..len_bytes)) {
        to.copy_from_slice(from);
    }
}

/// Whether the payload is a frame that a link takes at all.
#[inline]
pub(super) fn is_frame(payload: Payload<'_>) -> bool {
    (1..=MAX_FRAME_BYTES).contains(&payload.bytes())
}

/// What the answer to sending a frame means.
#[inline]
pub(super) fn sent(result: io::Result<usize>) -> Sent {
    match result {
        Ok(_) => Sent::Done,
        Err(error) => not_sent(&error),
    }
}

/// What an error of sending a frame means.
pub(super) fn not_sent(error: &io::Error) -> Sent {
    let loss = match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => return Sent::Blocked,
        Some(Errno::INVAL | Errno::MSGSIZE) => SendLoss::Invalid,
        // An interface that is down, deleted (tap, packet socket, macvtap); a peer that has gone.
        Some(
            Errno::IO
            | Errno::NETDOWN
            | Errno::BADFD
            | Errno::NXIO
            | Errno::NODEV
            | Errno::NOLINK
            | Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::NOTCONN
            | Errno::PIPE,
        ) => SendLoss::Down,
        Some(Errno::NOBUFS | Errno::NOMEM) => SendLoss::NoBuffer,
        _ => SendLoss::Failed,
    };
    Sent::Dropped(loss)
}

/// What an error of receiving a frame means.
pub(super) fn not_received(error: &io::Error) -> Received {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => Received::Empty,
        // The frame is gone: its header cannot be said in virtio's words (segments of another
        // protocol), or the guest's memory has a hole, or there was no memory.
        Some(Errno::INVAL | Errno::FAULT | Errno::NOMEM | Errno::NOBUFS) => Received::Frame {
            header: NetHeader::default(),
            bytes: 0,
        },
        _ => Received::Down,
    }
}

#[cfg(test)]
mod tests {
    use ringside_common::memory::Buffers;

    use super::*;

    #[test]
    fn deliver_fills_the_spare_bytes_and_no_more() {
        let window = Buffers::default();
        let mut spare = [0; 4];
        let room = Room {
            window: &window,
            skip_bytes: 12,
            limit_bytes: MAX_FRAME_BYTES,
            spare: &mut spare,
        };
        Transfer::new().deliver(room, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(spare, [1, 2, 3, 4]);
    }

    #[test]
    fn payload_outside_the_limits_is_no_frame() {
        let bytes = vec![0; MAX_FRAME_BYTES + 1];
        for (len_bytes, expected) in [
            (0, false),
            (1, true),
            (MAX_FRAME_BYTES, true),
            (MAX_FRAME_BYTES + 1, false),
        ] {
            assert_eq!(is_frame(Payload::Bytes(&bytes[..len_bytes])), expected);
        }
    }

    #[test]
    fn errors_of_a_link_that_has_gone_are_down() {
        for errno in [Errno::IO, Errno::BADFD, Errno::NOLINK, Errno::NXIO] {
            let error = io::Error::from(errno);
            assert_eq!(not_sent(&error), Sent::Dropped(SendLoss::Down));
            assert_eq!(not_received(&error), Received::Down);
        }
    }
}
