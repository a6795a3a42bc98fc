// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the device behaves: the checked form of the command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// One directory (or file) that is shared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Share {
    /// Its name in the root directory, where there are several; none for the root itself.
    pub name: Option<String>,
    /// Where it is on the host.
    pub path: PathBuf,
}

/// What the guest may keep, and for how long (`--cache`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CachePolicy {
    /// Names and attributes for a second, data while a file is open.
    #[default]
    Auto,
    /// Everything, for a day.
    Always,
    /// Nothing.
    Never,
    /// Names and attributes for a day, data not at all.
    Metadata,
}

/// How long the guest may believe what it was told.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timeouts {
    /// That a name leads to a node.
    pub entry: Duration,
    /// The attributes of a node.
    pub attr: Duration,
    /// That there is no such name; zero says nothing about it.
    pub negative: Duration,
}

/// Whether something is negotiated (`--posix-acl`, `--security-label`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Negotiation {
    /// It is not offered.
    #[default]
    Never,
    /// It is used if the guest can.
    Auto,
    /// A guest that cannot is refused.
    Always,
}

/// Whether nodes are kept as file handles (`--inode-file-handles`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum InodeHandles {
    /// As open descriptors.
    Never,
    /// As file handles where the file system has them and we may open them.
    #[default]
    Prefer,
    /// As file handles, or the start fails.
    Mandatory,
}

/// How the shared directories are served.
#[derive(Clone, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the command line"
)]
pub struct FsConfig {
    /// What the guest may keep of data, and of directories.
    pub cache: CachePolicy,
    /// How long it may believe us.
    pub timeouts: Timeouts,
    /// The guest writes back what it has cached when it likes (`--writeback`).
    pub writeback: bool,
    /// `O_DIRECT` of the guest reaches the host (`--allow-direct-io`).
    pub allow_direct_io: bool,
    /// Files may be mapped although they are not cached (`--allow-mmap`).
    pub allow_mmap: bool,
    /// `READDIRPLUS` is offered.
    pub readdirplus: bool,
    /// Extended attributes are served.
    pub xattr: bool,
    /// How their names are changed between guest and host (`--xattrmap`).
    pub xattrmap: Option<crate::xattrmap::XattrMap>,
    /// POSIX access control lists.
    pub posix_acl: Negotiation,
    /// Security labels of what is created.
    pub security_label: Negotiation,
    /// The guest leaves the dropping of set-user-ID bits to us.
    pub killpriv_v2: bool,
    /// File systems mounted within the share are told from it in the guest.
    pub announce_submounts: bool,
    /// How nodes are kept.
    pub inode_file_handles: InodeHandles,
    /// Nothing is written.
    pub readonly: bool,
    /// `O_NOATIME` of the guest reaches the host.
    pub preserve_noatime: bool,
    /// How user and group numbers are changed between guest and host.
    pub ids: crate::idmap::IdMaps,
    /// `fcntl(2)` locks of the guest are taken on the host.
    pub posix_locks: bool,
    /// `flock(2)` locks of the guest are taken on the host.
    pub flocks: bool,
    /// The guest opens files and directories without asking (`FUSE_NO_OPEN_SUPPORT`).
    pub no_open: bool,
    /// The guest may give node numbers to NFS clients (`FUSE_EXPORT_SUPPORT`).
    pub export: bool,
    /// Size of the window that files are mapped into: a power of two; 0 for none (`--dax-window`).
    pub dax_window_bytes: u64,
    /// Files and directories that the guest may know at a time: they take memory.
    pub max_nodes: Option<usize>,
    /// Threads that may wait for one mount (`--thread-pool-size`).
    pub pool_threads: Option<NonZeroUsize>,
}
