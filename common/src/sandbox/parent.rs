// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two processes of one back-end: the one that serves, inside of the sandbox, and its parent, which
//! was started by the user and stays outside.
//!
//! The parent waits, passes on the signals that it gets, and ends as the child did. It has kept
//! what can only be undone outside: the socket file is removed when its `main` returns. It has no
//! capability left. When it is killed the child ends as if by SIGTERM.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, set_parent_process_death_signal,
    setsid, waitpid,
};
use rustix::thread::CapabilitySet;

use super::capabilities::keep_capabilities;
use super::error::SandboxError;
use super::sys;

/// What a shell reports of a process that a signal has ended: this and its number.
const SIGNALLED: i32 = 128;

/// Continues in a child; the parent gets the child's exit status when it has ended.
///
/// # Errors
/// When there can be no child. An error in the child is told by the child.
pub(super) fn split() -> Result<Option<u8>, SandboxError> {
    let failed = SandboxError::system::<Errno>;
    let parent =
        pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed("watch the parent process"))?;
    let held = sys::HeldSignals::new().map_err(SandboxError::system("hold signals back"))?;
    let child = sys::fork().map_err(SandboxError::system("fork"))?;
    if let Some(child) = child {
        let forwarding = sys::forward_signals(child);
        drop(held);
        forwarding.map_err(SandboxError::system("forward signals"))?;
        return Ok(Some(wait(child)));
    }
    // What a terminal sends to its whole group is passed on by the parent, and so comes once.
    setsid().map_err(failed("start a session"))?;
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(failed("follow the parent"))?;
    drop(held);
    let mut ended = [PollFd::new(&parent, PollFlags::IN)];
    match poll(&mut ended, Some(&Timespec::default())) {
        Ok(0) => Ok(None),
        _ => Err(SandboxError::ParentGone),
    }
}

fn wait(child: Pid) -> u8 {
    if let Err(error) = keep_capabilities(CapabilitySet::empty()) {
        log::warn!("the waiting parent keeps its capabilities: {error}");
    }
    let status = loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("waiting for the serving process: {error}");
                return 1;
            }
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
