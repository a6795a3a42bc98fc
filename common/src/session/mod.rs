// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One front-end connection.
//!
//! [`Session`] is what the messages change: features, the memory table, the vrings; [`messages`] is
//! what each of them does. [`connection`] takes them from the socket ([`inbox`]) and answers them.
//! Descriptors are [`received`] with care.
//!
//! A vring is *started* from its kick descriptor to `GET_VRING_BASE`, and *enabled* by
//! `SET_VRING_ENABLE` (vhost-user.rst "Ring states"). Both are kept apart: a driver's ring can be
//! started and disabled, and a front-end may enable one long before it starts. A started vring is
//! owned by a data thread; whatever changes it is told to that thread and acknowledged.
//!
//! Any error that a message ends in closes the connection.

mod body;
pub(crate) mod connection;
mod inbox;
mod messages;
pub(crate) mod received;
mod record;

use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::device::vring::VringId;
use crate::device::{Device, SeedOf};
use crate::error::{FrontEndError, HostError};
use crate::limited;
use crate::memory::Memory;
use crate::ring::RingFeatures;
use crate::worker::{Command, Pool, Reply, VringStart, Workers};
use record::VringRecord;

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What came of a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The front-end's fault.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
    /// Ours.
    #[error("{0}: {source}", source = .0.source)]
    Host(#[from] HostError),
    /// The connection has failed.
    #[error("the connection failed: {0}")]
    Socket(std::io::Error),
    /// The device refused.
    #[error("the device refused: {0}")]
    Device(std::io::Error),
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Session<D: Device> {
    device: Arc<D>,
    workers: Workers<D>,
    vrings: Vec<VringRecord>,
    memory: Arc<Memory>,
    owned: bool,
    /// None before the first `SET_FEATURES`.
    features: Option<u64>,
    protocol_features: u64,
    /// The device status, as the front-end has said it.
    status: u64,
}

impl<D: Device> Session<D> {
    pub(crate) fn new(device: Arc<D>, pool: Arc<Pool<D>>) -> Self {
        let vrings = (0..device.num_queues()).map(|_| VringRecord::default());
        Self {
            vrings: vrings.collect(),
            workers: Workers::new(Arc::clone(&device), pool),
            device,
            memory: Arc::default(),
            owned: false,
            features: None,
            protocol_features: 0,
            status: 0,
        }
    }

    /// Stops taking requests and completes those in flight; or goes on.
    pub(crate) fn pause(&mut self, paused: bool) -> Result<(), HostError> {
        self.workers.pause(paused)
    }

    /// Whether a data thread found the memory's file truncated.
    pub(crate) fn memory_is_torn(&self) -> bool {
        self.memory.is_torn()
    }

    /// Whether the front-end's eventfds would have made a data thread wait.
    pub(crate) fn is_stuck(&self) -> bool {
        self.workers.is_stuck()
    }

    /// Completes what is in flight and lets go of everything the front-end gave.
    pub(crate) fn end(&mut self) {
        // A thread that waits for an answer there would hold up the end.
        if let Some(back_channel) = self.device.back_channel() {
            back_channel.close();
        }
        self.workers.shut_down();
        self.device.session_ended();
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | PROTOCOL_FEATURES
    }

    fn set_features(&mut self, features: u64) -> Result<(), SessionError> {
        let excess = features & !self.offered_features();
        if excess != 0 {
            return Err(FrontEndError::UnofferedFeatures { bits: excess }.into());
        }
        let modern = features & (1 << VIRTIO_F_VERSION_1) != 0;
        if !modern && !self.device.serves_legacy_drivers() {
            return Err(FrontEndError::LegacyDriver.into());
        }
        self.features = Some(features);
        self.device.acked_features(features);
        if features & PROTOCOL_FEATURES == 0 {
            // vhost-user.rst "Ring states": without the bit rings are enabled from the start.
            for index in 0..self.vrings.len() {
                self.enable(index as u64, true)?;
            }
        }
        Ok(())
    }

    fn ring_features(&self) -> RingFeatures {
        let has = |bit: u32| self.features.unwrap_or(0) & (1 << bit) != 0;
        RingFeatures {
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
        }
    }

    /// Goes over to a new memory table, everywhere.
    fn install_memory(&mut self, memory: Memory) -> Result<(), SessionError> {
        let memory = Arc::new(memory);
        self.workers.set_memory(&memory)?;
        self.memory = memory;
        Ok(())
    }

    fn vring(&mut self, index: u64) -> Result<&mut VringRecord, FrontEndError> {
        let count = self.vrings.len();
        let option = self.device.queues_option();
        usize::try_from(index)
            .ok()
            .and_then(|at| self.vrings.get_mut(at))
            .ok_or(FrontEndError::VringIndex {
                index,
                count,
                option,
            })
    }

    fn enable(&mut self, index: u64, enabled: bool) -> Result<(), SessionError> {
        let vring = self.vring(index)?;
        vring.enabled = enabled;
        let index = narrow(index);
        self.tell(index, |id| Command::Enable(id, enabled))
    }

    fn start(&mut self, index: u32) -> Result<(), SessionError> {
        let features = self.ring_features();
        let memory = Arc::clone(&self.memory);
        let queue = u16::try_from(index).unwrap_or(u16::MAX);
        let stats = self.device.stats().queue(queue);
        let vring = self.vring(u64::from(index))?;
        if vring.addresses.size == 0 {
            // Any address would do for a ring of no entries, and none could ever be served.
            return Err(FrontEndError::VringSizeUnset { index }.into());
        }
        vring.addresses.check(index, &memory)?;
        let (addresses, next_avail, enabled) = (vring.addresses, vring.base, vring.enabled);
        let kick = vring.kick.take();
        let call = record::duplicate(vring.call.as_ref())?;
        let err = record::duplicate(vring.err.as_ref())?;
        vring.started = true;
        let start = VringStart {
            id: self.workers.id(queue),
            addresses,
            features,
            next_avail,
            in_order: self.device.serves_in_order(),
            enabled,
            paused: false,
            kick,
            call,
            err,
            memory,
            stats,
            seed: self.device.seed(queue),
        };
        let reply = self.workers.start(start)?;
        accepted(reply)?;
        limited!(debug, "vring {index} started");
        Ok(())
    }

    /// Stops a vring; the reply of `GET_VRING_BASE`.
    fn stop(&mut self, index: u32) -> Result<u16, SessionError> {
        let queue = u16::try_from(index).unwrap_or(u16::MAX);
        let stopped = self.workers.stop(queue)?;
        let vring = self.vring(u64::from(index))?;
        if let Some(next_avail) = stopped {
            vring.base = next_avail;
            limited!(debug, "vring {index} stopped at {next_avail}");
        }
        vring.started = false;
        vring.kick = None;
        Ok(vring.base)
    }

    /// Stops all vrings and disables them.
    fn reset_rings(&mut self) -> Result<(), SessionError> {
        for index in 0..u32::try_from(self.vrings.len()).unwrap_or(0) {
            if self.vring(u64::from(index))?.started {
                self.stop(index)?;
            }
            self.enable(u64::from(index), false)?;
        }
        Ok(())
    }

    fn tell(
        &self,
        index: u16,
        command: impl FnOnce(VringId) -> Command<SeedOf<D>>,
    ) -> Result<(), SessionError> {
        accepted(self.workers.tell(index, command)?)
    }
}

fn narrow(index: u64) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

fn accepted(reply: Reply) -> Result<(), SessionError> {
    match reply {
        Reply::Done | Reply::Stopped { .. } => Ok(()),
        Reply::Refused(error) => Err(error.into()),
        Reply::Failed(source) => Err(HostError {
            what: "watching an eventfd",
            source,
        }
        .into()),
    }
}
