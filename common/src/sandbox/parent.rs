// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two processes of one back-end: the one that serves, inside of the sandbox, and its parent, which
//! was started by the user and stays outside.
//!
//! The parent waits, passes on the signals that it gets, and ends as the child did. It has kept
//! what can only be undone outside: the socket file is removed when its `main` returns. It has no
//! capability left. When it is killed the child is killed as well.
//!
//! The end of a process may wait without limit for a file that it has open, whose server does not
//! answer.
//! So the child tells its status when it is about to end, and when the end takes too long after
//! that the parent does not wait for it: nothing is left to the child by then.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open,
    set_parent_process_death_signal, setsid, waitpid,
};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::capabilities::keep_capabilities;
use super::error::SandboxError;
use super::idmap::Maps;
use super::namespace::{NAMESPACES, become_root_group, become_root_user};
use super::sys;
use crate::sys::{exit_now, heir};

/// How long the end of a child may take that has nothing left to do.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What a shell reports of a process that a signal has ended: this and its number.
const SIGNALLED: i32 = 128;

/// Which namespaces the serving process gets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Separation<'a> {
    /// Those of its parent.
    None,
    /// New ones.
    Namespaces,
    /// New ones, and one of users, in which it has all capabilities.
    Users(&'a Maps),
}

impl Separation<'_> {
    fn flags(self) -> UnshareFlags {
        match self {
            Self::None => UnshareFlags::empty(),
            Self::Namespaces => NAMESPACES,
            Self::Users(_) => NAMESPACES | UnshareFlags::NEWUSER,
        }
    }
}

/// Continues in a child; the parent gets the child's exit status when it has ended.
///
/// # Errors
/// In the parent, when there can be no such child.
pub(super) fn split(separation: Separation<'_>) -> Result<Option<u8>, SandboxError> {
    let parent = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(SandboxError::system("watch the parent process"))?;
    let (mapped, map) = io::pipe().map_err(SandboxError::system("make a pipe"))?;
    let (told, tell) = io::pipe().map_err(SandboxError::system("make a pipe"))?;
    let held = sys::hold_signals().map_err(SandboxError::system("hold signals back"))?;
    let child =
        sys::fork(separation.flags()).map_err(SandboxError::system("start a process inside"))?;
    let Some(child) = child else {
        drop((map, told));
        heir::leave_to_parent(tell, matches!(separation, Separation::None));
        if let Err(error) = settle_in(separation, mapped, &parent) {
            // The caller does not see it: it might go on with less, as its copy in the parent may.
            // No destructor runs: what they would undo belongs to the parent.
            log::error!("{error}");
            exit_now(1);
        }
        return Ok(None);
    };
    drop((mapped, tell));
    if let Separation::Users(maps) = separation {
        write_maps(maps, child, map)?;
    }
    let forwarding = sys::forward_signals(child);
    drop(held);
    forwarding.map_err(SandboxError::system("forward signals"))?;
    Ok(Some(wait(child, told)))
}

/// The parent's part of a user namespace: a process inside may not write its maps.
fn write_maps(maps: &Maps, child: Pid, mut map: PipeWriter) -> Result<(), SandboxError> {
    let written = maps.write(child).and_then(|()| map.write_all(&[1]));
    drop(map);
    if written.is_err() {
        // It has seen the end of the pipe, and leaves.
        let _ = wait_for(child);
    }
    written.map_err(SandboxError::system("set the maps of users and groups"))
}

/// The child's part.
fn settle_in(
    separation: Separation<'_>,
    mut mapped: PipeReader,
    parent: &OwnedFd,
) -> Result<(), SandboxError> {
    if let Separation::Users(maps) = separation {
        if mapped.read_exact(&mut [0]).is_err() {
            // The parent knows why, and tells.
            exit_now(1);
        }
        // Its own numbers may not be mapped: it becomes root of each kind whose map has root.
        if maps.have_root_group() {
            become_root_group()?;
        }
        if maps.have_root_user() {
            become_root_user()?;
        }
    }
    // What a terminal sends to its whole group is passed on by the parent, and so comes once.
    setsid().map_err(SandboxError::system("start a session"))?;
    // Not SIGTERM: a child that waits for its requests to end would be left over without notice.
    // There is nothing to save: what a guest wrote is in the host's page cache, and the socket's
    // file was the parent's to remove.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(SandboxError::system("follow the parent"))?;
    let mut ended = [PollFd::new(parent, PollFlags::IN)];
    match poll(&mut ended, Some(&Timespec::default())) {
        Ok(0) => Ok(()),
        _ => Err(SandboxError::ParentGone),
    }
}

fn wait(child: Pid, told: PipeReader) -> u8 {
    if let Err(error) = keep_capabilities(CapabilitySet::empty()) {
        log::warn!("the waiting parent keeps its capabilities: {error}");
    }
    let status = match wait_or_leave(child, told) {
        Ok(End::Ended(status)) => status,
        Ok(End::Left(status)) => {
            log::warn!(
                "the serving process waits for a file to be closed; it is left, and ends by itself"
            );
            return status;
        }
        Err(error) => {
            log::error!("waiting for the serving process: {error}");
            return 1;
        }
    };
    if let Some(signal) = status.terminating_signal() {
        log::error!("the serving process was ended by signal {signal}");
        return u8::try_from(SIGNALLED + signal).unwrap_or(1);
    }
    status
        .exit_status()
        .and_then(|status| u8::try_from(status).ok())
        .unwrap_or(1)
}

/// How the child has ended.
enum End {
    /// It is gone.
    Ended(WaitStatus),
    /// It is about to, with this status.
    Left(u8),
}

fn wait_or_leave(child: Pid, mut told: PipeReader) -> Result<End, Errno> {
    let ended = pidfd_open(child, PidfdFlags::empty())?;
    wait_until_ready(&[&ended, &told], None)?;
    if !wait_until_ready(&[&ended], Some(Duration::ZERO))? {
        // Without a word when it was killed.
        let mut status = [1];
        let _ = told.read(&mut status);
        if !wait_until_ready(&[&ended], Some(END_PATIENCE))? {
            let [status] = status;
            return Ok(End::Left(status));
        }
    }
    wait_for(child).map(End::Ended)
}

/// Returns whether one of them became ready before the `patience` was over.
fn wait_until_ready(fds: &[&dyn AsFd], patience: Option<Duration>) -> Result<bool, Errno> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN))
        .collect();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait_for(child: Pid) -> Result<WaitStatus, Errno> {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
