// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a descriptor refers to, as the kernel names it in `/proc/self/fd`; also where a sandbox has
//! left no `/proc`.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, readlinkat};

/// `/proc/self/fd` of a process in a sandbox.
static PROC_SELF_FD: OnceLock<OwnedFd> = OnceLock::new();

/// From here on `proc_self_fd` is used instead of the path.
pub(crate) fn keep(proc_self_fd: OwnedFd) {
    // There is one sandbox in the life of a process.
    let _ = PROC_SELF_FD.set(proc_self_fd);
}

/// A path, or for what has none a name like `anon_inode:[eventfd]`.
pub(crate) fn name_of(fd: impl AsFd) -> rustix::io::Result<CString> {
    let number = fd.as_fd().as_raw_fd();
    match PROC_SELF_FD.get() {
        Some(directory) => readlinkat(directory, number.to_string(), Vec::new()),
        None => readlinkat(CWD, format!("/proc/self/fd/{number}"), Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_an_eventfd_and_of_a_file_is_that_of_the_kernel() {
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(
            name_of(&eventfd).unwrap().as_c_str(),
            c"anon_inode:[eventfd]"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(name_of(&file).unwrap().to_str().unwrap(), path);
    }
}
