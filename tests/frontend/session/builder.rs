// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Describing a connection, and the handshake.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};

use super::{Negotiated, Session};
use crate::frontend::back_channel::BackChannel;
use crate::frontend::error::{FrontendError, Result};
use crate::frontend::ids::feature;
use crate::frontend::memory::{GuestMemory, MemoryLayout};
use crate::frontend::ring::{CallMode, RingConfig};

/// Features no session acknowledges by itself: the ring code here is split, without an IOMMU and
/// without legacy habits, and logging is begun by a test on purpose.
const NEVER_BY_DEFAULT: u64 =
    feature::LOG_ALL | feature::ACCESS_PLATFORM | feature::RING_PACKED | feature::NOTIFY_ON_EMPTY;

/// Protocol features a session acknowledges where offered: those it then serves.
const PROTOCOL_BY_DEFAULT: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::DEVICE_STATE);

/// Which messages share guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryMessages {
    /// One `SET_MEM_TABLE`, as cloud-hypervisor.
    #[default]
    Table,
    /// One `ADD_MEM_REG` per region, as QEMU where memory slots are negotiated.
    Slots,
    /// None: the test does it.
    None,
}

/// Describes a [`Session`].
#[derive(Clone, Debug)]
pub struct SessionBuilder {
    queues: usize,
    ring: RingConfig,
    indirect: bool,
    wanted: u64,
    required: u64,
    protocol: VhostUserProtocolFeatures,
    required_protocol: VhostUserProtocolFeatures,
    layout: MemoryLayout,
    memory_messages: MemoryMessages,
    need_reply: bool,
    timeout: Duration,
}

impl Default for SessionBuilder {
    fn default() -> Self {
        Self {
            queues: 1,
            ring: RingConfig {
                size: 256,
                event_idx: true,
                indirect_len: 32,
                calls: CallMode::Wanted,
            },
            indirect: true,
            wanted: !NEVER_BY_DEFAULT,
            required: feature::VERSION_1,
            protocol: PROTOCOL_BY_DEFAULT,
            required_protocol: VhostUserProtocolFeatures::empty(),
            layout: MemoryLayout::default(),
            memory_messages: MemoryMessages::Table,
            need_reply: true,
            timeout: Duration::from_secs(10),
        }
    }
}

impl SessionBuilder {
    /// Number of vrings [`Session::start_all`] starts. Default: 1.
    #[must_use]
    pub fn queues(mut self, queues: usize) -> Self {
        self.queues = queues;
        self
    }

    /// Descriptors per vring. Default: 256.
    #[must_use]
    pub fn queue_size(mut self, size: u16) -> Self {
        self.ring.size = size;
        self
    }

    /// Whether to acknowledge `EVENT_IDX` where offered. Default: yes.
    #[must_use]
    pub fn event_idx(mut self, event_idx: bool) -> Self {
        self.ring.event_idx = event_idx;
        self
    }

    /// Whether to acknowledge `INDIRECT_DESC` where offered. Default: yes.
    #[must_use]
    pub fn indirect(mut self, indirect: bool) -> Self {
        self.indirect = indirect;
        self
    }

    /// Descriptors per indirect table. Default: 32.
    #[must_use]
    pub fn indirect_len(mut self, descriptors: u16) -> Self {
        self.ring.indirect_len = descriptors;
        self
    }

    /// Whether vrings want calls or are polled. Default: wanted.
    #[must_use]
    pub fn calls(mut self, calls: CallMode) -> Self {
        self.ring.calls = calls;
        self
    }

    /// Acknowledges only these virtio features, where offered. Default: all but logging, IOMMU,
    /// packed rings and `NOTIFY_ON_EMPTY`.
    #[must_use]
    pub fn features(mut self, wanted: u64) -> Self {
        self.wanted = wanted;
        self
    }

    /// Does not acknowledge these virtio features.
    #[must_use]
    pub fn without_features(mut self, unwanted: u64) -> Self {
        self.wanted &= !unwanted;
        self.required &= !unwanted;
        self
    }

    /// Insists on these virtio features. Default: `VERSION_1`.
    #[must_use]
    pub fn require(mut self, required: u64) -> Self {
        self.required |= required;
        self
    }

    /// Acknowledges only these protocol features, where offered.
    #[must_use]
    pub fn protocol_features(mut self, wanted: VhostUserProtocolFeatures) -> Self {
        self.protocol = wanted;
        self
    }

    /// Does not acknowledge these protocol features.
    #[must_use]
    pub fn without_protocol_features(mut self, unwanted: VhostUserProtocolFeatures) -> Self {
        self.protocol.remove(unwanted);
        self
    }

    /// Insists on these protocol features. Default: none.
    #[must_use]
    pub fn require_protocol(mut self, required: VhostUserProtocolFeatures) -> Self {
        self.required_protocol |= required;
        self
    }

    /// The regions of guest memory. Default: one of 64 MiB.
    #[must_use]
    pub fn memory(mut self, layout: MemoryLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Which messages share guest memory. Default: `SET_MEM_TABLE`.
    #[must_use]
    pub fn memory_messages(mut self, messages: MemoryMessages) -> Self {
        self.memory_messages = messages;
        self
    }

    /// Whether every message asks for an answer once `REPLY_ACK` is agreed on. Default: yes.
    #[must_use]
    pub fn need_reply(mut self, need_reply: bool) -> Self {
        self.need_reply = need_reply;
        self
    }

    /// How long an answer may take. Default: 10 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects to a listening back-end and shakes hands.
    ///
    /// # Errors
    ///
    /// When nobody listens, a message is refused or something required is not offered.
    pub fn connect(self, path: &Path) -> Result<Session> {
        let stream = UnixStream::connect(path).map_err(FrontendError::io("connect"))?;
        self.from_stream(stream)
    }

    /// Shakes hands on a connected stream.
    ///
    /// # Errors
    ///
    /// When a message is refused or something required is not offered.
    pub fn from_stream(self, stream: UnixStream) -> Result<Session> {
        // The vhost crate blocks for ever on a silent back-end; the socket itself must not.
        for result in [
            stream.set_read_timeout(Some(self.timeout)),
            stream.set_write_timeout(Some(self.timeout)),
        ] {
            result.map_err(FrontendError::io("socket timeout"))?;
        }
        let memory = GuestMemory::new(&self.layout)?;
        let mut frontend = Frontend::from_stream(stream, self.queues as u64);
        let negotiated = self.negotiate(&mut frontend)?;
        let back_channel = back_channel(&mut frontend, &negotiated)?;
        frontend
            .set_owner()
            .map_err(FrontendError::message("SET_OWNER"))?;
        frontend
            .set_features(negotiated.features)
            .map_err(FrontendError::message("SET_FEATURES"))?;
        let mut ring_config = self.ring;
        ring_config.event_idx = negotiated.features & feature::EVENT_IDX != 0;
        if negotiated.features & feature::INDIRECT_DESC == 0 {
            ring_config.indirect_len = 0;
        }
        let mut session = Session {
            frontend,
            memory,
            negotiated,
            ring_config,
            queues: self.queues,
            back_channel,
        };
        session.share_memory(self.memory_messages)?;
        Ok(session)
    }

    /// Features, protocol features and what they unlock, in QEMU's order.
    fn negotiate(&self, frontend: &mut Frontend) -> Result<Negotiated> {
        let offered = frontend
            .get_features()
            .map_err(FrontendError::message("GET_FEATURES"))?;
        let mut negotiated = Negotiated {
            offered,
            features: offered & self.wanted_features(),
            offered_protocol: VhostUserProtocolFeatures::empty(),
            protocol: VhostUserProtocolFeatures::empty(),
            max_queues: self.queues as u64,
            max_mem_slots: 0,
        };
        let missing = self.required & !negotiated.features;
        if missing != 0 {
            return Err(FrontendError::MissingFeatures { missing });
        }
        if negotiated.features & feature::PROTOCOL_FEATURES != 0 {
            self.negotiate_protocol(frontend, &mut negotiated)?;
        }
        let missing = self.required_protocol.difference(negotiated.protocol);
        if !missing.is_empty() {
            let missing = missing.bits();
            return Err(FrontendError::MissingProtocolFeatures { missing });
        }
        if negotiated.max_queues < self.queues as u64 {
            return Err(FrontendError::TooFewQueues {
                asked: self.queues,
                offered: negotiated.max_queues,
            });
        }
        Ok(negotiated)
    }

    fn negotiate_protocol(&self, frontend: &mut Frontend, agreed: &mut Negotiated) -> Result<()> {
        agreed.offered_protocol = frontend
            .get_protocol_features()
            .map_err(FrontendError::message("GET_PROTOCOL_FEATURES"))?;
        agreed.protocol = agreed.offered_protocol.intersection(self.protocol);
        frontend
            .set_protocol_features(agreed.protocol)
            .map_err(FrontendError::message("SET_PROTOCOL_FEATURES"))?;
        // Only from here on: REPLY_ACK is not agreed on before.
        if self.need_reply
            && agreed
                .protocol
                .contains(VhostUserProtocolFeatures::REPLY_ACK)
        {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if agreed.protocol.contains(VhostUserProtocolFeatures::MQ) {
            agreed.max_queues = frontend
                .get_queue_num()
                .map_err(FrontendError::message("GET_QUEUE_NUM"))?;
        }
        let slots = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        if agreed.protocol.contains(slots) {
            agreed.max_mem_slots = frontend
                .get_max_mem_slots()
                .map_err(FrontendError::message("GET_MAX_MEM_SLOTS"))?;
        }
        Ok(())
    }

    fn wanted_features(&self) -> u64 {
        let mut wanted = self.wanted;
        if !self.ring.event_idx {
            wanted &= !feature::EVENT_IDX;
        }
        if !self.indirect {
            wanted &= !feature::INDIRECT_DESC;
        }
        wanted
    }
}

/// Gives the back-end its end of a back-channel where that is agreed on.
fn back_channel(frontend: &mut Frontend, agreed: &Negotiated) -> Result<Option<BackChannel>> {
    if !agreed
        .protocol
        .contains(VhostUserProtocolFeatures::BACKEND_REQ)
    {
        return Ok(None);
    }
    let (ours, theirs) = BackChannel::pair()?;
    frontend
        .set_backend_request_fd(&theirs)
        .map_err(FrontendError::message("SET_BACKEND_REQ_FD"))?;
    Ok(Some(ours))
}

impl Session {
    fn share_memory(&mut self, messages: MemoryMessages) -> Result<()> {
        let memory = std::sync::Arc::clone(&self.memory);
        match messages {
            MemoryMessages::Table => self.set_mem_table(&memory),
            MemoryMessages::Slots => memory.regions().iter().try_for_each(|r| self.add_region(r)),
            MemoryMessages::None => Ok(()),
        }
    }
}
