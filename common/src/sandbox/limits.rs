// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the process may use, and what it inherits.

use std::cmp::Ordering;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::SandboxError;
use super::sys;

/// Open files a back-end asks for by default.
const DEFAULT_FILES: u64 = 1_000_000;

/// Closes every descriptor that this process has inherited, except the standard streams and those
/// of `keep`.
///
/// To be called first of all in `main`.
///
/// # Errors
/// When the kernel does not (before Linux 5.9).
pub fn close_inherited(keep: &[u32]) -> Result<(), SandboxError> {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut first = 3_u32;
    for kept in keep {
        match kept.cmp(&first) {
            Ordering::Less => continue,
            Ordering::Equal => {}
            Ordering::Greater => close(first, kept - 1)?,
        }
        first = kept.saturating_add(1);
    }
    close(first, u32::MAX)
}

fn close(first: u32, last: u32) -> Result<(), SandboxError> {
    sys::close_range(first, last).map_err(SandboxError::system("close inherited descriptors"))
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
