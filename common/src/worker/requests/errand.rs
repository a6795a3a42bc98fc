// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that are served without their vring, one after the other.

use super::credit::{Credit, QUANTUM_BYTES, least_cost};
use super::cx::{self, Counted, RequestCx};
use super::{RequestQueue, RequestWorker, Requests, has_work};
use crate::chain::ChainFault;
use crate::device::{Place, Turn, monotonic_ns};
use crate::io::IoQueue;
use crate::memory::{Buffers, Lent};

/// What an errand brings.
#[derive(Debug)]
pub enum Brought<L> {
    /// The reply is written: its bytes, and what is counted.
    Replied(u32, Counted),
    /// There is more to do.
    Later(L),
}

/// A request that is served without its vring.
#[derive(Debug)]
pub struct Errand<L> {
    pub(super) slot: usize,
    pub(super) head: u16,
    pub(super) chain: Result<(), ChainFault>,
    pub(super) buffers: Lent,
    /// Once it was run. A reply stays here until the next errand was run.
    pub(super) brought: Option<Brought<L>>,
}

impl<L> Default for Errand<L> {
    fn default() -> Self {
        Self {
            slot: 0,
            head: 0,
            chain: Ok(()),
            buffers: Lent::new(Buffers::default()),
            brought: None,
        }
    }
}

impl<W: RequestWorker> Requests<W> {
    /// Begins a turn of errands with the vring that is first in it, as [`rounds`](Self::rounds) would.
    /// None, with nothing done, where that has nothing to begin with, and others may have.
    #[inline]
    pub(super) fn begin(&mut self, turn: &mut Turn<'_, RequestQueue<W::Queue>>) -> Option<bool> {
        if self.next >= turn.vrings.len() {
            self.next = 0;
        }
        let (slot, alone) = (self.next, turn.vrings.len() == 1);
        let place = turn.vrings.get_mut(slot)?;
        if !has_work(place) {
            return alone.then_some(false);
        }
        let credit = &mut place.queue.credit;
        if !credit.is_left() {
            let mut granted = if alone { Credit::FULL } else { *credit };
            granted.add(QUANTUM_BYTES);
            if !granted.is_left() {
                return None;
            }
            *credit = granted;
        }
        *turn.now_ns = monotonic_ns();
        self.errand.slot = slot;
        self.is_due = true;
        Some(true)
    }

    /// Takes a chain from the vring whose errand is due, and makes that of it.
    #[inline]
    pub(super) fn take_errand(&mut self, turn: &mut Turn<'_, RequestQueue<W::Queue>>) -> bool {
        let (slot, now_ns) = (self.errand.slot, turn.now_ns());
        let Some(Place { vring, queue }) = turn.vrings.get_mut(slot) else {
            return false;
        };
        // For a ring that breaks now.
        self.next = slot + 1;
        let lent = self.errand.buffers.owned();
        let Some((head, chain, bytes)) = queue.heads.take_lent(vring, now_ns, lent) else {
            return false;
        };
        queue.credit.pay(bytes, const { least_cost(W::BUDGET) });
        if queue.credit.is_left() {
            self.next = slot;
        }
        self.errand.head = head;
        self.errand.chain = chain;
        self.has_errand = true;
        vring.stats.add_chains(1);
        true
    }
}

/// Answers a request with what its errand has brought, or has the device go on with it.
#[inline]
pub(super) fn give<W: RequestWorker>(
    worker: &mut W,
    errand: &mut Errand<W::Later>,
    place: &mut Place<RequestQueue<W::Queue>>,
    io: &mut IoQueue,
    now_ns: u64,
) {
    let Some(Brought::Replied(used_bytes, counted)) = errand.brought else {
        return go_on(worker, errand, place, io, now_ns);
    };
    errand.buffers.owned().release();
    let Place { vring, queue } = place;
    let given_back = queue.heads.give_back_lent(errand.head);
    cx::answer(vring, errand.head, given_back, now_ns, used_bytes, counted);
}

/// Has the device go on with a request. Its buffers become the request's own.
#[cold]
fn go_on<W: RequestWorker>(
    worker: &mut W,
    errand: &mut Errand<W::Later>,
    place: &mut Place<RequestQueue<W::Queue>>,
    io: &mut IoQueue,
    now_ns: u64,
) {
    let Some(Brought::Later(later)) = errand.brought.take() else {
        return;
    };
    let heads = &mut place.queue.heads;
    heads.take_back(errand.head, &mut errand.buffers);
    errand.buffers.owned().release();
    let mut cx = RequestCx {
        vring: &mut place.vring,
        heads,
        io,
        slot: u16::try_from(errand.slot).unwrap_or(u16::MAX),
        now_ns,
    };
    worker.go_on(&mut place.queue.state, &mut cx, errand.head, later);
}
