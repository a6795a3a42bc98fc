// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The contract between a device and Ringside: what a device implements, and what it gets.
//!
//! The control side is a [`Device`]. Control threads call it: it says what the front-end is offered,
//! and learns what the front-end has set.
//!
//! The data side is a [`DeviceWorker`]. Each data thread makes its own, so that it needs no lock.
//! [`Requests`](crate::worker::Requests) makes one of a device that answers requests.

mod control;
pub(crate) mod turn;
pub(crate) mod vring;

pub use control::{
    Device, DeviceMessage, RING_FEATURES, VhostUserProtocolFeatures, VhostUserShMemConfig,
};
pub use turn::{DeviceWorker, Place, Turn, Vrings, WhileAway, monotonic_ns};
pub use vring::Vring;

/// What a device's control side hands to its data side for a vring.
pub(crate) type SeedOf<D> = <<D as Device>::Worker as DeviceWorker>::Seed;

/// What an errand of a device's data side brings.
pub(crate) type BroughtOf<D> = <<D as Device>::Worker as DeviceWorker>::Brought;
