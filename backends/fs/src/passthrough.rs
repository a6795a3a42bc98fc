// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Operations of the guest on the shared directories.
//!
//! A file of this module has the operations of one kind. Each gets checked arguments and a [`Cx`],
//! does at most a handful of system calls relative to descriptors of nodes, and answers with a
//! structure of the wire or an errno. What the guest knows is in [`Nodes`] and [`Handles`]; what
//! it agreed to is in [`PassThrough::negotiated`].
//!
//! An operation waits for the host's file system and for nothing else. One that may wait long is
//! called on a thread that may, see `server`.

#![expect(
    clippy::missing_errors_doc,
    reason = "an operation fails with the errno that the host has for it"
)]

mod attributes;
mod create;
mod data;
mod directory;
mod ending;
mod extended;
mod handles;
mod init;
mod locking;
mod mapping;
mod names;
mod open;

use std::ffi::CString;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{OFlags, Statx};

use crate::attr::{attr, timeout};
use crate::config::{FsConfig, InodeHandles};
use crate::credentials::{Caller, ThreadContext};
use crate::dax::Window;
use crate::error::{Errno, Result};
use crate::locks::Locks;
use crate::pool::DEFAULT_THREADS;
use crate::tables::{Budget, For, Found, Node, NodeOptions, Nodes, SlabRef};
use crate::wire::flags::{AttrFlags, InitFlags};
use crate::wire::header::InHeader;
use crate::wire::operation::Creation;
use crate::wire::reply::{AttrOut, Entry};
pub use create::Kind;
pub use data::Target;
pub use directory::DirScratch;
use handles::Reserved;
pub use handles::{Handle, Handles};
pub use init::MAX_WRITE_BYTES;

/// Descriptors that are ours: sockets, rings, eventfds, memory, and a few to spare.
const RESERVED: usize = 512;

/// Nodes that a guest may know by default: their memory is some 3 GiB.
const MAX_NODES: usize = 1 << 24;

/// A request, and the thread that serves it.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The head of the request.
    pub header: &'a InHeader,
    /// The thread.
    pub thread: &'a mut ThreadContext,
    /// Whether it may wait: for a process of the host that has a lease on a file (`fcntl(2)`).
    pub waits: bool,
}

/// One shared directory.
#[derive(Debug)]
struct ShareRoot {
    name: CString,
    node: Arc<Node>,
}

/// The shared directories, and what the guest knows of them.
#[derive(Debug)]
pub struct PassThrough {
    pub(crate) config: FsConfig,
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    pub(crate) locks: Locks,
    pub(crate) window: Window,
    /// The shares that have a name; the directory above them exists in the guest only.
    shares: Vec<ShareRoot>,
    negotiated: AtomicU64,
}

/// A shared directory, as it is handed over.
#[derive(Debug)]
pub struct Root {
    /// Its name, where there are several.
    pub name: Option<String>,
    /// Its descriptor (`O_PATH`).
    pub fd: OwnedFd,
}

impl PassThrough {
    /// Serves `roots`; `proc_self_fd` is the directory `/proc/self/fd`, and `max_files` the limit
    /// of open files of the process.
    ///
    /// # Errors
    /// Errors of the host, and EOPNOTSUPP where file handles are wanted and there are none.
    pub fn new(
        config: FsConfig,
        roots: Vec<Root>,
        proc_self_fd: OwnedFd,
        max_files: usize,
    ) -> Result<Self> {
        let files = max_files.saturating_sub(RESERVED.min(max_files / 2));
        // What is open without our knowing must not go when its name does.
        let inode_file_handles = if config.no_open {
            InodeHandles::Never
        } else {
            config.inode_file_handles
        };
        let max_hot = match inode_file_handles {
            // Every node needs its descriptor.
            InodeHandles::Never => 0,
            _ => (files / 4).min(1 << 16),
        };
        let max_owners = if config.posix_locks || config.flocks {
            files / 12
        } else {
            0
        };
        let budget = Arc::new(Budget::new(files - max_owners));
        let nodes = Nodes::new(NodeOptions {
            inode_file_handles,
            max_hot,
            max_nodes: config.max_nodes.unwrap_or(MAX_NODES),
            budget: Arc::clone(&budget),
            pool_threads: config
                .pool_threads
                .map_or(DEFAULT_THREADS, NonZeroUsize::get),
            proc_self_fd,
        });
        let mut shares = Vec::new();
        if roots.iter().any(|root| root.name.is_some()) {
            nodes.add_virtual_root()?;
        }
        for root in roots {
            let node = nodes.add_root(root.fd)?;
            if let Some(name) = root.name {
                let name = CString::new(name).map_err(|_nul| Errno::INVAL)?;
                shares.push(ShareRoot { name, node });
            }
        }
        let handles = Handles::new(budget);
        Ok(Self {
            handles,
            nodes,
            locks: Locks::new(max_owners),
            window: Window::new(config.dax_window_bytes),
            shares,
            negotiated: AtomicU64::new(0),
            config,
        })
    }

    /// What the guest and we have agreed to.
    #[inline]
    pub fn negotiated(&self) -> InitFlags {
        InitFlags::from_bits_retain(self.negotiated.load(Ordering::Acquire))
    }

    /// A session within that of the front-end ends: takes out of the window what is there, and
    /// [`reset`](Self::reset)s. May wait for the front-end.
    pub fn end(&self) {
        self.window.clear();
        self.reset();
    }

    #[inline]
    fn node(&self, cx: &Cx<'_>) -> Result<SlabRef<Node>> {
        self.nodes.get(cx.header.node)
    }

    /// Makes room for one more open file or directory.
    ///
    /// # Errors
    /// ENFILE when there is none.
    fn reserve(&self, whom: For) -> Result<Reserved<'_>> {
        let room = self.handles.reserve(whom)?;
        self.nodes.make_room();
        Ok(room)
    }

    /// Opens a regular file or a directory anew.
    ///
    /// # Errors
    /// As [`Nodes::open`]; EAGAIN where this thread is not to wait and would have to.
    fn open_host(&self, cx: &Cx<'_>, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        if cx.waits {
            self.nodes.open_waiting(node, flags)
        } else {
            self.nodes.open(node, flags)
        }
    }

    /// The caller in numbers of the host.
    fn caller(&self, cx: &Cx<'_>, with: &Creation<'_>) -> Result<Caller> {
        let ids = &self.config.ids;
        Ok(Caller {
            uid: ids.uid_to_host(cx.header.uid)?,
            gid: ids.gid_to_host(cx.header.gid)?,
            group: with.group.map(|gid| ids.gid_to_host(gid)).transpose()?,
            keeps_dac_override: !self.negotiated().contains(InitFlags::CREATE_SUPP_GROUP),
        })
    }

    /// The reply for a name that leads to `found` in the directory `parent`.
    fn entry(&self, parent: &Node, found: &Found) -> Entry {
        let submount = self.negotiated().contains(InitFlags::SUBMOUNTS)
            && found.node.is_dir()
            && found.node.key().is_apart_from(parent.key());
        let flags = if submount {
            AttrFlags::SUBMOUNT
        } else {
            self.mapping_attr(&found.stat)
        };
        Entry {
            node: found.node.number(),
            generation: 0,
            entry_timeout: timeout(self.config.timeouts.entry),
            attr_timeout: timeout(self.config.timeouts.attr),
            attr: attr(&found.stat, &self.config.ids, flags),
        }
    }

    /// The reply for a name that leads nowhere.
    fn no_entry(&self) -> Result<Entry> {
        if self.config.timeouts.negative == Duration::ZERO {
            return Err(Errno::NOENT);
        }
        Ok(Entry {
            entry_timeout: timeout(self.config.timeouts.negative),
            ..Entry::default()
        })
    }

    fn attr_out(&self, stat: &Statx) -> AttrOut {
        AttrOut {
            timeout: timeout(self.config.timeouts.attr),
            attr: attr(stat, &self.config.ids, self.mapping_attr(stat)),
        }
    }

    /// Takes the capabilities off a file that is about to change, where the host would not because
    /// it does not see them under their own name (CVE-2021-20263).
    fn drop_file_capabilities(&self, cx: &Cx<'_>, node: &Node) -> Result<()> {
        let Some(map) = &self.config.xattrmap else {
            return Ok(());
        };
        let Some(name) = map.capability() else {
            return Ok(());
        };
        if !node.is_file() {
            return Ok(());
        }
        let fd = self.nodes.fd(node)?;
        match crate::sys::by_number::removexattr(cx.thread, fd.as_fd(), name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
