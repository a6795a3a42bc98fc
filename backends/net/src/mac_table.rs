// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which port of a switch a station is behind.
//!
//! The table is set-associative: a station has one bucket it can be in, so that to look up, to
//! learn and to forget are bounded, and nothing is ever allocated or moved. What guests can do to
//! it is bounded too: a full bucket only ever loses an entry that has aged, is of the same port, or
//! is of a port that has more entries than the one that learns, so that ports that invent stations
//! displace each other and no other port's; no port may have more than its share of the entries;
//! where a station is hashed to is not known outside; and a station that has just moved does not
//! move again at once, so that two ports that claim one address cannot keep everybody learning.
//!
//! Stations that were configured are *pinned*: they are in a table of their own, which never
//! changes, and their addresses are learned behind no other port.
//!
//! One data thread learns. Others may list or flush the table at any time: an entry is two words,
//! and a torn pair of them is at worst a frame that goes to the wrong port of those its station has
//! been behind.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ringside_common::num::usize_of;

/// Entries of a bucket.
const WAYS: usize = 8;
/// How long a station that moved stays: what a host announces of itself arrives by all ways
/// through the network within this time.
const SETTLE_S: u32 = 1;
/// The part of the entries that one port may have.
const SHARE: usize = 2;

/// A port of the switch.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PortId(pub u16);

/// What is known of one station.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Station {
    /// Its address.
    pub mac: [u8; 6],
    /// The VLAN it was seen in; 0 for none.
    pub vlan: u16,
    /// Where it is.
    pub port: PortId,
    /// Since when it has not been heard of, in seconds; 0 for one that is pinned.
    pub idle_s: u32,
    /// Whether it was configured, and stays.
    pub pinned: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// VLAN and address, plus one bit that says that there is an entry.
    key: AtomicU64,
    /// Port, when it came to be there, and when it was heard of last.
    value: AtomicU64,
}

#[derive(Clone, Copy)]
struct Value {
    port: u16,
    /// In seconds, modulo 2^16.
    moved_s: u16,
    seen_s: u32,
}

impl Value {
    #[inline]
    fn pack(self) -> u64 {
        u64::from(self.port) << 48 | u64::from(self.moved_s) << 32 | u64::from(self.seen_s)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    fn unpack(value: u64) -> Self {
        Self {
            port: (value >> 48) as u16,
            moved_s: (value >> 32) as u16,
            seen_s: value as u32,
        }
    }
}

/// Where stations were heard, for all ports.
#[derive(Debug)]
pub struct MacTable {
    buckets: Box<[[Entry; WAYS]]>,
    /// Shift that makes a hash a bucket.
    shift: u32,
    seed: u64,
    ageing_s: u32,
    /// Open addressing, at most half full; an entry without a key is free.
    pinned: Box<[(u64, PortId)]>,
    /// The most entries of each port.
    limits: Box<[u32]>,
    /// Entries of each port.
    counts: Box<[AtomicU32]>,
    /// What was seen of a port before is forgotten.
    flushed_s: Box<[AtomicU32]>,
}

const PRESENT: u64 = 1 << 63;

impl MacTable {
    /// A table for about `capacity` stations behind `ports` ports, which forgets one that was not
    /// heard of for `ageing_s` seconds.
    #[must_use]
    pub fn new(capacity: usize, ports: usize, ageing_s: u32) -> Self {
        let buckets = capacity.div_ceil(WAYS).next_power_of_two().max(2);
        // Counts of stations have 32 bits: a share beyond is no limit.
        let limit = u32::try_from(capacity.div_ceil(SHARE)).unwrap_or(u32::MAX);
        Self {
            buckets: (0..buckets).map(|_| <[Entry; WAYS]>::default()).collect(),
            shift: 64 - buckets.trailing_zeros(),
            seed: RandomState::new().hash_one(0_u64),
            ageing_s,
            pinned: Box::default(),
            limits: vec![limit; ports].into(),
            counts: (0..ports).map(|_| AtomicU32::new(0)).collect(),
            flushed_s: (0..ports).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// No more than `limit` stations are learned behind `port`, and no more than its share.
    #[must_use]
    pub fn with_limit(mut self, port: PortId, limit: u32) -> Self {
        if let Some(most) = self.limits.get_mut(usize::from(port.0)) {
            *most = limit.min(*most);
        }
        self
    }

    /// These stations, given with their VLAN, are where they are said to be, whatever is heard;
    /// others are not.
    #[must_use]
    pub fn with_pinned(mut self, stations: &[(u16, [u8; 6], PortId)]) -> Self {
        if stations.is_empty() {
            return self;
        }
        let places = (2 * stations.len()).next_power_of_two();
        let mut pinned = vec![(0, PortId(0)); places];
        for (vlan, mac, port) in stations {
            let key = Self::key(*vlan, *mac);
            let mut at = self.pinned_place(key, places);
            while pinned.get(at).is_some_and(|(taken, _)| *taken != 0) {
                at = (at + 1) % places;
            }
            if let Some(place) = pinned.get_mut(at) {
                *place = (key, *port);
            }
        }
        self.pinned = pinned.into();
        self
    }

    /// Where in a table of `places`, a power of two, the search for a pinned station begins.
    #[inline]
    fn pinned_place(&self, key: u64, places: usize) -> usize {
        let mixed = (key ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        usize_of(mixed >> 32) & places.wrapping_sub(1)
    }

    /// The port that a station is pinned to.
    #[must_use]
    #[inline]
    pub fn pinned(&self, vlan: u16, mac: [u8; 6]) -> Option<PortId> {
        if self.pinned.is_empty() {
            return None;
        }
        self.find_pinned(Self::key(vlan, mac))
    }

    #[inline]
    fn find_pinned(&self, key: u64) -> Option<PortId> {
        let places = self.pinned.len();
        let mut at = self.pinned_place(key, places);
        // Ends: the table is never more than half full.
        loop {
            match self.pinned.get(at) {
                Some((found, port)) if *found == key => return Some(*port),
                Some((found, _)) if *found != 0 => at = (at + 1) & places.wrapping_sub(1),
                _ => return None,
            }
        }
    }

    #[inline]
    fn key(vlan: u16, mac: [u8; 6]) -> u64 {
        let [a, b, c, d, e, f] = mac;
        PRESENT | u64::from(vlan & 0xfff) << 48 | u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    #[inline]
    fn bucket(&self, key: u64) -> Option<&[Entry; WAYS]> {
        // Two rounds of multiply and fold: addresses that differ in one bit go far apart.
        let mixed = (key ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed =
            (mixed ^ (mixed >> 32) ^ self.seed.rotate_left(17)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.buckets.get(usize::try_from(mixed >> self.shift).ok()?)
    }

    #[inline]
    fn is_stale(&self, value: Value, now_s: u32) -> bool {
        let flushed_s = self
            .flushed_s
            .get(usize::from(value.port))
            .map_or(0, |flushed_s| flushed_s.load(Ordering::Relaxed));
        now_s.saturating_sub(value.seen_s) > self.ageing_s || value.seen_s < flushed_s
    }

    /// The port that `mac` is behind.
    #[must_use]
    #[inline]
    pub fn find(&self, vlan: u16, mac: [u8; 6], now_s: u32) -> Option<PortId> {
        let key = Self::key(vlan, mac);
        if !self.pinned.is_empty()
            && let Some(port) = self.find_pinned(key)
        {
            return Some(port);
        }
        let entry = self
            .bucket(key)?
            .iter()
            .find(|entry| entry.key.load(Ordering::Relaxed) == key)?;
        let value = Value::unpack(entry.value.load(Ordering::Relaxed));
        (!self.is_stale(value, now_s)).then_some(PortId(value.port))
    }

    /// Takes note that `mac` is behind `port`, unless it is pinned somewhere. For the one thread
    /// that owns the table.
    #[inline]
    pub fn learn(&self, vlan: u16, mac: [u8; 6], port: PortId, now_s: u32) {
        let key = Self::key(vlan, mac);
        if !self.pinned.is_empty() && self.find_pinned(key).is_some() {
            return;
        }
        let Some(bucket) = self.bucket(key) else {
            return;
        };
        let known = bucket
            .iter()
            .find(|entry| entry.key.load(Ordering::Relaxed) == key);
        let Some(entry) = known else {
            return self.insert(bucket, key, port, now_s);
        };
        let value = Value::unpack(entry.value.load(Ordering::Relaxed));
        if value.port == port.0 {
            if value.seen_s != now_s {
                let value = Value {
                    seen_s: now_s,
                    ..value
                };
                entry.value.store(value.pack(), Ordering::Relaxed);
            }
            return;
        }
        self.relocate(entry, value, port, now_s);
    }

    #[cold]
    fn relocate(&self, entry: &Entry, value: Value, port: PortId, now_s: u32) {
        let settled = now_s
            .wrapping_sub(u32::from(value.moved_s))
            .wrapping_add(1 << 16)
            & 0xffff;
        let stale = self.is_stale(value, now_s);
        if !stale && settled <= SETTLE_S {
            return;
        }
        if self.admits(port) {
            self.count(PortId(value.port), false);
            self.count(port, true);
            entry.value.store(fresh(port, now_s), Ordering::Relaxed);
        }
    }

    #[cold]
    fn insert(&self, bucket: &[Entry; WAYS], key: u64, port: PortId, now_s: u32) {
        let admitted = self.admits(port);
        let own = self.count_of(port);
        // Entries of the port that has most of those in the bucket; the oldest of its.
        let mut oldest: Option<(&Entry, Value, u32)> = None;
        for entry in bucket {
            let present = entry.key.load(Ordering::Relaxed) != 0;
            let value = Value::unpack(entry.value.load(Ordering::Relaxed));
            if present && self.is_stale(value, now_s) {
                entry.key.store(0, Ordering::Relaxed);
                self.count(PortId(value.port), false);
            } else if present {
                let count = self.count_of(PortId(value.port));
                let is_own = value.port == port.0;
                let may_go = is_own || (admitted && count > own);
                let is_first = oldest
                    .is_none_or(|(_, other, most)| (count, other.seen_s) > (most, value.seen_s));
                if may_go && is_first {
                    oldest = Some((entry, value, count));
                }
                continue;
            }
            if admitted {
                self.count(port, true);
                entry.value.store(fresh(port, now_s), Ordering::Relaxed);
                entry.key.store(key, Ordering::Relaxed);
                return;
            }
        }
        // Without room it takes the place of another station of the same port, or of one that has
        // more of them, or none.
        if let Some((entry, value, _)) = oldest {
            self.count(PortId(value.port), false);
            self.count(port, true);
            entry.value.store(fresh(port, now_s), Ordering::Relaxed);
            entry.key.store(key, Ordering::Relaxed);
        }
    }

    fn admits(&self, port: PortId) -> bool {
        let limit = self.limits.get(usize::from(port.0));
        limit.is_some_and(|limit| self.count_of(port) < *limit)
    }

    fn count_of(&self, port: PortId) -> u32 {
        self.counts
            .get(usize::from(port.0))
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn count(&self, port: PortId, more: bool) {
        if let Some(count) = self.counts.get(usize::from(port.0)) {
            let now = count.load(Ordering::Relaxed);
            let now = if more {
                now.saturating_add(1)
            } else {
                now.saturating_sub(1)
            };
            count.store(now, Ordering::Relaxed);
        }
    }

    /// Forgets what was learned behind `port`, or everything; returns how many stations that is.
    /// The second that it is called in is forgotten to its end.
    pub fn flush(&self, port: Option<PortId>, now_s: u32) -> usize {
        let meant =
            |station: &Station| !station.pinned && port.is_none_or(|port| port == station.port);
        let count = self.stations(now_s).into_iter().filter(meant).count();
        for (flushed_s, number) in self.flushed_s.iter().zip(0_u16..) {
            if port.is_none_or(|port| port.0 == number) {
                flushed_s.store(now_s.saturating_add(1), Ordering::Relaxed);
            }
        }
        count
    }

    /// Everything known.
    #[must_use]
    pub fn stations(&self, now_s: u32) -> Vec<Station> {
        let pinned = self.pinned.iter().filter(|(key, _)| *key != 0);
        let mut stations: Vec<_> = pinned
            .map(|(key, port)| station(*key, *port, 0, true))
            .collect();
        for entry in self.buckets.iter().flatten() {
            let key = entry.key.load(Ordering::Relaxed);
            let value = Value::unpack(entry.value.load(Ordering::Relaxed));
            if key == 0 || self.is_stale(value, now_s) {
                continue;
            }
            let idle_s = now_s.saturating_sub(value.seen_s);
            stations.push(station(key, PortId(value.port), idle_s, false));
        }
        stations
    }
}

/// Seconds of the monotonic clock, which says them to [`MacTable`]; the last one after 136 years.
#[must_use]
#[inline]
pub fn seconds(now_ns: u64) -> u32 {
    u32::try_from(now_ns / 1_000_000_000).unwrap_or(u32::MAX)
}

fn station(key: u64, port: PortId, idle_s: u32, pinned: bool) -> Station {
    let [v0, v1, a, b, c, d, e, f] = (key & !PRESENT).to_be_bytes();
    Station {
        mac: [a, b, c, d, e, f],
        vlan: u16::from_be_bytes([v0, v1]),
        port,
        idle_s,
        pinned,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a time modulo 2^16")]
fn fresh(port: PortId, now_s: u32) -> u64 {
    Value {
        port: port.0,
        moved_s: now_s as u16,
        seen_s: now_s,
    }
    .pack()
}

#[cfg(test)]
mod tests;
