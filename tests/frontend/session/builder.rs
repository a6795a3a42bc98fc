// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Describing a connection.

use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures;

use crate::ids::feature;
use crate::memory::{GuestMemory, MemoryLayout};
use crate::ring::{CallMode, RingConfig};

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
    .union(VhostUserProtocolFeatures::SHMEM)
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

/// Describes a [`Session`](super::Session).
#[derive(Clone, Debug)]
pub struct SessionBuilder {
    pub(super) queues: usize,
    pub(super) ring: RingConfig,
    pub(super) indirect: bool,
    pub(super) wanted: u64,
    pub(super) required: u64,
    pub(super) protocol: VhostUserProtocolFeatures,
    pub(super) required_protocol: VhostUserProtocolFeatures,
    pub(super) layout: MemoryLayout,
    pub(super) memory_messages: MemoryMessages,
    pub(super) need_reply: bool,
    pub(super) timeout: Duration,
    pub(super) early_enable: Vec<u32>,
    pub(super) existing_memory: Option<Arc<GuestMemory>>,
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
            early_enable: Vec::new(),
            existing_memory: None,
        }
    }
}

impl SessionBuilder {
    /// Number of vrings [`Session::start_all`](super::Session::start_all) starts. Default: 1.
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

    /// Enables these vrings before `SET_FEATURES` and asks for an answer each time, as QEMU does
    /// for a network device. Default: none.
    #[must_use]
    pub fn early_enable(mut self, vrings: impl IntoIterator<Item = u32>) -> Self {
        self.early_enable = vrings.into_iter().collect();
        self
    }

    /// Shares guest memory that exists: the guest has gone on while its back-end was replaced.
    #[must_use]
    pub fn existing_memory(mut self, memory: Arc<GuestMemory>) -> Self {
        self.existing_memory = Some(memory);
        self
    }
}
