// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The descriptors that a guest may have us keep.
//!
//! One number for all of them: for nodes that are found by their descriptor alone, and for files
//! and directories that are open. Each kind may have what the other does not need, but for a floor,
//! so that with many known something can be opened, and with many open something can be found. Of
//! the last ones, files leave some to directories, so that there is a way to list and to remove.
//! Descriptors that nodes could do without are kept in what is free.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Errno, Result};
use ringside_common::num::usize_of;

/// The part of all that is kept for each kind.
const FLOOR: usize = 16;
/// The part of all that open files leave to directories, and the most of that.
const FILES_LEAVE: usize = 32;
const FILES_LEAVE_MAX: usize = 64;

/// What a descriptor is wanted for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum For {
    /// A node that is found by nothing else.
    Node,
    /// An open file.
    File,
    /// An open directory.
    Directory,
}

/// The descriptors there are, and how many are taken.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    /// Those of nodes in the lower half, those of what is open in the upper one.
    taken: AtomicU64,
    /// A line of the log has said that there are no more.
    told: AtomicBool,
}

/// One that is open.
const ONE_OPEN: u64 = 1 << 32;

impl Budget {
    /// Room for `max`.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            // More than any kernel has.
            max: max.min(1 << 31),
            taken: AtomicU64::new(0),
            told: AtomicBool::new(false),
        }
    }

    /// How many are not taken.
    #[inline]
    pub fn free(&self) -> usize {
        let (nodes, open) = split(self.taken.load(Ordering::Relaxed));
        self.max.saturating_sub(nodes + open)
    }

    /// How many nodes have one.
    #[cfg(test)]
    pub(super) fn nodes(&self) -> usize {
        split(self.taken.load(Ordering::Relaxed)).0
    }

    /// Takes one.
    ///
    /// # Errors
    /// ENFILE when there is none for such.
    pub fn take(&self, whom: For) -> Result<()> {
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                self.has_room(taken, whom).then(|| taken + unit(whom))
            });
        let Err(taken) = taken else {
            return Ok(());
        };
        // A guest can bring that about as often as it likes.
        if !self.told.swap(true, Ordering::Relaxed) {
            let (nodes, open) = split(taken);
            log::warn!(
                "the guest has {open} files open and knows {nodes} by a descriptor, which is all \
                 there is room for; see --rlimit-nofile (said once)"
            );
        }
        Err(Errno::NFILE)
    }

    /// Counts the descriptor of one more node, whether there is room or not.
    pub(super) fn add_node(&self) {
        self.taken.fetch_add(unit(For::Node), Ordering::Relaxed);
    }

    fn has_room(&self, taken: u64, whom: For) -> bool {
        let (nodes, open) = split(taken);
        let floor = self.max / FLOOR;
        match whom {
            For::Node => nodes + open.max(floor) < self.max,
            For::File => {
                let left = (self.max / FILES_LEAVE).min(FILES_LEAVE_MAX);
                open + nodes.max(floor) + left < self.max
            }
            For::Directory => open + nodes.max(floor) < self.max,
        }
    }

    /// Gives one back.
    pub fn give_back(&self, whom: For) {
        self.taken.fetch_sub(unit(whom), Ordering::Relaxed);
    }
}

fn unit(whom: For) -> u64 {
    match whom {
        For::Node => 1,
        For::File | For::Directory => ONE_OPEN,
    }
}

/// Those of nodes, and those of what is open.
fn split(taken: u64) -> (usize, usize) {
    (usize_of(taken % ONE_OPEN), usize_of(taken / ONE_OPEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f6_6_budget_lends_all_but_the_floors_to_whoever_comes() {
        let take_all = |budget: &Budget, whom| {
            let mut taken = 0;
            while budget.take(whom).is_ok() {
                taken += 1;
            }
            taken
        };
        let budget = Budget::new(320);
        assert_eq!(take_all(&budget, For::Node), 300);
        assert_eq!(take_all(&budget, For::File), 10);
        assert_eq!(take_all(&budget, For::Directory), 10);
        assert_eq!(budget.free(), 0);
        for _ in 0..300 {
            budget.give_back(For::Node);
        }
        assert_eq!(take_all(&budget, For::File), 270);
        assert_eq!(take_all(&budget, For::Directory), 10);
        assert_eq!(take_all(&budget, For::Node), 20);
        assert_eq!(budget.free(), 0);
    }
}
