// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `ringside-fs`.
//!
//! Every option of virtiofsd 1.14 that is not deprecated is here with its meaning, and `-o` as
//! well, so that management software may start one for the other; what is ours comes beside it.
//! [`Options`] is what the user wrote, [`Options::into_config`] checks it as a whole and turns it
//! into a [`Config`].

mod config;
mod legacy;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, ValueEnum};
use ringside_common::cli::{Action, CommonArgs, QueueCount};
use ringside_common::sandbox::seccomp::Action as SeccompAction;
use ringside_common::sandbox::{CapabilityChanges, IdRange, Mode};

pub use self::config::{Config, OptionsError};
pub use self::values::ValueError;
use crate::config::{CachePolicy, InodeHandles, Negotiation, Share};
use crate::idmap::IdTranslation;
use crate::xattrmap::XattrMap;

/// Most request queues: with the one for high priority that is a vring each of 64.
const MAX_REQUEST_QUEUES: u16 = 63;

/// Serves directories of this host as a virtio-fs device to any VMM that speaks vhost-user
///
/// Takes the options of virtiofsd 1.14.
///
/// Unlike virtiofsd, it waits for the next front-end when one has left. To end it send SIGTERM, or
/// pass a connected socket (--fd): it ends with that connection. SIGHUP is ignored.
#[derive(Clone, Debug, Parser)]
#[command(name = "ringside-fs", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(args_override_self = true)]
pub struct Options {
    /// What all back-ends have.
    #[command(flatten)]
    pub common: CommonArgs<RequestQueues>,

    /// What is shared.
    #[command(flatten)]
    pub share: ShareArgs,

    /// What the guest may keep.
    #[command(flatten)]
    pub cache: CacheArgs,

    /// What the guest is offered.
    #[command(flatten)]
    pub features: FeatureArgs,

    /// Users and groups.
    #[command(flatten)]
    pub ids: IdArgs,

    /// What separates the back-end from the host.
    #[command(flatten)]
    pub sandbox: SandboxArgs,

    /// Options for command lines that were written for virtiofsd.
    #[command(flatten)]
    pub compatibility: CompatibilityArgs,

    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<Action>,
}

impl Options {
    /// Reads a command line, with what `-o` says put in its place.
    ///
    /// # Errors
    /// What is wrong with it, or a text that was asked for; see [`clap::Error::exit`].
    pub fn read<T>(words: impl IntoIterator<Item = T>) -> Result<Self, clap::Error>
    where
        T: Into<OsString> + Clone,
    {
        let mut options = Self::try_parse_from(words)?;
        legacy::apply(&mut options)
            .map_err(|error| Self::command().error(error.kind(), error))
            .map(|()| options)
    }
}

/// How many queues a file system device has.
#[derive(Args, Clone, Debug)]
#[group(id = "request-queues")]
#[command(about = None, long_about = None)]
pub struct RequestQueues {
    /// The most request queues offered to a guest, 1 to 63
    ///
    /// The queue for high priority comes on top. The VMM chooses how many of them it uses
    /// (num-request-queues of QEMU's vhost-user-fs-pci); an unused one costs nothing.
    #[arg(long, value_name = "N", help_heading = "Queues")]
    #[arg(default_value_t = MAX_REQUEST_QUEUES)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_REQUEST_QUEUES)))]
    pub num_request_queues: u16,
}

impl QueueCount for RequestQueues {
    /// The request queues and the one for high priority (virtio 1.3 §5.11.2).
    fn vrings(&self) -> u16 {
        self.num_request_queues + 1
    }
}

/// What is shared, and how.
#[derive(Args, Clone, Debug)]
#[group(id = "share-options")]
#[command(about = None, long_about = None, next_help_heading = "Share")]
pub struct ShareArgs {
    /// Share this directory as the root of the file system
    #[arg(long, value_name = "PATH", conflicts_with = "shares")]
    #[arg(required_unless_present_any = ["shares", "print_capabilities", "print_man", "legacy"])]
    pub shared_dir: Option<PathBuf>,

    /// Share this directory, or file, under a name in an otherwise empty root; may be repeated
    #[arg(long = "share", value_name = "NAME=PATH", value_parser = values::share)]
    pub shares: Vec<Share>,

    /// The tag that the guest mounts by, of at most 36 bytes [default: the VMM's choice]
    #[arg(long, value_name = "TAG", value_parser = values::tag)]
    pub tag: Option<String>,

    /// Refuse all changes by the guest
    #[arg(long)]
    pub readonly: bool,

    /// Tell the guest which directories are mount points, as is the default
    #[arg(long)]
    pub announce_submounts: bool,

    /// Do not tell the guest which directories are mount points
    #[arg(long, overrides_with = "announce_submounts")]
    pub no_announce_submounts: bool,

    /// Whether files that the guest knows are kept as file handles instead of open descriptors
    #[arg(long, value_name = "WHEN", value_parser = values::inode_handles, default_value = "prefer")]
    #[arg(long_help = "\
        Whether nodes are kept as file handles instead of open descriptors: never; prefer, where \
        the file system has them and we may open them; or mandatory, everywhere, or the start \
        fails.")]
    pub inode_file_handles: InodeHandles,
}

/// What the guest may keep, and for how long.
#[derive(Args, Clone, Debug)]
#[group(id = "cache-options")]
#[command(about = None, long_about = None, next_help_heading = "Cache")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the command line"
)]
pub struct CacheArgs {
    /// What the guest may keep: auto, always, never or metadata
    ///
    /// auto: names and attributes for a second, data while a file is open; always: everything, for
    /// a day; metadata: names and attributes, for a day; never: nothing.
    #[arg(long, value_name = "POLICY", default_value = "auto", value_parser = values::cache)]
    pub cache: CachePolicy,

    /// Seconds that the guest may cache where a name leads [default: from --cache]
    #[arg(long, value_name = "S", value_parser = values::seconds)]
    pub entry_timeout: Option<Duration>,

    /// Seconds that the guest may cache attributes [default: from --cache]
    #[arg(long, value_name = "S", value_parser = values::seconds)]
    pub attr_timeout: Option<Duration>,

    /// Seconds that the guest may cache that a name does not exist
    #[arg(long, value_name = "S", value_parser = values::seconds, default_value = "0")]
    pub negative_timeout: Duration,

    /// Let the guest delay writes in its cache
    #[arg(long)]
    pub writeback: bool,

    /// Let the guest map files even if --cache is never or metadata
    ///
    /// Use it only for a share that nothing else changes.
    #[arg(long)]
    pub allow_mmap: bool,

    /// Pass `O_DIRECT` of the guest on to the host
    #[arg(long)]
    pub allow_direct_io: bool,

    /// Pass `O_NOATIME` of the guest on to the host
    ///
    /// Without this option the flag is dropped, since it fails on files of other users.
    #[arg(long)]
    pub preserve_noatime: bool,

    /// The most files and directories that the guest may know at a time; each takes some 200 bytes
    /// [default: 16777216]
    #[arg(long, value_name = "N")]
    pub max_nodes: Option<usize>,

    /// Let the guest map files into a window of this size, a power of two from 2M; 0 for none
    ///
    /// The guest then reads and writes the page cache of the host, and keeps no cache of these
    /// files. Needs a VMM with SHMEM of vhost-user (crosvm); guests of others go on without a
    /// window. The window uses 16 MiB of guest memory per GiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = values::window)]
    pub dax_window: u64,

    /// Do not offer to read attributes along with a directory
    #[arg(long)]
    pub no_readdirplus: bool,
}

/// What the guest is offered.
#[derive(Args, Clone, Debug)]
#[group(id = "features")]
#[command(about = None, long_about = None, next_help_heading = "Features")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the command line"
)]
pub struct FeatureArgs {
    /// Serve extended attributes
    #[arg(long)]
    pub xattr: bool,

    /// Change names of extended attributes between guest and host (implies --xattr)
    ///
    /// The rules, such as `:map::user.virtiofs.:`, are those of virtiofsd's documentation.
    #[arg(long, value_name = "RULES")]
    pub xattrmap: Option<XattrMap>,

    /// Serve POSIX access control lists (implies --xattr); alone it means always
    #[arg(long, value_name = "never|auto|always", value_parser = values::negotiation)]
    #[arg(require_equals = true, num_args = 0..=1)]
    #[arg(default_value = "never", default_missing_value = "always")]
    pub posix_acl: Negotiation,

    /// Have the guest label the files that it creates (implies --xattr); alone it means always
    #[arg(long, value_name = "never|auto|always", value_parser = values::negotiation)]
    #[arg(require_equals = true, num_args = 0..=1)]
    #[arg(default_value = "never", default_missing_value = "always")]
    pub security_label: Negotiation,

    /// Do not drop set-user-ID bits for the guest, as is the default
    #[arg(long)]
    pub no_killpriv_v2: bool,

    /// Drop set-user-ID bits for the guest, which saves it a request per write
    #[arg(long, overrides_with = "no_killpriv_v2")]
    pub killpriv_v2: bool,

    /// Make the guest's fcntl(2) locks locks of the host
    #[arg(long)]
    pub posix_lock: bool,

    /// Make the guest's flock(2) locks locks of the host
    #[arg(long)]
    pub flock: bool,

    /// Let the guest open files without asking; needs --cache always
    #[arg(long)]
    pub no_open: bool,

    /// Let the guest export the file system over NFS
    #[arg(long)]
    pub export: bool,
}

/// Users and groups.
#[derive(Args, Clone, Debug)]
#[group(id = "ids")]
#[command(about = None, long_about = None, next_help_heading = "Users and groups")]
pub struct IdArgs {
    /// Translate user numbers between guest and host; may be repeated
    ///
    /// guest:GUEST:HOST:COUNT and host:HOST:GUEST:COUNT translate one way, map:GUEST:HOST:COUNT
    /// both ways, squash-guest:GUEST:HOST:COUNT and squash-host:HOST:GUEST:COUNT translate many to
    /// one, and forbid-guest:GUEST:COUNT forbids some. Not together with --posix-acl.
    #[arg(long, value_name = "RULE")]
    pub translate_uid: Vec<IdTranslation>,

    /// The same for group numbers
    #[arg(long, value_name = "RULE")]
    pub translate_gid: Vec<IdTranslation>,

    /// Map user numbers into the user namespace of the sandbox; may be repeated
    ///
    /// Without this a back-end that is not started by root has its own user and group only. Needs
    /// newuidmap(1) unless started by root.
    #[arg(long, value_name = ":INSIDE:HOST:COUNT:")]
    pub uid_map: Vec<IdRange>,

    /// The same for group numbers
    #[arg(long, value_name = ":INSIDE:HOST:COUNT:")]
    pub gid_map: Vec<IdRange>,
}

/// What separates the back-end from the host.
#[derive(Args, Clone, Debug)]
#[group(id = "sandbox-options")]
#[command(about = None, long_about = None, next_help_heading = "Sandbox")]
pub struct SandboxArgs {
    /// How the back-end is separated from the host
    #[arg(
        long,
        value_name = "MODE",
        value_enum,
        ignore_case = true,
        default_value = "auto"
    )]
    pub sandbox: Mode,

    /// What happens on an unexpected system call
    #[arg(long, value_name = "ACTION", value_enum, default_value = "kill")]
    pub seccomp: SeccompAction,

    /// Change the capabilities that are kept, like +sys_admin:-chown
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub modcaps: Option<CapabilityChanges>,

    /// The most open files; 0 leaves the limit unchanged [default: 1000000, or the most allowed]
    #[arg(long, value_name = "N")]
    pub rlimit_nofile: Option<u64>,
}

/// Options for command lines that were written for virtiofsd.
#[derive(Args, Clone, Debug)]
#[group(id = "compatibility")]
#[command(about = None, long_about = None, next_help_heading = "As virtiofsd")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the command line"
)]
pub struct CompatibilityArgs {
    /// The most threads that wait for one mount: 0 is the default of 16; the maximum is 256
    ///
    /// Each mount of the host has this number of threads for requests that may take long: all
    /// requests for a file system of another machine or process; for a local one those that wait
    /// for its disk. Further requests wait; requests for other mounts do not.
    #[arg(long, value_name = "N")]
    pub thread_pool_size: Option<usize>,

    /// Log to the system log instead of the standard error
    #[arg(long)]
    pub syslog: bool,

    /// Options separated by commas, as older libvirt gives them: source=/srv,cache=always,xattr
    ///
    /// With a value `source`, `cache` (`none` is never), `sandbox`, `loglevel`, `modcaps` and
    /// `xattrmap`; without one, also with `no_` before it, `xattr`, `flock`, `posix_lock`,
    /// `posix_acl`, `security_label`, `killpriv_v2`, `readdirplus`, `writeback` and
    /// `allow_direct_io`.
    #[arg(short = 'o', value_name = "LIST")]
    pub legacy: Vec<String>,

    /// Log as with --log-level debug
    #[arg(short = 'd')]
    pub debug: bool,

    /// Accepted without effect: the back-end stays in the foreground
    #[arg(short = 'f')]
    pub foreground: bool,

    /// Accepted without effect: this device cannot be migrated
    #[arg(long, value_name = "MODE", value_enum, default_value = "find-paths")]
    pub migration_mode: MigrationMode,

    /// Accepted without effect
    #[arg(long, value_name = "ACTION", value_enum, default_value = "abort")]
    pub migration_on_error: MigrationOnError,

    /// Accepted without effect
    #[arg(long)]
    pub migration_verify_handles: bool,

    /// Accepted without effect
    #[arg(long)]
    pub migration_confirm_paths: bool,
}

/// How nodes are told to the destination of a migration.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum MigrationMode {
    /// By path.
    FindPaths,
    /// By file handle.
    FileHandles,
}

/// What becomes of a migration in which a node is not found.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum MigrationOnError {
    /// It fails.
    Abort,
    /// The guest gets errors for that node.
    GuestError,
}

#[cfg(test)]
mod tests;
