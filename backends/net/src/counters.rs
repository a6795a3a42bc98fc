// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packets and bytes of each vring, and why packets were lost.
//!
//! A vring carries one direction, so each has one [`PacketCounters`]. As with the counters that all
//! devices have (`ringside_common::stats`), the data thread that owns the vring is the only writer,
//! and an update is a load and a store. A packet costs two of them: one to its size class, one to
//! the bytes. What is a sum of others is added up by the reader.
//!
//! Names are those of DPDK's vhost library for a vring (`rte_vhost_vring_stats_get_names`) and
//! those of Open vSwitch for a port (`ovs-vswitchd.conf.db(5)`, "Interface: statistics").
//!
//! # Whose side
//! [`Direction`] is the guest's side, here, on the command line and on the control socket: `rx` is
//! what the guest receives. The members under `ovs` alone are seen from the switch, as Open vSwitch
//! does it: its `tx_packets` are the guest's `rx`. An uplink counts as a guest would: `rx` leaves
//! the switch there.

mod show;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ringside_common::stats::Counter;

/// Which way a packet goes, as the guest sees it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    /// To the guest.
    Rx,
    /// From the guest.
    Tx,
}

impl Direction {
    /// The direction of a vring (virtio 1.3 §5.1.2): `receiveqN` is even, `transmitqN` odd. Not for
    /// the control queue.
    #[must_use]
    pub const fn of_vring(index: u16) -> Self {
        if index.is_multiple_of(2) {
            Self::Rx
        } else {
            Self::Tx
        }
    }

    /// `rx` or `tx`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rx => "rx",
            Self::Tx => "tx",
        }
    }
}

/// Why a packet was lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DropReason {
    /// The receiver had no buffer, or too few.
    NoBuffer,
    /// It is longer than the receiver takes.
    MtuExceeded,
    /// A rate limit.
    RateLimited,
    /// Its offloads cannot be carried out for this receiver.
    Offload,
    /// Its virtio header, or its Ethernet header, is none.
    Malformed,
    /// The receiver filters it out, by MAC address or VLAN.
    Filtered,
    /// The link is down.
    LinkDown,
    /// The host's kernel calls it malformed.
    Refused,
    /// The host failed.
    HostError,
    /// Its source address is not that of the sender.
    Spoofed,
    /// Isolated ports do not talk to each other.
    Isolated,
    /// There is no port for it.
    NoReceiver,
}

impl DropReason {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 12] = [
        Self::NoBuffer,
        Self::MtuExceeded,
        Self::RateLimited,
        Self::Offload,
        Self::Malformed,
        Self::Filtered,
        Self::LinkDown,
        Self::Refused,
        Self::HostError,
        Self::Spoofed,
        Self::Isolated,
        Self::NoReceiver,
    ];

    /// The name under which it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoBuffer => "no_buffer",
            Self::MtuExceeded => "mtu_exceeded",
            Self::RateLimited => "rate_limited",
            Self::Offload => "offload",
            Self::Malformed => "malformed",
            Self::Filtered => "filtered",
            Self::LinkDown => "link_down",
            Self::Refused => "refused",
            Self::HostError => "host_error",
            Self::Spoofed => "spoofed",
            Self::Isolated => "isolated",
            Self::NoReceiver => "no_receiver",
        }
    }

    /// Whether the sender is to blame: no receiver could have taken such a frame of it.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        matches!(self, Self::Malformed | Self::Spoofed | Self::Filtered)
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// Names of the size classes, in order.
const SIZE_CLASSES: [&str; 8] = [
    "undersize",
    "64",
    "65_127",
    "128_255",
    "256_511",
    "512_1023",
    "1024_1518",
    "1519_max",
];

/// The index of a frame's size class, below 8.
///
/// A power of two begins a class, but for 64, which has one to itself, and 1519, which shares its
/// power with the class before.
#[inline]
fn size_class(bytes: usize) -> usize {
    // 6 bits hold up to 63, 11 bits begin at 1024.
    let bits = usize::BITS - bytes.leading_zeros();
    let power = bits.clamp(6, 11) - 6;
    (power + u32::from(bytes > 64) + u32::from(bytes > 1518)) as usize
}

/// The counters of one vring. Written by the data thread that owns it and by nobody else.
///
/// 128 bytes of alignment, not 64: x86 prefetches cache lines in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
pub struct PacketCounters {
    sizes: [Counter; SIZE_CLASSES.len()],
    bytes: Counter,
    multicast: Counter,
    broadcast: Counter,
    starved: Counter,
    drops: [Counter; DropReason::ALL.len()],
}

impl PacketCounters {
    /// Counts a packet that has passed: the length of its frame without the virtio header, and the
    /// destination at its front. A packet that will be cut into segments counts as one.
    #[inline]
    pub fn count(&self, bytes: usize, destination: [u8; 6]) {
        if let Some(counter) = self.sizes.get(size_class(bytes)) {
            counter.add(1);
        }
        self.bytes.add(bytes as u64);
        let [first, ..] = destination;
        if first & 1 != 0 {
            self.count_group(destination);
        }
    }

    /// Counts a packet that was lost.
    #[inline]
    pub fn count_drop(&self, reason: DropReason) {
        if let Some(counter) = self.drops.get(reason.index()) {
            counter.add(1);
        }
    }

    /// Counts that packets began to wait, outside, because the guest had no buffers.
    #[inline]
    pub fn count_starved(&self) {
        self.starved.add(1);
    }

    #[cold]
    fn count_group(&self, destination: [u8; 6]) {
        if destination == [0xff; 6] {
            self.broadcast.add(1);
        } else {
            self.multicast.add(1);
        }
    }

    fn read(&self) -> PacketTotals {
        let mut totals = PacketTotals {
            bytes: self.bytes.load(),
            multicast: self.multicast.load(),
            broadcast: self.broadcast.load(),
            starved: self.starved.load(),
            ..PacketTotals::default()
        };
        for (total, counter) in totals.sizes.iter_mut().zip(&self.sizes) {
            *total = counter.load();
        }
        for (total, counter) in totals.drops.iter_mut().zip(&self.drops) {
            *total = counter.load();
        }
        totals
    }
}

/// What [`PacketCounters`] were at one moment, or a sum of several.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PacketTotals {
    sizes: [u64; SIZE_CLASSES.len()],
    /// Bytes of the frames that have passed.
    pub bytes: u64,
    /// Of those, to groups.
    pub multicast: u64,
    /// Of those, to everybody.
    pub broadcast: u64,
    /// How often packets began to wait for buffers.
    pub starved: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl PacketTotals {
    /// Packets that have passed.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.sizes.iter().copied().fold(0, u64::wrapping_add)
    }

    /// Packets that were lost for `reason`.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.index()).copied().unwrap_or(0)
    }

    fn merge(&mut self, other: &Self) {
        add_each(&mut self.sizes, &other.sizes);
        add_each(&mut self.drops, &other.drops);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.multicast = self.multicast.wrapping_add(other.multicast);
        self.broadcast = self.broadcast.wrapping_add(other.broadcast);
        self.starved = self.starved.wrapping_add(other.starved);
    }
}

fn add_each<const N: usize>(to: &mut [u64; N], from: &[u64; N]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = to.wrapping_add(*from);
    }
}

/// The counters of a port, one set for each vring that was ever started.
///
/// Shown through [`DeviceCounters`](ringside_common::management::DeviceCounters).
#[derive(Debug, Default)]
pub struct PortCounters {
    vrings: Mutex<BTreeMap<u16, Arc<PacketCounters>>>,
}

impl PortCounters {
    /// The counters of vring `index`, made at the first call and the same ever after.
    ///
    /// Called when a vring starts, on the thread that owns it or before it is handed to it.
    pub fn vring(&self, index: u16) -> Arc<PacketCounters> {
        let mut vrings = self.vrings.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(vrings.entry(index).or_default())
    }

    /// What the port has counted in one direction.
    pub fn totals(&self, direction: Direction) -> PacketTotals {
        let mut sum = PacketTotals::default();
        for (index, totals) in self.read() {
            if Direction::of_vring(index) == direction {
                sum.merge(&totals);
            }
        }
        sum
    }

    fn read(&self) -> Vec<(u16, PacketTotals)> {
        let vrings = self.vrings.lock().unwrap_or_else(PoisonError::into_inner);
        vrings
            .iter()
            .map(|(index, counters)| (*index, counters.read()))
            .collect()
    }
}

#[cfg(test)]
mod tests;
