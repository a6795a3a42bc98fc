// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line as a whole: what its options mean together.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use log::warn;
use ringside_common::cli::{CliError, CommonConfig, Endpoint, MAX_THREADS};
use ringside_common::program::Confinement;
use ringside_common::sandbox::seccomp::Action as SeccompAction;
use ringside_common::sandbox::{CapabilityChanges, CapabilitySet, Mode};
use thiserror::Error;

use super::{CacheArgs, CompatibilityArgs, FeatureArgs, MigrationMode, Options, ShareArgs};
use crate::config::{CachePolicy, FsConfig, InodeHandles, Negotiation, Share, Timeouts};
use crate::idmap::{IdMapError, IdMaps};

/// Why options do not go together.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Options of all back-ends.
    #[error(transparent)]
    Common(#[from] CliError),
    /// Two shares of one name.
    #[error("--share {name} is there twice")]
    ShareTwice {
        /// The name.
        name: String,
    },
    /// A file cannot be the root of what a guest mounts.
    #[error("--shared-dir {path}: not a directory; --share NAME=PATH shares a file")]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// Numbers within access control lists are not translated.
    #[error("--translate-uid and --translate-gid do not go with --posix-acl")]
    TranslatedAcl,
    /// Translations that contradict one another.
    #[error("--translate-uid or --translate-gid")]
    Translation(#[from] IdMapError),
    /// File handles without the right to open them.
    #[error("--modcaps takes dac_read_search, which --inode-file-handles needs unless it is never")]
    HandlesWithoutCapability,
    /// Checks that only go with paths.
    #[error(
        "--migration-confirm-paths and --migration-verify-handles are for --migration-mode \
         find-paths"
    )]
    MigrationChecks,
    /// A layer left out that was asked for.
    #[error("--sandbox strict needs --seccomp kill or trap")]
    StrictWithoutSeccomp,
    /// Files that are opened without our knowing, and something that needs to know.
    #[error(
        "--no-open needs --cache always, and goes neither with --flock or --posix-lock nor with \
         --inode-file-handles mandatory"
    )]
    NoOpen,
}

/// The checked form of the command line.
#[derive(Debug)]
#[non_exhaustive]
pub struct Config {
    /// What all back-ends have.
    pub common: CommonConfig,
    /// Where the front-end is met.
    pub endpoint: Endpoint,
    /// Request queues, 1 to 63: one less than the vrings.
    pub num_request_queues: u16,
    /// How files are served.
    pub fs: FsConfig,
    /// What is shared: one without a name, or any number with names of their own.
    pub shares: Vec<Share>,
    /// What the guest mounts by, 1 to 36 bytes, if that is ours to say.
    pub tag: Option<String>,
    /// What the process may do.
    pub confinement: Confinement,
}

impl Options {
    /// Checks what the parser cannot; takes over inherited sockets, see
    /// [`CommonArgs::into_config`](ringside_common::cli::CommonArgs::into_config).
    ///
    /// # Errors
    /// [`OptionsError`] says what does not go together.
    pub fn into_config(mut self) -> Result<Config, OptionsError> {
        self.check()?;
        self.common.keep_last_socket_path();
        let ids = IdMaps::new(&self.ids.translate_uid, &self.ids.translate_gid)?;
        let mut fs = fs_config(&self.share, &self.cache, self.features, ids);
        let confinement = Confinement {
            sandbox: self.sandbox.sandbox,
            read_only: fs.readonly,
            uid_map: self.ids.uid_map,
            gid_map: self.ids.gid_map,
            seccomp: self.sandbox.seccomp,
            capabilities: capabilities(
                self.sandbox.modcaps.unwrap_or_default(),
                fs.inode_file_handles,
            )?,
            max_open_files: self.sandbox.rlimit_nofile,
        };
        let num_request_queues = self.common.queues.num_request_queues;
        let tag = self.share.tag.clone();
        let shares = shares(self.share)?;
        let (common, endpoint) = self.common.into_config()?;
        fs.pool_threads = pool_threads(&self.compatibility);
        Ok(Config {
            common,
            endpoint,
            num_request_queues,
            fs,
            shares,
            tag,
            confinement,
        })
    }

    fn check(&self) -> Result<(), OptionsError> {
        let translates = !self.ids.translate_uid.is_empty() || !self.ids.translate_gid.is_empty();
        if translates && self.features.posix_acl != Negotiation::Never {
            return Err(OptionsError::TranslatedAcl);
        }
        let handles = self.share.inode_file_handles == InodeHandles::Mandatory;
        // Locks go with the files that were opened.
        let locks = self.features.flock || self.features.posix_lock;
        if self.features.no_open && (self.cache.cache != CachePolicy::Always || locks || handles) {
            return Err(OptionsError::NoOpen);
        }
        let filters = matches!(
            self.sandbox.seccomp,
            SeccompAction::Kill | SeccompAction::Trap
        );
        if self.sandbox.sandbox == Mode::Strict && !filters {
            return Err(OptionsError::StrictWithoutSeccomp);
        }
        if let Some(map) = &self.features.xattrmap {
            if !map.decides_all_of_guest() {
                warn!("--xattrmap: names of the guest that no rule matches are refused");
            }
            if !map.decides_all_of_host() {
                warn!("--xattrmap: names of the host that no rule matches are not shown");
            }
        }
        self.compatibility.check()
    }
}

impl CompatibilityArgs {
    fn check(&self) -> Result<(), OptionsError> {
        let checks = self.migration_confirm_paths || self.migration_verify_handles;
        if self.migration_mode == MigrationMode::FileHandles && checks {
            return Err(OptionsError::MigrationChecks);
        }
        if self.debug {
            warn!("-d is deprecated, use --log-level debug");
        }
        if self.foreground {
            warn!("-f is deprecated and has no effect");
        }
        if !self.legacy.is_empty() {
            warn!("-o is deprecated, use the options without it");
        }
        Ok(())
    }
}

/// As many as there may be data threads.
fn pool_threads(compatibility: &CompatibilityArgs) -> Option<NonZeroUsize> {
    compatibility
        .thread_pool_size
        .and_then(|size| NonZeroUsize::new(size.min(MAX_THREADS)))
}

fn shares(args: ShareArgs) -> Result<Vec<Share>, OptionsError> {
    let mut names = BTreeSet::new();
    for name in args.shares.iter().filter_map(|share| share.name.as_ref()) {
        if !names.insert(name) {
            return Err(OptionsError::ShareTwice { name: name.clone() });
        }
    }
    Ok(match args.shared_dir {
        // If it cannot be looked at, opening it says why.
        Some(path) if path.metadata().is_ok_and(|found| !found.is_dir()) => {
            return Err(OptionsError::NotADirectory { path });
        }
        Some(path) => vec![Share { name: None, path }],
        None => args.shares,
    })
}

/// What serving files as any user takes (virtiofsd keeps all but the last, which is for chattr(1)).
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::LINUX_IMMUTABLE);

fn capabilities(
    changes: CapabilityChanges,
    handles: InodeHandles,
) -> Result<CapabilitySet, OptionsError> {
    if handles == InodeHandles::Never {
        return Ok(changes.apply(KEPT));
    }
    // open_by_handle_at(2).
    let opens_handles = CapabilitySet::DAC_READ_SEARCH;
    if changes.removes(opens_handles) {
        return Err(OptionsError::HandlesWithoutCapability);
    }
    Ok(changes.apply(KEPT | opens_handles))
}

fn fs_config(share: &ShareArgs, cache: &CacheArgs, features: FeatureArgs, ids: IdMaps) -> FsConfig {
    let offered = [features.posix_acl, features.security_label];
    FsConfig {
        cache: cache.cache,
        timeouts: timeouts(cache),
        writeback: cache.writeback,
        allow_direct_io: cache.allow_direct_io,
        allow_mmap: cache.allow_mmap,
        // Attributes that may not be kept are read for nothing.
        readdirplus: !cache.no_readdirplus && cache.cache != CachePolicy::Never,
        xattr: features.xattr
            || features.xattrmap.is_some()
            || offered.iter().any(|offer| *offer != Negotiation::Never),
        xattrmap: features.xattrmap,
        posix_acl: features.posix_acl,
        security_label: features.security_label,
        killpriv_v2: features.killpriv_v2,
        announce_submounts: !share.no_announce_submounts,
        inode_file_handles: share.inode_file_handles,
        readonly: share.readonly,
        preserve_noatime: cache.preserve_noatime,
        ids,
        posix_locks: features.posix_lock,
        flocks: features.flock,
        no_open: features.no_open,
        export: features.export,
        dax_window_bytes: cache.dax_window,
        max_nodes: cache.max_nodes,
        pool_threads: None,
    }
}

/// As good as without an end: the guest forgets earlier on its own.
const DAY: Duration = Duration::from_secs(86_400);

fn timeouts(args: &CacheArgs) -> Timeouts {
    let kept = match args.cache {
        CachePolicy::Auto => Duration::from_secs(1),
        CachePolicy::Always | CachePolicy::Metadata => DAY,
        CachePolicy::Never => Duration::ZERO,
    };
    Timeouts {
        entry: args.entry_timeout.unwrap_or(kept),
        attr: args.attr_timeout.unwrap_or(kept),
        negative: args.negative_timeout,
    }
}
