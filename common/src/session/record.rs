// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the control thread knows of a vring.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{VringMutex, VringT as _};
use virtio_queue::QueueT as _;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::error::{FrontEndError, HostError};
use crate::limited;
use crate::ring::{GuestRing, RingAddresses};
use crate::session::received::Received;

/// The control-plane record of a vring.
///
/// Size, place, position and state are in the `vhost-user-backend` crate's own object. The
/// descriptors are not: the data thread needs its own, and that object cannot lend its.
#[derive(Debug)]
pub(super) struct VringRecord {
    pub(super) state: Vring,
    pub(super) addresses: RingAddresses,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) started: bool,
}

/// [`VringMutex`], which has no `Debug`.
#[derive(Clone)]
pub(super) struct Vring(VringMutex);

impl std::ops::Deref for Vring {
    type Target = VringMutex;

    fn deref(&self) -> &VringMutex {
        &self.0
    }
}

impl std::fmt::Debug for Vring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.get_ref();
        f.debug_struct("Vring")
            .field("queue", state.get_queue())
            .field("enabled", &state.is_enabled())
            .finish()
    }
}

impl VringRecord {
    pub(super) fn new(
        memory: GuestMemoryAtomic<GuestMemoryMmap<()>>,
        max_size: u16,
    ) -> Result<Self, HostError> {
        let state = VringMutex::new(memory, max_size).map_err(|e| HostError {
            what: "making the record of a vring",
            source: std::io::Error::other(e),
        })?;
        Ok(Self {
            state: Vring(state),
            addresses: RingAddresses::default(),
            kick: None,
            call: None,
            err: None,
            started: false,
        })
    }

    /// `SET_VRING_NUM`.
    pub(super) fn set_size(&mut self, index: u32, size: u32) -> Result<(), FrontEndError> {
        self.check_stopped(index, "SET_VRING_NUM")?;
        let max = u32::from(self.state.get_ref().get_queue().max_size());
        let fits = size.is_power_of_two() && size <= max;
        let Some(size) = u16::try_from(size).ok().filter(|_| fits) else {
            return Err(FrontEndError::VringSize { index, size, max });
        };
        self.addresses.size = size;
        self.state.set_queue_size(size);
        Ok(())
    }

    /// `SET_VRING_BASE`.
    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Result<(), FrontEndError> {
        self.check_stopped(index, "SET_VRING_BASE")?;
        let Ok(base) = u16::try_from(base) else {
            return Err(FrontEndError::VringBase { index, base });
        };
        self.state.set_queue_next_avail(base);
        Ok(())
    }

    /// Notes where the ring was found in guest memory.
    pub(super) fn note_place(&self, guest: GuestRing) {
        // Checked by `RingAddresses::check`: aligned and within memory.
        if let Err(error) = self
            .state
            .set_queue_info(guest.descriptor, guest.available, guest.used)
        {
            limited!(debug, "the record of a vring refuses its place: {error}");
        }
    }

    fn check_stopped(&self, index: u32, message: &'static str) -> Result<(), FrontEndError> {
        if self.started {
            return Err(FrontEndError::VringStarted { index, message });
        }
        Ok(())
    }
}

/// Accepts an eventfd and nothing else: whatever else a front-end may send could block a data
/// thread or never be ready.
///
/// `what` is kick, call or err. Those we write to are made not to block, since their counter can
/// be full.
pub(super) fn eventfd(
    index: u32,
    what: &'static str,
    fd: Option<Received>,
) -> Result<Option<OwnedFd>, FrontEndError> {
    let Some(fd) = fd else { return Ok(None) };
    let refused = FrontEndError::NotAnEventFd { index, what };
    let Some(fd) = fd.into_eventfd() else {
        return Err(refused);
    };
    if what == "kick" {
        return Ok(Some(fd));
    }
    let Ok(flags) = fcntl_getfl(&fd) else {
        return Err(refused);
    };
    if !flags.contains(OFlags::NONBLOCK) && fcntl_setfl(&fd, flags | OFlags::NONBLOCK).is_err() {
        return Err(refused);
    }
    Ok(Some(fd))
}

/// A duplicate for a data thread.
pub(super) fn duplicate(fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>, HostError> {
    fd.map(OwnedFd::try_clone)
        .transpose()
        .map_err(HostError::of("duplicating an eventfd"))
}
