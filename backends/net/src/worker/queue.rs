// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is kept for a started vring, found by the slot of the vring.

use std::sync::Arc;

use ringside_common::device::{Turn, Vring, Vrings};
use ringside_common::memory::Buffers;

use super::rx_queue::RxQueue;
use super::slot::{ControlSlot, RxSlot, Slot, TxSlot};
use super::tx_queue::TxQueue;
use crate::counters::PacketCounters;
use crate::port::{Negotiated, Port, Role};

/// What the control side hands over when a vring starts.
#[derive(Debug)]
pub struct Seed {
    pub(crate) port: Arc<Port>,
    pub(crate) role: Role,
    pub(crate) negotiated: Negotiated,
    pub(crate) counters: Arc<PacketCounters>,
}

/// What is kept for a started vring.
#[derive(Debug)]
pub struct NetQueue(pub(super) Side);

/// What a vring is for, and what that needs.
#[derive(Debug)]
pub(super) enum Side {
    Receive(Box<RxQueue>),
    Transmit(TxQueue),
    Control(ControlQueue),
}

/// What is kept for a control queue.
#[derive(Debug)]
pub(super) struct ControlQueue {
    pub(super) port: Arc<Port>,
    /// The command that is being read.
    pub(super) buffers: Buffers,
}

pub(super) type NetTurn<'a> = Turn<'a, NetQueue>;
pub(super) type NetVrings = Vrings<NetQueue>;

impl From<Seed> for NetQueue {
    fn from(seed: Seed) -> Self {
        Self(match seed.role {
            Role::Receive { pair } => Side::Receive(Box::new(RxQueue::new(
                seed.port,
                seed.counters,
                pair,
                seed.negotiated,
            ))),
            Role::Transmit { pair } => Side::Transmit(TxQueue::new(
                seed.port,
                seed.counters,
                pair,
                seed.negotiated,
            )),
            Role::Control => Side::Control(ControlQueue {
                port: seed.port,
                buffers: Buffers::default(),
            }),
        })
    }
}

/// A vring with what is kept for it. Nothing where the vring has left.
pub(super) trait Slots {
    /// What the vring in `slot` is for.
    fn kind(&self, slot: usize) -> Option<Slot>;
    fn rx(&self, slot: RxSlot) -> Option<(&Vring, &RxQueue)>;
    fn rx_mut(&mut self, slot: RxSlot) -> Option<(&mut Vring, &mut RxQueue)>;
    fn tx(&self, slot: TxSlot) -> Option<(&Vring, &TxQueue)>;
    fn tx_mut(&mut self, slot: TxSlot) -> Option<(&mut Vring, &mut TxQueue)>;
    fn control_mut(&mut self, slot: ControlSlot) -> Option<(&mut Vring, &mut ControlQueue)>;
}

impl Slots for NetVrings {
    #[inline]
    fn kind(&self, slot: usize) -> Option<Slot> {
        Some(match self.get(slot)?.queue.0 {
            Side::Receive(_) => Slot::Receive(RxSlot(slot)),
            Side::Transmit(_) => Slot::Transmit(TxSlot(slot)),
            Side::Control(_) => Slot::Control(ControlSlot(slot)),
        })
    }

    #[inline]
    fn rx(&self, slot: RxSlot) -> Option<(&Vring, &RxQueue)> {
        let place = self.get(slot.0)?;
        match &place.queue.0 {
            Side::Receive(rx) => Some((&place.vring, rx)),
            Side::Transmit(_) | Side::Control(_) => None,
        }
    }

    #[inline]
    fn rx_mut(&mut self, slot: RxSlot) -> Option<(&mut Vring, &mut RxQueue)> {
        let place = self.get_mut(slot.0)?;
        match &mut place.queue.0 {
            Side::Receive(rx) => Some((&mut place.vring, rx)),
            Side::Transmit(_) | Side::Control(_) => None,
        }
    }

    #[inline]
    fn tx(&self, slot: TxSlot) -> Option<(&Vring, &TxQueue)> {
        let place = self.get(slot.0)?;
        match &place.queue.0 {
            Side::Transmit(tx) => Some((&place.vring, tx)),
            Side::Receive(_) | Side::Control(_) => None,
        }
    }

    #[inline]
    fn tx_mut(&mut self, slot: TxSlot) -> Option<(&mut Vring, &mut TxQueue)> {
        let place = self.get_mut(slot.0)?;
        match &mut place.queue.0 {
            Side::Transmit(tx) => Some((&mut place.vring, tx)),
            Side::Receive(_) | Side::Control(_) => None,
        }
    }

    #[inline]
    fn control_mut(&mut self, slot: ControlSlot) -> Option<(&mut Vring, &mut ControlQueue)> {
        let place = self.get_mut(slot.0)?;
        match &mut place.queue.0 {
            Side::Control(queue) => Some((&mut place.vring, queue)),
            Side::Receive(_) | Side::Transmit(_) => None,
        }
    }
}
