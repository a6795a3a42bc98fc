// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What waits on a switch for the limit of its receiver.
//!
//! Neither the sender nor the uplink is held up for a receiver with a limit, which would cost others
//! their share: its frames are copied here, in their order, and passed on when they may. What finds
//! no room is lost, as in front of any slow line, and TCP slows down without having to guess.

use std::collections::VecDeque;

use ringside_common::limit::Admission;
use ringside_common::worker::Place;

use super::lan::Frame;
use super::receive::{Put, RxQueue};
use super::{BUDGET_BYTES, BUDGET_FRAMES, NetQueue, NetTurn, NetWorker, Side};
use crate::counters::{DropReason, PacketCounters};
use crate::header::NetHeader;

/// What a short frame takes at least, so that there are not too many of them.
const MIN_ROOM_BYTES: usize = 256;

/// Room for what waits for a limit at least: for the longest frame.
const LEAST_HELD_BYTES: usize = 68 << 10;

/// See above.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Frames in one piece each, behind each other and from the front again.
    room: Box<[u8]>,
    frames: VecDeque<Kept>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    header: NetHeader,
    at: usize,
    bytes: usize,
}

impl Kept {
    fn end(self) -> usize {
        self.at + self.bytes.max(MIN_ROOM_BYTES)
    }
}

impl Held {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Keeps a frame of `bytes` that `copy` writes, in `most_bytes` for all; whether there was room.
    pub(super) fn push(
        &mut self,
        most_bytes: usize,
        (header, bytes): (NetHeader, usize),
        copy: impl FnOnce(&mut [u8]),
    ) -> bool {
        if self.is_empty() && self.room.len() != most_bytes {
            // Nothing is allocated from here on until the limit is another one.
            self.room = vec![0; most_bytes].into_boxed_slice();
            self.frames = VecDeque::with_capacity(most_bytes / MIN_ROOM_BYTES + 1);
        }
        let Some(at) = self.place(bytes.max(MIN_ROOM_BYTES)) else {
            return false;
        };
        let Some(to) = self.room.get_mut(at..at + bytes) else {
            return false;
        };
        copy(to);
        self.frames.push_back(Kept { header, at, bytes });
        true
    }

    /// Where so many bytes fit.
    fn place(&self, bytes: usize) -> Option<usize> {
        let fits = |from: usize, to: usize| (to.saturating_sub(from) >= bytes).then_some(from);
        let (Some(first), Some(last)) = (self.frames.front(), self.frames.back()) else {
            return fits(0, self.room.len());
        };
        if last.at < first.at {
            return fits(last.end(), first.at);
        }
        fits(last.end(), self.room.len()).or_else(|| fits(0, first.at))
    }

    /// The frame that is next.
    pub(super) fn first(&self) -> Option<(NetHeader, &[u8])> {
        let kept = self.frames.front()?;
        Some((kept.header, self.room.get(kept.at..kept.at + kept.bytes)?))
    }

    /// Lets go of it.
    pub(super) fn pop(&mut self) {
        self.frames.pop_front();
    }

    /// Lets go of all; returns how many there were.
    pub(super) fn clear(&mut self) -> usize {
        let count = self.frames.len();
        *self = Self::default();
        count
    }
}

impl RxQueue {
    /// Loses what waits for the limit.
    pub(super) fn lose_held(&mut self, counters: &PacketCounters) {
        for _ in 0..self.held.clear() {
            counters.count_drop(DropReason::LinkDown);
            self.starved = false;
        }
    }
}

/// Keeps a frame that the limit of its receiver does not let pass yet, or that is behind such a one;
/// nothing if it may pass.
#[inline]
pub(super) fn hold_back(
    place: &mut Place<NetQueue>,
    now_ns: u64,
    frame: &Frame<'_>,
) -> Option<Put> {
    let queue = &place.queue;
    let admission = queue.port.to_guest.admit(now_ns);
    let Side::Receive(rx) = &queue.side else {
        return None;
    };
    if admission == Admission::Now && rx.held.is_empty() {
        return None;
    }
    keep(place, frame)
}

#[cold]
fn keep(place: &mut Place<NetQueue>, frame: &Frame<'_>) -> Option<Put> {
    let Place { vring, queue } = place;
    if !vring.is_live() || !queue.port.is_link_up() {
        return None;
    }
    queue.follow_filter();
    let Side::Receive(rx) = &mut queue.side else {
        return None;
    };
    if !rx.wants(frame.start) {
        return Some(Put::Lost(DropReason::Filtered));
    }
    // A guest with many pairs has no more room than one with a single one.
    let sharers = usize::from(queue.port.running_pairs().max(1));
    let most_bytes = queue.port.to_guest.backlog_bytes() / sharers;
    let what = (frame.header, frame.bytes);
    let kept = rx.held.push(most_bytes.max(LEAST_HELD_BYTES), what, |to| {
        frame.payload.copy_to(0, to);
    });
    Some(if kept {
        Put::Done
    } else if rx.starved {
        // Those in front of it find no buffers.
        Put::Lost(DropReason::NoBuffer)
    } else {
        Put::Lost(DropReason::RateLimited)
    })
}

impl NetWorker {
    /// Passes on what has waited for the limit.
    pub(super) fn receive_held(
        &mut self,
        turn: &mut NetTurn<'_>,
        slot: usize,
        now_ns: u64,
    ) -> bool {
        let (mut frames, mut moved) = (0, 0);
        while frames < BUDGET_FRAMES && moved < BUDGET_BYTES {
            let Some(place) = turn.vrings.get_mut(slot) else {
                break;
            };
            let Side::Receive(rx) = &mut place.queue.side else {
                break;
            };
            rx.resume_ns = 0;
            if rx.held.is_empty() || (rx.starved && !place.vring.has_available()) {
                break;
            }
            rx.starved = false;
            if let Admission::Until(at_ns) = place.queue.port.to_guest.admit(now_ns) {
                rx.resume_ns = at_ns;
                self.wake_at(at_ns);
                break;
            }
            let mut held = std::mem::take(&mut rx.held);
            let put = held.first().map(|(header, bytes)| {
                let frame = Frame::of(header, bytes);
                moved += frame.bytes;
                self.lan.hand_over(place, now_ns, &frame)
            });
            let NetQueue { side, counters, .. } = &mut place.queue;
            if let Some(Put::Lost(reason)) = put {
                counters.count_drop(reason);
            }
            if put != Some(Put::NoRoom) {
                held.pop();
            }
            if let Side::Receive(rx) = side {
                rx.held = held;
                if put == Some(Put::NoRoom) {
                    rx.starved = true;
                    counters.count_starved();
                    break;
                }
            }
            frames += 1;
        }
        frames > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(held: &mut Held, most_bytes: usize, fill: u8, bytes: usize) -> bool {
        let header = NetHeader {
            csum_start: fill.into(),
            ..NetHeader::default()
        };
        held.push(most_bytes, (header, bytes), |to| to.fill(fill))
    }

    fn pop(held: &mut Held) -> (u8, usize) {
        let (header, frame) = held.first().unwrap();
        let fill = frame[0];
        assert!(frame.iter().all(|byte| *byte == fill), "another's bytes");
        assert_eq!(header.csum_start, u16::from(fill));
        let bytes = frame.len();
        held.pop();
        (fill, bytes)
    }

    #[test]
    fn f5_7_frames_held_come_out_whole_and_in_order_round_and_round() {
        const MOST: usize = 10_000;
        let sizes = [14, 60, 255, 256, 257, 1514, 3000];
        let mut held = Held::default();
        let mut expected = VecDeque::new();
        let mut lost = 0;
        for number in 0..5_000_usize {
            let bytes = sizes[number % sizes.len()];
            let fill = u8::try_from(number % 251).unwrap();
            if push(&mut held, MOST, fill, bytes) {
                expected.push_back((fill, bytes));
            } else {
                lost += 1;
            }
            let waiting: usize = expected.iter().map(|(_, bytes)| bytes).sum();
            assert!(waiting <= MOST);
            if number % 3 != 0
                && let Some(next) = expected.pop_front()
            {
                assert_eq!(pop(&mut held), next);
            }
        }
        assert!((1..2_500).contains(&lost), "{lost}");
        while let Some(next) = expected.pop_front() {
            assert_eq!(pop(&mut held), next);
        }
        assert!(held.is_empty() && held.first().is_none());
    }

    #[test]
    fn f5_7_frames_beyond_the_room_are_refused_until_some_have_gone() {
        let mut held = Held::default();
        assert!(!push(&mut held, 1000, 1, 1001));
        assert!(push(&mut held, 1000, 2, 1000));
        assert!(!push(&mut held, 1000, 3, 14));
        // The limit is another one: as soon as nothing is left.
        assert!(!push(&mut held, 4000, 3, 14));
        assert_eq!(pop(&mut held), (2, 1000));
        assert!(push(&mut held, 4000, 4, 3000));
        assert!(push(&mut held, 4000, 5, 14));
        assert_eq!(held.clear(), 2);
        assert!(held.is_empty());
    }
}
