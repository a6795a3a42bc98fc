// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One counter.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with a single writer and any number of readers; it wraps.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; by the one writer only, or counts are lost.
    // Load and store instead of `fetch_add`: a locked addition would cost ten times as much.
    #[inline]
    pub fn add(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(value, Ordering::Relaxed);
    }

    /// Replaces the value; by the one writer only.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
