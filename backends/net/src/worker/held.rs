// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What waits on a switch for the limit of its receiver.
//!
//! Neither the sender nor the uplink is held up for a receiver with a limit, which would cost
//! others their share: its frames are copied here, in their order, and passed on when they may.
//! What finds no room is lost, as in front of any slow line, and TCP slows down without having to
//! guess.

use std::collections::VecDeque;

use super::passage::Frame;
use crate::header::NetHeader;

/// What a short frame takes at least, so that there are not too many of them.
const MIN_ROOM_BYTES: usize = 256;

/// Copies of the frames that wait.
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

    /// Copies a frame here, in `most_bytes` for all; whether there was room.
    pub(super) fn push(&mut self, most_bytes: usize, frame: &Frame<'_>) -> bool {
        let Frame { header, bytes, .. } = *frame;
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
        frame.payload.copy_to(0, to);
        self.frames.push_back(Kept { header, at, bytes });
        true
    }

    /// Where `bytes` fit.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn push(held: &mut Held, most_bytes: usize, fill: u8, bytes: usize) -> bool {
        let header = NetHeader {
            csum_start: fill.into(),
            ..NetHeader::default()
        };
        held.push(most_bytes, &Frame::of(header, &vec![fill; bytes]))
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
