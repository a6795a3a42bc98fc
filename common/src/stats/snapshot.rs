// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the counters were at one moment, in the shape the `stats` method replies with.

use std::sync::Arc;

use serde::Serialize;

use super::histogram::{BUCKETS, Counts, upper_bound_ns};
use super::{PaddedKind, QueueStats};

/// All counters of a device.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeviceSnapshot {
    /// The short name of the device.
    pub device: &'static str,
    /// Every kind of operation that occurred, over all vrings.
    pub operations: Vec<OperationSnapshot>,
    /// Every vring that was ever started, by index.
    pub queues: Vec<QueueSnapshot>,
}

/// All counters of one vring.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct QueueSnapshot {
    /// The index of the vring.
    pub queue: u16,
    /// Notifications from the driver.
    pub kicks: u64,
    /// Notifications to the driver.
    pub calls: u64,
    /// Batches of used elements for which the driver wanted no call.
    pub calls_suppressed: u64,
    /// Descriptor chains taken.
    pub chains: u64,
    /// Descriptor chains that broke the rules.
    pub malformed_chains: u64,
    /// Rounds of busy polling that found work.
    pub poll_hits: u64,
    /// Rounds of busy polling that ended in a wait.
    pub poll_misses: u64,
    /// Chains taken and not yet returned.
    pub in_flight: u64,
    /// Every kind of operation that occurred on this vring.
    pub operations: Vec<OperationSnapshot>,
}

/// The counters of one kind of operation.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OperationSnapshot {
    /// The name of the kind.
    pub op: &'static str,
    /// Completed operations, failed ones included.
    pub operations: u64,
    /// Bytes they moved.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// How long they took.
    pub latency: LatencySnapshot,
}

/// A latency distribution; percentiles are at most 25 % too high and never too low.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LatencySnapshot {
    /// The sum over all operations.
    pub sum_ns: u64,
    /// The arithmetic mean.
    pub mean_ns: u64,
    /// Half of the operations took no longer.
    pub p50_ns: u64,
    /// 90 % of the operations took no longer.
    pub p90_ns: u64,
    /// 99 % of the operations took no longer.
    pub p99_ns: u64,
    /// 99.9 % of the operations took no longer.
    pub p999_ns: u64,
    /// The slowest operation, exact.
    pub max_ns: u64,
    /// The distribution by powers of two.
    #[serde(skip)]
    pub buckets: Vec<LatencyBucket>,
}

/// One step of a latency distribution.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct LatencyBucket {
    /// The largest latency counted here; `None`: no bound.
    pub upper_bound_ns: Option<u64>,
    /// Operations in this step alone.
    pub count: u64,
}

/// Four fine buckets make one power of two.
const FINE_PER_STEP: usize = 4;

/// Numbers of one kind, added up before they are turned into a snapshot.
#[derive(Clone, Debug, Default)]
struct Totals {
    bytes: u64,
    errors: u64,
    latency: Counts,
}

impl Totals {
    fn read(kind: &PaddedKind) -> Self {
        let PaddedKind(kind) = kind;
        let mut totals = Self::default();
        kind.latency.read_into(&mut totals.latency);
        totals.bytes = kind.bytes.load();
        totals.errors = kind.errors.load();
        totals
    }

    fn merge(&mut self, other: &Self) {
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.errors = self.errors.wrapping_add(other.errors);
        self.latency.merge(&other.latency);
    }

    /// `None` when the operation never occurred: a reply is long enough without empty rows.
    fn snapshot(&self, op: &'static str) -> Option<OperationSnapshot> {
        let operations = self.latency.total();
        (operations > 0).then(|| OperationSnapshot {
            op,
            operations,
            bytes: self.bytes,
            errors: self.errors,
            latency: latency(&self.latency, operations),
        })
    }
}

fn latency(counts: &Counts, operations: u64) -> LatencySnapshot {
    LatencySnapshot {
        sum_ns: counts.sum_ns,
        mean_ns: counts.sum_ns.checked_div(operations).unwrap_or(0),
        p50_ns: counts.percentile_ns(500),
        p90_ns: counts.percentile_ns(900),
        p99_ns: counts.percentile_ns(990),
        p999_ns: counts.percentile_ns(999),
        max_ns: counts.max_ns,
        buckets: steps(counts),
    }
}

/// Joins the fine buckets into powers of two: bounds 2^8, 2^9, ... 2^36 and none.
fn steps(counts: &Counts) -> Vec<LatencyBucket> {
    let mut steps = Vec::with_capacity(BUCKETS / FINE_PER_STEP + 2);
    let mut count = 0_u64;
    for (bucket, fine) in counts.buckets.iter().enumerate() {
        count = count.wrapping_add(*fine);
        if bucket % FINE_PER_STEP == 0 || bucket == BUCKETS - 1 {
            steps.push(LatencyBucket {
                upper_bound_ns: upper_bound_ns(bucket),
                count,
            });
            count = 0;
        }
    }
    steps
}

/// Reads the counters of all `queues`.
pub(super) fn take(
    device: &'static str,
    kinds: &'static [&'static str],
    queues: &[(u16, Arc<QueueStats>)],
) -> DeviceSnapshot {
    let mut totals = vec![Totals::default(); kinds.len()];
    let queues = queues
        .iter()
        .map(|(index, stats)| {
            let read: Vec<Totals> = stats.kinds.iter().map(Totals::read).collect();
            for (total, one) in totals.iter_mut().zip(&read) {
                total.merge(one);
            }
            queue(*index, stats, operations(kinds, &read))
        })
        .collect();
    DeviceSnapshot {
        device,
        operations: operations(kinds, &totals),
        queues,
    }
}

fn operations(kinds: &[&'static str], totals: &[Totals]) -> Vec<OperationSnapshot> {
    kinds
        .iter()
        .zip(totals)
        .filter_map(|(op, totals)| totals.snapshot(op))
        .collect()
}

fn queue(index: u16, stats: &QueueStats, operations: Vec<OperationSnapshot>) -> QueueSnapshot {
    QueueSnapshot {
        queue: index,
        kicks: stats.kicks.load(),
        calls: stats.calls.load(),
        calls_suppressed: stats.calls_suppressed.load(),
        chains: stats.chains.load(),
        malformed_chains: stats.malformed_chains.load(),
        poll_hits: stats.poll_hits.load(),
        poll_misses: stats.poll_misses.load(),
        in_flight: stats.in_flight.load(),
        operations,
    }
}
