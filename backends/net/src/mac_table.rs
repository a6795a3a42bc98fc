// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which port of a switch a station is behind.
//!
//! The table is set-associative: a station has one bucket it can be in, so that to look up, to
//! learn and to forget are bounded, and nothing is ever allocated or moved. What guests can do to
//! it is bounded too: a full bucket only ever loses an entry that has aged or is of the same port;
//! no port may have more than its share of the entries; where a station is hashed to is not known
//! outside; and a station that has just moved does not move again at once, so that two ports that
//! claim one address cannot keep everybody learning.
//!
//! One data thread learns. Others may list or flush the table at any time: an entry is two words,
//! and a torn pair of them is at worst a frame that goes to the wrong port of those its station has
//! been behind.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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
    /// Since when it has not been heard of, in seconds.
    pub idle_s: u32,
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

/// See above.
#[derive(Debug)]
pub struct MacTable {
    buckets: Box<[[Entry; WAYS]]>,
    /// Shift that makes a hash a bucket.
    shift: u32,
    seed: u64,
    ageing_s: u32,
    port_limit: u32,
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
        Self {
            buckets: (0..buckets).map(|_| <[Entry; WAYS]>::default()).collect(),
            shift: 64 - buckets.trailing_zeros(),
            seed: RandomState::new().hash_one(0_u64),
            ageing_s,
            port_limit: u32::try_from(capacity.div_ceil(SHARE)).unwrap_or(u32::MAX),
            counts: (0..ports).map(|_| AtomicU32::new(0)).collect(),
            flushed_s: (0..ports).map(|_| AtomicU32::new(0)).collect(),
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
        let entry = self
            .bucket(key)?
            .iter()
            .find(|entry| entry.key.load(Ordering::Relaxed) == key)?;
        let value = Value::unpack(entry.value.load(Ordering::Relaxed));
        (!self.is_stale(value, now_s)).then_some(PortId(value.port))
    }

    /// Takes note that `mac` is behind `port`. For the one thread that owns the table.
    #[inline]
    pub fn learn(&self, vlan: u16, mac: [u8; 6], port: PortId, now_s: u32) {
        let key = Self::key(vlan, mac);
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
        let mut oldest: Option<(&Entry, u32)> = None;
        for entry in bucket {
            let present = entry.key.load(Ordering::Relaxed) != 0;
            let value = Value::unpack(entry.value.load(Ordering::Relaxed));
            if present && self.is_stale(value, now_s) {
                entry.key.store(0, Ordering::Relaxed);
                self.count(PortId(value.port), false);
            } else if present {
                if value.port == port.0 && oldest.is_none_or(|(_, seen_s)| value.seen_s < seen_s) {
                    oldest = Some((entry, value.seen_s));
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
        // Without room it takes the place of another station of the same port, or none.
        if let Some((entry, _)) = oldest {
            entry.value.store(fresh(port, now_s), Ordering::Relaxed);
            entry.key.store(key, Ordering::Relaxed);
        }
    }

    fn admits(&self, port: PortId) -> bool {
        self.counts
            .get(usize::from(port.0))
            .is_some_and(|count| count.load(Ordering::Relaxed) < self.port_limit)
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

    /// Forgets what is behind `port`, or everything; returns how many stations that is. The second
    /// that it is called in is forgotten to its end.
    pub fn flush(&self, port: Option<PortId>, now_s: u32) -> usize {
        let meant = |station: &Station| port.is_none_or(|port| port == station.port);
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
        let mut stations = Vec::new();
        for entry in self.buckets.iter().flatten() {
            let key = entry.key.load(Ordering::Relaxed);
            let value = Value::unpack(entry.value.load(Ordering::Relaxed));
            if key == 0 || self.is_stale(value, now_s) {
                continue;
            }
            let [v0, v1, a, b, c, d, e, f] = (key & !PRESENT).to_be_bytes();
            stations.push(Station {
                mac: [a, b, c, d, e, f],
                vlan: u16::from_be_bytes([v0, v1]),
                port: PortId(value.port),
                idle_s: now_s.saturating_sub(value.seen_s),
            });
        }
        stations
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
mod tests {
    use super::*;

    fn mac(n: u32) -> [u8; 6] {
        let [a, b, c, d] = n.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn station_is_found_where_it_was_seen_and_only_in_its_vlan() {
        let table = MacTable::new(64, 4, 300);
        table.learn(7, mac(1), PortId(3), 100);
        assert_eq!(table.find(7, mac(1), 100), Some(PortId(3)));
        assert_eq!(table.find(0, mac(1), 100), None);
        assert_eq!(table.find(7, mac(2), 100), None);
    }

    #[test]
    fn station_ages_unless_it_is_heard_of() {
        let table = MacTable::new(64, 4, 300);
        table.learn(0, mac(1), PortId(0), 100);
        table.learn(0, mac(2), PortId(0), 100);
        table.learn(0, mac(2), PortId(0), 300);
        assert_eq!(table.find(0, mac(1), 401), None);
        assert_eq!(table.find(0, mac(2), 401), Some(PortId(0)));
        assert_eq!(table.stations(401).len(), 1);
    }

    #[test]
    fn station_moves_but_not_twice_at_once() {
        let table = MacTable::new(64, 4, 300);
        table.learn(0, mac(1), PortId(0), 100);
        table.learn(0, mac(1), PortId(1), 100);
        assert_eq!(table.find(0, mac(1), 100), Some(PortId(0)));
        table.learn(0, mac(1), PortId(1), 102);
        assert_eq!(table.find(0, mac(1), 102), Some(PortId(1)));
    }

    #[test]
    fn port_that_invents_stations_displaces_no_other() {
        let table = MacTable::new(1024, 4, 300);
        for n in 0..64 {
            table.learn(0, mac(n), PortId(0), 100);
        }
        for n in 1000..200_000 {
            table.learn(0, mac(n), PortId(1), 101);
        }
        for n in 0..64 {
            assert_eq!(table.find(0, mac(n), 101), Some(PortId(0)), "{n}");
        }
        let invented = table.stations(101).len() - 64;
        assert!(invented <= 1024 / SHARE, "{invented}");
        // Some bucket may be full, but not those of all of these.
        let news = 300_000..300_032;
        for n in news.clone() {
            table.learn(0, mac(n), PortId(2), 102);
        }
        let learned = news.filter(|n| table.find(0, mac(*n), 102) == Some(PortId(2)));
        let learned = learned.count();
        assert!(learned > 0);
        assert_eq!(table.stations(102).len(), invented + 64 + learned);
    }

    #[test]
    fn flush_forgets_and_the_counts_follow() {
        let table = MacTable::new(16, 2, 300);
        for n in 0..1000 {
            table.learn(0, mac(n), PortId(0), 100);
        }
        assert!(table.flush(None, 100) > 0);
        assert!(table.stations(101).is_empty());
        for n in 0..1000 {
            table.learn(0, mac(n), PortId(0), 101);
        }
        assert!(!table.stations(101).is_empty());
    }
}
