// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening and closing files and directories.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::{Cx, PassThrough};
use crate::config::CachePolicy;
use crate::error::{Errno, Result};
use crate::tables::{For, Node, Place};
use crate::wire::flags::{InitFlags, OpenInFlags, OpenOutFlags, ReleaseFlags};
use crate::wire::operation::Release;
use crate::wire::reply::Opened;

/// What of the guest's flags may reach the host, beside `O_DIRECT` and `O_NOATIME`.
const PASSED: OFlags = OFlags::RWMODE
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

impl PassThrough {
    /// `OPEN`
    ///
    /// # Errors
    /// Errors of the host, and ENOSYS when the guest may do without.
    pub fn open(&self, cx: &mut Cx<'_>, flags: u32, open_flags: OpenInFlags) -> Result<Opened> {
        if self.negotiated().contains(InitFlags::NO_OPEN_SUPPORT) {
            return Err(Errno::NOSYS);
        }
        let node = self.node(cx)?;
        if node.is_dir() {
            return Err(Errno::ISDIR);
        }
        let room = self.reserve(For::File)?;
        let fd = self.open_node(cx, &node, flags, open_flags)?;
        let handle = room.fill(&node, fd, self.host_flags(flags))?;
        Ok(Opened {
            handle: handle.number(),
            flags: self.open_out_flags(flags),
        })
    }

    /// `OPENDIR`
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_dir(&self, cx: &Cx<'_>) -> Result<Opened> {
        if self.negotiated().contains(InitFlags::NO_OPENDIR_SUPPORT) {
            return Err(Errno::NOSYS);
        }
        let node = self.node(cx)?;
        let flags = match self.config.cache {
            CachePolicy::Always | CachePolicy::Metadata => {
                OpenOutFlags::CACHE_DIR | OpenOutFlags::KEEP_CACHE
            }
            CachePolicy::Auto | CachePolicy::Never => OpenOutFlags::empty(),
        };
        if matches!(node.place(), Place::Virtual) {
            // There is nothing to open; numbers of handles start at 1.
            return Ok(Opened { handle: 0, flags });
        }
        let room = self.reserve(For::Directory)?;
        let fd = self.open_host(cx, &node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = room.fill(&node, fd, OFlags::RDONLY)?;
        Ok(Opened {
            handle: handle.number(),
            flags,
        })
    }

    /// Opens a regular file as the guest wants it.
    pub(super) fn open_node(
        &self,
        cx: &mut Cx<'_>,
        node: &Node,
        flags: u32,
        open_flags: OpenInFlags,
    ) -> Result<OwnedFd> {
        if !node.is_file() {
            return self.open_host(cx, node, OFlags::RDONLY);
        }
        let appends = OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        // What comes from a cache has its place, and is not to be appended.
        let caches = self.negotiated().contains(InitFlags::WRITEBACK_CACHE);
        let flags = self.host_flags(flags);
        if flags.contains(OFlags::TRUNC) {
            let kills = open_flags.contains(OpenInFlags::KILL_SUIDGID)
                && self.negotiated().contains(InitFlags::HANDLE_KILLPRIV_V2);
            cx.thread.use_fsetid(!kills)?;
            self.drop_file_capabilities(cx, node)?;
        }
        match self.open_host(cx, node, flags) {
            // A file that may only grow can be opened in no other way.
            Err(Errno::PERM) if appends && !caches => {
                self.open_host(cx, node, flags | OFlags::APPEND)
            }
            result => result,
        }
    }

    /// The guest's flags as the host gets them.
    pub(super) fn host_flags(&self, flags: u32) -> OFlags {
        let guest = OFlags::from_bits_retain(flags);
        let mut host = guest & PASSED;
        if self.config.allow_direct_io {
            host |= guest & OFlags::DIRECT;
        }
        if self.config.preserve_noatime {
            host |= guest & OFlags::NOATIME;
        }
        // With a write-back cache the guest reads pages of which it has parts.
        if self.negotiated().contains(InitFlags::WRITEBACK_CACHE)
            && host & OFlags::RWMODE == OFlags::WRONLY
        {
            host = (host - OFlags::RWMODE) | OFlags::RDWR;
        }
        host
    }

    /// What the guest may do with an open file.
    pub(super) fn open_out_flags(&self, flags: u32) -> OpenOutFlags {
        let mut out = match self.config.cache {
            CachePolicy::Never | CachePolicy::Metadata => {
                OpenOutFlags::DIRECT_IO | OpenOutFlags::PARALLEL_DIRECT_WRITES
            }
            CachePolicy::Always => OpenOutFlags::KEEP_CACHE,
            CachePolicy::Auto => OpenOutFlags::empty(),
        };
        if self.can_skip_flush(flags) {
            out |= OpenOutFlags::NOFLUSH;
        }
        out
    }

    /// Whether the host need not know that a file is closed. It must for one that can be written:
    /// when it is closed, Linux sends what a program has left in a mapping only if it has to send
    /// FLUSH.
    fn can_skip_flush(&self, flags: u32) -> bool {
        let reads_only = OFlags::from_bits_retain(flags) & OFlags::RWMODE == OFlags::RDONLY;
        reads_only && !self.negotiated().contains(InitFlags::POSIX_LOCKS)
    }

    /// `FLUSH`: a process of the guest has closed the file.
    ///
    /// # Errors
    /// What the host says of data that it has not written.
    pub fn flush(&self, cx: &Cx<'_>, handle: u64, lock_owner: u64) -> Result<()> {
        let node = self.node(cx)?;
        self.drop_locks(node.number(), lock_owner);
        if self.negotiated().contains(InitFlags::NO_OPEN_SUPPORT) && handle == 0 {
            return Ok(());
        }
        let handle = self.handles.get(handle, node.number())?;
        if node.mount().closes_silently() {
            return Ok(());
        }
        // Closing any descriptor of the file makes the host send what it has.
        match handle.as_fd().try_clone_to_owned() {
            Ok(duplicate) => crate::sys::file::close(duplicate),
            Err(_no_descriptor) => rustix::fs::fdatasync(handle.as_fd()),
        }
    }

    /// `RELEASE` and `RELEASEDIR`: it is open in no process of the guest.
    ///
    /// # Errors
    /// EBADF when there is no such handle.
    pub fn release(&self, cx: &Cx<'_>, release: &Release) -> Result<()> {
        let node = cx.header.node;
        if release.handle == 0 {
            // What was never opened, because the guest could do without.
            return Ok(());
        }
        let handle = self.handles.remove(release.handle, node)?;
        let flags = ReleaseFlags::from_bits_retain(release.release_flags);
        if flags.contains(ReleaseFlags::FLUSH) {
            self.drop_locks(node, release.lock_owner);
        }
        match Arc::try_unwrap(handle) {
            Ok(handle) if cx.waits => handle.close_here(),
            // Another thread uses it, or this one must not wait.
            other => drop(other),
        }
        self.released(node, release.handle);
        Ok(())
    }
}
