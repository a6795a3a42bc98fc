// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names: where they lead, and taking, moving and adding them.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags as HostRename};

use super::{Cx, PassThrough};
use crate::error::{Errno, Result};
use crate::sys::{self, HOLD, by_number};
use crate::tables::{Found, Node, Place};
use crate::wire::flags::{InitFlags, RenameFlags};
use crate::wire::name::Name;
use crate::wire::operation::{Forgets, LookupName};
use crate::wire::reply::Entry;

/// Directories between one and the root of its share, at most: as deep as a path can be.
const MAX_DEPTH: usize = 4096;

impl PassThrough {
    /// `LOOKUP`
    ///
    /// # Errors
    /// Errors of the host, and EXDEV for what is on a mount that this thread, which is not to wait,
    /// asks for nothing.
    pub fn lookup(&self, cx: &Cx<'_>, name: LookupName<'_>) -> Result<Entry> {
        let parent = self.node(cx)?;
        if !parent.is_dir() {
            return Err(Errno::NOTDIR);
        }
        if matches!(parent.place(), Place::Virtual) {
            return self.lookup_share(&parent, name);
        }
        let exports = self.negotiated().contains(InitFlags::EXPORT_SUPPORT);
        let found = match name {
            LookupName::Child(name) => self.nodes.lookup(&parent, name, cx.waits),
            LookupName::Itself if exports => self.lookup_itself(&parent),
            LookupName::Parent if exports => self.lookup_parent(&parent),
            LookupName::Itself | LookupName::Parent => Err(Errno::INVAL),
        };
        match found {
            Ok(found) => Ok(self.entry(&parent, &found)),
            Err(Errno::NOENT) => self.no_entry(),
            Err(error) => Err(error),
        }
    }

    fn lookup_share(&self, root: &Node, name: LookupName<'_>) -> Result<Entry> {
        let LookupName::Child(name) = name else {
            return Err(Errno::INVAL);
        };
        let Some(share) = self.share(name) else {
            return self.no_entry();
        };
        self.lookup_itself(share)
            .map(|found| self.entry(root, &found))
    }

    /// The share whose file system is shown as that of the directory of several shares.
    pub(crate) fn first_share(&self) -> Option<&Arc<Node>> {
        self.shares.first().map(|share| &share.node)
    }

    /// The share of that name, where there are several.
    pub(crate) fn share(&self, name: Name<'_>) -> Option<&Arc<Node>> {
        let mut shares = self.shares.iter();
        let share = shares.find(|share| share.name.as_bytes() == name.to_bytes());
        share.map(|share| &share.node)
    }

    fn lookup_itself(&self, node: &Node) -> Result<Found> {
        let fd = self.nodes.fd(node)?;
        let again = sys::open_beneath(fd.as_fd(), c".", HOLD | OFlags::DIRECTORY, Mode::empty())?;
        self.nodes.adopt(again, node.mount())
    }

    /// The directory above, if it is within the share: NFS servers ask for it.
    fn lookup_parent(&self, node: &Node) -> Result<Found> {
        if node.is_root() {
            return self.lookup_itself(node);
        }
        let open_parent = |fd: std::os::fd::BorrowedFd<'_>| {
            rustix::fs::openat(fd, c"..", HOLD | OFlags::DIRECTORY, Mode::empty())
        };
        let parent = open_parent(self.nodes.fd(node)?.as_fd())?;
        // It may have been moved out of the share: its way must lead through the root.
        let mut above = parent.try_clone().map_err(|_e| Errno::NFILE)?;
        for _ in 0..MAX_DEPTH {
            let key = crate::tables::Key::of(&sys::statx_of(above.as_fd())?);
            if self.nodes.is_root(key) {
                return self.nodes.adopt(parent, node.mount());
            }
            above = open_parent(above.as_fd())?;
        }
        Err(Errno::STALE)
    }

    /// `BATCH_FORGET`
    pub fn batch_forget(&self, forgets: &Forgets<'_>) {
        for (node, lookups) in forgets.iter() {
            self.nodes.forget(node, lookups);
        }
    }

    /// `READLINK`: the target goes to `out`.
    pub fn read_link(&self, cx: &Cx<'_>, out: &mut Vec<u8>) -> Result<()> {
        let node = self.node(cx)?;
        let fd = self.nodes.fd(&node)?;
        let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
        let (target, _) = rustix::fs::readlinkat_raw(fd.as_fd(), c"", &mut buffer)?;
        out.extend_from_slice(target);
        Ok(())
    }

    /// `UNLINK` and `RMDIR`
    pub fn unlink(&self, cx: &Cx<'_>, name: Name<'_>, is_dir: bool) -> Result<()> {
        let parent = self.node(cx)?;
        let flags = if is_dir {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(self.nodes.fd(&parent)?.as_fd(), name.as_c_str(), flags)
    }

    /// `RENAME` and `RENAME2`
    ///
    /// # Errors
    /// Errors of the host, and EINVAL for flags that we do not know.
    pub fn rename(
        &self,
        cx: &Cx<'_>,
        name: Name<'_>,
        new_parent: u64,
        new_name: Name<'_>,
        flags: RenameFlags,
    ) -> Result<()> {
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT;
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let parent = self.node(cx)?;
        let new_parent = self.nodes.get(new_parent)?;
        rustix::fs::renameat_with(
            self.nodes.fd(&parent)?.as_fd(),
            name.as_c_str(),
            self.nodes.fd(&new_parent)?.as_fd(),
            new_name.as_c_str(),
            HostRename::from_bits_retain(flags.bits()),
        )
    }

    /// `LINK`
    pub fn link(&self, cx: &Cx<'_>, node: u64, name: Name<'_>) -> Result<Entry> {
        let parent = self.node(cx)?;
        let node = self.nodes.get(node)?;
        let fd = self.nodes.fd(&node)?;
        let dir = self.nodes.fd(&parent)?;
        by_number::link(cx.thread, fd.as_fd(), dir.as_fd(), name.as_c_str())?;
        let stat = sys::statx_of(fd.as_fd())?;
        let found = Found {
            node: Arc::clone(&node),
            stat,
        };
        // It is one more name of the node, so one more lookup.
        if !self.nodes.remember(&found.node) {
            return Err(Errno::STALE);
        }
        Ok(self.entry(&parent, &found))
    }
}
