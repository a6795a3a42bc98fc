// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One front-end connection.
//!
//! [`connection`] takes messages from the socket ([`inbox`]) and answers them. A [`message`] is a
//! value; [`messages`] is what each one does to the [`Session`], whose [`state`] is a value too.
//! Descriptors are [`received`] with care.
//!
//! A vring is *started* from its kick descriptor to `GET_VRING_BASE`, and *enabled* by
//! `SET_VRING_ENABLE` (vhost-user.rst "Ring states"). Both are kept apart: a driver's ring can be
//! started and disabled, and a front-end may enable one long before it starts. A started vring is
//! owned by a data thread; whatever changes it is told to that thread and acknowledged.
//!
//! Any error that a message ends in closes the connection.

pub(crate) mod connection;
mod eventfds;
mod fields;
mod inbox;
mod message;
mod messages;
pub(crate) mod received;
mod state;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::device::vring::VringId;
use crate::device::{Device, SeedOf};
use crate::error::{FrontEndError, HostError};
use crate::limited;
use crate::memory::Memory;
use crate::worker::{Command, Pool, Reply, VringStart, Workers};
use eventfds::{VringFds, duplicate};
use state::{SessionState, VringState};

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What came of a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The front-end's fault.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
    /// Ours.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The connection has failed.
    #[error("the connection failed: {0}")]
    Socket(std::io::Error),
    /// The device refused.
    #[error("the device refused: {0}")]
    Device(std::io::Error),
}

/// One front-end: what it has set, and what serves it.
#[derive(Debug)]
pub(crate) struct Session<D: Device> {
    device: Arc<D>,
    workers: Workers<D>,
    state: SessionState,
    vring_fds: BTreeMap<u16, VringFds>,
    /// The regions of the state, mapped.
    memory: Arc<Memory>,
}

impl<D: Device> Session<D> {
    pub(crate) fn new(device: Arc<D>, pool: Arc<Pool<D>>) -> Self {
        Self {
            workers: Workers::new(Arc::clone(&device), pool),
            device,
            state: SessionState::default(),
            vring_fds: BTreeMap::new(),
            memory: Arc::default(),
        }
    }

    /// Whether a protocol feature was negotiated.
    fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.state.protocol_features().contains(feature)
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
        self.state.features = Some(features);
        self.device.acked_features(features);
        if features & PROTOCOL_FEATURES == 0 {
            // vhost-user.rst "Ring states": without the bit rings are enabled from the start.
            for index in 0..self.device.num_queues() {
                self.enable(index, true)?;
            }
        }
        Ok(())
    }

    /// Goes over to a new memory table, everywhere.
    fn install_memory(&mut self, memory: Memory) -> Result<(), SessionError> {
        let memory = Arc::new(memory);
        self.workers.set_memory(&memory)?;
        self.state.regions = memory
            .regions()
            .iter()
            .map(|region| *region.spec())
            .collect();
        self.memory = memory;
        Ok(())
    }

    /// The index of a vring that was offered.
    fn queue(&self, index: u32) -> Result<u16, FrontEndError> {
        let count = self.device.num_queues();
        match u16::try_from(index) {
            Ok(queue) if queue < count => Ok(queue),
            _ => Err(FrontEndError::VringIndex {
                index,
                count,
                option: self.device.queues_option(),
            }),
        }
    }

    fn vring(&mut self, queue: u16) -> &mut VringState {
        self.state.vrings.entry(queue).or_default()
    }

    fn enable(&mut self, queue: u16, enabled: bool) -> Result<(), SessionError> {
        self.vring(queue).enabled = enabled;
        self.tell(queue, |id| Command::Enable(id, enabled))
    }

    fn start(&mut self, queue: u16, kick: Option<OwnedFd>) -> Result<(), SessionError> {
        let index = u32::from(queue);
        let vring = *self.vring(queue);
        if vring.addresses.size == 0 {
            // Any address would do for a ring of no entries, and none could ever be served.
            return Err(FrontEndError::VringSizeUnset { index }.into());
        }
        vring.addresses.check(index, &self.memory)?;
        let fds = self.vring_fds.entry(queue).or_default();
        let (call, err) = (duplicate(fds.call.as_ref())?, duplicate(fds.err.as_ref())?);
        self.vring(queue).started = true;
        let start = VringStart {
            id: self.workers.id(queue),
            addresses: vring.addresses,
            features: self.state.ring_features(),
            next_avail: vring.base,
            in_order: self.device.serves_in_order(),
            enabled: vring.enabled,
            paused: false,
            kick,
            call,
            err,
            memory: Arc::clone(&self.memory),
            stats: self.device.stats().queue(queue),
            seed: self.device.seed(queue),
        };
        accepted(self.workers.start(start)?)?;
        limited!(debug, "vring {queue} started");
        Ok(())
    }

    /// Stops a vring; returns the next available entry.
    fn stop(&mut self, queue: u16) -> Result<u16, SessionError> {
        let stopped = self.workers.stop(queue)?;
        let vring = self.vring(queue);
        vring.started = false;
        if let Some(next_avail) = stopped {
            vring.base = next_avail;
            limited!(debug, "vring {queue} stopped at {next_avail}");
        }
        Ok(vring.base)
    }

    /// Stops all vrings and disables them.
    fn reset_rings(&mut self) -> Result<(), SessionError> {
        for queue in 0..self.device.num_queues() {
            if self.vring(queue).started {
                self.stop(queue)?;
            }
            self.enable(queue, false)?;
        }
        Ok(())
    }

    fn tell(
        &self,
        queue: u16,
        command: impl FnOnce(VringId) -> Command<SeedOf<D>>,
    ) -> Result<(), SessionError> {
        accepted(self.workers.tell(queue, command)?)
    }
}

fn accepted(reply: Reply) -> Result<(), SessionError> {
    match reply {
        Reply::Done | Reply::Stopped { .. } => Ok(()),
        Reply::Refused(error) => Err(error.into()),
        Reply::Failed(error) => Err(error.into()),
    }
}
