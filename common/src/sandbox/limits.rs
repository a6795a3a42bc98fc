// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the process may use, and what it inherits.

use std::os::fd::RawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::SandboxError;
use super::sys;

/// `STDERR_FILENO`.
const LAST_STANDARD_STREAM: RawFd = 2;

/// Open files a back-end asks for by default.
const DEFAULT_FILES: u64 = 1_000_000;

/// The descriptors that this process has got from whoever started it, without being told of them.
///
/// Locks of fcntl(2) are given up when their process closes the file, and libvirt leaves one with
/// us on purpose: by it, it tells whether we still live. So regular files stay open in the process
/// that was started, for as long as it lives, and are closed in the one that serves, if that is
/// another. All else carries no such locks, and somebody may wait for us to close it.
#[derive(Debug)]
#[must_use]
pub struct Inherited {
    foreign: Vec<RawFd>,
}

impl Inherited {
    /// Looks for them, except the standard streams and those of `known`, and closes all but regular
    /// files. No program that is started from here on gets any.
    ///
    /// To be called first of all in `main`: whatever is open then is taken for inherited.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn find(known: &[RawFd]) -> Result<Self, SandboxError> {
        let mut foreign = sys::open_descriptors()
            .map_err(SandboxError::system("look for inherited descriptors"))?;
        foreign.retain(|fd| *fd > LAST_STANDARD_STREAM && !known.contains(fd));
        for fd in foreign.iter().chain(known) {
            sys::close_on_exec(*fd);
        }
        let (files, others) = foreign.into_iter().partition(|fd| sys::is_file(*fd));
        Self { foreign: others }.close();
        Ok(Self { foreign: files })
    }

    /// Closes them, in the process that serves, when it is not the one that was started.
    pub fn close(self) {
        for fd in self.foreign {
            sys::close_inherited(fd);
        }
    }
}

/// Leaves no core dump, which would hold memory of the guest.
///
/// # Errors
/// Never in practice: a limit may always be lowered.
pub fn forbid_core_dumps() -> Result<(), SandboxError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(SandboxError::system("forbid core dumps"))
}

/// Sets the limit of open files and returns it, as virtiofsd's `--rlimit-nofile` does: 0 leaves it
/// as it is; without a wish it becomes 1 000 000 if that can be had, else the most there is.
///
/// # Errors
/// When what was wished for cannot be had.
pub fn limit_open_files(wish: Option<u64>) -> Result<u64, SandboxError> {
    let now = getrlimit(Resource::Nofile);
    let current = now.current.unwrap_or(u64::MAX);
    let most = most_open_files();
    let wanted = match wish {
        Some(0) => return Ok(current),
        Some(wish) if wish > most => {
            return Err(SandboxError::TooManyFiles { wanted: wish, most });
        }
        Some(wish) => wish,
        None if current >= DEFAULT_FILES => return Ok(current),
        None => DEFAULT_FILES.min(most),
    };
    let limit = |files| Rlimit {
        current: Some(files),
        maximum: Some(files),
    };
    let set = setrlimit(Resource::Nofile, limit(wanted));
    match (set, now.maximum) {
        (Ok(()), _) => Ok(wanted),
        (Err(_), Some(maximum)) if wish.is_none() => {
            log::debug!("the limit of open files becomes {maximum}, not {wanted}");
            setrlimit(Resource::Nofile, limit(maximum))
                .map_err(SandboxError::system("raise the limit of open files"))?;
            Ok(maximum)
        }
        (Err(error), _) => Err(SandboxError::system("set the limit of open files")(error)),
    }
}

/// What the system lets any process have.
fn most_open_files() -> u64 {
    std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(u64::MAX)
}
