// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control side of a port: features, configuration space, MTU, announcements.
//!
//! Vrings are those of `N` queue pairs and a control queue behind them, which is what
//! `GET_QUEUE_NUM` answers. QEMU takes the number for pairs and serves the control queue itself;
//! cloud-hypervisor takes it for vrings and does likewise; crosvm takes it for vrings and hands
//! the last one on. A front-end that asks for more pairs than there are is refused at the first
//! vring beyond them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringside_common::backchannel::BackChannel;
use ringside_common::device::Device;
use ringside_common::error::FrontEndError;
use ringside_common::io::Engine;
use ringside_common::logging::LogLimiter;
use ringside_common::stats::DeviceStats;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringMutex};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::config_space::ConfigSpace;
use crate::features::{Offer, Offloads, consistent, taken_by_driver};
use crate::hub::{Fabric, Hub};
use crate::port::{Port, Role};
use crate::worker::{NetWorker, Seed};

static BAD_MTU: LogLimiter = LogLimiter::new();

/// virtio 1.3 §5.1.4.1: the least there is.
const MIN_MTU: u64 = 68;
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

    /// Has the link send what this driver takes.
    fn set_offloads(&self, features: u64) {
        let (Fabric::Wire, Some(link)) = (self.hub.fabric(), self.hub.link()) else {
            return;
        };
        if let Err(error) = link.set_offloads(taken_by_driver(features)) {
            log::error!("what the guest does not take may be sent to it: {error}");
        }
        // What waits there was made for another guest, or for other offloads.
        for pair in 0..self.port.pairs {
            link.drain(pair);
        }
    }
}

impl VhostUserBackend for NetDevice {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        usize::from(self.port.pairs) * 2 + 1
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.queue_size)
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

    fn reset_device(&self) {
        self.port.reset();
    }

    /// The ring knows; there is nothing for the device to do.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config_space().read(offset, size).unwrap_or_default()
    }

    /// Nothing of it can be written by a driver of today; what a legacy one writes is its address,
    /// which the front-end keeps (virtio 1.3 §5.1.4.3).
    fn set_config(&self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    /// Data threads have their own snapshot of memory.
    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap<()>>) -> io::Result<()> {
        Ok(())
    }

    /// There is nothing that could have changed behind our back.
    fn handle_event(
        &self,
        _device_event: u16,
        _events: EventSet,
        _vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        Ok(())
    }
}

impl Device for NetDevice {
    type Worker = NetWorker;

    fn name(&self) -> &str {
        &self.port.options.name
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
    /// link or a switch; all else meets in one place.
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

    fn files(&self) -> Vec<Arc<OwnedFd>> {
        Vec::new()
    }

    fn engine(&self) -> Engine {
        Engine::Uring
    }

    fn stats(&self) -> &Arc<DeviceStats> {
        &self.port.stats
    }

    fn back_channel(&self) -> &BackChannel {
        &self.port.back_channel
    }

    fn serves_legacy_drivers(&self) -> bool {
        true
    }

    fn serves_in_order(&self) -> bool {
        true
    }

    fn session_ended(&self) {
        self.port.reset();
    }

    fn send_rarp(&self, mac: [u8; 6]) -> Result<(), FrontEndError> {
        self.port.ask_announcement(mac);
        self.hub.wake();
        Ok(())
    }

    fn set_mtu(&self, mtu: u64) -> Result<(), FrontEndError> {
        let most = u64::from(self.link_mtu().unwrap_or(u16::MAX));
        if !(MIN_MTU..=most).contains(&mtu) {
            if let Some(suppressed) = BAD_MTU.allow() {
                log::warn!(
                    "the front-end asks for an MTU of {mtu}; {MIN_MTU} to {most} can be had \
                     ({suppressed} more not shown)"
                );
            }
            return Err(FrontEndError::Mtu { mtu, most });
        }
        self.port
            .set_guest_mtu(u16::try_from(mtu).unwrap_or(u16::MAX));
        Ok(())
    }

    fn set_status(&self, status: u64) -> Result<(), FrontEndError> {
        self.port.set_driver_status(status);
        Ok(())
    }

    fn status(&self) -> Result<u64, FrontEndError> {
        Ok(self.port.driver_status())
    }
}
