// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the data side of a device is, and what it gets to work with.

use std::sync::Arc;
use std::{fmt, io};

use rustix::time::{ClockId, clock_gettime};

use super::vring::Vring;
use crate::io::{IoQueue, WatchId};
use crate::num::unsigned;

/// The data side of a device, on one data thread: made there and owned by it, so that it needs no
/// lock. It may serve the vrings of several devices that belong together.
pub trait DeviceWorker {
    /// What the control side knows of a vring when it starts.
    type Seed: fmt::Debug + Send + 'static;
    /// What the device keeps for a started vring.
    type Queue;
    /// What an errand brings to whoever owns the vrings by then.
    type Brought: fmt::Debug + Send + 'static;

    /// A vring has started.
    fn start_queue(&mut self, seed: Self::Seed, vring: &Vring) -> Self::Queue;

    /// The vring has its place among the others.
    ///
    /// # Errors
    /// When what it needs cannot be had; the front-end is turned away.
    fn started(&mut self, _turn: &mut Turn<'_, Self::Queue>, _slot: usize) -> io::Result<()> {
        Ok(())
    }

    /// The vring is about to move, to get other memory, or to stop: whatever was taken from it and
    /// is not in flight is to be made available again.
    fn release(&mut self, _turn: &mut Turn<'_, Self::Queue>, _slot: usize) {}

    /// The vring has moved, or has another memory table.
    fn moved(&mut self, _turn: &mut Turn<'_, Self::Queue>, _slot: usize) {}

    /// The vring is to stop once nothing is in flight: what might be for ever is to be ended.
    fn stopping(&mut self, _turn: &mut Turn<'_, Self::Queue>, _slot: usize) {}

    /// The vring was enabled or disabled.
    fn enabled(&mut self, _turn: &mut Turn<'_, Self::Queue>, _slot: usize) {}

    /// The vring leaves; it was [`release`](Self::release)d, and nothing is in flight.
    fn stopped(&mut self, _turn: &mut Turn<'_, Self::Queue>, _slot: usize) {}

    /// Moves a bounded amount of what there is to move; returns whether there was anything.
    fn turn(&mut self, turn: &mut Turn<'_, Self::Queue>) -> bool;

    /// Whether an errand is to be run before anything else, which is taken for that: work for which
    /// the thread leaves its vrings behind, as it may have to wait in it for somebody who never comes.
    /// If it stays away for long, another thread takes the vrings.
    #[inline]
    fn next_errand(&mut self, _turn: &mut Turn<'_, Self::Queue>) -> bool {
        false
    }

    /// Runs it.
    #[inline]
    fn run_errand(&mut self) {}

    /// The errand is over, and the vrings are here; goes on with the turn that it was begun in.
    #[inline]
    fn back(&mut self, _turn: &mut Turn<'_, Self::Queue>) {}

    /// The errand is over, and the vrings have another thread: what that is to be given.
    fn take_brought(&mut self) -> Option<Self::Brought> {
        None
    }

    /// The thread that had the vrings before has ended its errand.
    fn brought(&mut self, _turn: &mut Turn<'_, Self::Queue>, _brought: Self::Brought) {}

    /// For those who look after this thread while it is on an errand; none if there are no errands.
    fn while_away(&self) -> Option<Arc<dyn WhileAway>> {
        None
    }

    /// Whether a [`turn`](Self::turn) would move anything.
    fn has_work(&mut self, turn: &mut Turn<'_, Self::Queue>) -> bool;

    /// Whether a kick of the driver would be news.
    fn wants_kicks(&self, io: &IoQueue, queue: &Self::Queue, vring: &Vring) -> bool;

    /// Chains taken from the vring that will be given back by themselves.
    fn in_flight(&self, _queue: &Self::Queue) -> u32 {
        0
    }

    /// How many of those in flight wait for somebody, maybe for ever, and for no I/O: a pause does
    /// not wait for them.
    fn parked(&self, _queue: &Self::Queue) -> u32 {
        0
    }

    /// I/O is done: bytes, or a negative errno.
    fn io_done(&mut self, _turn: &mut Turn<'_, Self::Queue>, _token: u64, _result: i32) {}

    /// A descriptor of the device's own has become ready.
    fn ready(&mut self, _turn: &mut Turn<'_, Self::Queue>, _watch: WatchId) {}

    /// When there will be work without an event, on the monotonic clock.
    fn deadline_ns(&self) -> Option<u64> {
        None
    }
}

/// What others ask and do about a thread that is on an errand. It may be back by then.
pub trait WhileAway: fmt::Debug + Send + Sync {
    /// Whether it waits for something else than a processor, as far as can be told.
    fn waits(&self) -> bool;

    /// Another thread has its vrings.
    fn relieved(&self);
}

/// A started vring, and what the device keeps for it.
#[derive(Debug)]
pub struct Place<Q> {
    /// The vring.
    pub vring: Vring,
    /// The device's part.
    pub queue: Q,
}

/// The vrings of one data thread, each in a slot of its own from start to stop.
#[derive(Debug)]
pub struct Vrings<Q>(Vec<Option<Box<Place<Q>>>>);

impl<Q> Default for Vrings<Q> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<Q> Vrings<Q> {
    /// Slots, empty ones included.
    #[must_use]
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a bound of slots, not a count")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The vring in `slot`.
    #[must_use]
    #[inline]
    pub fn get(&self, slot: usize) -> Option<&Place<Q>> {
        self.0.get(slot)?.as_deref()
    }

    /// The vring in `slot`.
    #[must_use]
    #[inline]
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Place<Q>> {
        self.0.get_mut(slot)?.as_deref_mut()
    }

    /// All vrings.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Place<Q>> {
        self.0.iter().filter_map(Option::as_deref)
    }

    /// All vrings.
    #[inline]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Place<Q>> {
        self.0.iter_mut().filter_map(Option::as_deref_mut)
    }

    pub(crate) fn insert(&mut self, place: Place<Q>) -> usize {
        let place = Some(Box::new(place));
        if let Some(slot) = self.0.iter().position(Option::is_none) {
            if let Some(free) = self.0.get_mut(slot) {
                *free = place;
            }
            return slot;
        }
        self.0.push(place);
        self.0.len() - 1
    }

    pub(crate) fn remove(&mut self, slot: usize) -> Option<Place<Q>> {
        self.0.get_mut(slot)?.take().map(|place| *place)
    }
}

/// What one turn of a data thread works with.
#[derive(Debug)]
pub struct Turn<'a, Q> {
    /// The vrings of the thread.
    pub vrings: &'a mut Vrings<Q>,
    /// Its I/O and events.
    pub io: &'a mut IoQueue,
    pub(crate) now_ns: &'a mut u64,
}

impl<Q> Turn<'_, Q> {
    /// The monotonic clock as last read.
    #[must_use]
    #[inline]
    pub fn now_ns(&self) -> u64 {
        *self.now_ns
    }

    /// Reads the clock.
    #[inline]
    pub fn tick(&mut self) -> u64 {
        *self.now_ns = monotonic_ns();
        *self.now_ns
    }
}

/// The monotonic clock.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = unsigned(now.tv_sec);
    let nanos = unsigned(now.tv_nsec);
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos)
}
