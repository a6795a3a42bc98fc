// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens when the file behind guest memory is truncated under its mapping.
//!
//! An access past the new end raises SIGBUS, and a front-end must not be able to end the process
//! that way: it may serve other front-ends, and it holds the locks of an image. The handler puts
//! a page of zeroes where the fault was, marks the region torn and wakes the control thread,
//! which closes the connection. Inside the kernel (a read or write of a request) the same
//! truncation is an EFAULT and fails just that request.
//!
//! A page is what the kernel maps the file in: the whole huge page in a file on `hugetlbfs`, and
//! elsewhere a page of the machine. What takes its place are ordinary pages. A SIGBUS at any other
//! address is a fault of ours: the default action ends the process.
//!
//! Every mapped region is watched: the table grows. It never shrinks, and the handler reads it without
//! a lock. What grows it has a mapping for each slot, and those are few (`vm.max_map_count`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Slots that are made at a time; a session has up to 509 regions.
const CHUNK_SLOTS: usize = 512;

/// One watched address range. A fault is rare: a scan is fine.
struct Slot {
    start: AtomicUsize,
    len_bytes: AtomicUsize,
    page_bytes: AtomicUsize,
    torn: AtomicBool,
}

/// A part of the table, and the way to the next.
struct Chunk {
    slots: [Slot; CHUNK_SLOTS],
    next: OnceLock<Box<Chunk>>,
}

static TABLE: Chunk = Chunk::new();

impl Chunk {
    const fn new() -> Self {
        Self {
            slots: [const {
                Slot {
                    start: AtomicUsize::new(0),
                    len_bytes: AtomicUsize::new(0),
                    page_bytes: AtomicUsize::new(0),
                    torn: AtomicBool::new(false),
                }
            }; CHUNK_SLOTS],
            next: OnceLock::new(),
        }
    }
}

/// All slots there are. Async-signal-safe: `OnceLock::get` is a load.
fn slots() -> impl Iterator<Item = &'static Slot> {
    std::iter::successors(Some(&TABLE), |chunk| chunk.next.get().map(Box::as_ref))
        .flat_map(|chunk| &chunk.slots)
}

/// A slot that nobody has, now taken for `start`. Makes one where there is none.
fn take(start: usize) -> &'static Slot {
    let mut chunk = &TABLE;
    loop {
        let free = chunk.slots.iter().find(|slot| {
            slot.start
                .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        if let Some(slot) = free {
            return slot;
        }
        chunk = chunk.next.get_or_init(|| Box::new(Chunk::new()));
    }
}

/// Keeps an address range in the table of the handler.
pub struct Guard {
    slot: &'static Slot,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("torn", &self.is_torn())
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// Watches `len_bytes` from `start`, mapped in pages of `page_bytes`.
    #[must_use]
    pub fn new(start: usize, len_bytes: usize, page_bytes: usize) -> Self {
        let slot = take(start);
        slot.torn.store(false, Ordering::Relaxed);
        slot.page_bytes.store(page_bytes, Ordering::Relaxed);
        slot.len_bytes.store(len_bytes, Ordering::Release);
        Self { slot }
    }

    /// Whether a fault was patched in this range.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.slot.torn.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.len_bytes.store(0, Ordering::Release);
        self.slot.start.store(0, Ordering::Release);
    }
}

/// Marks the range that holds `address` as torn; returns the size of its pages, one of which is then
/// to be patched.
fn mark_torn(address: usize) -> Option<usize> {
    let slot = slots().find(|slot| {
        let offset = address.wrapping_sub(slot.start.load(Ordering::Acquire));
        offset < slot.len_bytes.load(Ordering::Acquire)
    })?;
    slot.torn.store(true, Ordering::Release);
    Some(slot.page_bytes.load(Ordering::Relaxed))
}

/// Whether the SIGBUS at `address` was in guest memory and has been dealt with.
///
/// Async-signal-safe: atomics and one system call.
pub(crate) fn repair(address: usize) -> bool {
    mark_torn(address).is_some_and(|page_bytes| crate::sys::patch_page(address, page_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_covers_its_range_and_nothing_else() {
        let guard = Guard::new(0x7000_0000, 0x1000, 0x1000);
        assert_eq!(mark_torn(0x7000_1000), None);
        assert!(!guard.is_torn());
        assert_eq!(mark_torn(0x7000_0fff), Some(0x1000));
        assert!(guard.is_torn());
        drop(guard);
        assert_eq!(mark_torn(0x7000_0fff), None);
    }

    #[test]
    fn f1_3_more_ranges_than_a_chunk_has_slots_are_all_watched() {
        const FIRST: usize = 0x10_0000_0000;
        let guards: Vec<_> = (0..3 * CHUNK_SLOTS)
            .map(|n| Guard::new(FIRST + n * 0x2000, 0x1000, 0x1000))
            .collect();
        for (n, guard) in guards.iter().enumerate() {
            assert!(!guard.is_torn());
            assert_eq!(mark_torn(FIRST + n * 0x2000 + 0xfff), Some(0x1000));
            assert!(guard.is_torn());
        }
        let made = slots().count();
        drop(guards);
        let again = Guard::new(FIRST, 0x1000, 0x1000);
        assert_eq!(slots().count(), made, "slots are used again");
        drop(again);
    }
}
