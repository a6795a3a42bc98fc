// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Leases on files (`fcntl(2)`, `F_SETLEASE`).

#![expect(unsafe_code, reason = "calls that have no safe wrapper")]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// `F_SETSIG`
const F_SETSIG: c_int = 10;

/// A write lease: whoever opens the file waits until it is given up.
#[derive(Debug)]
pub(crate) struct Lease(File);

impl Lease {
    /// Takes it, as soon as nobody else has the file open: another test that starts a process has
    /// what we had open in it for a moment.
    pub(crate) fn take(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Self::try_take(path) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                taken => return taken,
            }
        }
    }

    fn try_take(path: &Path) -> io::Result<Self> {
        let lease = Self(File::options().read(true).write(true).open(path)?);
        // Not SIGIO, which would end the process.
        lease.call(F_SETSIG, libc::SIGURG)?;
        lease.call(libc::F_SETLEASE, libc::F_WRLCK)?;
        Ok(lease)
    }

    /// Whether somebody waits for it.
    pub(crate) fn is_breaking(&self) -> io::Result<bool> {
        Ok(self.call(libc::F_GETLEASE, 0)? != libc::F_WRLCK)
    }

    /// Gives it up.
    pub(crate) fn give_up(&self) -> io::Result<()> {
        self.call(libc::F_SETLEASE, libc::F_UNLCK).map(drop)
    }

    fn call(&self, command: c_int, argument: c_int) -> io::Result<c_int> {
        // SAFETY: these commands take a number and have nothing to do with memory of ours.
        let result = unsafe { libc::fcntl(self.0.as_raw_fd(), command, argument) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result)
    }
}
