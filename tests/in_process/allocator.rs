// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The allocator of test binaries that count what threads named `data-*` do, which are the data
//! threads of devices that are served in the same process.

#![expect(unsafe_code, reason = "an allocator, and a call for the thread's name")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

static COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
/// The counts are those of one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Keeps the other tests of the binary away while it lives.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `run` returns, and how often data threads have called the allocator meanwhile.
pub(crate) fn calls_during<T>(run: impl FnOnce() -> T) -> (T, u64) {
    COUNT.store(0, Ordering::Relaxed);
    COUNTING.store(true, Ordering::Release);
    let result = run();
    COUNTING.store(false, Ordering::Release);
    (result, COUNT.load(Ordering::Relaxed))
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn note() {
    if !COUNTING.load(Ordering::Relaxed) {
        return;
    }
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes to the buffer.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"data-") {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}
