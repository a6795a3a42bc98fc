// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control side of a device.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::backchannel::BackChannel;
use crate::device::turn::DeviceWorker;
use crate::error::FrontEndError;
use crate::io::Engine;
use crate::stats::DeviceStats;

/// `VERSION_1` and what Ringside serves of rings: indirect descriptors and `EVENT_IDX`.
pub const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A message that concerns one type of device only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeviceMessage {
    /// `SEND_RARP`: announce the guest at `mac` after a migration.
    SendRarp {
        /// The address of the guest.
        mac: [u8; 6],
    },
    /// `NET_SET_MTU`: what the driver has for an MTU.
    NetSetMtu {
        /// Bytes of the longest packet.
        mtu: u64,
    },
}

impl DeviceMessage {
    /// Its name in the specification.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::SendRarp { .. } => "SEND_RARP",
            Self::NetSetMtu { .. } => "NET_SET_MTU",
        }
    }
}

/// The control side of a device.
///
/// A process has one for each socket. One front-end after the other uses it, and each finds it as
/// the first one did. Its methods are called on the control thread of that socket unless they say
/// otherwise, and must not wait for the guest or the front-end.
pub trait Device: Debug + Send + Sync + 'static {
    /// The data side.
    type Worker: DeviceWorker;

    /// What logs call it, where a process has several devices.
    fn name(&self) -> &str {
        ""
    }

    // What the front-end is offered, and what it has set.

    /// The number of vrings.
    fn num_queues(&self) -> u16 {
        1
    }

    /// The largest queue size; a power of two.
    fn max_queue_size(&self) -> u16 {
        1 << 15
    }

    /// The feature bits of the device and of its rings. `VHOST_USER_F_PROTOCOL_FEATURES` is added.
    fn features(&self) -> u64 {
        RING_FEATURES
    }

    /// `SET_FEATURES`: `features` are among those offered. It may come several times.
    fn acked_features(&self, _features: u64) {}

    /// The protocol features of the device. Those that Ringside does not implement are left out, and
    /// `REPLY_ACK` is added.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::empty()
    }

    /// `size` bytes at `offset` of the configuration space; empty where they are not in it.
    fn read_config(&self, _offset: u32, _size: u32) -> Vec<u8> {
        Vec::new()
    }

    /// Writes to the configuration space, as the driver asks.
    ///
    /// # Errors
    /// When the write is refused; the connection goes on.
    fn write_config(&self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        Err(io::Error::other("the configuration space is read-only"))
    }

    /// `GET_SHMEM_CONFIG`: the windows into which the front-end can map files; see
    /// [`BackChannel::shmem_map`].
    fn shared_memory_windows(&self) -> VhostUserShMemConfig {
        VhostUserShMemConfig::default()
    }

    /// A message for this type of device.
    ///
    /// # Errors
    /// When the device refuses. The front-end is told so if it has asked for an answer; else the
    /// connection ends.
    fn message(&self, message: DeviceMessage) -> Result<(), FrontEndError> {
        let message = message.name();
        Err(FrontEndError::Unsupported { message })
    }

    /// The option that says how many queues there are: named to a front-end that asks for more.
    fn queues_option(&self) -> &'static str {
        "--num-queues"
    }

    /// What to do about a front-end that reads the configuration space where it is not offered; the
    /// error ends with it.
    fn config_hint(&self) -> &'static str {
        ""
    }

    /// Whether a driver without `VERSION_1` is served.
    fn serves_legacy_drivers(&self) -> bool {
        false
    }

    // The data side.

    /// Makes the data side of one data thread; called on that thread.
    ///
    /// # Errors
    /// When it could serve nothing; the front-end is turned away.
    fn worker(&self) -> io::Result<Self::Worker>;

    /// What the data side gets when vring `index` starts.
    fn seed(&self, index: u16) -> <Self::Worker as DeviceWorker>::Seed;

    /// Vrings of one group are served by one data thread, also those of other devices that share
    /// the process. A vring without a group may be served by any.
    fn group(&self, _index: u16) -> Option<u32> {
        None
    }

    /// Whether the data thread of vring `index` serves no other: nothing keeps it waiting then. Such
    /// threads come on top of [`WorkerOptions::max_threads`](crate::worker::WorkerOptions). They do
    /// not poll, and let a fraction of a millisecond's requests come together after the first.
    fn serves_alone(&self, _index: u16) -> bool {
        false
    }

    /// Whether chains are given back in the order they were taken, none held when a vring stops. The
    /// used index then tells where to go on, and a `SET_VRING_BASE` that says something else is
    /// wrong: cloud-hypervisor sends the available index when it reconnects.
    fn serves_in_order(&self) -> bool {
        false
    }

    /// The files that requests do I/O on; a [`FileId`](crate::io::FileId) is an index into them.
    fn files(&self) -> Vec<Arc<OwnedFd>> {
        Vec::new()
    }

    /// How I/O on them is done.
    fn engine(&self) -> Engine {
        Engine::Uring
    }

    /// The counters of the device.
    fn stats(&self) -> &Arc<DeviceStats>;

    /// The way to tell the front-end that the configuration space has changed, and to have it map
    /// files into the [windows](Self::shared_memory_windows). Without it `BACKEND_REQ` is not
    /// offered.
    fn back_channel(&self) -> Option<&BackChannel> {
        None
    }

    // The life of the device.

    /// `RESET_DEVICE`: the device is as at the start of the session. Its vrings are stopped.
    fn reset(&self) {}

    /// The front-end has left: what it had set is void.
    fn session_ended(&self) {}

    /// SIGHUP: looks at the backing again.
    ///
    /// # Errors
    /// What the host said.
    fn reload(&self) -> io::Result<()> {
        Ok(())
    }

    /// Makes everything acknowledged so far stable; called before the process ends.
    ///
    /// # Errors
    /// What the host said.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
