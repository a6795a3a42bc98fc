// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens when the file behind guest memory is truncated under its mapping.
//!
//! An access past the new end raises SIGBUS, and a front-end must not be able to end the process
//! that way: it may serve other front-ends, and it holds the locks of an image. The handler puts
//! a page of zeroes where the fault was, marks the region torn and wakes the control thread,
//! which closes the connection. Inside the kernel (a read or write of a request) the same
//! truncation is an EFAULT and fails just that request.
//!
//! A SIGBUS at any other address, or in a huge-page mapping that cannot be patched one page at a
//! time, is a fault of ours: the default action ends the process.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::memory::MAX_SLOTS;

/// One watched address range. Guards are few and long-lived, a fault is rare: a scan is fine.
struct Slot {
    start: AtomicUsize,
    len_bytes: AtomicUsize,
    torn: AtomicBool,
}

/// Twice the slots of a table, since the old and the new table of a change live side by side.
static SLOTS: [Slot; 2 * MAX_SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len_bytes: AtomicUsize::new(0),
        torn: AtomicBool::new(false),
    }
}; 2 * MAX_SLOTS];

/// Keeps an address range in the table of the handler.
#[derive(Debug)]
pub struct Guard {
    index: Option<usize>,
}

impl Guard {
    /// Watches `len_bytes` from `start`. With a full table the range is not watched, and a
    /// truncation ends the process as it would without this module.
    #[must_use]
    pub fn new(start: usize, len_bytes: usize) -> Self {
        let index = SLOTS.iter().position(|slot| {
            slot.start
                .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        if let Some(slot) = index.and_then(|i| SLOTS.get(i)) {
            slot.torn.store(false, Ordering::Relaxed);
            slot.len_bytes.store(len_bytes, Ordering::Release);
        }
        Self { index }
    }

    /// Whether a fault was patched in this range.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.slot()
            .is_some_and(|slot| slot.torn.load(Ordering::Acquire))
    }

    fn slot(&self) -> Option<&'static Slot> {
        self.index.and_then(|i| SLOTS.get(i))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(slot) = self.slot() {
            slot.len_bytes.store(0, Ordering::Release);
            slot.start.store(0, Ordering::Release);
        }
    }
}

/// Marks the range that holds `address` as torn; its page is then to be patched.
fn mark_torn(address: usize) -> bool {
    let hit = SLOTS.iter().find(|slot| {
        let offset = address.wrapping_sub(slot.start.load(Ordering::Acquire));
        offset < slot.len_bytes.load(Ordering::Acquire)
    });
    if let Some(slot) = hit {
        slot.torn.store(true, Ordering::Release);
    }
    hit.is_some()
}

/// Whether the SIGBUS at `address` was in guest memory and has been dealt with.
///
/// Async-signal-safe: atomics and one system call.
pub(crate) fn repair(address: usize) -> bool {
    mark_torn(address) && crate::sys::patch_page(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_covers_its_range_and_nothing_else() {
        let guard = Guard::new(0x7000_0000, 0x1000);
        assert!(!mark_torn(0x7000_1000));
        assert!(!guard.is_torn());
        assert!(mark_torn(0x7000_0fff));
        assert!(guard.is_torn());
        drop(guard);
        assert!(!mark_torn(0x7000_0fff));
    }
}
