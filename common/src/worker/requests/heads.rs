// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests of a vring that are in flight, and what is held for them.

use crate::chain::ChainFault;
use crate::error::RingError;
use crate::memory::Buffers;
use crate::worker::vring::Vring;

/// Most requests of one vring in flight. More than a data thread has I/O for would only wait with
/// us instead of in the ring.
const MAX_REQUESTS: u16 = 1024;

/// Segments of buffers that one vring may hold before it has to wait for some to be answered: as
/// many as its requests have with the longest direct and indirect tables, 32 MiB.
const MAX_SEGMENTS: usize = 2048 * MAX_REQUESTS as usize;

/// Segments that one vring keeps for requests to come, so that they allocate nothing: 4 MiB.
const KEPT_SEGMENTS: usize = 256 * MAX_REQUESTS as usize;

/// The places of requests in flight.
#[derive(Debug)]
pub(super) struct Heads {
    pub(super) heads: Box<[Head]>,
    /// Places that are free; the one used last is used next.
    free: Vec<u16>,
    /// A bit for each descriptor head: taken from the available ring, not yet given back.
    busy: Box<[u64]>,
    /// Segments that the buffers of all places have room for.
    segments: usize,
    pub(super) in_flight: u32,
    /// Those of them that wait for a promise.
    pub(super) parked: u32,
}

#[derive(Debug, Default)]
pub(super) struct Head {
    pub(super) buffers: Buffers,
    /// The descriptor head, while there is a request here.
    descriptor: Option<u16>,
    /// I/O of it that the kernel or a blocking thread works on.
    pub(super) pending: u16,
    /// A promise of it is not kept yet.
    pub(super) parked: bool,
    taken_ns: u64,
}

impl Heads {
    /// Of a ring of `size` descriptors.
    pub(super) fn new(size: u16) -> Self {
        let places = size.min(MAX_REQUESTS);
        Self {
            heads: (0..places).map(|_| Head::default()).collect(),
            free: (0..places).rev().collect(),
            busy: vec![0; usize::from(size).div_ceil(64)].into(),
            segments: 0,
            in_flight: 0,
            parked: 0,
        }
    }

    /// The number of places.
    pub(super) fn places(&self) -> u16 {
        u16::try_from(self.heads.len()).unwrap_or(MAX_REQUESTS)
    }

    /// Whether one more request may be taken.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && self.segments <= MAX_SEGMENTS
    }

    /// Takes the next chain into a free place; returns that, and how many bytes the chain has.
    #[inline]
    pub(super) fn take(
        &mut self,
        vring: &mut Vring,
        now_ns: u64,
    ) -> Option<(u16, Result<(), ChainFault>, u64)> {
        if !self.has_room() {
            return None;
        }
        let descriptor = vring.next_head()?;
        // The ring has checked the head against its size, which `busy` has.
        let word = self.busy.get_mut(usize::from(descriptor / 64))?;
        let bit = 1 << (descriptor % 64);
        if *word & bit != 0 {
            vring.break_ring(RingError::HeadInFlight { head: descriptor });
            return None;
        }
        let place = *self.free.last()?;
        let head = self.heads.get_mut(usize::from(place))?;
        self.free.pop();
        *word |= bit;
        head.descriptor = Some(descriptor);
        head.taken_ns = now_ns;
        self.in_flight += 1;
        let before = head.buffers.held_segments();
        let chain = vring.read_chain(descriptor, &mut head.buffers);
        self.segments += head.buffers.held_segments() - before;
        let bytes = head.buffers.readable_bytes() + head.buffers.writable_bytes();
        Some((place, chain, bytes))
    }

    /// Frees a place; returns its descriptor head, and when it was taken.
    #[inline]
    pub(super) fn give_back(&mut self, place: u16) -> Option<(u16, u64)> {
        let head = self.heads.get_mut(usize::from(place))?;
        let descriptor = head.descriptor.take()?;
        let before = head.buffers.held_segments();
        head.buffers.release();
        if self.segments > KEPT_SEGMENTS {
            head.buffers = Buffers::default();
        }
        self.segments -= before - head.buffers.held_segments();
        if let Some(word) = self.busy.get_mut(usize::from(descriptor / 64)) {
            *word &= !(1 << (descriptor % 64));
        }
        self.free.push(place);
        self.in_flight -= 1;
        Some((descriptor, head.taken_ns))
    }
}
