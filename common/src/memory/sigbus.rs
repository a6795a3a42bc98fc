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
//! Page by page, so that requests in flight have the rest of the region as it is. But a page in the
//! middle of a mapping makes three mappings of it, and a data thread can be led to thousands before
//! the session ends. So those patched one by one are bounded, and beyond the whole region is
//! patched at once.
//!
//! Every mapped region is watched: the table grows. It never shrinks, and the handler reads it
//! without a lock. What grows it has a mapping for each slot, and those are few
//! (`vm.max_map_count`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Slots that are made at a time; a session has up to 509 regions.
const CHUNK_SLOTS: usize = 512;

/// Pages that are patched one by one, of all ranges together: a small part of the mappings that a
/// process may have (`vm.max_map_count`, 65530).
const MAX_PATCHES: usize = 1024;

/// Those there are.
static PATCHES: AtomicUsize = AtomicUsize::new(0);

/// One watched address range. A fault is rare: a scan is fine.
struct Slot {
    start: AtomicUsize,
    len_bytes: AtomicUsize,
    page_bytes: AtomicUsize,
    /// Its part of [`PATCHES`].
    patches: AtomicUsize,
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
                    patches: AtomicUsize::new(0),
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

/// A slot that was free, now taken for `start`. Makes one where there is none.
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
        let patches = self.slot.patches.swap(0, Ordering::Relaxed);
        PATCHES.fetch_sub(patches, Ordering::Relaxed);
        self.slot.start.store(0, Ordering::Release);
    }
}

/// What must be patched after a fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Tear {
    page_bytes: usize,
    /// The range, where there are too many pages that were patched one by one.
    whole: Option<(usize, usize)>,
}

/// Marks the range that holds `address` as torn.
fn mark_torn(address: usize) -> Option<Tear> {
    let slot = slots().find(|slot| {
        let offset = address.wrapping_sub(slot.start.load(Ordering::Acquire));
        offset < slot.len_bytes.load(Ordering::Acquire)
    })?;
    slot.torn.store(true, Ordering::Release);
    let whole = if PATCHES.fetch_add(1, Ordering::Relaxed) < MAX_PATCHES {
        slot.patches.fetch_add(1, Ordering::Relaxed);
        None
    } else {
        PATCHES.fetch_sub(1, Ordering::Relaxed);
        let start = slot.start.load(Ordering::Acquire);
        Some((start, slot.len_bytes.load(Ordering::Acquire)))
    };
    Some(Tear {
        page_bytes: slot.page_bytes.load(Ordering::Relaxed),
        whole,
    })
}

/// Whether the SIGBUS at `address` was in guest memory and has been dealt with.
///
/// Async-signal-safe: atomics and a system call or two.
pub(crate) fn repair(address: usize) -> bool {
    let Some(tear) = mark_torn(address) else {
        return false;
    };
    // Where memory is not overcommitted there may be none for the whole.
    tear.whole
        .is_some_and(|(start, len_bytes)| crate::sys::patch(start, len_bytes))
        || crate::sys::patch(address & !(tear.page_bytes - 1), tear.page_bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// The number of patches is that of the process: one test at a time.
    fn alone() -> MutexGuard<'static, ()> {
        static ONE: Mutex<()> = Mutex::new(());
        ONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(page_bytes: usize) -> Option<Tear> {
        Some(Tear {
            page_bytes,
            whole: None,
        })
    }

    #[test]
    fn guard_covers_its_range_and_nothing_else() {
        let _alone = alone();
        let guard = Guard::new(0x7000_0000, 0x1000, 0x1000);
        assert_eq!(mark_torn(0x7000_1000), None);
        assert!(!guard.is_torn());
        assert_eq!(mark_torn(0x7000_0fff), page(0x1000));
        assert!(guard.is_torn());
        drop(guard);
        assert_eq!(mark_torn(0x7000_0fff), None);
    }

    #[test]
    fn f1_3_more_ranges_than_a_chunk_has_slots_are_all_watched() {
        const FIRST: usize = 0x10_0000_0000;
        let _alone = alone();
        let guards: Vec<_> = (0..3 * CHUNK_SLOTS)
            .map(|n| Guard::new(FIRST + n * 0x2000, 0x1000, 0x1000))
            .collect();
        for (n, guard) in guards.iter().enumerate() {
            assert!(!guard.is_torn());
            assert!(mark_torn(FIRST + n * 0x2000 + 0xfff).is_some());
            assert!(guard.is_torn());
        }
        let made = slots().count();
        drop(guards);
        let again = Guard::new(FIRST, 0x1000, 0x1000);
        assert_eq!(slots().count(), made, "slots are used again");
        drop(again);
    }

    #[test]
    fn f1_3_pages_are_patched_one_by_one_up_to_a_number_and_all_at_once_beyond() {
        const FIRST: usize = 0x20_0000_0000;
        let _alone = alone();
        for _ in 0..2 {
            let (first, second) = (
                Guard::new(FIRST, 1 << 30, 0x1000),
                Guard::new(FIRST + (1 << 30), 5000, 0x1000),
            );
            for n in 0..MAX_PATCHES {
                assert_eq!(mark_torn(FIRST + n * 0x2000), page(0x1000));
            }
            for (address, range) in [
                (FIRST + 0x1000, (FIRST, 1 << 30)),
                (FIRST + (1 << 30) + 4999, (FIRST + (1 << 30), 5000)),
            ] {
                let tear = mark_torn(address).map(|tear| tear.whole);
                assert_eq!(tear, Some(Some(range)));
            }
            // What a range has is given back with it.
            drop((first, second));
            assert_eq!(PATCHES.load(Ordering::Relaxed), 0);
        }
    }
}
