// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the control thread knows of a vring.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::error::{FrontEndError, HostError};
use crate::ring::RingAddresses;
use crate::session::received::Received;

/// What a front-end has set of a vring.
#[derive(Debug, Default)]
pub(super) struct VringRecord {
    /// Its size, 0 before it is set; and where its parts are.
    pub(super) addresses: RingAddresses,
    /// The next available entry.
    pub(super) base: u16,
    pub(super) enabled: bool,
    pub(super) started: bool,
    /// For the next start; a started vring's is with its data thread.
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
}

impl VringRecord {
    /// `SET_VRING_NUM`.
    pub(super) fn set_size(
        &mut self,
        index: u32,
        size: u32,
        max: u16,
    ) -> Result<(), FrontEndError> {
        self.check_stopped(index, "SET_VRING_NUM")?;
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= max => self.addresses.size = size,
            _ => {
                let max = u32::from(max);
                return Err(FrontEndError::VringSize { index, size, max });
            }
        }
        Ok(())
    }

    /// `SET_VRING_BASE`.
    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Result<(), FrontEndError> {
        self.check_stopped(index, "SET_VRING_BASE")?;
        let Ok(base) = u16::try_from(base) else {
            return Err(FrontEndError::VringBase { index, base });
        };
        self.base = base;
        Ok(())
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
