// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bounded queue of frames: any number of writers that never wait, one reader.
//!
//! It is a ring of 64-bit words. A writer reserves the words of its record with one
//! compare-and-swap, fills them in, and stores the record's length into its first word last. The
//! reader takes records in the order of their reservation; a first word of 0 is a record that is
//! not finished. It zeroes what it has read before it gives the words back, so that a first word is
//! 0 until it is a length: nothing that a guest sends can pass for one.
//!
//! The words are atomic, so that all of this is safe Rust; a relaxed store of a word costs the same
//! as a plain one.

use std::sync::atomic::{AtomicU64, Ordering};

use ringside_common::num::usize_of;

use crate::counters::Direction;

/// Words of a record in front of its bytes.
const HEAD_WORDS: usize = 4;
const WORD_BYTES: usize = size_of::<u64>();
/// Bytes of a frame that are fetched at once.
const STEP_BYTES: usize = 512;

/// What is known of a frame beside its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) port: u16,
    /// Which capture it is for.
    pub(super) session: u16,
    pub(super) direction: Direction,
    /// When, on the monotonic clock.
    pub(super) time_ns: u64,
    /// The length of the frame.
    pub(super) frame_bytes: u32,
    /// How many of its bytes are kept.
    pub(super) kept_bytes: u32,
}

/// Keeps what the reader writes off the cache lines of what the writers write.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Padded(AtomicU64);

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    words: Box<[AtomicU64]>,
    /// Words ever reserved.
    reserved: Padded,
    /// Words ever given back.
    released: Padded,
}

impl Queue {
    /// A queue of `2^order` words.
    pub(super) fn new(order: u32) -> Self {
        Self {
            words: (0..1_u64 << order).map(|_| AtomicU64::new(0)).collect(),
            reserved: Padded::default(),
            released: Padded::default(),
        }
    }

    /// Adds a record whose bytes `read` copies out: from an offset into a buffer, returning how
    /// many there were. Returns false, without calling it, if there is no room.
    pub(super) fn push(
        &self,
        record: Record,
        mut read: impl FnMut(usize, &mut [u8]) -> usize,
    ) -> bool {
        let kept = usize_of(record.kept_bytes.into());
        let words = HEAD_WORDS.saturating_add(kept.div_ceil(WORD_BYTES)) as u64;
        let Some(start) = self.reserve(words) else {
            return false;
        };
        let [time, origin, lengths] = record.to_words();
        self.store(start.wrapping_add(1), time);
        self.store(start.wrapping_add(2), origin);
        self.store(start.wrapping_add(3), lengths);
        let mut at = start.wrapping_add(HEAD_WORDS as u64);
        let mut step = [0; STEP_BYTES];
        for offset in (0..kept).step_by(STEP_BYTES) {
            let wanted = (kept - offset).min(STEP_BYTES);
            let Some(bytes) = step.get_mut(..wanted) else {
                break;
            };
            let got = read(offset, bytes);
            // What the frame turns out not to have is shown as zeroes.
            bytes.iter_mut().skip(got).for_each(|byte| *byte = 0);
            let (whole, rest) = bytes.as_chunks::<WORD_BYTES>();
            for word in whole {
                self.store(at, u64::from_le_bytes(*word));
                at = at.wrapping_add(1);
            }
            if !rest.is_empty() {
                let mut word = [0; WORD_BYTES];
                word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                self.store(at, u64::from_le_bytes(word));
            }
        }
        if let Some(first) = self.word(start) {
            first.store(words, Ordering::Release);
        }
        true
    }

    /// Takes the oldest record out and replaces `bytes` by what was kept of its frame. To be called
    /// by one thread at a time.
    pub(super) fn pop(&self, bytes: &mut Vec<u8>) -> Option<Record> {
        let start = self.released.0.load(Ordering::Relaxed);
        let words = self.word(start)?.load(Ordering::Acquire);
        if words == 0 {
            return None;
        }
        let [time, origin, lengths] = [1, 2, 3].map(|at| self.load(start.wrapping_add(at)));
        let record = Record::from_words(time, origin, lengths);
        bytes.clear();
        for at in HEAD_WORDS as u64..words {
            bytes.extend_from_slice(&self.load(start.wrapping_add(at)).to_le_bytes());
        }
        bytes.truncate(usize_of(record.kept_bytes.into()));
        for at in 0..words {
            self.store(start.wrapping_add(at), 0);
        }
        let end = start.wrapping_add(words);
        self.released.0.store(end, Ordering::Release);
        Some(record)
    }

    /// Whether nobody has reserved what the reader has not seen.
    pub(super) fn is_empty(&self) -> bool {
        let reserved = self.reserved.0.load(Ordering::Acquire);
        reserved == self.released.0.load(Ordering::Acquire)
    }

    fn reserve(&self, words: u64) -> Option<u64> {
        let mut start = self.reserved.0.load(Ordering::Relaxed);
        loop {
            let used = start.wrapping_sub(self.released.0.load(Ordering::Acquire));
            if used.saturating_add(words) > self.words.len() as u64 {
                return None;
            }
            match self.reserved.0.compare_exchange_weak(
                start,
                start.wrapping_add(words),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(start),
                Err(changed) => start = changed,
            }
        }
    }

    /// The word at a position; the number of words is a power of two.
    #[inline]
    fn word(&self, position: u64) -> Option<&AtomicU64> {
        let mask = (self.words.len() as u64).wrapping_sub(1);
        self.words.get(usize::try_from(position & mask).ok()?)
    }

    #[inline]
    fn store(&self, position: u64, value: u64) {
        if let Some(word) = self.word(position) {
            word.store(value, Ordering::Relaxed);
        }
    }

    #[inline]
    fn load(&self, position: u64) -> u64 {
        self.word(position)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

impl Record {
    fn to_words(self) -> [u64; 3] {
        let outgoing = u64::from(self.direction == Direction::Rx);
        let origin = u64::from(self.port) << 32 | u64::from(self.session) << 16 | outgoing;
        let lengths = u64::from(self.frame_bytes) << 32 | u64::from(self.kept_bytes);
        [self.time_ns, origin, lengths]
    }

    fn from_words(time_ns: u64, origin: u64, lengths: u64) -> Self {
        Self {
            port: low_16(origin >> 32),
            session: low_16(origin >> 16),
            direction: if origin & 1 == 1 {
                Direction::Rx
            } else {
                Direction::Tx
            },
            time_ns,
            frame_bytes: low_32(lengths >> 32),
            kept_bytes: low_32(lengths),
        }
    }
}

fn low_16(word: u64) -> u16 {
    let [low, high, ..] = word.to_le_bytes();
    u16::from_le_bytes([low, high])
}

fn low_32(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn record(time_ns: u64, bytes: usize) -> Record {
        let bytes = u32::try_from(bytes).unwrap();
        Record {
            port: 0xfffe,
            session: 0xabcd,
            direction: Direction::Rx,
            time_ns,
            frame_bytes: bytes + 7,
            kept_bytes: bytes,
        }
    }

    fn copy_of(frame: &[u8]) -> impl FnMut(usize, &mut [u8]) -> usize {
        move |offset, to| {
            let from = frame.get(offset..).unwrap_or_default();
            let count = from.len().min(to.len());
            to[..count].copy_from_slice(&from[..count]);
            count
        }
    }

    #[test]
    fn record_comes_out_as_it_went_in() {
        let queue = Queue::new(8);
        for direction in [Direction::Rx, Direction::Tx] {
            let frame: Vec<u8> = (0..=255).cycle().take(1001).collect();
            let record = Record {
                direction,
                ..record(u64::MAX - 1, frame.len())
            };
            assert!(queue.push(record, copy_of(&frame)));
            assert!(!queue.is_empty());
            let mut bytes = vec![1; 3];
            assert_eq!(queue.pop(&mut bytes), Some(record));
            assert_eq!(bytes, frame);
            assert_eq!(queue.pop(&mut bytes), None);
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn frame_shorter_than_announced_is_filled_up_with_zeroes() {
        let queue = Queue::new(8);
        assert!(queue.push(record(0, 600), copy_of(&[0xff; 520])));
        let mut bytes = Vec::new();
        queue.pop(&mut bytes).unwrap();
        let (frame, rest) = bytes.split_at(520);
        assert!(frame.iter().all(|byte| *byte == 0xff));
        assert_eq!(rest, [0; 80]);
    }

    #[test]
    fn record_without_room_is_refused_before_it_is_read() {
        let queue = Queue::new(4);
        assert!(queue.push(record(1, 64), copy_of(&[1; 64])));
        assert!(!queue.push(record(2, 8), |_, _| panic!("read")));
        assert!(queue.push(record(3, 0), |_, _| panic!("read")));
        assert!(!queue.push(record(4, 0), |_, _| panic!("read")));
        let mut bytes = Vec::new();
        assert_eq!(queue.pop(&mut bytes).map(|r| r.time_ns), Some(1));
        assert!(!queue.push(record(5, 65), |_, _| panic!("read")));
        assert!(queue.push(record(6, 64), copy_of(&[2; 64])));
        let times = [(); 3].map(|()| queue.pop(&mut bytes).map(|r| r.time_ns));
        assert_eq!(times, [Some(3), Some(6), None]);
        assert_eq!(bytes, [2; 64]);
    }

    #[test]
    fn frames_of_several_writers_arrive_whole_and_in_the_order_of_each() {
        const EACH: u64 = 5_000;
        let queue = Arc::new(Queue::new(12));
        let writers: Vec<_> = (0..3_u16)
            .map(|port| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let mut refused = 0_u64;
                    for time_ns in 0..EACH {
                        let len = usize::try_from(time_ns % 700).unwrap();
                        let fill = port.to_le_bytes()[0] ^ time_ns.to_le_bytes()[0];
                        let record = Record {
                            port,
                            ..record(time_ns, len)
                        };
                        if !queue.push(record, copy_of(&vec![fill; len])) {
                            refused += 1;
                            thread::yield_now();
                        }
                    }
                    refused
                })
            })
            .collect();
        let mut next = [0; 3];
        let mut received = 0;
        let mut bytes = Vec::new();
        let mut check = |received: &mut u64| {
            while let Some(record) = queue.pop(&mut bytes) {
                let next = &mut next[usize::from(record.port)];
                assert!(record.time_ns >= *next, "out of order");
                *next = record.time_ns + 1;
                let fill = record.port.to_le_bytes()[0] ^ record.time_ns.to_le_bytes()[0];
                assert_eq!(bytes.len() as u64, record.time_ns % 700);
                assert!(bytes.iter().all(|byte| *byte == fill), "torn");
                *received += 1;
            }
        };
        while !writers.iter().all(thread::JoinHandle::is_finished) {
            check(&mut received);
        }
        check(&mut received);
        let refused: u64 = writers.into_iter().map(|w| w.join().unwrap()).sum();
        assert_eq!(received + refused, 3 * EACH);
        assert!(queue.is_empty());
    }

    proptest! {
        #[test]
        fn queue_is_a_bounded_fifo(
            steps in prop::collection::vec(prop::option::of((0..300_usize, any::<u8>())), 1..300),
        ) {
            const ORDER: u32 = 7;
            let queue = Queue::new(ORDER);
            let mut model = VecDeque::new();
            let mut used = 0;
            let mut bytes = Vec::new();
            for step in steps {
                if let Some((len, fill)) = step {
                    let words = HEAD_WORDS + len.div_ceil(WORD_BYTES);
                    let fits = used + words <= 1 << ORDER;
                    let frame = vec![fill; len];
                    prop_assert_eq!(queue.push(record(7, len), copy_of(&frame)), fits);
                    if fits {
                        used += words;
                        model.push_back(frame);
                    }
                } else {
                    let expected = model.pop_front();
                    let got = queue.pop(&mut bytes).map(|_| bytes.clone());
                    prop_assert_eq!(&got, &expected);
                    used -= got.map_or(0, |frame| HEAD_WORDS + frame.len().div_ceil(WORD_BYTES));
                }
                prop_assert_eq!(queue.is_empty(), model.is_empty());
            }
        }
    }
}
