// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One guest's network card: what its control side and the data threads share.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringside_common::backchannel::BackChannel;
use ringside_common::limit::RateLimit;
use ringside_common::stats::DeviceStats;

use crate::cable::Cable;
use crate::counters::PortCounters;
use crate::features::{Offloads, sent_by_driver, taken_by_driver};
use crate::filter::RxFilter;
use crate::frame::{ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, VLAN_TAG_BYTES};
use crate::header::{MAX_FRAME_BYTES, header_bytes};
use crate::mac_table::PortId;

/// What a port is, from start to end.
#[derive(Clone, Debug, Default)]
pub struct PortOptions {
    /// What it is called on the control socket and in metrics.
    pub name: String,
    /// The address the guest is told, which a switch looks for nowhere else; it is held to it with
    /// `anti_spoof`.
    pub mac: Option<[u8; 6]>,
    /// The VLAN it is an access port of.
    pub vlan: Option<u16>,
    /// Whether it reaches the uplink and ports that are not isolated only.
    pub isolated: bool,
    /// Whether frames from another address than `mac` are dropped.
    pub anti_spoof: bool,
    /// Most addresses that the switch learns behind it, beside `mac`.
    pub mac_limit: Option<u32>,
    /// The largest packet of the network layer.
    pub mtu: Option<u16>,
    /// What the guest is told of the speed.
    pub speed_mbps: Option<u32>,
    /// Whether the guest finishes all it sends, and gets nothing unfinished.
    pub no_offloads: bool,
}

/// Which way a vring goes (virtio 1.3 §5.1.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// To the guest.
    Receive {
        /// Number of the queue pair.
        pair: u16,
    },
    /// From the guest.
    Transmit {
        /// Number of the queue pair.
        pair: u16,
    },
    /// Commands.
    Control,
}

/// What the driver acknowledged, as far as the data side is concerned.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Negotiated {
    /// Bytes of the header.
    pub header_bytes: usize,
    /// `MRG_RXBUF`.
    pub mergeable: bool,
    /// What the driver takes unfinished.
    pub takes: Offloads,
    /// What the driver may send unfinished.
    pub sends: Offloads,
}

/// One guest's network card.
#[derive(Debug)]
pub struct Port {
    /// Its number.
    pub id: PortId,
    /// What it is.
    pub options: PortOptions,
    /// Queue pairs offered.
    pub pairs: u16,
    /// A front-end has said which features its driver has.
    connected: AtomicBool,
    /// Receive vrings that are started.
    running_pairs: AtomicU16,
    acked_features: AtomicU64,
    guest_mtu: AtomicU16,
    /// Plugged in and out by the operator.
    pub cable: Cable,
    /// Set by the driver; beyond them pairs are not used.
    active_pairs: AtomicU16,
    /// Limit of what the guest is sent.
    pub to_guest: RateLimit,
    /// Limit of what the guest sends.
    pub from_guest: RateLimit,
    filter: Mutex<RxFilter>,
    filter_version: AtomicU32,
    /// The address to announce, and a bit that says that there is one.
    announcement: AtomicU64,
    /// Counters of packets.
    pub counters: Arc<PortCounters>,
    /// Counters of vrings.
    pub stats: Arc<DeviceStats>,
    /// The way to tell the front-end that the configuration space has changed.
    pub back_channel: BackChannel,
}

impl Port {
    /// A port that nobody is connected to.
    #[must_use]
    pub fn new(id: PortId, options: PortOptions, pairs: u16) -> Self {
        Self {
            id,
            pairs,
            acked_features: AtomicU64::new(0),
            guest_mtu: AtomicU16::new(0),
            cable: Cable::default(),
            active_pairs: AtomicU16::new(u16::MAX),
            to_guest: RateLimit::default(),
            from_guest: RateLimit::default(),
            filter: Mutex::new(RxFilter::new(options.mac)),
            filter_version: AtomicU32::new(0),
            announcement: AtomicU64::new(0),
            counters: Arc::default(),
            connected: AtomicBool::new(false),
            running_pairs: AtomicU16::new(0),
            stats: Arc::new(DeviceStats::new("net", &[])),
            back_channel: BackChannel::default(),
            options,
        }
    }

    /// What vring `index` is for.
    #[must_use]
    pub fn role(&self, index: u16) -> Role {
        let pair = index / 2;
        if pair >= self.pairs {
            Role::Control
        } else if index.is_multiple_of(2) {
            Role::Receive { pair }
        } else {
            Role::Transmit { pair }
        }
    }

    /// Whether there is a guest.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Queue pairs that are started.
    #[must_use]
    pub fn running_pairs(&self) -> u16 {
        self.running_pairs.load(Ordering::Acquire)
    }

    /// A receive vring has started.
    pub fn pair_started(&self) {
        self.running_pairs.fetch_add(1, Ordering::AcqRel);
    }

    /// One has stopped.
    pub fn pair_stopped(&self) {
        self.running_pairs.fetch_sub(1, Ordering::AcqRel);
    }

    /// The features that the driver acknowledged.
    #[must_use]
    pub fn acked_features(&self) -> u64 {
        self.acked_features.load(Ordering::Acquire)
    }

    /// Takes note of them; returns those before.
    pub fn set_acked_features(&self, features: u64) -> u64 {
        self.connected.store(true, Ordering::Release);
        self.acked_features.swap(features, Ordering::AcqRel)
    }

    /// What follows from them.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
        let features = self.acked_features();
        Negotiated {
            header_bytes: header_bytes(features),
            mergeable: crate::features::has(features, VIRTIO_NET_F_MRG_RXBUF),
            takes: taken_by_driver(features),
            sends: sent_by_driver(features),
        }
    }

    /// The MTU that the front-end asked for.
    #[must_use]
    pub fn guest_mtu(&self) -> Option<u16> {
        Some(self.guest_mtu.load(Ordering::Acquire)).filter(|mtu| *mtu != 0)
    }

    /// Takes note of it.
    pub fn set_guest_mtu(&self, mtu: u16) {
        self.guest_mtu.store(mtu, Ordering::Release);
    }

    /// The longest frame that it takes in one piece: its MTU, and an Ethernet header with a tag.
    #[must_use]
    #[inline]
    pub fn max_frame_bytes(&self) -> usize {
        match self.guest_mtu.load(Ordering::Relaxed) {
            0 => self.options.mtu.map_or(MAX_FRAME_BYTES, frame_bytes),
            mtu => frame_bytes(mtu),
        }
    }

    /// The same of a frame that begins with `start`: it may have two tags where the kernel takes
    /// them.
    #[must_use]
    #[inline]
    pub fn max_frame_bytes_of(&self, start: &[u8]) -> usize {
        let most = self.max_frame_bytes();
        let is_tag = |at| {
            start
                .get(at..)
                .and_then(<[u8]>::first_chunk)
                .is_some_and(|kind| is_tag(*kind))
        };
        if is_tag(12) && is_tag(16) {
            most.saturating_add(VLAN_TAG_BYTES)
        } else {
            most
        }
    }

    /// Whether a frame that begins with `start` says to be from another station than the guest,
    /// where it is held to its address.
    #[must_use]
    #[inline]
    pub fn is_spoofed(&self, start: &[u8]) -> bool {
        self.options.anti_spoof
            && self
                .options
                .mac
                .is_some_and(|mac| start.get(6..12) != Some(&mac))
    }

    /// Whether the cable is plugged in.
    #[must_use]
    #[inline]
    pub fn is_link_up(&self) -> bool {
        self.cable.is_in()
    }

    /// The pairs that the driver uses; more than there are where it has not said.
    #[must_use]
    #[inline]
    pub fn active_pairs(&self) -> u16 {
        self.active_pairs.load(Ordering::Relaxed)
    }

    /// Takes note of them.
    pub fn set_active_pairs(&self, pairs: u16) {
        self.active_pairs.store(pairs, Ordering::Release);
    }

    /// Counts the changes of the filter.
    #[must_use]
    #[inline]
    pub fn filter_version(&self) -> u32 {
        self.filter_version.load(Ordering::Acquire)
    }

    /// What the driver wants to see.
    #[must_use]
    pub fn filter(&self) -> RxFilter {
        self.filter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes it.
    pub fn change_filter<R>(&self, change: impl FnOnce(&mut RxFilter) -> R) -> R {
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut filter);
        drop(filter);
        self.filter_version.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// Takes note of an address to announce, in place of one that still waits.
    pub fn ask_announcement(&self, mac: [u8; 6]) {
        let [a, b, c, d, e, f] = mac;
        let address = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        self.announcement
            .store(ANNOUNCED | address, Ordering::Release);
    }

    /// The address to announce, once.
    #[must_use]
    pub fn take_announcement(&self) -> Option<[u8; 6]> {
        let asked = self.announcement.swap(0, Ordering::AcqRel);
        let [_, _, mac @ ..] = asked.to_be_bytes();
        (asked != 0).then_some(mac)
    }

    /// The front-end has gone: what it and the driver had set is void.
    pub fn reset(&self) {
        self.set_acked_features(0);
        self.connected.store(false, Ordering::Release);
        self.set_guest_mtu(0);
        self.set_active_pairs(u16::MAX);
        self.announcement.store(0, Ordering::Release);
        self.change_filter(|filter| *filter = RxFilter::new(self.options.mac));
    }
}

/// Beyond all addresses.
const ANNOUNCED: u64 = 1 << 48;

fn is_tag(kind: [u8; 2]) -> bool {
    matches!(
        u16::from_be_bytes(kind),
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN
    )
}

fn frame_bytes(mtu: u16) -> usize {
    usize::from(mtu) + crate::frame::TAGGED_HEADER_BYTES
}
