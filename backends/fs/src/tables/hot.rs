// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which nodes have a descriptor beside their file handle.
//!
//! A clock: a ring of nodes and a hand that goes round. Whoever was not used since it last came by
//! loses his descriptor to the next one in need. It runs only when a descriptor is opened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::node::Node;
use super::slab::Slab;

/// Clocks, so that threads seldom meet.
const CLOCKS: usize = 16;

/// The clocks.
#[derive(Debug)]
pub struct Hot {
    clocks: [Mutex<Clock>; CLOCKS],
    per_clock: usize,
    /// Somebody had to give way.
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

    /// `node` has got a descriptor; another one may lose his.
    pub fn add(&self, node: u64, nodes: &Slab<Node>) {
        let at = usize::try_from(node % CLOCKS as u64).unwrap_or(0);
        let Some(clock) = self.clocks.get(at) else {
            return;
        };
        let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.ring.len() < self.per_clock {
            clock.ring.push(node);
        } else {
            self.full.store(true, Ordering::Relaxed);
            clock.replace(node, nodes);
        }
    }

    /// Takes descriptors away from some of those that were not used lately.
    pub fn shrink(&self, nodes: &Slab<Node>) {
        for clock in &self.clocks {
            let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
            for _ in 0..clock.ring.len().div_ceil(4) {
                clock.replace(0, nodes);
            }
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        for clock in &self.clocks {
            *clock.lock().unwrap_or_else(PoisonError::into_inner) = Clock::default();
        }
        self.full.store(false, Ordering::Relaxed);
    }
}

impl Clock {
    /// Puts `new` in the place of the first node that the hand finds idle or gone.
    fn replace(&mut self, new: u64, nodes: &Slab<Node>) {
        // Twice round: the first time takes the mark of use from all.
        for _ in 0..=2 * self.ring.len() {
            self.hand = (self.hand + 1) % self.ring.len().max(1);
            let Some(place) = self.ring.get_mut(self.hand) else {
                return;
            };
            match nodes.get(*place) {
                Some(node) if !node.is_idle() => {}
                Some(node) => {
                    node.cool();
                    *place = new;
                    return;
                }
                None => {
                    *place = new;
                    return;
                }
            }
        }
        // All are used at this moment: more than there should be, for a while.
        self.ring.push(new);
    }
}
