// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The eventfds of a vring.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::message::VringFd;
use super::received::Received;
use crate::error::{FrontEndError, HostError};

/// Those that outlive a stop of the vring. The kick is for one start.
#[derive(Debug, Default)]
pub(super) struct VringFds {
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
}

/// Accepts an eventfd and nothing else: anything else a front-end may send could block a data
/// thread or never be ready. Those that we write to are set not to block, since their counter can
/// be full.
pub(super) fn accept(
    index: u32,
    which: VringFd,
    fd: Option<Received>,
) -> Result<Option<OwnedFd>, FrontEndError> {
    let Some(fd) = fd else { return Ok(None) };
    let (what, written) = match which {
        VringFd::Kick => ("kick", false),
        VringFd::Call => ("call", true),
        VringFd::Err => ("err", true),
    };
    let refused = FrontEndError::NotAnEventFd { index, what };
    let Some(fd) = fd.into_eventfd() else {
        return Err(refused);
    };
    if written {
        let Ok(flags) = fcntl_getfl(&fd) else {
            return Err(refused);
        };
        let blocks = !flags.contains(OFlags::NONBLOCK);
        if blocks && fcntl_setfl(&fd, flags | OFlags::NONBLOCK).is_err() {
            return Err(refused);
        }
    }
    Ok(Some(fd))
}

/// A duplicate for a data thread.
pub(super) fn duplicate(fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>, HostError> {
    fd.map(OwnedFd::try_clone)
        .transpose()
        .map_err(HostError::of("duplicating an eventfd"))
}
