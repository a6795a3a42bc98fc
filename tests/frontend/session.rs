// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One well-behaved vhost-user connection, from negotiation to the last `GET_VRING_BASE`.
//!
//! [`Session::builder`] describes it, `connect` negotiates and shares memory. Vrings are created
//! and started one by one, and live outside the session so that driver threads can own them.

mod builder;
mod handshake;

use std::fmt;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VringConfigData};

pub use builder::{MemoryMessages, SessionBuilder};

use super::back_channel::BackChannel;
use super::error::{FrontendError, Result};
use super::ids::feature;
use super::memory::{GuestMemory, Region};
use super::ring::{CallMode, RingConfig};
use super::vring::Vring;

/// What was agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated {
    /// Virtio features the back-end offers.
    pub offered: u64,
    /// Virtio features acknowledged.
    pub features: u64,
    /// Protocol features the back-end offers.
    pub offered_protocol: VhostUserProtocolFeatures,
    /// Protocol features acknowledged.
    pub protocol: VhostUserProtocolFeatures,
    /// Queues the back-end has; the number asked for without `MQ`.
    pub max_queues: u64,
    /// Memory slots the back-end has; 0 without `CONFIGURE_MEM_SLOTS`.
    pub max_mem_slots: u64,
}

/// A negotiated connection with shared memory.
pub struct Session {
    frontend: Frontend,
    memory: Arc<GuestMemory>,
    negotiated: Negotiated,
    ring_config: RingConfig,
    queues: usize,
    back_channel: Option<BackChannel>,
}

impl Session {
    /// Describes a connection; the defaults fit any device.
    #[must_use]
    pub fn builder() -> SessionBuilder {
        SessionBuilder::default()
    }

    /// Creates a vring of the configured size; nothing is sent.
    ///
    /// # Errors
    ///
    /// When guest memory or file descriptors run out.
    pub fn create_vring(&self, index: usize) -> Result<Vring> {
        Vring::new(&self.memory, index, self.ring_config)
    }

    /// Creates and starts as many vrings as the builder was told.
    ///
    /// # Errors
    ///
    /// As [`Session::create_vring`] and [`Session::start`].
    pub fn start_all(&mut self) -> Result<Vec<Vring>> {
        let mut vrings = Vec::with_capacity(self.queues);
        for index in 0..self.queues {
            let vring = self.create_vring(index)?;
            self.start(&vring, vring.ring.next_avail())?;
            vrings.push(vring);
        }
        Ok(vrings)
    }

    /// Sets the vring up, starts it at `base` with its kick, and enables it.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn start(&mut self, vring: &Vring, base: u16) -> Result<()> {
        self.set_up(vring, base)?;
        self.set_kick(vring)?;
        if self.negotiated.features & feature::PROTOCOL_FEATURES != 0 {
            self.enable(vring.index, true)?;
        }
        Ok(())
    }

    /// Everything of [`Session::start`] before the kick: size, base, addresses, call and err.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn set_up(&mut self, vring: &Vring, base: u16) -> Result<()> {
        let (index, addresses) = (vring.index, self.vring_addresses(vring)?);
        let frontend = &self.frontend;
        frontend
            .set_vring_num(index, vring.ring.config().size)
            .map_err(FrontendError::message("SET_VRING_NUM"))?;
        frontend
            .set_vring_base(index, base)
            .map_err(FrontendError::message("SET_VRING_BASE"))?;
        frontend
            .set_vring_addr(index, &addresses)
            .map_err(FrontendError::message("SET_VRING_ADDR"))?;
        frontend
            .set_vring_call(index, vring.call.fd())
            .map_err(FrontendError::message("SET_VRING_CALL"))?;
        frontend
            .set_vring_err(index, vring.err.fd())
            .map_err(FrontendError::message("SET_VRING_ERR"))
    }

    /// The body of `SET_VRING_ADDR` for a vring, to send as it is or spoilt.
    ///
    /// # Errors
    ///
    /// When the ring does not lie in guest memory.
    pub fn vring_addresses(&self, vring: &Vring) -> Result<VringConfigData> {
        let (layout, size) = (vring.ring.layout(), vring.ring.config().size);
        Ok(VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: self.memory.uva(layout.desc_gpa)?,
            used_ring_addr: self.memory.uva(layout.used_gpa)?,
            avail_ring_addr: self.memory.uva(layout.avail_gpa)?,
            log_addr: None,
        })
    }

    /// Sends the kick of a vring: starts it, or replaces the kick of one that runs.
    ///
    /// # Errors
    ///
    /// When the message is refused.
    pub fn set_kick(&self, vring: &Vring) -> Result<()> {
        self.frontend
            .set_vring_kick(vring.index, vring.kick.fd())
            .map_err(FrontendError::message("SET_VRING_KICK"))
    }

    /// Enables or disables a vring.
    ///
    /// # Errors
    ///
    /// When the message is refused, or protocol features were not negotiated.
    pub fn enable(&mut self, index: usize, enable: bool) -> Result<()> {
        self.frontend
            .set_vring_enable(index, enable)
            .map_err(FrontendError::message("SET_VRING_ENABLE"))
    }

    /// Stops a vring and returns the available index the back-end got to.
    ///
    /// # Errors
    ///
    /// When the back-end does not answer, or answers more than a split ring's index.
    pub fn stop(&mut self, index: usize) -> Result<u16> {
        let base = self
            .frontend
            .get_vring_base(index)
            .map_err(FrontendError::message("GET_VRING_BASE"))?;
        u16::try_from(base)
            .ok()
            .ok_or_else(|| FrontendError::Unusable {
                what: "vring base",
                value: base.into(),
            })
    }

    /// Reads device configuration space.
    ///
    /// # Errors
    ///
    /// When the back-end refuses the range or `CONFIG` was not negotiated.
    pub fn config(&mut self, offset: u32, bytes: u32) -> Result<Vec<u8>> {
        let blank = vec![0; bytes as usize];
        self.frontend
            .get_config(offset, bytes, VhostUserConfigFlags::empty(), &blank)
            .map(|(_, config)| config)
            .map_err(FrontendError::message("GET_CONFIG"))
    }

    /// Writes device configuration space.
    ///
    /// # Errors
    ///
    /// When the back-end refuses, or `CONFIG` was not negotiated. Without `REPLY_ACK` a refusal
    /// shows only in the next message.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        self.frontend
            .set_config(offset, VhostUserConfigFlags::WRITABLE, bytes)
            .map_err(FrontendError::message("SET_CONFIG"))
    }

    /// Adds one region to the back-end's memory (`ADD_MEM_REG`).
    ///
    /// # Errors
    ///
    /// When it is refused, or memory slots were not negotiated.
    pub fn add_region(&mut self, region: &Region) -> Result<()> {
        self.frontend
            .add_mem_region(&region.info())
            .map(|_| ())
            .map_err(FrontendError::message("ADD_MEM_REG"))
    }

    /// Takes one region away (`REM_MEM_REG`).
    ///
    /// # Errors
    ///
    /// When it is refused, or memory slots were not negotiated.
    pub fn remove_region(&mut self, region: &Region) -> Result<()> {
        self.frontend
            .remove_mem_region(&region.info())
            .map_err(FrontendError::message("REM_MEM_REG"))
    }

    /// Replaces the back-end's memory by the regions of `memory` (`SET_MEM_TABLE`).
    ///
    /// # Errors
    ///
    /// When the table is refused.
    pub fn set_mem_table(&mut self, memory: &GuestMemory) -> Result<()> {
        let table: Vec<_> = memory.regions().iter().map(Region::info).collect();
        self.frontend
            .set_mem_table(&table)
            .map(|_| ())
            .map_err(FrontendError::message("SET_MEM_TABLE"))
    }

    /// Asks for an inflight region for all queues and hands it straight back, as QEMU does.
    ///
    /// # Errors
    ///
    /// When either message is refused or `INFLIGHT_SHMFD` was not negotiated.
    pub fn share_inflight(&mut self) -> Result<(VhostUserInflight, std::fs::File)> {
        use std::os::fd::AsRawFd;

        let queues = u16::try_from(self.queues).unwrap_or(u16::MAX);
        let wanted = VhostUserInflight::new(0, 0, queues, self.ring_config.size);
        let (inflight, file) = self
            .frontend
            .get_inflight_fd(&wanted)
            .map_err(FrontendError::message("GET_INFLIGHT_FD"))?;
        self.frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .map_err(FrontendError::message("SET_INFLIGHT_FD"))?;
        Ok((inflight, file))
    }

    /// The vhost crate's front-end, for any message at any time.
    pub fn frontend_mut(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// What was agreed on.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// What new vrings are made of.
    #[must_use]
    pub fn ring_config(&self) -> RingConfig {
        self.ring_config
    }

    /// What new vrings are made of, to change.
    pub fn ring_config_mut(&mut self) -> &mut RingConfig {
        &mut self.ring_config
    }

    /// Whether new vrings are polled or called.
    pub fn set_calls(&mut self, calls: CallMode) {
        self.ring_config.calls = calls;
    }

    /// The back-channel, if `BACKEND_REQ` was negotiated and the builder wanted one.
    #[must_use]
    pub fn back_channel(&self) -> Option<&BackChannel> {
        self.back_channel.as_ref()
    }

    /// The same, for someone else to serve.
    pub fn take_back_channel(&mut self) -> Option<BackChannel> {
        self.back_channel.take()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("negotiated", &self.negotiated)
            .field("ring_config", &self.ring_config)
            .field("queues", &self.queues)
            .field("back_channel", &self.back_channel)
            .finish_non_exhaustive()
    }
}
