// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The receive chains at the front of a ring, as one stream of bytes.
//!
//! Chains are taken from the ring before the packet that fills them is known, and given back to it
//! when they are not needed ([`Window::release`]): the driver notices neither. A packet is written
//! at the front of the stream, header first, and takes as many chains as it has bytes for
//! (virtio 1.3 §5.1.6.4): all but the last are full, and all are given back at once. Chains that no
//! packet can begin in, being not writable, or too short for a header or, where a packet has one
//! chain only, for a header and an Ethernet header, are given back unused when their turn comes, so
//! that the order is kept.

use std::collections::VecDeque;

use ringside_common::memory::Buffers;
use ringside_common::num::usize_of;
use ringside_common::worker::Vring;

use crate::frame::ETHERNET_HEADER_BYTES;
use crate::header::{HEADER_BYTES, LEGACY_HEADER_BYTES, NetHeader};

/// Most chains that one packet may take: with Linux' smallest receive buffers 64 KiB take 43.
const MAX_CHAINS: usize = 128;

/// Descriptors read for one packet: a driver with chains of thousands must not cost the others
/// their time.
const MAX_DESCRIPTORS: u32 = 512;

/// What a chain that holds a packet alone has to have room for besides the header (virtio 1.3
/// §5.1.6.3.1). A shorter one is the driver's fault; it must not block the queue for good.
const LEAST_FRAME_ROOM_BYTES: usize = 1514;

/// One chain taken from the ring.
#[derive(Clone, Copy, Debug)]
struct Taken {
    head: u16,
    /// What it has room for; nothing if it is no good.
    bytes: u32,
}

impl Taken {
    fn bytes(&self) -> usize {
        usize_of(self.bytes.into())
    }

    fn has_room(&self, want: usize) -> bool {
        self.bytes() >= want
    }
}

/// What to expect of a driver's receive chains.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Layout {
    /// Bytes of the header.
    pub(super) header_bytes: usize,
    /// Whether a packet may take more than one chain (`MRG_RXBUF`).
    pub(super) mergeable: bool,
}

impl Layout {
    /// What a chain must have room for if a packet may begin in it: a header, for what follows
    /// may be in the next chain, or else an Ethernet header, too.
    const fn least_bytes(self) -> usize {
        if self.mergeable {
            self.header_bytes
        } else {
            self.header_bytes + ETHERNET_HEADER_BYTES
        }
    }
}

/// The chains taken, and the stream that they are.
#[derive(Debug)]
pub(super) struct Window {
    layout: Layout,
    stream: Buffers,
    chains: VecDeque<Taken>,
}

impl Window {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            stream: Buffers::default(),
            chains: VecDeque::with_capacity(MAX_CHAINS),
        }
    }

    /// Takes chains until there is room for `frame_bytes` in the chains that one packet may take,
    /// or no more to take. Returns whether there is room.
    #[inline]
    pub(super) fn make_room(&mut self, vring: &mut Vring, frame_bytes: usize) -> bool {
        let want = self.layout.header_bytes + frame_bytes;
        let mut walked = 0;
        while self.room_for_packet() < want {
            let more = self.layout.mergeable || self.chains.is_empty();
            // What was taken stays: the next call goes on from there.
            let tired = walked >= MAX_DESCRIPTORS;
            if !more || tired || self.chains.len() >= MAX_CHAINS || !self.take(vring) {
                return false;
            }
            walked += self.stream.descriptors().max(1);
        }
        true
    }

    /// As [`make_room`](Self::make_room), behind a chain at the front that is too short.
    pub(super) fn make_room_behind(&mut self, vring: &mut Vring, frame_bytes: usize) -> bool {
        self.has_longer(vring, frame_bytes) && {
            self.skip_to_longer(vring, frame_bytes);
            self.make_room(vring, frame_bytes)
        }
    }

    /// Room for frames, the header deducted, in the chains taken so far.
    #[inline]
    pub(super) fn frame_room(&self) -> usize {
        self.room_for_packet()
            .saturating_sub(self.layout.header_bytes)
    }

    #[inline]
    fn room_for_packet(&self) -> usize {
        if self.layout.mergeable {
            usize_of(self.stream.writable_bytes())
        } else {
            self.chains.front().map_or(0, Taken::bytes)
        }
    }

    /// Whether no packet of `frame_bytes` will ever fit, however long we wait.
    pub(super) fn is_hopeless(&self, vring: &Vring, frame_bytes: usize) -> bool {
        let fits = self.frame_room() >= frame_bytes;
        let all = self.chains.len() >= MAX_CHAINS.min(usize::from(vring.size()));
        !fits && (all || (!self.layout.mergeable && !self.chains.is_empty()))
    }

    /// Where a packet has one chain, and the one at the front is shorter than a driver may post and
    /// too short for `frame_bytes`: whether one behind it has room, see
    /// [`skip_to_longer`](Self::skip_to_longer).
    pub(super) fn has_longer(&mut self, vring: &mut Vring, frame_bytes: usize) -> bool {
        let is_short = self.frame_room() < frame_bytes.min(LEAST_FRAME_ROOM_BYTES);
        if self.layout.mergeable || self.chains.is_empty() || !is_short {
            return false;
        }
        let want = self.layout.header_bytes + frame_bytes;
        let mut found = self.chains.iter().any(|taken| taken.has_room(want));
        let mut walked = 0;
        while !found {
            let tired = walked >= MAX_DESCRIPTORS;
            if tired || self.chains.len() >= MAX_CHAINS || !self.take(vring) {
                return false;
            }
            walked += self.stream.descriptors().max(1);
            found = self.chains.back().is_some_and(|taken| taken.has_room(want));
        }
        true
    }

    /// Gives the chains in front of the first one that has room for `frame_bytes` back unused.
    pub(super) fn skip_to_longer(&mut self, vring: &mut Vring, frame_bytes: usize) {
        let want = self.layout.header_bytes + frame_bytes;
        while let Some(short) = self.chains.front().filter(|taken| !taken.has_room(want)) {
            self.stream.consume_writable(short.bytes());
            vring.push_used(short.head, 0);
            self.chains.pop_front();
        }
    }

    /// Takes one more chain; false when there is none.
    #[inline]
    fn take(&mut self, vring: &mut Vring) -> bool {
        let Some(head) = vring.next_head() else {
            return false;
        };
        let before = self.stream.writable_bytes();
        let sound = vring.read_chain_on(head, &mut self.stream).is_ok();
        let added = self.stream.writable_bytes() - before;
        let is_good = sound && added >= self.layout.least_bytes() as u64;
        let bytes = u32::try_from(added).ok().filter(|_| is_good);
        if bytes.is_none() {
            self.stream.truncate_writable(added);
            if self.chains.is_empty() {
                vring.push_used(head, 0);
                return true;
            }
        }
        let bytes = bytes.unwrap_or(0);
        self.chains.push_back(Taken { head, bytes });
        true
    }

    /// Where the kernel is to put a frame, behind [`Layout::header_bytes`].
    #[inline]
    pub(super) fn stream(&self) -> &Buffers {
        &self.stream
    }

    /// Where we are to put a frame, behind [`Layout::header_bytes`].
    #[inline]
    pub(super) fn stream_mut(&mut self) -> &mut Buffers {
        &mut self.stream
    }

    /// Gives the driver a packet whose `frame_bytes` are in place, for which there was room.
    #[inline]
    pub(super) fn commit(&mut self, vring: &mut Vring, mut header: NetHeader, frame_bytes: usize) {
        let mut left = self.layout.header_bytes + frame_bytes;
        // Where a packet has one chain, it has room.
        header.num_buffers = match self.chains.front() {
            Some(first) if !first.has_room(left) => self.count_chains(left),
            _ => 1,
        };
        let encoded = header.encode();
        if self.layout.header_bytes == HEADER_BYTES {
            self.stream.write_front(encoded);
        } else if let Some(legacy) = encoded.first_chunk::<LEGACY_HEADER_BYTES>() {
            self.stream.write_front(*legacy);
        }
        while left > 0 {
            let Some(taken) = self.chains.pop_front() else {
                break;
            };
            self.stream.consume_writable(taken.bytes());
            // All of the chain, if more is left.
            let used = u32::try_from(left).unwrap_or(u32::MAX).min(taken.bytes);
            left = left.saturating_sub(taken.bytes());
            vring.push_used(taken.head, used);
        }
        // Those that are no good go back in their turn, but not before.
        while let Some(taken) = self.chains.front().filter(|taken| taken.bytes == 0) {
            vring.push_used(taken.head, 0);
            self.chains.pop_front();
        }
    }

    /// Chains that a packet of `bytes` takes, header included; those of no bytes are counted, as
    /// they are between the others.
    #[inline]
    fn count_chains(&self, bytes: usize) -> u16 {
        let mut left = bytes;
        let mut count = 0;
        for taken in &self.chains {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(taken.bytes());
            count += 1;
        }
        count
    }

    /// Makes all chains available again.
    pub(super) fn release(&mut self, vring: &mut Vring) {
        for _ in self.chains.drain(..) {
            vring.undo(1);
        }
        self.stream = Buffers::default();
    }
}
