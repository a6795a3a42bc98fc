// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the data thread of a switch keeps of a port: where its receive vrings are, and what it may
//! still cost others.

use std::sync::Arc;

use ringside_common::limit::{Admission, Limits, Rate, RateLimit};

use super::patience::{Awaited, SenderPatience};
use super::slot::RxSlot;
use crate::counters::{DropReason, PacketCounters};
use crate::flow::FlowTable;
use crate::hub::{Fabric, Hub};
use crate::port::Port;

/// What rubbish costs its port in time: no more than 100 000 a second, so that ports that send
/// nothing else do not take the switch's time from others.
const FAULT_NS: u64 = 10_000;
/// Descriptors of rubbish that cost as much to read as a frame.
const FAULT_DESCRIPTORS: u64 = 16;
/// Descriptors of a frame that goes nowhere likewise: more than the longest has in pages.
const LOSS_DESCRIPTORS: u64 = 64;
/// The part of a second's floods that may come at once, unless the operator says how many.
const FLOODS_AT_ONCE: u64 = 100;
/// How far a port may be in debt.
const FAULT_BURST_NS: u64 = 64 * FAULT_NS;

/// A port of a switch.
#[derive(Debug)]
pub(super) struct SwitchPort {
    pub(super) port: Arc<Port>,
    pub(super) vlan: u16,
    /// Its guest's address, where that is configured.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) flows: FlowTable,
    /// Its receive vrings, by pair.
    receivers: Vec<Option<RxSlot>>,
    /// How long its transmit queues have waited, by pair.
    patience: Vec<SenderPatience>,
    /// Copies that its floods may still make.
    flood: RateLimit,
    /// Counters of its first receive vring, for what is lost while it has none.
    absent: Option<Arc<PacketCounters>>,
    /// Until when its faults have taken the time that it has for them.
    faulty_until_ns: u64,
}

impl SwitchPort {
    pub(super) fn new(hub: &Hub, port: &Arc<Port>) -> Self {
        let pairs = usize::from(port.pairs);
        let flood = Limits {
            bytes: None,
            operations: hub.flood_limit().map(|rate| Rate {
                burst: Some(
                    rate.burst
                        .unwrap_or_else(|| rate.per_s.get() / FLOODS_AT_ONCE),
                ),
                ..rate
            }),
        };
        Self {
            port: Arc::clone(port),
            vlan: port.options.vlan.unwrap_or(0),
            mac: port.options.mac,
            flows: FlowTable::default(),
            receivers: vec![None; pairs],
            patience: vec![SenderPatience::default(); pairs],
            flood: RateLimit::new(0, flood),
            // Elsewhere the vring may be with another data thread.
            absent: (hub.fabric() == Fabric::Switch).then(|| port.counters.vring(0)),
            faulty_until_ns: 0,
        }
    }

    /// The receive vring of a pair is in `slot`, or has left.
    pub(super) fn set_receiver(&mut self, pair: u16, slot: Option<RxSlot>) {
        if let Some(receiver) = self.receivers.get_mut(usize::from(pair)) {
            *receiver = slot;
        }
    }

    /// The receive vring of a pair.
    #[inline]
    pub(super) fn receiver(&self, pair: u16) -> Option<RxSlot> {
        *self.receivers.get(usize::from(pair))?
    }

    /// What the transmit queue of a pair waits for.
    pub(super) fn awaited(&self, pair: u16) -> Option<Awaited> {
        self.patience.get(usize::from(pair))?.awaited()
    }

    /// How long the transmit queue of a pair has waited.
    #[inline]
    pub(super) fn patience(&mut self, pair: u16) -> Option<&mut SenderPatience> {
        self.patience.get_mut(usize::from(pair))
    }

    /// A frame for this port is lost since its guest has no receive vring: it is not there, or
    /// starts anew.
    pub(super) fn lose(&self) {
        if let Some(counters) = &self.absent {
            counters.count_drop(DropReason::LinkDown);
        }
    }

    /// Whether a flood of as many `copies` may go on its way; they are paid for then.
    pub(super) fn may_flood(&self, now_ns: u64, copies: usize, bytes: usize) -> bool {
        if self.flood.admit(now_ns) != Admission::Now {
            return false;
        }
        self.flood.charge(now_ns, bytes, || copies as u64);
        true
    }

    /// Takes note that a frame went nowhere, whose chain has as many `descriptors`. It is the fault
    /// of its sender only if no receiver could have taken it. Of another loss the sender answers
    /// for the length of the chain.
    pub(super) fn note_loss(&mut self, now_ns: u64, reason: DropReason, descriptors: u32) {
        let descriptors = u64::from(descriptors);
        let weight = if reason.is_fault() {
            1 + descriptors / FAULT_DESCRIPTORS
        } else {
            descriptors / LOSS_DESCRIPTORS
        };
        self.faulty_until_ns = self.faulty_until_ns.max(now_ns) + weight * FAULT_NS;
    }

    /// Until when nothing is taken from it, for its faults.
    #[inline]
    pub(super) fn rests_until(&self, now_ns: u64) -> Option<u64> {
        let debt_ns = self.faulty_until_ns.saturating_sub(now_ns);
        (debt_ns > FAULT_BURST_NS).then(|| self.faulty_until_ns - FAULT_BURST_NS / 2)
    }
}
