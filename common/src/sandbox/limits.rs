// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the process may use.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::SandboxError;

/// Open files a back-end asks for by default.
const DEFAULT_FILES: u64 = 1_000_000;

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

/// Lets this process have as many descriptors as it may, and returns how many: a full table of
/// memory slots and 256 queues need more than the usual soft limit. For a back-end that does not
/// let its user choose the limit.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            log::debug!("the limit of open files stays at {current:?}: {error}");
            current
        }
    }
    .unwrap_or(u64::MAX)
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
