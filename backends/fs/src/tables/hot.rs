// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which nodes have a descriptor beside their file handle.
//!
//! A clock: a ring of nodes and a hand that goes round. A node that was not used since it
//! last came by loses its descriptor to the next node in need. It runs only when a descriptor is
//! opened.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::node::{Cooled, Node};
use super::slab::Slab;
use ringside_common::num::usize_of;

/// Clocks, so that threads seldom meet.
const CLOCKS: usize = 16;

/// The clocks.
#[derive(Debug)]
pub struct Hot {
    clocks: [Mutex<Clock>; CLOCKS],
    per_clock: usize,
    /// Places in all rings.
    places: AtomicUsize,
    /// The hand: the node that gives up its place next.
    next: AtomicUsize,
    /// A node had to give up its place.
    full: AtomicBool,
}

#[derive(Debug, Default)]
struct Clock {
    ring: Vec<u64>,
    hand: usize,
}

impl Hot {
    /// Room for `nodes` with a descriptor.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            clocks: std::array::from_fn(|_| Mutex::default()),
            per_clock: (nodes / CLOCKS).max(1),
            places: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            full: AtomicBool::new(false),
        }
    }

    /// Nodes there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.per_clock * CLOCKS
    }

    /// Whether a node that gets a descriptor takes it from another one.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// `node` has got a descriptor; another node may lose its own, if there are `free` in all or
    /// less.
    pub fn add(&self, node: u64, free: usize, nodes: &Slab<Node>) {
        let at = usize_of(node % CLOCKS as u64);
        let Some(clock) = self.clocks.get(at) else {
            return;
        };
        let mut cooled = None;
        let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.ring.len() >= self.per_clock.min((free / CLOCKS).max(1)) {
            self.full.store(true, Ordering::Relaxed);
            cooled = clock.take(nodes);
            if cooled.is_some() {
                self.places.fetch_sub(1, Ordering::Relaxed);
            }
        }
        clock.ring.push(node);
        self.places.fetch_add(1, Ordering::Relaxed);
        drop(clock);
        drop(cooled);
    }

    /// Takes descriptors away until there are no more than `most`, or those left are in use.
    #[inline]
    pub fn keep_at_most(&self, most: usize, nodes: &Slab<Node>) {
        // One comes at a time; two go.
        for _ in 0..2 {
            if self.places.load(Ordering::Relaxed) <= most.max(CLOCKS) {
                return;
            }
            self.give_up(nodes);
        }
    }

    #[cold]
    fn give_up(&self, nodes: &Slab<Node>) {
        self.full.store(true, Ordering::Relaxed);
        for _ in 0..CLOCKS {
            let at = self.next.fetch_add(1, Ordering::Relaxed) % CLOCKS;
            let Some(clock) = self.clocks.get(at) else {
                return;
            };
            let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
            let cooled = clock.take(nodes);
            drop(clock);
            if cooled.is_some() {
                self.places.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Takes descriptors away from some of those that were not used lately.
    pub fn shrink(&self, nodes: &Slab<Node>) {
        for clock in &self.clocks {
            let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
            let tries = clock.ring.len().div_ceil(4);
            let cooled: Vec<_> = (0..tries).filter_map(|_| clock.take(nodes)).collect();
            drop(clock);
            self.places.fetch_sub(cooled.len(), Ordering::Relaxed);
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        for clock in &self.clocks {
            let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
            self.places.fetch_sub(clock.ring.len(), Ordering::Relaxed);
            *clock = Clock::default();
        }
        self.full.store(false, Ordering::Relaxed);
    }
}

impl Clock {
    /// Takes the first node that the hand finds idle or gone out of the ring; none when all are
    /// used at this moment: there are more than there should be then, for a while. What it had is
    /// to be dropped when the clock is unlocked.
    fn take(&mut self, nodes: &Slab<Node>) -> Option<Cooled> {
        // Twice round: the first time takes the mark of use from all.
        for _ in 0..=2 * self.ring.len() {
            self.hand = (self.hand + 1) % self.ring.len().max(1);
            let place = self.ring.get(self.hand)?;
            let cooled = match nodes.get(*place) {
                Some(node) if !node.is_idle() => continue,
                Some(node) => node.cool(),
                None => Cooled::default(),
            };
            self.ring.swap_remove(self.hand);
            return Some(cooled);
        }
        None
    }
}
