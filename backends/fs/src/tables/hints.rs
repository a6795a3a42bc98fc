// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guesses of which node a name leads to.
//!
//! A guess saves system calls and proves nothing: the caller checks it against the host.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::name::Name;
use ringside_common::num::usize_of;

/// Names there is room for; one takes the place of another.
const NAMES: usize = 1 << 16;

/// Where names led last.
#[derive(Debug)]
pub struct Hints {
    nodes: Box<[AtomicU64]>,
    /// Seeded at random: the guest, who chooses names, must not know which share a place.
    state: foldhash::fast::RandomState,
}

impl Default for Hints {
    fn default() -> Self {
        Self {
            nodes: (0..NAMES).map(|_| AtomicU64::new(0)).collect(),
            state: foldhash::fast::RandomState::default(),
        }
    }
}

impl Hints {
    /// The node that `name` in `parent` may lead to.
    #[inline]
    pub fn get(&self, parent: u64, name: Name<'_>) -> Option<u64> {
        let node = self.place(parent, name)?.load(Ordering::Relaxed);
        (node != 0).then_some(node)
    }

    /// `name` in `parent` led to `node`.
    #[inline]
    pub fn set(&self, parent: u64, name: Name<'_>, node: u64) {
        if let Some(place) = self.place(parent, name)
            && place.load(Ordering::Relaxed) != node
        {
            place.store(node, Ordering::Relaxed);
        }
    }

    #[inline]
    fn place(&self, parent: u64, name: Name<'_>) -> Option<&AtomicU64> {
        let hash = self.state.hash_one((parent, name.to_bytes()));
        let at = usize_of(hash % NAMES as u64);
        self.nodes.get(at)
    }
}
