// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Log-linear latency histogram: each power of two of nanoseconds is cut into four equal buckets.
//!
//! Bucket 0 takes everything up to 256 ns, less than any operation that leaves the cache; the
//! last one everything above 2^36 ns (69 s), longer than any time-out of a guest. In between a
//! bucket is at most a quarter as wide as its lower bound, so a percentile read from it is at most
//! 25 % too high. Upper bounds are inclusive, as `le` is in Prometheus.

use std::sync::atomic::{AtomicU64, Ordering};

use super::counter::Counter;

/// log2 of the upper bound of the first bucket, in nanoseconds.
const FIRST_OCTAVE: u32 = 8;
/// log2 of the upper bound of the last bounded bucket, in nanoseconds.
const LAST_OCTAVE: u32 = 36;
/// log2 of the number of buckets per power of two.
const SUB_BITS: u32 = 2;
/// One bucket below the first octave, four per octave, one above the last.
pub(super) const BUCKETS: usize = (((LAST_OCTAVE - FIRST_OCTAVE) << SUB_BITS) + 2) as usize;
/// The power of two above [`BUCKETS`]: an index masked to it needs no bounds check.
const SLOTS: usize = BUCKETS.next_power_of_two();

/// The bucket of a latency.
#[inline]
fn index(latency_ns: u64) -> usize {
    let value = latency_ns
        .saturating_sub(1)
        .clamp((1 << FIRST_OCTAVE) - 1, 1 << LAST_OCTAVE);
    let octave = value.ilog2();
    // The leading bit and the two below it: 4..=7.
    let mantissa = value >> octave.wrapping_sub(SUB_BITS);
    let raw = u64::from(octave << SUB_BITS).wrapping_add(mantissa);
    // 255 has octave 7 and mantissa 7: it and everything below is bucket 0.
    let bucket = raw.wrapping_sub(u64::from((FIRST_OCTAVE - 1) << SUB_BITS) + 7);
    usize::try_from(bucket).unwrap_or(0)
}

/// The largest latency that falls into `bucket`, or `None` for the last, unbounded one.
pub(super) fn upper_bound_ns(bucket: usize) -> Option<u64> {
    if bucket >= BUCKETS - 1 {
        return None;
    }
    let bucket = u32::try_from(bucket).ok()?;
    let octave = FIRST_OCTAVE + (bucket >> SUB_BITS);
    let quarter = bucket & ((1 << SUB_BITS) - 1);
    Some(u64::from((1 << SUB_BITS) + quarter) << (octave - SUB_BITS))
}

/// The histogram as its single writer fills it.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: [AtomicU64; SLOTS],
    sum_ns: Counter,
    max_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; SLOTS],
            sum_ns: Counter::default(),
            max_ns: Counter::default(),
        }
    }
}

impl Histogram {
    #[inline]
    pub(super) fn record(&self, latency_ns: u64) {
        let bucket = &self.buckets[index(latency_ns) & (SLOTS - 1)];
        bucket.store(
            bucket.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
        self.sum_ns.add(latency_ns);
        if latency_ns > self.max_ns.load() {
            self.max_ns.set(latency_ns);
        }
    }

    /// Adds what was recorded to `counts`.
    pub(super) fn read_into(&self, counts: &mut Counts) {
        for (count, bucket) in counts.buckets.iter_mut().zip(&self.buckets) {
            *count = count.wrapping_add(bucket.load(Ordering::Relaxed));
        }
        counts.sum_ns = counts.sum_ns.wrapping_add(self.sum_ns.load());
        counts.max_ns = counts.max_ns.max(self.max_ns.load());
    }
}

/// Plain numbers read from one or several histograms.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    pub(super) buckets: [u64; BUCKETS],
    pub(super) sum_ns: u64,
    pub(super) max_ns: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum_ns: 0,
            max_ns: 0,
        }
    }
}

impl Counts {
    /// The number of recorded operations.
    pub(super) fn total(&self) -> u64 {
        self.buckets
            .iter()
            .fold(0, |total, count| total.wrapping_add(*count))
    }

    /// Adds the numbers of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count = count.wrapping_add(*more);
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// The upper bound of the bucket that holds the `per_mille`-th share of all operations, never
    /// more than the largest latency seen; 0 when nothing was recorded.
    pub(super) fn percentile_ns(&self, per_mille: u64) -> u64 {
        let total = u128::from(self.total());
        // The nearest-rank definition: the smallest rank that covers the share.
        let rank = (total * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return upper_bound_ns(bucket).map_or(self.max_ns, |ns| ns.min(self.max_ns));
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_of_bucket_bounds_is_the_bucket_and_then_the_next() {
        for bucket in 0..BUCKETS - 1 {
            let upper = upper_bound_ns(bucket).unwrap();
            assert_eq!(index(upper), bucket, "{upper} ns");
            assert_eq!(index(upper + 1), bucket + 1, "{upper} ns + 1");
        }
        assert_eq!(upper_bound_ns(BUCKETS - 1), None);
        assert_eq!(upper_bound_ns(SLOTS), None);
    }

    #[test]
    fn bounds_are_monotone_and_within_a_quarter() {
        assert_eq!(upper_bound_ns(0), Some(256));
        assert_eq!(upper_bound_ns(BUCKETS - 2), Some(1 << 36));
        for bucket in 1..BUCKETS - 1 {
            let lower = upper_bound_ns(bucket - 1).unwrap();
            let upper = upper_bound_ns(bucket).unwrap();
            assert!(upper > lower, "bucket {bucket}");
            assert!(
                (upper - lower) * 4 <= lower,
                "bucket {bucket}: {lower} to {upper}"
            );
        }
    }

    #[test]
    fn index_of_extremes_is_first_and_last() {
        assert_eq!(index(0), 0);
        assert_eq!(index(1), 0);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentile_of_known_data_is_the_bound_of_its_bucket() {
        let histogram = Histogram::default();
        // 1000 latencies of 1 to 1000 µs, so that the exact p-th per mille is p µs.
        for us in 1..=1000_u64 {
            histogram.record(us * 1000);
        }
        let mut counts = Counts::default();
        histogram.read_into(&mut counts);
        assert_eq!(counts.total(), 1000);
        assert_eq!(counts.sum_ns, 500_500_000);
        for per_mille in [500_u64, 900, 990, 999] {
            let exact = per_mille * 1000;
            let expected = upper_bound_ns(index(exact)).unwrap().min(1_000_000);
            assert_eq!(
                counts.percentile_ns(per_mille),
                expected,
                "{per_mille} per mille"
            );
        }
    }

    #[test]
    fn percentile_on_bucket_bounds_is_exact() {
        let histogram = Histogram::default();
        for ns in [
            256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072,
        ] {
            histogram.record(ns);
        }
        let mut counts = Counts::default();
        histogram.read_into(&mut counts);
        assert_eq!(counts.percentile_ns(100), 256);
        assert_eq!(counts.percentile_ns(500), 4096);
        assert_eq!(counts.percentile_ns(501), 8192);
        assert_eq!(counts.percentile_ns(900), 65536);
        assert_eq!(counts.percentile_ns(999), 131_072);
    }

    #[test]
    fn percentile_of_nothing_is_zero() {
        assert_eq!(Counts::default().percentile_ns(999), 0);
    }

    #[test]
    fn percentile_in_the_overflow_bucket_is_the_maximum() {
        let histogram = Histogram::default();
        histogram.record(1 << 40);
        let mut counts = Counts::default();
        histogram.read_into(&mut counts);
        assert_eq!(counts.percentile_ns(500), 1 << 40);
    }
}
