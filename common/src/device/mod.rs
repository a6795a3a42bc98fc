// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device is to Ringside.
//!
//! The control side of a device is `vhost-user-backend`'s own trait, so a device written for
//! rust-vmm brings its features, its configuration space and its state along; [`Device`] adds what
//! that trait lacks. Two of its methods have another meaning here:
//!
//! * `handle_event` is not called for vrings, which Ringside's data threads serve; it is called on
//!   the control thread with [`EVENT_RELOAD`] when the host asks for a look at the backing;
//! * `queues_per_thread` and `exit_event` are not used: threads are made for started vrings.
//!
//! The data side is a [`DeviceWorker`]: made on each data thread, owned by it, so that it needs no
//! lock. [`Requests`](crate::worker::Requests) makes one of a device that answers requests.

pub(crate) mod turn;
pub(crate) mod vring;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost_user_backend::{VhostUserBackend, VringMutex};

use crate::backchannel::BackChannel;
use crate::error::FrontEndError;
use crate::io::Engine;
use crate::stats::DeviceStats;
pub use turn::{DeviceWorker, Place, Turn, Vrings, WhileAway, monotonic_ns};
pub use vring::Vring;

/// The event of `handle_event` that asks for a look at the backing (SIGHUP).
pub const EVENT_RELOAD: u16 = u16::MAX;

/// What a device's control side hands to its data side for a vring.
pub(crate) type SeedOf<D> = <<D as Device>::Worker as DeviceWorker>::Seed;

/// What an errand of a device's data side brings.
pub(crate) type BroughtOf<D> = <<D as Device>::Worker as DeviceWorker>::Brought;

/// The control side of a device.
pub trait Device: VhostUserBackend<Bitmap = (), Vring = VringMutex> + 'static {
    /// The data side.
    type Worker: DeviceWorker;

    /// What logs call it, where a process has several devices.
    fn name(&self) -> &str {
        ""
    }

    /// Makes the data side of one data thread; called on that thread.
    ///
    /// # Errors
    /// When it could serve nothing; the front-end is turned away.
    fn worker(&self) -> io::Result<Self::Worker>;

    /// What the data side is to know of vring `index`, which starts.
    fn seed(&self, index: u16) -> <Self::Worker as DeviceWorker>::Seed;

    /// Vrings of one group are served by one data thread, also those of other devices that share
    /// the process. Those of none may be anywhere.
    fn group(&self, _index: u16) -> Option<u32> {
        None
    }

    /// Whether the data thread of vring `index` serves no other: nothing keeps it waiting then. Such
    /// threads come on top of [`WorkerOptions::max_threads`](crate::worker::WorkerOptions). They do
    /// not poll, and let a fraction of a millisecond's requests come together after the first.
    fn serves_alone(&self, _index: u16) -> bool {
        false
    }

    /// The files that requests do I/O on; a [`FileId`](crate::io::FileId) is an index into them.
    fn files(&self) -> Vec<Arc<OwnedFd>>;

    /// How I/O on them is to be done.
    fn engine(&self) -> Engine;

    /// The counters of the device.
    fn stats(&self) -> &Arc<DeviceStats>;

    /// The way to tell the front-end that the configuration space has changed, and to have it map
    /// files into the windows that `get_shmem_config` tells of.
    fn back_channel(&self) -> &BackChannel;

    /// The option that says how many queues there are, for who is told that there are not as many.
    fn queues_option(&self) -> &'static str {
        "--num-queues"
    }

    /// What to do about a front-end that asks for the configuration space where it is not offered; to
    /// be said behind what went wrong.
    fn config_hint(&self) -> &'static str {
        ""
    }

    /// Whether a driver without `VERSION_1` is served.
    fn serves_legacy_drivers(&self) -> bool {
        false
    }

    /// Whether chains are given back in the order they were taken, none held when a vring stops. The
    /// used index then tells where to go on, and a `SET_VRING_BASE` that says something else is
    /// wrong: cloud-hypervisor sends the available index when it reconnects.
    fn serves_in_order(&self) -> bool {
        false
    }

    /// A front-end has left, or asked for a reset: what it had set is void.
    fn session_ended(&self) {}

    /// Makes everything acknowledged so far stable; called before the process ends.
    ///
    /// # Errors
    /// What the host said.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// `SEND_RARP` (vhost-user.rst): announce the guest at `mac` after a migration.
    ///
    /// # Errors
    /// [`FrontEndError::Unsupported`] where the device is not a network.
    fn send_rarp(&self, _mac: [u8; 6]) -> Result<(), FrontEndError> {
        Err(FrontEndError::Unsupported {
            message: "SEND_RARP",
        })
    }

    /// `NET_SET_MTU` (vhost-user.rst).
    ///
    /// # Errors
    /// [`FrontEndError::Unsupported`] where the device is not a network.
    fn set_mtu(&self, _mtu: u64) -> Result<(), FrontEndError> {
        Err(FrontEndError::Unsupported {
            message: "NET_SET_MTU",
        })
    }

    /// `SET_STATUS` (vhost-user.rst): the driver's device status.
    ///
    /// # Errors
    /// [`FrontEndError::Unsupported`] where the device does not care.
    fn set_status(&self, _status: u64) -> Result<(), FrontEndError> {
        Err(FrontEndError::Unsupported {
            message: "SET_STATUS",
        })
    }

    /// `GET_STATUS` (vhost-user.rst).
    ///
    /// # Errors
    /// [`FrontEndError::Unsupported`] where the device does not care.
    fn status(&self) -> Result<u64, FrontEndError> {
        Err(FrontEndError::Unsupported {
            message: "GET_STATUS",
        })
    }
}
