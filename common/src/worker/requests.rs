// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices whose work is requests: a chain comes, is served and answered.
//!
//! [`Requests`] takes chains as they come, keeps the buffers of each until it is answered, and
//! bounds how many chains and bytes one vring may have served before the next has its turn
//! ([`credit`]). The device is a [`RequestWorker`]: it gets a checked chain and answers it, at once
//! or when the I/O it started is done.
//!
//! A device whose requests may have to wait for the host while they are served does that by an
//! errand ([`RequestWorker::errand`]): the buffers are lent to it, and what it brings is the answer.
//!
//! Rings may be of any legal size. What is held for one is bounded all the same ([`heads`]), and what
//! is beyond waits in the ring. So a request is known by its place, not by its descriptor head.

mod credit;
mod cx;
mod errand;
mod heads;

use std::fmt;
use std::sync::Arc;

use crate::chain::ChainFault;
use crate::device::{DeviceWorker, Place, Turn, Vring, WhileAway, monotonic_ns};
use crate::io::IoQueue;
use crate::memory::Lent;
use credit::{Credit, QUANTUM_BYTES, least_cost};
use cx::Token;
pub use cx::{Counted, RequestCx};
pub use errand::Brought;
use errand::{Errand, give};
use heads::Heads;

/// The data side of a device that serves requests, on one data thread.
///
/// `head` is the place of a request among those of its vring that are in flight.
pub trait RequestWorker {
    /// Chains taken from one vring before the driver is told what was done, and the next vring has
    /// its turn: enough for a batch to pay, few enough that the others wait for microseconds. Fewer
    /// where a chain is served while it is taken: the driver works on the last ones meanwhile.
    const BUDGET: usize = 64;

    /// Whether requests are served by [`errand`](Self::errand), and not by
    /// [`request`](Self::request).
    const ERRANDS: bool = false;

    /// What the device keeps for one started vring.
    type Queue;
    /// What is left to do of a request when its errand is over.
    type Later: fmt::Debug + Send + 'static;

    /// A vring has started; `size` requests of it may be in flight, in places below that.
    fn start_queue(&mut self, index: u16, size: u16) -> Self::Queue;

    /// A chain was taken from the vring. It must be answered, now or later, with
    /// [`RequestCx::complete`], whatever is wrong with it.
    fn request(
        &mut self,
        _queue: &mut Self::Queue,
        _cx: &mut RequestCx<'_>,
        _head: u16,
        _chain: Result<(), ChainFault>,
    ) {
    }

    /// A chain was taken: serves the request, as far as that can be done without the vring. Whoever
    /// has that by the end of it is given what is returned.
    ///
    /// Never called where [`ERRANDS`](Self::ERRANDS) is false.
    fn errand(
        &mut self,
        _buffers: &mut Lent,
        _chain: Result<(), ChainFault>,
    ) -> Brought<Self::Later> {
        Brought::Replied(0, Counted::new(0, 0, false))
    }

    /// The errand for `head`, maybe another thread's, has left something to do. The request must be
    /// answered, now or later, with [`RequestCx::complete`].
    fn go_on(
        &mut self,
        _queue: &mut Self::Queue,
        _cx: &mut RequestCx<'_>,
        _head: u16,
        _later: Self::Later,
    ) {
    }

    /// See [`DeviceWorker::while_away`].
    fn while_away(&self) -> Option<Arc<dyn WhileAway>> {
        None
    }

    /// I/O that was started for `head` is done: bytes, or a negative errno.
    fn io_done(
        &mut self,
        queue: &mut Self::Queue,
        cx: &mut RequestCx<'_>,
        head: u16,
        tag: u16,
        result: i32,
    );

    /// The vring that has just started was served before, by whatever back-end.
    fn took_over(&mut self, _queue: &mut Self::Queue) {}

    /// The vring is about to stop once its requests are answered: those that might wait for ever
    /// are to be answered now.
    fn stopping(&mut self, _queue: &mut Self::Queue) {}
}

/// Serves the requests of a [`RequestWorker`].
#[derive(Debug)]
pub struct Requests<W: RequestWorker> {
    worker: W,
    /// The slot of the vring that is first in the next turn: the one at which the last turn had to
    /// end, while it has credit left, or else the one behind it.
    next: usize,
    /// The errand to be run, if there is one. Its buffers become the request's when it has an end of
    /// its own.
    errand: Errand<W::Later>,
    /// It is under way.
    has_errand: bool,
    /// One is to be taken from the vring in its slot, which has work and credit.
    is_due: bool,
    /// Errands of this turn.
    errands: usize,
}

impl<W: RequestWorker> Requests<W> {
    /// Of a worker that has no vrings yet.
    pub fn new(worker: W) -> Self {
        Self {
            worker,
            next: 0,
            errand: Errand::default(),
            has_errand: false,
            is_due: false,
            errands: 0,
        }
    }
}

/// A vring's requests in flight, and what the device keeps for it.
#[derive(Debug)]
pub struct RequestQueue<Q> {
    heads: Heads,
    credit: Credit,
    state: Q,
}

impl<W: RequestWorker> DeviceWorker for Requests<W> {
    type Seed = ();
    type Queue = RequestQueue<W::Queue>;
    type Brought = Errand<W::Later>;

    fn start_queue(&mut self, (): (), vring: &Vring) -> Self::Queue {
        let heads = Heads::new(vring.size());
        let mut state = self.worker.start_queue(vring.index(), heads.places());
        if vring.was_served() {
            self.worker.took_over(&mut state);
        }
        RequestQueue {
            heads,
            credit: Credit::FULL,
            state,
        }
    }

    /// As much I/O as completions can be held for is the most there is; what is left waits in the
    /// rings.
    fn turn(&mut self, turn: &mut Turn<'_, Self::Queue>) -> bool {
        if !turn.io.may_start() {
            return self.has_work(turn);
        }
        if W::ERRANDS {
            self.errands = 0;
            return match self.begin(turn) {
                Some(served) => served,
                None => self.rounds(turn),
            };
        }
        if turn.vrings.len() == 1
            && let Some(place) = turn.vrings.get_mut(0)
        {
            return self.turn_alone(place, turn.io, turn.now_ns);
        }
        self.rounds(turn)
    }

    #[inline]
    fn next_errand(&mut self, turn: &mut Turn<'_, Self::Queue>) -> bool {
        W::ERRANDS && std::mem::take(&mut self.is_due) && self.take_errand(turn)
    }

    #[inline]
    fn run_errand(&mut self) {
        let Errand { buffers, chain, .. } = &mut self.errand;
        self.errand.brought = Some(self.worker.errand(buffers, *chain));
    }

    /// The vring goes on with its turn, if it has more and may.
    #[inline]
    fn back(&mut self, turn: &mut Turn<'_, Self::Queue>) {
        self.has_errand = false;
        let now_ns = turn.now_ns();
        let Some(place) = turn.vrings.get_mut(self.errand.slot) else {
            return;
        };
        give(&mut self.worker, &mut self.errand, place, turn.io, now_ns);
        self.errands += 1;
        if self.errands >= W::BUDGET || !place.queue.credit.is_left() {
            return;
        }
        if turn.io.may_start() && has_work(place) {
            self.is_due = true;
        } else {
            // The ring is empty.
            place.queue.credit = Credit::FULL;
        }
    }

    fn take_brought(&mut self) -> Option<Self::Brought> {
        std::mem::take(&mut self.has_errand).then(|| std::mem::take(&mut self.errand))
    }

    fn brought(&mut self, turn: &mut Turn<'_, Self::Queue>, mut errand: Self::Brought) {
        let now_ns = turn.now_ns();
        if let Some(place) = turn.vrings.get_mut(errand.slot) {
            give(&mut self.worker, &mut errand, place, turn.io, now_ns);
        }
        // By now these are this thread's own.
        drop(std::mem::take(errand.buffers.owned()));
    }

    fn while_away(&self) -> Option<Arc<dyn WhileAway>> {
        self.worker.while_away()
    }

    fn has_work(&mut self, turn: &mut Turn<'_, Self::Queue>) -> bool {
        turn.io.has_room(1) && turn.vrings.iter().any(has_work)
    }

    fn wants_kicks(&self, io: &IoQueue, queue: &Self::Queue, vring: &Vring) -> bool {
        io.has_room(1) && queue.heads.has_room() && vring.is_live()
    }

    fn stopping(&mut self, turn: &mut Turn<'_, Self::Queue>, slot: usize) {
        if let Some(place) = turn.vrings.get_mut(slot) {
            self.worker.stopping(&mut place.queue.state);
        }
    }

    fn in_flight(&self, queue: &Self::Queue) -> u32 {
        queue.heads.in_flight
    }

    fn parked(&self, queue: &Self::Queue) -> u32 {
        queue.heads.parked
    }

    fn io_done(&mut self, turn: &mut Turn<'_, Self::Queue>, token: u64, result: i32) {
        let Token { slot, head, tag } = Token::unpack(token);
        let now_ns = turn.now_ns();
        let Some(place) = turn.vrings.get_mut(usize::from(slot)) else {
            return;
        };
        let heads = &mut place.queue.heads;
        if let Some(slot) = heads.get_mut(head) {
            slot.pending = slot.pending.saturating_sub(1);
            if std::mem::take(&mut slot.parked) {
                heads.parked -= 1;
            }
        }
        let mut cx = RequestCx {
            vring: &mut place.vring,
            heads,
            io: turn.io,
            slot,
            now_ns,
        };
        self.worker
            .io_done(&mut place.queue.state, &mut cx, head, tag, result);
    }
}

impl<W: RequestWorker> Requests<W> {
    /// A turn of a vring that has nobody beside it: a budget, whatever it costs.
    #[inline]
    fn turn_alone(
        &mut self,
        place: &mut Place<RequestQueue<W::Queue>>,
        io: &mut IoQueue,
        now_ns: &mut u64,
    ) -> bool {
        if !has_work(place) {
            return false;
        }
        *now_ns = monotonic_ns();
        self.serve(place, io, 0, *now_ns, Share::Alone);
        place.queue.credit = Credit::FULL;
        true
    }

    /// Takes chains from every vring that has some, as its credit allows, until as much is started
    /// as may be in a turn; the next one goes on there.
    // Out of the way of turns that do without.
    #[inline(never)]
    fn rounds(&mut self, turn: &mut Turn<'_, RequestQueue<W::Queue>>) -> bool {
        let mut served = Served::default();
        let mut grant_bytes = QUANTUM_BYTES;
        loop {
            let before = served.chains;
            let round = self.round(turn, &mut served, grant_bytes);
            grant_bytes = match round {
                Round::Full => return true,
                // Nobody is in the way of those who wait: on with the round in which one need not.
                Round::Waiting { best_bytes } if served.chains == before => {
                    QUANTUM_BYTES - best_bytes.min(0)
                }
                Round::Waiting { .. } if served.chains < W::BUDGET => QUANTUM_BYTES,
                Round::Waiting { .. } => return true,
                Round::Over { in_debt } => {
                    if in_debt && !served.any {
                        forgive(turn);
                    }
                    return served.any;
                }
            };
            served.again = true;
        }
    }

    /// Each vring once, beginning with the `next`. One that has no credit gets `grant_bytes`.
    #[inline]
    fn round(
        &mut self,
        turn: &mut Turn<'_, RequestQueue<W::Queue>>,
        served: &mut Served,
        grant_bytes: i64,
    ) -> Round {
        let slots = turn.vrings.len();
        let mut best_bytes = None;
        let mut in_debt = false;
        if self.next >= slots {
            self.next = 0;
        }
        for slot in (self.next..slots).chain(0..self.next) {
            let Some(place) = turn.vrings.get_mut(slot) else {
                continue;
            };
            if !has_work(place) {
                in_debt |= !place.queue.credit.is_left();
                place.queue.credit.add(grant_bytes);
                continue;
            }
            if !place.queue.credit.is_left() {
                place.queue.credit.add(grant_bytes);
            }
            if place.queue.credit.is_left() {
                if !served.any {
                    *turn.now_ns = monotonic_ns();
                    served.any = true;
                }
                if W::ERRANDS {
                    self.errand.slot = slot;
                    self.is_due = true;
                    return Round::Full;
                }
                let most = if served.again {
                    W::BUDGET - served.chains
                } else {
                    W::BUDGET
                };
                served.chains += self.serve(place, turn.io, slot, *turn.now_ns, Share::UpTo(most));
            }
            let credit = &mut place.queue.credit;
            let full = !turn.io.may_start() || (served.again && served.chains >= W::BUDGET);
            if full {
                self.next = slot + usize::from(!credit.is_left());
                return Round::Full;
            }
            if credit.is_left() {
                // The ring is empty.
                *credit = Credit::FULL;
            } else {
                best_bytes = best_bytes.max(Some(credit.bytes()));
            }
        }
        match best_bytes {
            Some(best_bytes) => Round::Waiting { best_bytes },
            None => Round::Over { in_debt },
        }
    }

    /// Takes chains from a vring that [`has_work`] and may have one taken.
    // Once, so that the compiler puts all that is done for a chain into it.
    #[inline(never)]
    fn serve(
        &mut self,
        place: &mut Place<RequestQueue<W::Queue>>,
        io: &mut IoQueue,
        slot: usize,
        now_ns: u64,
        share: Share,
    ) -> usize {
        let (most, alone) = match share {
            Share::Alone => (W::BUDGET, true),
            Share::UpTo(most) => (most, false),
        };
        let least_cost = const { least_cost(W::BUDGET) };
        let slot = u16::try_from(slot).unwrap_or(u16::MAX);
        let mut credit = place.queue.credit;
        let most = most.min(place.queue.heads.free_places());
        let mut taken = 0;
        loop {
            let heads = &mut place.queue.heads;
            let Some((head, chain, bytes)) = heads.take(&mut place.vring, now_ns) else {
                break;
            };
            taken += 1;
            if !alone {
                credit.pay(bytes, least_cost);
            }
            let mut cx = RequestCx {
                vring: &mut place.vring,
                heads,
                io,
                slot,
                now_ns,
            };
            self.worker
                .request(&mut place.queue.state, &mut cx, head, chain);
            if taken >= most || (!alone && !credit.is_left()) || !io.may_start() {
                break;
            }
        }
        place.queue.credit = credit;
        place.vring.stats.add_chains(taken as u64);
        taken
    }
}

/// How many chains are taken from a vring.
#[derive(Clone, Copy, Debug)]
enum Share {
    /// A budget, whatever they cost: nobody waits beside it.
    Alone,
    /// Up to so many, as long as its credit pays for them.
    UpTo(usize),
}

/// What a turn has done so far.
#[derive(Debug, Default)]
struct Served {
    /// Somebody had chains and credit.
    any: bool,
    chains: usize,
    /// Every vring had its round; what follows is for those that are left, up to one budget.
    again: bool,
}

/// How a round has ended.
#[derive(Debug)]
enum Round {
    /// The turn has all it may have; the others are first in the next.
    Full,
    /// Some have work and no credit; the highest credit of them is this.
    Waiting { best_bytes: i64 },
    /// Nobody has work left. Whether a vring without work was in debt when it began.
    Over { in_debt: bool },
}

/// Nobody has waited for what was too much.
#[cold]
fn forgive<Q>(turn: &mut Turn<'_, RequestQueue<Q>>) {
    for place in turn.vrings.iter_mut() {
        place.queue.credit = Credit::FULL;
    }
}

/// Whether there is a chain to take, and a place for it.
#[inline]
fn has_work<Q>(place: &Place<RequestQueue<Q>>) -> bool {
    place.vring.has_work() && place.queue.heads.has_room()
}
