// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The descriptors that this process has from whoever started it: those that it was told to use, by
//! number or by the service manager (`sd_listen_fds(3)`), and those that it was not told about.
//!
//! A number says nothing about who owns the descriptor, so all of this belongs to the start of a
//! program, before it opens descriptors of its own: what is open then is inherited.

#![expect(
    unsafe_code,
    reason = "a number on the command line or in the environment becomes an owned descriptor"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::fs::{Dir, FileType, fstat};
use rustix::process::{Pid, getpid};

/// `STDERR_FILENO`.
const LAST_STANDARD_STREAM: RawFd = 2;
/// `SD_LISTEN_FDS_START`, unless `LISTEN_FDS_FIRST_FD` says otherwise.
const FIRST_PASSED_FD: RawFd = 3;
/// A bound against nonsense in the environment.
const MAX_PASSED_FDS: i32 = 1 << 16;

/// The descriptors that the service manager has passed to this process.
#[must_use]
pub fn passed() -> Vec<RawFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    // What another process was passed is nothing to us; testing tools name no process.
    let ours = std::env::var_os("LISTEN_PID").is_none_or(|pid| pid.is_empty())
        || number("LISTEN_PID").and_then(Pid::from_raw) == Some(getpid());
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0);
    let first = number("LISTEN_FDS_FIRST_FD").unwrap_or(FIRST_PASSED_FD);
    let first = first.clamp(0, MAX_PASSED_FDS);
    let numbers = (first..).zip(0..count.clamp(0, MAX_PASSED_FDS));
    numbers.map(|(fd, _)| fd).collect()
}

/// Takes over the descriptor `number`. No program that is started from here on gets it.
///
/// A standard stream is copied and stays open: a file that is opened later must not become our
/// standard output.
///
/// # Errors
/// When there is no such descriptor.
pub fn take_over(number: RawFd) -> io::Result<OwnedFd> {
    let (command, argument) = if number > LAST_STANDARD_STREAM {
        (libc::F_SETFD, libc::FD_CLOEXEC)
    } else {
        (libc::F_DUPFD_CLOEXEC, LAST_STANDARD_STREAM + 1)
    };
    // SAFETY: both commands take a number; the kernel says if it is no descriptor.
    let result = unsafe { libc::fcntl(number, command, argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let owned = number.max(result);
    // SAFETY: it is a copy that was just made, or one that our parent has left open for us under
    // this number: nobody in this process owns it, see the head of this module.
    Ok(unsafe { OwnedFd::from_raw_fd(owned) })
}

/// The descriptors that this process was not told about.
///
/// Locks of fcntl(2) are given up when their process closes the file, and libvirt leaves one with
/// us on purpose: by it, it tells whether we still live. So regular files stay open in the process
/// that was started, for as long as it lives, and are closed in the one that serves, if that is
/// another. Nothing else carries such locks, and somebody may wait for us to close it.
#[derive(Debug)]
#[must_use]
pub struct Inherited {
    foreign: Vec<RawFd>,
}

impl Inherited {
    /// Looks for them, except the standard streams and those of `known`, and closes all but regular
    /// files. No program that is started from here on gets any.
    ///
    /// To be called first in `main`: whatever is open then is taken for inherited.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn find(known: &[RawFd]) -> io::Result<Self> {
        let mut foreign = open_descriptors()?;
        foreign.retain(|fd| *fd > LAST_STANDARD_STREAM && !known.contains(fd));
        for fd in foreign.iter().chain(known) {
            // SAFETY: the command takes a number. It fails where there is no such descriptor;
            // whoever uses it says so.
            let _ = unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        let (files, others) = foreign.into_iter().partition(|fd| is_file(*fd));
        Self { foreign: others }.close();
        Ok(Self { foreign: files })
    }

    /// Closes them, in the process that serves, when it is not the one that was started.
    pub fn close(self) {
        for fd in self.foreign {
            // SAFETY: `find` comes first in `main`: nobody in this process owns what was open by
            // then.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// The numbers of the descriptors that are open.
fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let listed = OwnedFd::from(File::open("/proc/self/fd")?);
    let own = listed.as_raw_fd();
    let mut numbers = Vec::new();
    for entry in Dir::new(listed)? {
        let number = entry?.file_name().to_str().map(str::parse::<RawFd>);
        numbers.extend(number.ok().and_then(Result::ok).filter(|fd| *fd != own));
    }
    Ok(numbers)
}

/// Whether the descriptor, which is open, is one of a regular file.
fn is_file(fd: RawFd) -> bool {
    // SAFETY: `find` has just seen that it is open, and nobody closes it meanwhile.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
}
