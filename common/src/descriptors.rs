// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a descriptor refers to.
//!
//! A front-end can hand over a file that it serves itself (FUSE), and then not answer. `fstat(2)`,
//! `fstatfs(2)` and `close(2)` of such a file may wait without end. So everything asked here is
//! answered by the kernel alone.
//!
//! Names are those in `/proc/self/fd`, even where a sandbox has left no `/proc`.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, fcntl_get_seals, fcntl_getfl, openat,
    readlinkat, statx,
};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// `/proc/self/fd` of a process in a sandbox.
static PROC_SELF_FD: OnceLock<OwnedFd> = OnceLock::new();

/// Has `proc_self_fd` used instead of the path from here on.
pub(crate) fn keep(proc_self_fd: OwnedFd) {
    // There is one sandbox in the life of a process.
    let _ = PROC_SELF_FD.set(proc_self_fd);
}

/// Opens `/proc/self/maps` of the calling process, without an allocation.
pub(crate) fn open_own_maps() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match PROC_SELF_FD.get() {
        Some(directory) => openat(directory, c"../../self/maps", flags, Mode::empty()),
        None => openat(CWD, c"/proc/self/maps", flags, Mode::empty()),
    }
}

/// A path, or for what has none a name like `anon_inode:[eventfd]`.
pub(crate) fn name_of(fd: impl AsFd) -> rustix::io::Result<CString> {
    let number = fd.as_fd().as_raw_fd();
    match PROC_SELF_FD.get() {
        Some(directory) => readlinkat(directory, number.to_string(), Vec::new()),
        None => readlinkat(CWD, format!("/proc/self/fd/{number}"), Vec::new()),
    }
}

/// The kinds of descriptors that matter to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// A memfd, or a file on tmpfs or hugetlbfs: its pages are in memory.
    Memory,
    /// An eventfd.
    EventFd,
    /// A stream socket of the Unix domain.
    UnixStream,
    /// A regular file of a file system on a block device of this machine.
    DiskFile,
    /// Anything else that can be closed.
    Other,
    /// A file whose server may never answer to a `close(2)`, or a device whose driver may wait.
    Unclosable,
}

impl Kind {
    /// What `fd` is.
    pub(crate) fn of(fd: impl AsFd) -> Self {
        let fd = fd.as_fd();
        // A descriptor of a path only (`O_PATH`): its close asks no server.
        if fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::PATH)) {
            return Self::Other;
        }
        // Only files that are in memory have seals.
        if fcntl_get_seals(fd).is_ok() {
            return Self::Memory;
        }
        if let (Ok(domain), Ok(kind)) = (socket_domain(fd), socket_type(fd)) {
            return if (domain, kind) == (AddressFamily::UNIX, SocketType::STREAM) {
                Self::UnixStream
            } else {
                Self::Other
            };
        }
        match name_of(fd) {
            // Names of files begin with a slash.
            Ok(name) if name.as_c_str() == c"anon_inode:[eventfd]" => Self::EventFd,
            Ok(name) if name.as_bytes().starts_with(b"anon_inode:") => Self::Other,
            _ => Self::of_file(fd),
        }
    }

    fn of_file(fd: std::os::fd::BorrowedFd<'_>) -> Self {
        /// linux/major.h: `MEM_MAJOR`, that of `/dev/null`.
        const MEMORY_DEVICES: u32 = 1;
        // With no field asked for and no synchronization, a file system answers from memory.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let Ok(stat) = statx(fd, c"", flags, StatxFlags::empty()) else {
            return Self::Unclosable;
        };
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            // FUSE, NFS and all others without a block device have major number 0.
            FileType::RegularFile if stat.stx_dev_major != 0 => Self::DiskFile,
            FileType::Directory | FileType::Fifo => Self::Other,
            FileType::CharacterDevice if stat.stx_rdev_major == MEMORY_DEVICES => Self::Other,
            _ => Self::Unclosable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &str, flags: OFlags) -> OwnedFd {
        rustix::fs::open(path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn f1_5_kind_is_told_by_the_kernel_alone() {
        let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let link = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let (datagram, _peer) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        for (what, kind) in [
            (open(&link, OFlags::RDONLY), Kind::Memory),
            (open(&link, OFlags::PATH), Kind::Other),
            (memfd, Kind::Memory),
            (eventfd, Kind::EventFd),
            (stream.into(), Kind::UnixStream),
            (datagram.into(), Kind::Other),
            (pipe, Kind::Other),
            (open("/", OFlags::RDONLY), Kind::Other),
            (open("/dev/null", OFlags::RDWR), Kind::Other),
            (open("/proc/self/status", OFlags::RDONLY), Kind::Unclosable),
        ] {
            assert_eq!(Kind::of(&what), kind, "{what:?} {:?}", name_of(&what));
        }
    }

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
