// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rate limits: bytes and operations per second, with bursts, shared by data threads without a
//! lock. An operation is what a device counts: a packet, or a request of a disk.
//!
//! # The algorithm
//! A bucket of credit fills at the rate and holds the burst. An operation may pass while the bucket
//! is not in debt, and then takes its cost out, whatever its size, which need not be known before.
//! Debts are paid back before the next operation passes, so the rate holds in the long run, and an
//! operation larger than the burst passes, too.
//!
//! A limit says when, and loses nothing: what may not pass yet waits where it is, in the ring of
//! the guest for instance. A device that has to keep it elsewhere keeps no more than
//! [`RateLimit::backlog_bytes`].
//!
//! As in the generic cell rate algorithm (ITU-T I.371, Annex A), the whole state is one number, the
//! moment at which the bucket is full again. A charge moves it by the time that its cost takes,
//! with one compare-and-swap: no timer refills anything and no charge is lost between threads. Two
//! threads that ask at the same moment may both let one pass; both are paid for.
//!
//! # Precision
//! Time is counted in ticks of 1/64 ns, on 64 bits that wrap. The cost of an operation is rounded to
//! a tick: less than 0.5 % for an empty frame at 400 Gbit/s, and nothing to speak of below. The
//! moment is understood up to 2.2 years ahead and 6.8 years back. What is ahead is bounded, and a
//! limit that has not been used for 6.8 years may hold an operation back for 2.2.
//!
//! # Changes
//! A limit changes while it is used. The new parameters are stored first and the state, afresh,
//! last; a data thread loads them in the opposite order, so that its exchange fails where it may
//! have mixed them up. [`Admission::Until`] is never far away, so that a thread that waits notices.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use crate::num::u64_of;

/// The highest rate of bytes for which the precision above holds: 400 Gbit/s.
pub const MAX_BYTES_PER_S: u64 = 50_000_000_000;
/// The highest rate of operations for which it does.
pub const MAX_OPERATIONS_PER_S: u64 = 100_000_000;

/// The burst unless one is set, as the time in which it fills: enough for a thread that wakes up
/// late on a busy host, little enough not to be seen in a figure of several seconds.
pub const DEFAULT_BURST_NS: u64 = 100_000_000;

/// How much may wait for a limit where what is sent can be left nowhere else, as the time in which
/// it passes: TCP needs a little more than it has under way, or it loses what it sends.
const BACKLOG_MS: u64 = 100;
/// At least, for the longest frame of a network and what comes behind it.
const MIN_BACKLOG_BYTES: u64 = 2 * 65_792;
/// At most: a host has many guests.
const MAX_BACKLOG_BYTES: u64 = 4 << 20;
/// Bytes of an operation where only their number is limited: a frame of a network.
const USUAL_BYTES: u64 = 1514;

/// Shorter bursts are made that long. A credit that cannot outlast the time a thread needs to wake
/// up would be lost, and the rate not reached.
const MIN_BURST_NS: u64 = 1_000_000;

/// Nobody is told to wait longer without looking again: the limit may have changed.
const MAX_WAIT_NS: u64 = 100_000_000;

const NS_PER_S: u64 = 1_000_000_000;
const TICKS_PER_NS: u64 = 64;
/// Fractional bits of the cost of one unit: 64e9 ticks (one a second) still fit into 64 bits.
const COST_SHIFT: u32 = 24;
/// The furthest the moment can be ahead.
const MAX_AHEAD_TICKS: u64 = 1 << 62;
/// The largest burst, 1.1 years of the rate.
const MAX_BURST_TICKS: u64 = 1 << 61;

/// A rate, and how much of it may be saved up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Bytes or operations in a second.
    pub per_s: NonZeroU64,
    /// Bytes or operations that may pass at once after a pause, at least as many as pass in a
    /// millisecond; `None`: as many as pass in [`DEFAULT_BURST_NS`].
    pub burst: Option<u64>,
}

/// What is limited: one direction of a port, or a disk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of payload, without virtio headers.
    pub bytes: Option<Rate>,
    /// Operations; a packet that is cut into segments counts as its segments.
    pub operations: Option<Rate>,
}

impl Limits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }

    /// Bytes that may wait for the slower of both.
    fn backlog_bytes(&self) -> usize {
        let waiting = |rate: Rate| rate.per_s.get().saturating_mul(BACKLOG_MS) / 1000;
        let operations = self.operations.map(waiting);
        let operations = operations.map(|operations| operations.saturating_mul(USUAL_BYTES));
        let bytes = self.bytes.map(waiting);
        let least = bytes.into_iter().chain(operations).min().unwrap_or(0);
        let bytes = least.clamp(MIN_BACKLOG_BYTES, MAX_BACKLOG_BYTES);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

/// Whether an operation may pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission {
    /// It may.
    Now,
    /// Not before this moment of the monotonic clock, in ns, at most 100 ms away; ask again then.
    Until(u64),
}

/// A limit, and what has passed it.
///
/// All moments are of one monotonic clock, in ns; threads may be a little apart on it.
#[repr(align(128))]
#[derive(Debug, Default)]
pub struct RateLimit {
    /// On a cache line that nobody writes while nothing is limited.
    limited: AtomicBool,
    backlog_bytes: AtomicUsize,
    bytes: Bucket,
    operations: Bucket,
    /// What was asked for; data threads never look here.
    limits: Mutex<Limits>,
}

impl RateLimit {
    /// A limit, its buckets full.
    #[must_use]
    pub fn new(now_ns: u64, limits: Limits) -> Self {
        let limit = Self::default();
        limit.set(now_ns, limits);
        limit
    }

    /// Whether an operation may pass. Its size is told by [`charge`](Self::charge) when it has.
    #[inline]
    pub fn admit(&self, now_ns: u64) -> Admission {
        if self.limited.load(Ordering::Relaxed) {
            self.admit_limited(now_ns)
        } else {
            Admission::Now
        }
    }

    /// Pays for `bytes` that have passed, in as many `operations`.
    #[inline]
    pub fn charge(&self, now_ns: u64, bytes: usize, operations: impl FnOnce() -> u64) {
        if self.limited.load(Ordering::Relaxed) {
            self.charge_limited(now_ns, bytes, operations());
        }
    }

    /// How many bytes may wait for it, where it can be left nowhere else.
    #[must_use]
    pub fn backlog_bytes(&self) -> usize {
        self.backlog_bytes.load(Ordering::Relaxed)
    }

    /// Replaces the limits, from any thread. The buckets begin anew, and full.
    pub fn set(&self, now_ns: u64, limits: Limits) {
        let mut current = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        self.bytes.set(now_ns, limits.bytes);
        self.operations.set(now_ns, limits.operations);
        let backlog_bytes = limits.backlog_bytes();
        self.backlog_bytes.store(backlog_bytes, Ordering::Relaxed);
        self.limited.store(!limits.is_none(), Ordering::Release);
        *current = limits;
    }

    /// The limits as they were set.
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit_limited(&self, now_ns: u64) -> Admission {
        fence(Ordering::Acquire);
        let now = ticks_of(now_ns);
        let debt = self
            .bytes
            .debt_ticks(now)
            .max(self.operations.debt_ticks(now));
        if debt == 0 {
            return Admission::Now;
        }
        let wait_ns = debt.div_ceil(TICKS_PER_NS).min(MAX_WAIT_NS);
        Admission::Until(now_ns.saturating_add(wait_ns))
    }

    fn charge_limited(&self, now_ns: u64, bytes: usize, operations: u64) {
        fence(Ordering::Acquire);
        let now = ticks_of(now_ns);
        self.bytes.charge(now, u64_of(bytes));
        self.operations.charge(now, operations);
    }
}

/// One bucket; one that has never been set limits nothing.
#[derive(Debug, Default)]
struct Bucket {
    /// Ticks that one byte or operation costs, with [`COST_SHIFT`] fractional bits; 0: no limit.
    cost: AtomicU64,
    /// Ticks in which an empty bucket fills.
    burst_ticks: AtomicU64,
    /// When the bucket is full, in ticks, wrapping.
    full_at: AtomicU64,
}

impl Bucket {
    fn set(&self, now_ns: u64, rate: Option<Rate>) {
        let cost = rate.map_or(0, cost_of_unit);
        let burst = rate.map_or(0, |rate| burst_ticks(rate, cost));
        self.cost.store(cost, Ordering::Relaxed);
        self.burst_ticks.store(burst, Ordering::Relaxed);
        self.full_at.store(ticks_of(now_ns), Ordering::Release);
    }

    /// Ticks until the bucket has paid back what it owes.
    fn debt_ticks(&self, now: u64) -> u64 {
        let full_at = self.full_at.load(Ordering::Acquire);
        if self.cost.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        ahead(full_at, now).saturating_sub(self.burst_ticks.load(Ordering::Relaxed))
    }

    fn charge(&self, now: u64, units: u64) {
        let mut full_at = self.full_at.load(Ordering::Acquire);
        loop {
            let cost = self.cost.load(Ordering::Relaxed);
            if cost == 0 {
                return;
            }
            let ahead = ahead(full_at, now).saturating_add(scaled(cost, units));
            let next = now.wrapping_add(ahead.min(MAX_AHEAD_TICKS));
            match self.full_at.compare_exchange_weak(
                full_at,
                next,
                Ordering::Relaxed,
                Ordering::Acquire,
            ) {
                Ok(_) => return,
                Err(changed) => full_at = changed,
            }
        }
    }
}

fn ticks_of(now_ns: u64) -> u64 {
    now_ns.wrapping_mul(TICKS_PER_NS)
}

/// How far `full_at` is ahead of `now`; 0 where it has passed.
fn ahead(full_at: u64, now: u64) -> u64 {
    match full_at.wrapping_sub(now) {
        ticks @ 0..=MAX_AHEAD_TICKS => ticks,
        _ => 0,
    }
}

fn cost_of_unit(rate: Rate) -> u64 {
    let per_s = u128::from(rate.per_s.get());
    let ticks = u128::from(NS_PER_S * TICKS_PER_NS) << COST_SHIFT;
    // A cost of nothing would be no limit.
    saturated((ticks + per_s / 2) / per_s).max(1)
}

fn burst_ticks(rate: Rate, cost: u64) -> u64 {
    let (shortest, usual) = (MIN_BURST_NS * TICKS_PER_NS, DEFAULT_BURST_NS * TICKS_PER_NS);
    rate.burst.map_or(usual, |units| {
        scaled(cost, units).clamp(shortest, MAX_BURST_TICKS)
    })
}

/// Ticks that `units` cost, to the nearest.
fn scaled(cost: u64, units: u64) -> u64 {
    let half = 1 << (COST_SHIFT - 1);
    saturated((u128::from(cost) * u128::from(units) + half) >> COST_SHIFT)
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
