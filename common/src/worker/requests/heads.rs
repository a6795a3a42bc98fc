// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests of a vring that are in flight, and what is held for them.

use crate::chain::ChainFault;
use crate::device::Vring;
use crate::error::RingError;
use crate::memory::{Buffers, Lent};

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
    heads: Box<[Head]>,
    /// Of a ring that has more descriptors than places. In any other one the place of a request is
    /// its descriptor head.
    spread: Option<Spread>,
    /// Segments that the buffers of all places have room for.
    segments: usize,
    pub(super) in_flight: u32,
    /// Those of them that wait for a promise.
    pub(super) parked: u32,
}

/// Which descriptor heads have places, and which places are free.
#[derive(Debug)]
struct Spread {
    /// Places that are free; the one used last is used next.
    free: Vec<u16>,
    /// A bit for each descriptor head: taken from the available ring, not yet given back.
    busy: Box<[u64]>,
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
    /// Segments of its buffers that [`Heads::segments`] has.
    segments: usize,
    taken_ns: u64,
}

impl Heads {
    /// Of a ring of `size` descriptors.
    pub(super) fn new(size: u16) -> Self {
        let places = size.min(MAX_REQUESTS);
        let spread = (size > places).then(|| Spread {
            free: (0..places).rev().collect(),
            busy: vec![0; usize::from(size).div_ceil(64)].into(),
        });
        Self {
            heads: (0..places).map(|_| Head::default()).collect(),
            spread,
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
        (self.in_flight as usize) < self.heads.len() && self.segments <= MAX_SEGMENTS
    }

    /// How many requests there is a place for.
    #[inline]
    pub(super) fn free_places(&self) -> usize {
        self.heads.len().saturating_sub(self.in_flight as usize)
    }

    /// The request in `place`.
    #[inline]
    pub(super) fn get_mut(&mut self, place: u16) -> Option<&mut Head> {
        self.heads.get_mut(usize::from(place))
    }

    /// Takes the next chain into a free place, of which there must be one; returns that, and how many
    /// bytes the chain has.
    #[inline]
    pub(super) fn take(
        &mut self,
        vring: &mut Vring,
        now_ns: u64,
    ) -> Option<(u16, Result<(), ChainFault>, u64)> {
        if self.segments > MAX_SEGMENTS {
            return None;
        }
        let (descriptor, place, head) = take_place(&mut self.heads, &mut self.spread, vring)?;
        head.taken_ns = now_ns;
        self.in_flight += 1;
        let chain = vring.read_chain(descriptor, &mut head.buffers);
        head.note_segments(&mut self.segments);
        Some((place, chain, bytes_of(&head.buffers)))
    }

    /// As [`take`](Self::take), where there is room; its buffers are `lent`.
    #[inline]
    pub(super) fn take_lent(
        &mut self,
        vring: &mut Vring,
        now_ns: u64,
        lent: &mut Buffers,
    ) -> Option<(u16, Result<(), ChainFault>, u64)> {
        let (descriptor, place, head) = take_place(&mut self.heads, &mut self.spread, vring)?;
        head.taken_ns = now_ns;
        self.in_flight += 1;
        let chain = vring.read_chain(descriptor, lent);
        Some((place, chain, bytes_of(lent)))
    }

    /// Takes the buffers of the request in `place` from who has served it without the vring.
    pub(super) fn take_back(&mut self, place: u16, lent: &mut Lent) {
        if let Some(head) = self.heads.get_mut(usize::from(place)) {
            lent.exchange(&mut head.buffers);
            head.note_segments(&mut self.segments);
        }
    }

    /// Frees a place that no I/O needs; returns its descriptor head, and when it was taken.
    #[inline]
    pub(super) fn give_back(&mut self, place: u16) -> Option<(u16, u64)> {
        let head = self.heads.get_mut(usize::from(place))?;
        if head.pending != 0 {
            return None;
        }
        let descriptor = head.descriptor.take()?;
        let taken_ns = head.taken_ns;
        head.buffers.release();
        if self.segments > KEPT_SEGMENTS {
            head.buffers = Buffers::default();
            head.note_segments(&mut self.segments);
        }
        self.free(descriptor, place);
        Some((descriptor, taken_ns))
    }

    /// As [`give_back`](Self::give_back), for a request whose buffers were lent all the time.
    #[inline]
    pub(super) fn give_back_lent(&mut self, place: u16) -> Option<(u16, u64)> {
        let head = self.heads.get_mut(usize::from(place))?;
        if head.pending != 0 {
            return None;
        }
        let descriptor = head.descriptor.take()?;
        let taken_ns = head.taken_ns;
        self.free(descriptor, place);
        Some((descriptor, taken_ns))
    }

    #[inline]
    fn free(&mut self, descriptor: u16, place: u16) {
        if let Some(spread) = &mut self.spread {
            spread.give_back(descriptor, place);
        }
        self.in_flight -= 1;
    }
}

/// The next descriptor head, and the place that its request has.
#[inline]
fn take_place<'h>(
    heads: &'h mut [Head],
    spread: &mut Option<Spread>,
    vring: &mut Vring,
) -> Option<(u16, u16, &'h mut Head)> {
    let descriptor = vring.next_head()?;
    let place = match spread {
        None => Some(descriptor),
        Some(spread) => spread.take(descriptor),
    };
    // The ring has checked the head against its size.
    let head = place.and_then(|place| heads.get_mut(usize::from(place)));
    let (
        Some(place),
        Some(
            head @ Head {
                descriptor: None, ..
            },
        ),
    ) = (place, head)
    else {
        vring.break_ring(RingError::HeadInFlight { head: descriptor });
        return None;
    };
    head.descriptor = Some(descriptor);
    Some((descriptor, place, head))
}

#[inline]
fn bytes_of(chain: &Buffers) -> u64 {
    chain.readable_bytes() + chain.writable_bytes()
}

impl Head {
    /// Counts what its buffers have room for in `all`.
    #[inline]
    fn note_segments(&mut self, all: &mut usize) {
        let segments = self.buffers.held_segments();
        if segments != self.segments {
            *all = *all - self.segments + segments;
            self.segments = segments;
        }
    }
}

impl Spread {
    /// A place for a descriptor head, if that has none yet.
    fn take(&mut self, descriptor: u16) -> Option<u16> {
        let word = self.busy.get_mut(usize::from(descriptor / 64))?;
        let bit = 1 << (descriptor % 64);
        if *word & bit != 0 {
            return None;
        }
        let place = self.free.pop()?;
        *word |= bit;
        Some(place)
    }

    fn give_back(&mut self, descriptor: u16, place: u16) {
        if let Some(word) = self.busy.get_mut(usize::from(descriptor / 64)) {
            *word &= !(1 << (descriptor % 64));
        }
        self.free.push(place);
    }
}
