// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Slots of a data thread by what their vring is for, which does not change while it is started.

/// The slot of a receive vring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct RxSlot(pub(super) usize);

/// The slot of a transmit vring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TxSlot(pub(super) usize);

/// The slot of a control vring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ControlSlot(pub(super) usize);

/// The slot of a vring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Slot {
    Receive(RxSlot),
    Transmit(TxSlot),
    Control(ControlSlot),
}
