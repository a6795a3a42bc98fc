// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control side of a port: features, configuration space, MTU, announcements.
//!
//! Vrings are those of `N` queue pairs and a control queue behind them, which is what
//! `GET_QUEUE_NUM` answers. QEMU takes the number for pairs and serves the control queue itself;
//! cloud-hypervisor takes it for vrings and does likewise; crosvm takes it for vrings and hands
//! the last one on. A front-end that asks for more pairs than there are is refused at the first
//! vring beyond them.

use std::io;
use std::sync::Arc;

use ringside_common::backchannel::BackChannel;
use ringside_common::device::{Device, DeviceMessage};
use ringside_common::error::FrontEndError;
use ringside_common::limited;
use ringside_common::stats::DeviceStats;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::config_space::ConfigSpace;
use crate::features::{Offer, Offloads, consistent, taken_by_driver};
use crate::hub::{Fabric, Hub};
use crate::port::{Port, Role};
use crate::worker::{NetWorker, Seed};

/// virtio 1.3 §5.1.4.1: the least there is.
const MIN_MTU: u16 = 68;
/// What is said where nobody knows better.
const USUAL_MTU: u16 = 1500;

/// A virtio-net device.
#[derive(Debug)]
pub struct NetDevice {
    port: Arc<Port>,
    hub: Arc<Hub>,
    queue_size: u16,
}

impl NetDevice {
    /// The device of one of the hub's ports, with queues of up to `queue_size` entries.
    #[must_use]
    pub fn new(port: Arc<Port>, hub: Arc<Hub>, queue_size: u16) -> Self {
        Self {
            port,
            hub,
            queue_size,
        }
    }

    /// The longest packet that the network behind this port takes, where that is known.
    fn link_mtu(&self) -> Option<u16> {
        let link = self.hub.link().and_then(crate::link::Link::mtu);
        // A guest cannot be told of more.
        let link = link.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
        match (self.port.options.mtu, link) {
            (Some(mtu), Some(link)) => Some(mtu.min(link)),
            (mtu, link) => mtu.or(link),
        }
    }

    fn offer(&self) -> Offer {
        let offloads = if self.port.options.no_offloads {
            Offloads::empty()
        } else {
            match (self.hub.fabric(), self.hub.link()) {
                (Fabric::Wire, Some(link)) => link.supported(),
                // What a receiver does not take is finished in software.
                _ => Offloads::SOFTWARE,
            }
        };
        Offer {
            sent: offloads,
            taken: offloads,
            pairs: self.port.pairs,
            has_mac: self.port.options.mac.is_some(),
            has_mtu: true,
            has_speed: self.port.options.speed_mbps.is_some(),
        }
    }

    fn config_space(&self) -> ConfigSpace {
        ConfigSpace {
            mac: self.port.options.mac.unwrap_or_default(),
            link_up: self.port.is_link_up() && self.hub.has_link(),
            // The guest of a front-end that cannot do so itself is announced by SEND_RARP.
            announce: false,
            max_virtqueue_pairs: self.port.pairs,
            mtu: Some(self.link_mtu().unwrap_or(USUAL_MTU)),
            speed_mbps: self.port.options.speed_mbps,
        }
    }

    fn set_guest_mtu(&self, mtu: u64) -> Result<(), FrontEndError> {
        let most = self.link_mtu().unwrap_or(u16::MAX);
        match u16::try_from(mtu) {
            Ok(mtu) if (MIN_MTU..=most).contains(&mtu) => {
                self.port.set_guest_mtu(mtu);
                Ok(())
            }
            _ => {
                limited!(
                    warn,
                    "the front-end asks for an MTU of {mtu}; {MIN_MTU} to {most} can be had"
                );
                let most = u64::from(most);
                Err(FrontEndError::Mtu { mtu, most })
            }
        }
    }

    /// Has the link send what this driver takes. What waits there for another one is dropped when
    /// its queues begin to serve.
    fn set_offloads(&self, features: u64) {
        let (Fabric::Wire, Some(link)) = (self.hub.fabric(), self.hub.link()) else {
            return;
        };
        if let Err(error) = link.set_offloads(taken_by_driver(features)) {
            limited!(
                error,
                "what the guest does not take may be sent to it: {error}"
            );
        }
    }
}

impl Device for NetDevice {
    type Worker = NetWorker;

    fn name(&self) -> &str {
        &self.port.options.name
    }

    fn num_queues(&self) -> u16 {
        self.port.pairs * 2 + 1
    }

    fn max_queue_size(&self) -> u16 {
        self.queue_size
    }

    fn features(&self) -> u64 {
        self.offer().features()
    }

    fn acked_features(&self, features: u64) {
        let features = consistent(features);
        if self.port.set_acked_features(features) != features {
            self.set_offloads(features);
        }
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::MTU
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::STATUS
    }

    fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config_space().read(offset, size).unwrap_or_default()
    }

    /// Nothing of it can be written by a driver of today; what a legacy one writes is its address,
    /// which the front-end keeps (virtio 1.3 §5.1.4.3).
    fn write_config(&self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn message(&self, message: DeviceMessage) -> Result<(), FrontEndError> {
        match message {
            DeviceMessage::SendRarp { mac } => {
                self.port.ask_announcement(mac);
                self.hub.wake();
                Ok(())
            }
            DeviceMessage::NetSetMtu { mtu } => self.set_guest_mtu(mtu),
        }
    }

    fn worker(&self) -> io::Result<NetWorker> {
        Ok(NetWorker::new(Arc::clone(&self.hub)))
    }

    fn seed(&self, index: u16) -> Seed {
        Seed {
            port: Arc::clone(&self.port),
            role: self.port.role(index),
            negotiated: self.port.negotiated(),
            counters: self.port.counters.vring(index),
        }
    }

    /// Pairs of a link with several queues are independent of each other, as are those without a
    /// link or a switch; everything else meets in one place.
    fn group(&self, index: u16) -> Option<u32> {
        let pair = match self.port.role(index) {
            Role::Receive { pair } | Role::Transmit { pair } => pair,
            Role::Control => 0,
        };
        match self.hub.fabric() {
            Fabric::Switch => Some(0),
            Fabric::Wire if self.hub.link_count() == 1 => Some(0),
            Fabric::Wire | Fabric::Null { .. } | Fabric::Loopback => Some(pair.into()),
        }
    }

    fn queues_option(&self) -> &'static str {
        "--queue-pairs"
    }

    fn stats(&self) -> &Arc<DeviceStats> {
        &self.port.stats
    }

    fn back_channel(&self) -> Option<&BackChannel> {
        Some(&self.port.back_channel)
    }

    fn serves_legacy_drivers(&self) -> bool {
        true
    }

    fn serves_in_order(&self) -> bool {
        true
    }

    fn reset(&self) {
        self.port.reset();
    }

    fn session_ended(&self) {
        self.port.reset();
    }
}
