// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended attributes, access control lists among them, and flags of inodes.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use ringside_common::limited;
use ringside_common::num::usize_of;
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::{Cx, PassThrough};
use crate::error::{Errno, Result};
use crate::ioctl::Ioctl;
use crate::sys::{self, by_number};
use crate::tables::Place;
use crate::wire::flags::InitFlags;
use crate::wire::operation::{Creation, IoctlIn};
use crate::wire::reply::{IoctlOut, XattrSize};

/// The longest value and the longest list (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_BYTES: usize = 64 << 10;

const ACCESS_ACL: &CStr = c"system.posix_acl_access";
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

impl PassThrough {
    /// The name that an attribute has on the host.
    #[inline]
    fn host_name<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>> {
        if !self.config.xattr {
            return Err(Errno::NOSYS);
        }
        let is_acl = name == ACCESS_ACL || name == DEFAULT_ACL;
        let has_acl = is_acl && self.negotiated().contains(InitFlags::POSIX_ACL);
        if is_acl && !has_acl {
            return Err(Errno::OPNOTSUPP);
        }
        let name = match &self.config.xattrmap {
            Some(map) => map.to_host(name)?,
            None => Cow::Borrowed(name),
        };
        // Of these the guest checks nothing but the POSIX ones, which the host would enforce. Under
        // another name they are bytes to the host.
        if name.to_bytes().starts_with(b"system.") && !has_acl {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(name)
    }

    /// `GETXATTR`: the value goes to `out`, or with size 0 how long it is.
    ///
    /// # Errors
    /// Errors of the host, and ERANGE when it is longer than the guest has room for.
    pub fn get_xattr(
        &self,
        cx: &Cx<'_>,
        name: &CStr,
        size_bytes: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let name = self.host_name(name).map_err(|error| match error {
            // What a rule hides is not there. With another error Linux would not run a file whose
            // `security.capability` is hidden.
            Errno::PERM => Errno::NODATA,
            error => error,
        })?;
        let node = self.node(cx)?;
        if matches!(node.place(), Place::Virtual) {
            return Err(Errno::NODATA);
        }
        let fd = self.nodes.fd(&node)?;
        if size_bytes == 0 {
            let size = by_number::getxattr(cx.thread, fd.as_fd(), &name, &mut [])?;
            return put_size(size, out);
        }
        let head = out.len();
        out.resize(head + clamp(size_bytes), 0);
        let value = out.get_mut(head..).unwrap_or_default();
        let size = by_number::getxattr(cx.thread, fd.as_fd(), &name, value)?;
        out.truncate(head + size);
        Ok(())
    }

    /// `LISTXATTR`: as [`get_xattr`](Self::get_xattr).
    ///
    /// # Errors
    /// As [`get_xattr`](Self::get_xattr).
    pub fn list_xattr(&self, cx: &Cx<'_>, size_bytes: u32, out: &mut Vec<u8>) -> Result<()> {
        if !self.config.xattr {
            return Err(Errno::NOSYS);
        }
        let node = self.node(cx)?;
        if matches!(node.place(), Place::Virtual) {
            return if size_bytes == 0 {
                put_size(0, out)
            } else {
                Ok(())
            };
        }
        let fd = self.nodes.fd(&node)?;
        // All of them, also for the size alone: the guest does not see some of them.
        let mut list = vec![0; MAX_BYTES];
        let size = by_number::listxattr(cx.thread, fd.as_fd(), &mut list)?;
        list.truncate(size);
        if let Some(map) = &self.config.xattrmap {
            map.list_to_guest(&mut list);
        }
        let head = out.len();
        for name in list.split_inclusive(|&byte| byte == 0) {
            if self.is_listed(name) {
                out.extend_from_slice(name);
            }
        }
        let len = out.len() - head;
        if size_bytes == 0 {
            out.truncate(head);
            return put_size(len, out);
        }
        if len > clamp(size_bytes) {
            return Err(Errno::RANGE);
        }
        Ok(())
    }

    /// Whether the guest can ask for the attribute `name`, which has its NUL.
    fn is_listed(&self, name: &[u8]) -> bool {
        CStr::from_bytes_with_nul(name).is_ok_and(|name| self.host_name(name).is_ok())
    }

    /// `SETXATTR`; with `kills_sgid` an access control list takes the set-group-ID bit off.
    pub fn set_xattr(
        &self,
        cx: &mut Cx<'_>,
        name: &CStr,
        value: &[u8],
        flags: u32,
        kills_sgid: bool,
    ) -> Result<()> {
        let name = self.host_name(name)?;
        let node = self.node(cx)?;
        let fd = self.nodes.fd(&node)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        cx.thread.use_fsetid(true)?;
        // Before the list, or members of a group that it lets in could use the bit in between.
        let cleared = kills_sgid
            && *name == *ACCESS_ACL
            && self.negotiated().contains(InitFlags::POSIX_ACL)
            && set_sgid(cx, fd.as_fd(), false)?;
        let set = by_number::setxattr(cx.thread, fd.as_fd(), &name, value, flags);
        if set.is_err()
            && cleared
            && let Err(error) = set_sgid(cx, fd.as_fd(), true)
        {
            limited!(warn, "a set-group-ID bit cannot be put back: {error}");
        }
        set
    }

    /// `REMOVEXATTR`
    pub fn remove_xattr(&self, cx: &Cx<'_>, name: &CStr) -> Result<()> {
        let name = self.host_name(name)?;
        let node = self.node(cx)?;
        by_number::removexattr(cx.thread, self.nodes.fd(&node)?.as_fd(), &name)
    }

    /// `IOCTL`: flags of inodes, as `chattr(1)` and `lsattr(1)` use them.
    ///
    /// # Errors
    /// Errors of the host, and ENOTTY for anything else.
    pub fn ioctl(&self, cx: &mut Cx<'_>, request: &IoctlIn<'_>, out: &mut Vec<u8>) -> Result<()> {
        let ioctl = Ioctl::decode(request)?;
        let node = self.node(cx)?;
        // Never that of the handle: it may be open to write, which an immutable file cannot be.
        let file = self.open_host(cx, &node, OFlags::RDONLY)?;
        // Kernels before 5.13 do not check the owner of the file. A guest with idmapped mounts does
        // not name the caller.
        let reply = if ioctl.writes() && cx.header.uid != u32::MAX {
            let caller = self.caller(cx, &Creation::default())?;
            let run = || ioctl.run(file.as_fd());
            cx.thread.as_caller(caller, |_| run())??
        } else {
            ioctl.run(file.as_fd())?
        };
        out.extend_from_slice(&IoctlOut::default().to_bytes());
        out.extend_from_slice(reply.bytes());
        Ok(())
    }
}

/// Sets or clears the set-group-ID bit of a node, and says whether it was otherwise before.
fn set_sgid(cx: &Cx<'_>, node: BorrowedFd<'_>, on: bool) -> Result<bool> {
    const SGID: u32 = 0o2000;
    let mode = u32::from(sys::statx_of(node)?.stx_mode) & 0o7777;
    if (mode & SGID != 0) == on {
        return Ok(false);
    }
    by_number::chmod(cx.thread, node, Mode::from_bits_truncate(mode ^ SGID))?;
    Ok(true)
}

fn clamp(size_bytes: u32) -> usize {
    usize_of(size_bytes.into()).min(MAX_BYTES)
}

fn put_size(size: usize, out: &mut Vec<u8>) -> Result<()> {
    let size_bytes = u32::try_from(size).map_err(|_e| Errno::OVERFLOW)?;
    out.extend_from_slice(&XattrSize { size_bytes }.to_bytes());
    Ok(())
}
