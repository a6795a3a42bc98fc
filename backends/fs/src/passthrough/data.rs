// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The content of files.
//!
//! Bytes go between the file and the guest's memory where they lie; here is decided which file
//! that is and how it is called, not the call itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags as HostFallocate, OFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use super::{Cx, Handle, PassThrough};
use crate::error::{Errno, Result};
use crate::tables::{Node, Place, SlabRef};
use crate::wire::flags::{FallocateFlags, InitFlags, WriteFlags};
use crate::wire::operation::{CopyFileRange, WriteIn};
use ringside_common::num::usize_of;

/// The most that one call copies, so that the reply has room for the number.
const MAX_COPY_BYTES: u64 = 1 << 30;

/// A file that is read from or written to.
#[derive(Debug)]
pub enum Target {
    /// One that the guest has opened.
    Open(SlabRef<Handle>),
    /// One that it uses without opening it.
    Fresh(OwnedFd),
}

impl AsFd for Target {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Open(handle) => handle.as_fd(),
            Self::Fresh(fd) => fd.as_fd(),
        }
    }
}

impl Target {
    /// Whether every read waits for a disk.
    #[inline]
    pub fn waits_to_read(&self) -> bool {
        match self {
            Self::Open(handle) => handle.flags().contains(OFlags::DIRECT),
            Self::Fresh(_) => false,
        }
    }

    /// Whether every write waits for a disk.
    #[inline]
    pub fn waits_to_write(&self) -> bool {
        match self {
            Self::Open(handle) => {
                let waiting = OFlags::DIRECT | OFlags::SYNC | OFlags::DSYNC;
                handle.flags().intersects(waiting)
            }
            Self::Fresh(_) => false,
        }
    }

    /// Whether a read can be tried without waiting.
    #[inline]
    pub fn may_try(&self) -> bool {
        match self {
            Self::Open(handle) => handle.mount().has_nowait(),
            Self::Fresh(_) => false,
        }
    }

    /// It was tried, and cannot be.
    pub fn cannot_try(&self) {
        if let Self::Open(handle) = self {
            handle.mount().note_no_nowait();
        }
    }
}

impl PassThrough {
    /// The file of a handle.
    ///
    /// # Errors
    /// EBADF when there is none; of opening it, where the guest leaves that out.
    #[inline]
    pub fn target(&self, cx: &Cx<'_>, node: u64, handle: u64, flags: OFlags) -> Result<Target> {
        match self.handles.file(handle, node) {
            Ok(handle) => Ok(Target::Open(handle)),
            Err(Errno::BADF)
                if handle == 0 && self.negotiated().contains(InitFlags::NO_OPEN_SUPPORT) =>
            {
                let node = self.nodes.get(node)?;
                if !node.is_file() {
                    return Err(Errno::BADF);
                }
                self.open_host(cx, &node, flags).map(Target::Fresh)
            }
            Err(error) => Err(error),
        }
    }

    /// The file to write, and how; the thread is made ready for it.
    ///
    /// # Errors
    /// EBADF when there is none.
    #[inline]
    pub fn write_target(
        &self,
        cx: &mut Cx<'_>,
        write: &WriteIn,
    ) -> Result<(Target, ReadWriteFlags)> {
        let target = self.target(cx, cx.header.node, write.handle, OFlags::RDWR)?;
        let kills = write.write_flags.contains(WriteFlags::KILL_SUIDGID)
            && self.negotiated().contains(InitFlags::HANDLE_KILLPRIV_V2);
        cx.thread.use_fsetid(!kills)?;
        if self.config.xattrmap.is_some() {
            let node = self.node(cx)?;
            self.drop_file_capabilities(cx, &node)?;
        }
        // What comes from the guest's cache has its place.
        let appends = OFlags::from_bits_retain(write.flags).contains(OFlags::APPEND)
            && !write.write_flags.contains(WriteFlags::CACHE);
        let flags = if appends {
            ReadWriteFlags::APPEND
        } else {
            ReadWriteFlags::empty()
        };
        Ok((target, flags))
    }

    /// `FSYNC` and `FSYNCDIR`
    pub fn fsync(&self, cx: &Cx<'_>, handle: u64, data_only: bool, is_dir: bool) -> Result<()> {
        let node = self.node(cx)?;
        if matches!(node.place(), Place::Virtual) {
            return Ok(());
        }
        let sync = |fd: BorrowedFd<'_>| {
            if data_only {
                rustix::fs::fdatasync(fd)
            } else {
                rustix::fs::fsync(fd)
            }
        };
        match self.handles.get(handle, node.number()) {
            Ok(handle) => sync(handle.as_fd()),
            Err(_) if handle == 0 && self.opens_itself(&node, is_dir) => {
                sync(self.open_host(cx, &node, OFlags::RDONLY)?.as_fd())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the guest uses such nodes without opening them.
    pub(super) fn opens_itself(&self, node: &Node, is_dir: bool) -> bool {
        let flag = if is_dir {
            InitFlags::NO_OPENDIR_SUPPORT
        } else {
            InitFlags::NO_OPEN_SUPPORT
        };
        node.is_dir() == is_dir && self.negotiated().contains(flag)
    }

    /// `FALLOCATE`
    pub fn fallocate(
        &self,
        cx: &mut Cx<'_>,
        handle: u64,
        offset_bytes: u64,
        len_bytes: u64,
        mode: FallocateFlags,
    ) -> Result<()> {
        let target = self.target(cx, cx.header.node, handle, OFlags::RDWR)?;
        if i64::try_from(offset_bytes).is_err() || i64::try_from(len_bytes).is_err() {
            return Err(Errno::INVAL);
        }
        self.about_to_change(cx, cx.header.node)?;
        let mode = HostFallocate::from_bits_retain(mode.bits());
        rustix::fs::fallocate(target.as_fd(), mode, offset_bytes, len_bytes)
    }

    /// A file is about to change by a request that does not say whether set-user-ID bits go. One
    /// taken off too many is better than one left.
    fn about_to_change(&self, cx: &mut Cx<'_>, node: u64) -> Result<()> {
        let leaves = !self.negotiated().contains(InitFlags::HANDLE_KILLPRIV_V2);
        cx.thread.use_fsetid(leaves)?;
        let node = self.nodes.get(node)?;
        self.drop_file_capabilities(cx, &node)
    }

    /// `LSEEK`: where the next data or the next hole is.
    ///
    /// # Errors
    /// Errors of the host, and EINVAL for any other question.
    pub fn lseek(&self, cx: &Cx<'_>, handle: u64, offset_bytes: u64, whence: u32) -> Result<u64> {
        let target = self.target(cx, cx.header.node, handle, OFlags::RDONLY)?;
        // The offset of the open file moves with it, and is not used.
        let whence = match libc::c_int::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset_bytes),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset_bytes),
            // Linux asks for neither of these.
            Ok(libc::SEEK_SET) => SeekFrom::Start(offset_bytes),
            Ok(libc::SEEK_END) => SeekFrom::End(offset_bytes.cast_signed()),
            _ => return Err(Errno::INVAL),
        };
        if i64::try_from(offset_bytes).is_err() && !matches!(whence, SeekFrom::End(_)) {
            return Err(Errno::NXIO);
        }
        rustix::fs::seek(target.as_fd(), whence)
    }

    /// `COPY_FILE_RANGE`: returns bytes.
    pub fn copy_file_range(&self, cx: &mut Cx<'_>, copy: &CopyFileRange) -> Result<u64> {
        if copy.flags != 0 {
            return Err(Errno::INVAL);
        }
        let from = self.target(cx, cx.header.node, copy.handle_in, OFlags::RDONLY)?;
        let to = self.target(cx, copy.node_out, copy.handle_out, OFlags::RDWR)?;
        let offset = |bytes: u64| i64::try_from(bytes).map(|_| bytes);
        let mut offset_in = offset(copy.offset_in_bytes).map_err(|_e| Errno::INVAL)?;
        let mut offset_out = offset(copy.offset_out_bytes).map_err(|_e| Errno::INVAL)?;
        let len_bytes = usize_of(copy.len_bytes.min(MAX_COPY_BYTES));
        self.about_to_change(cx, copy.node_out)?;
        let copied = rustix::fs::copy_file_range(
            from.as_fd(),
            Some(&mut offset_in),
            to.as_fd(),
            Some(&mut offset_out),
            len_bytes,
        )?;
        Ok(copied as u64)
    }
}
