// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attributes of nodes and of the file system.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    Access, AtFlags, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, Uid,
};

use super::{Cx, PassThrough};
use crate::attr::timeout;
use crate::error::{Errno, Result};
use crate::sys::{self, by_number};
use crate::tables::{Node, Place};
use crate::wire::flags::{InitFlags, SetAttrValid};
use crate::wire::operation::{Creation, SetAttr, Time};
use crate::wire::reply::{Attr, AttrOut, StatFs, Statx as WireStatx};

impl PassThrough {
    /// `GETATTR`
    #[inline]
    pub fn get_attr(&self, cx: &Cx<'_>, handle: Option<u64>) -> Result<AttrOut> {
        let node = self.node(cx)?;
        if matches!(node.place(), Place::Virtual) {
            return Ok(self.virtual_attr());
        }
        Ok(self.attr_out(&self.stat(&node, handle)?))
    }

    /// `STATX`: what `GETATTR` says, and when the file was born.
    pub fn statx(&self, cx: &Cx<'_>, handle: Option<u64>) -> Result<WireStatx> {
        let node = self.node(cx)?;
        if matches!(node.place(), Place::Virtual) {
            return Ok(self.virtual_statx());
        }
        let stat = self.stat(&node, handle)?;
        let ids = &self.config.ids;
        let time = |time: StatxTimestamp| Time::new(time.tv_sec.cast_unsigned(), time.tv_nsec);
        let asked = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        Ok(WireStatx {
            timeout: timeout(self.config.timeouts.attr),
            mask: stat.stx_mask & asked.bits(),
            block_size_bytes: stat.stx_blksize,
            attributes: stat.stx_attributes.bits(),
            nlink: stat.stx_nlink,
            uid: ids.uid_to_guest(stat.stx_uid),
            gid: ids.gid_to_guest(stat.stx_gid),
            mode: stat.stx_mode,
            ino: stat.stx_ino,
            size_bytes: stat.stx_size,
            blocks: stat.stx_blocks,
            attributes_mask: stat.stx_attributes_mask.bits(),
            atime: time(stat.stx_atime),
            btime: time(stat.stx_btime),
            ctime: time(stat.stx_ctime),
            mtime: time(stat.stx_mtime),
            rdev_major: stat.stx_rdev_major,
            rdev_minor: stat.stx_rdev_minor,
            dev_major: stat.stx_dev_major,
            dev_minor: stat.stx_dev_minor,
        })
    }

    fn virtual_statx(&self) -> WireStatx {
        let AttrOut { timeout, attr } = self.virtual_attr();
        WireStatx {
            timeout,
            mask: StatxFlags::BASIC_STATS.bits(),
            block_size_bytes: attr.block_size_bytes,
            nlink: attr.nlink,
            // The field has all bits that a mode has.
            mode: u16::try_from(attr.mode).unwrap_or(0),
            ino: attr.ino,
            ..WireStatx::default()
        }
    }

    #[inline]
    fn stat(&self, node: &Node, handle: Option<u64>) -> Result<Statx> {
        if let Some(handle) = handle
            && !node.is_hot()
            && let Ok(handle) = self.handles.get(handle, node.number())
        {
            return sys::statx_of(handle.as_fd());
        }
        sys::statx_of(self.nodes.fd(node)?.as_fd())
    }

    /// The directory of several shares: nobody may change it.
    fn virtual_attr(&self) -> AttrOut {
        // Clamped: each has a subdirectory's link.
        let shares = u32::try_from(self.shares.len()).unwrap_or(u32::MAX);
        AttrOut {
            timeout: timeout(self.config.timeouts.attr),
            attr: Attr {
                ino: 1,
                mode: 0o040_555,
                nlink: shares.saturating_add(2),
                block_size_bytes: 4096,
                ..Attr::default()
            },
        }
    }

    /// `SETATTR`
    ///
    /// # Errors
    /// Errors of the host. What was changed before one stays.
    pub fn set_attr(&self, cx: &mut Cx<'_>, set: &SetAttr) -> Result<AttrOut> {
        let node = self.node(cx)?;
        let fd = self.nodes.fd(&node)?;
        let fd = fd.as_fd();
        let valid = set.valid;
        // Before the mode: a change of owner takes set-user-ID bits off.
        if valid.intersects(SetAttrValid::UID | SetAttrValid::GID) {
            self.change_owner(cx, &node, fd, set)?;
        }
        if valid.contains(SetAttrValid::MODE) {
            cx.thread.use_fsetid(true)?;
            let mode = Mode::from_bits_truncate(set.mode & 0o7777);
            by_number::chmod(cx.thread, fd, mode)?;
        }
        if valid.contains(SetAttrValid::SIZE) {
            self.change_size(cx, &node, fd, set)?;
        }
        if valid.intersects(SetAttrValid::ATIME | SetAttrValid::MTIME) {
            let times = Timestamps {
                last_access: timespec(
                    valid.contains(SetAttrValid::ATIME),
                    valid.contains(SetAttrValid::ATIME_NOW),
                    set.atime,
                ),
                last_modification: timespec(
                    valid.contains(SetAttrValid::MTIME),
                    valid.contains(SetAttrValid::MTIME_NOW),
                    set.mtime,
                ),
            };
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(fd, c"", &times, flags)?;
        }
        Ok(self.attr_out(&sys::statx_of(fd)?))
    }

    fn change_owner(
        &self,
        cx: &Cx<'_>,
        node: &Node,
        fd: BorrowedFd<'_>,
        set: &SetAttr,
    ) -> Result<()> {
        let ids = &self.config.ids;
        let uid = set.valid.contains(SetAttrValid::UID);
        let uid = uid.then(|| ids.uid_to_host(set.uid)).transpose()?;
        let gid = set.valid.contains(SetAttrValid::GID);
        let gid = gid.then(|| ids.gid_to_host(set.gid)).transpose()?;
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::INVAL);
        }
        self.drop_file_capabilities(cx, node)?;
        rustix::fs::chownat(
            fd,
            c"",
            uid.map(Uid::from_raw),
            gid.map(Gid::from_raw),
            AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW,
        )
    }

    fn change_size(
        &self,
        cx: &mut Cx<'_>,
        node: &Node,
        fd: BorrowedFd<'_>,
        set: &SetAttr,
    ) -> Result<()> {
        if !node.is_file() {
            return Err(if node.is_dir() {
                Errno::ISDIR
            } else {
                Errno::INVAL
            });
        }
        self.drop_file_capabilities(cx, node)?;
        let kills = set.valid.contains(SetAttrValid::KILL_SUIDGID)
            && self.negotiated().contains(InitFlags::HANDLE_KILLPRIV_V2);
        cx.thread.use_fsetid(!kills)?;
        let opened = set.handle != 0 || !self.opens_itself(node, false);
        if set.valid.contains(SetAttrValid::HANDLE) && opened {
            let handle = self.handles.file(set.handle, node.number())?;
            return rustix::fs::ftruncate(handle.as_fd(), set.size_bytes);
        }
        by_number::truncate(cx.thread, fd, set.size_bytes)
    }

    /// Whether changing the size of a node may take long.
    pub(crate) fn is_long_truncation(&self, node: u64, size_bytes: u64) -> bool {
        /// Freed at once in a moment.
        const SHORT_BYTES: u64 = 64 << 20;
        let stat = self.nodes.get(node).and_then(|node| {
            let fd = self.nodes.fd(&node)?;
            sys::statx_of(fd.as_fd())
        });
        stat.is_ok_and(|stat| stat.stx_size.saturating_sub(size_bytes) > SHORT_BYTES)
    }

    /// `ACCESS`, which guests that check permissions themselves do not send.
    ///
    /// # Errors
    /// EACCES, or what the host says.
    pub fn access(&self, cx: &mut Cx<'_>, mask: u32) -> Result<()> {
        let node = self.node(cx)?;
        if matches!(node.place(), Place::Virtual) {
            let writes = Access::from_bits_truncate(mask).contains(Access::WRITE_OK);
            return if writes { Err(Errno::ACCESS) } else { Ok(()) };
        }
        let fd = self.nodes.fd(&node)?;
        let caller = self.caller(cx, &Creation::default())?;
        let access = Access::from_bits_truncate(mask);
        cx.thread.as_caller(caller, |thread| {
            by_number::access(thread, fd.as_fd(), access)
        })?
    }

    /// `STATFS`
    pub fn stat_fs(&self, cx: &Cx<'_>) -> Result<StatFs> {
        let node = self.node(cx)?;
        let fd = match (node.place(), self.first_share()) {
            (Place::Virtual, Some(share)) => self.nodes.fd(share)?,
            _ => self.nodes.fd(&node)?,
        };
        let stat = rustix::fs::fstatvfs(fd.as_fd())?;
        // Clamped: the fields of FUSE are narrower than those of statvfs(3).
        let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            block_size_bytes: narrow(stat.f_bsize),
            name_max_bytes: narrow(stat.f_namemax),
            fragment_size_bytes: narrow(stat.f_frsize),
        })
    }

    /// `SYNCFS`: all that was written to the file system of the node is made stable.
    pub fn sync_fs(&self, cx: &Cx<'_>) -> Result<()> {
        let node = self.node(cx)?;
        if matches!(node.place(), Place::Virtual) {
            return self
                .shares
                .iter()
                .try_for_each(|share| self.sync_fs_of(cx, &share.node));
        }
        self.sync_fs_of(cx, &node)
    }

    fn sync_fs_of(&self, cx: &Cx<'_>, node: &Node) -> Result<()> {
        rustix::fs::syncfs(self.open_host(cx, node, OFlags::RDONLY)?)
    }
}

fn timespec(set: bool, now: bool, time: Time) -> Timespec {
    let nanos = if now {
        UTIME_NOW
    } else if set {
        time.nanos.into()
    } else {
        UTIME_OMIT
    };
    Timespec {
        tv_sec: time.seconds.cast_signed(),
        tv_nsec: nanos,
    }
}
