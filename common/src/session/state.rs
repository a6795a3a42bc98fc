// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a front-end has negotiated and set, as a plain value that can be written down. What cannot
//! be (descriptors, mappings, data threads) is beside it, in the [`Session`](super::Session).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::error::FrontEndError;
use crate::memory::RegionSpec;
use crate::ring::{RingAddresses, RingFeatures};

/// What a front-end has negotiated and set.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct SessionState {
    pub(super) owned: bool,
    /// None before the first `SET_FEATURES`.
    pub(super) features: Option<u64>,
    pub(super) protocol_features: u64,
    /// The device status, as the front-end has said it.
    pub(super) status: u64,
    /// The memory table, sorted by guest address.
    pub(super) regions: Vec<RegionSpec>,
    /// By index. One that is not here is as at the start.
    pub(super) vrings: BTreeMap<u16, VringState>,
}

/// What a front-end has set of a vring.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct VringState {
    /// Its size, 0 before it is set; and where its parts are.
    pub(super) addresses: RingAddresses,
    /// The next available entry, as of the last start or stop.
    pub(super) base: u16,
    pub(super) enabled: bool,
    pub(super) started: bool,
}

impl SessionState {
    pub(super) fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::from_bits_retain(self.protocol_features)
    }

    pub(super) fn ring_features(&self) -> RingFeatures {
        let has = |bit: u32| self.features.unwrap_or(0) & (1 << bit) != 0;
        RingFeatures {
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
        }
    }
}

impl VringState {
    /// `SET_VRING_NUM`.
    pub(super) fn set_size(
        &mut self,
        index: u32,
        size: u32,
        max: u16,
    ) -> Result<(), FrontEndError> {
        self.check_stopped(index, "SET_VRING_NUM")?;
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= max => {
                self.addresses.size = size;
                Ok(())
            }
            _ => {
                let max = u32::from(max);
                Err(FrontEndError::VringSize { index, size, max })
            }
        }
    }

    /// `SET_VRING_BASE`.
    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Result<(), FrontEndError> {
        self.check_stopped(index, "SET_VRING_BASE")?;
        self.base = u16::try_from(base).map_err(|_e| FrontEndError::VringBase { index, base })?;
        Ok(())
    }

    fn check_stopped(&self, index: u32, message: &'static str) -> Result<(), FrontEndError> {
        if self.started {
            return Err(FrontEndError::VringStarted { index, message });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{RegionSpec, RingAddresses, SessionState, VringState};

    #[test]
    fn a_session_is_written_down_and_read_again() {
        let mut state = SessionState {
            owned: true,
            features: Some(1 << 32 | 1 << 30 | 1 << 29),
            protocol_features: 0x1_0000_0229,
            status: 15,
            regions: vec![RegionSpec {
                guest_address: 0,
                size_bytes: 1 << 40,
                user_address: u64::MAX - (1 << 40),
                file_offset_bytes: 4096,
            }],
            ..SessionState::default()
        };
        let vring = state.vrings.entry(1).or_default();
        vring.set_size(1, 256, 1024).unwrap();
        vring.set_base(1, 65535).unwrap();
        vring.addresses = RingAddresses {
            descriptor: 0x1000,
            available: 0x2000,
            used: 0x3000,
            ..vring.addresses
        };
        (vring.enabled, vring.started) = (true, true);
        let written = serde_json::to_string(&state).unwrap();
        let restored: SessionState = serde_json::from_str(&written).unwrap();
        assert_eq!(restored, state);
        assert!(restored.ring_features().event_idx && !restored.ring_features().indirect);
        let mut started = restored.vrings[&1];
        assert!(started.set_size(1, 128, 1024).is_err());
    }

    #[test]
    fn sizes_that_are_no_power_of_two_or_too_large_are_refused() {
        let mut vring = VringState::default();
        for size in [0, 3, 2048, 65536, u32::MAX] {
            assert!(vring.set_size(0, size, 1024).is_err(), "{size}");
        }
        vring.set_size(0, 1024, 1024).unwrap();
        assert!(vring.set_base(0, 65536).is_err());
        assert_eq!((vring.addresses.size, vring.base), (1024, 0));
    }
}
