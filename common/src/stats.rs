// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counters and latency histograms of a device, one set per vring.
//!
//! A data thread owns its vrings and is the only writer of their [`QueueStats`], so an update is a
//! relaxed load and a relaxed store, never a locked addition, and no two queues share a cache
//! line. The management thread reads the same words whenever someone asks: it may see a request
//! counted in one word and not yet in another, never a torn value.
//!
//! [`DeviceStats`] is the registry. A queue is added when its vring first starts, so 256 offered
//! queues cost nothing, and it stays when the vring stops: counters survive a restart.

mod counter;
mod histogram;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use self::counter::Counter;
use self::histogram::Histogram;
pub use self::snapshot::{
    DeviceSnapshot, LatencyBucket, LatencySnapshot, OperationSnapshot, QueueSnapshot,
};

/// The largest number of operation kinds a device may name.
pub const MAX_KINDS: usize = 8;

/// What is counted of one kind of operation on one vring.
#[derive(Debug, Default)]
struct KindStats {
    bytes: Counter,
    errors: Counter,
    latency: Histogram,
}

/// Counters of one vring, written by the data thread that owns it and by nobody else.
///
/// 128 bytes of alignment, not 64: x86 prefetches cache lines in pairs.
#[repr(align(128))]
#[derive(Debug)]
pub struct QueueStats {
    kicks: Counter,
    calls: Counter,
    calls_suppressed: Counter,
    chains: Counter,
    malformed_chains: Counter,
    poll_hits: Counter,
    poll_misses: Counter,
    in_flight: Counter,
    kinds: Box<[PaddedKind]>,
}

/// Keeps the heap block of one queue's kinds off the cache lines of another's.
#[repr(align(128))]
#[derive(Debug, Default)]
struct PaddedKind(KindStats);

impl QueueStats {
    fn new(kind_count: usize) -> Self {
        Self {
            kicks: Counter::default(),
            calls: Counter::default(),
            calls_suppressed: Counter::default(),
            chains: Counter::default(),
            malformed_chains: Counter::default(),
            poll_hits: Counter::default(),
            poll_misses: Counter::default(),
            in_flight: Counter::default(),
            kinds: (0..kind_count).map(|_| PaddedKind::default()).collect(),
        }
    }

    /// Counts one completed operation of `kind`, an index into the device's list of kinds.
    ///
    /// An index the device did not name is not counted.
    #[inline]
    pub fn record(&self, kind: usize, bytes: u64, ok: bool, latency_ns: u64) {
        if let Some(PaddedKind(stats)) = self.kinds.get(kind) {
            stats.bytes.add(bytes);
            stats.errors.add(u64::from(!ok));
            stats.latency.record(latency_ns);
        }
    }

    /// Counts a kick: the driver notified us.
    #[inline]
    pub fn add_kick(&self) {
        self.kicks.add(1);
    }

    /// Counts a call: we notified the driver.
    #[inline]
    pub fn add_call(&self) {
        self.calls.add(1);
    }

    /// Counts a batch of used elements for which the driver wanted no call.
    #[inline]
    pub fn add_call_suppressed(&self) {
        self.calls_suppressed.add(1);
    }

    /// Counts `n` descriptor chains taken from the available ring.
    #[inline]
    pub fn add_chains(&self, n: u64) {
        self.chains.add(n);
    }

    /// Counts a descriptor chain that breaks the rules of the specification.
    #[inline]
    pub fn add_malformed_chain(&self) {
        self.malformed_chains.add(1);
    }

    /// Counts a round of busy polling that found work.
    #[inline]
    pub fn add_poll_hit(&self) {
        self.poll_hits.add(1);
    }

    /// Counts a round of busy polling that ended in a blocking wait.
    #[inline]
    pub fn add_poll_miss(&self) {
        self.poll_misses.add(1);
    }

    /// Sets the number of chains taken and not yet returned.
    #[inline]
    pub fn set_in_flight(&self, chains: u64) {
        self.in_flight.set(chains);
    }

    /// The number of chains taken and not yet returned, when it was last set.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load()
    }
}

/// The counters of a device: names of its operations and one [`QueueStats`] per started vring.
#[derive(Debug)]
pub struct DeviceStats {
    device: &'static str,
    kinds: &'static [&'static str],
    queues: Mutex<BTreeMap<u16, Arc<QueueStats>>>,
}

impl DeviceStats {
    /// Makes an empty registry for `device` (its short name, for instance `blk`) whose operations
    /// are `kinds`. Kinds beyond [`MAX_KINDS`] are not counted.
    pub fn new(device: &'static str, kinds: &'static [&'static str]) -> Self {
        debug_assert!(
            kinds.len() <= MAX_KINDS,
            "a device has at most {MAX_KINDS} kinds"
        );
        Self {
            device,
            kinds: kinds.get(..MAX_KINDS).unwrap_or(kinds),
            queues: Mutex::default(),
        }
    }

    /// The counters of vring `index`, made at the first call and the same ever after.
    ///
    /// Called when a vring starts, on the thread that owns it or before it is handed to it.
    pub fn queue(&self, index: u16) -> Arc<QueueStats> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(
            queues
                .entry(index)
                .or_insert_with(|| Arc::new(QueueStats::new(self.kinds.len()))),
        )
    }

    /// The short name of the device.
    pub fn device(&self) -> &'static str {
        self.device
    }

    /// Reads every counter.
    pub fn snapshot(&self) -> DeviceSnapshot {
        let queues: Vec<(u16, Arc<QueueStats>)> = {
            let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            queues
                .iter()
                .map(|(index, stats)| (*index, Arc::clone(stats)))
                .collect()
        };
        snapshot::take(self.device, self.kinds, &queues)
    }
}

#[cfg(test)]
mod tests;
