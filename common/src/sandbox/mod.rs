// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keeps a back-end that a guest has taken over from doing any harm.
//!
//! Layers, in the order in which a back-end puts them on; each is a function of its own:
//!
//! 1. [`Inherited::find`](crate::inherited::Inherited::find), first; then it opens its sockets;
//! 2. [`limit_open_files`], [`forbid_core_dumps`];
//! 3. [`Sandbox::enter`]: namespaces, a root directory with nothing but the shares, and a parent
//!    process that stays outside; and `Inherited::close`;
//! 4. [`keep_capabilities`];
//! 5. [`harden`]: no new privileges, not traceable by others;
//! 6. [`seccomp::AllowList::install`], before the first byte of a front-end is read.
//!
//! All of it comes before the first thread is started; threads inherit it.
//!
//! # What holds where
//!
//! | act | namespaces | capabilities | seccomp |
//! |---|---|---|---|
//! | a file outside of the shares | there is none | | |
//! | a connection over the network | there is no interface | | no `socket(2)` |
//! | `mount`, `ptrace`, `bpf`, `kexec`… | | need one | not in the list |
//! | starting a program | there is none outside of the shares | | no `execve(2)` |
//! | other processes | are not seen | | |
//!
//! `io_uring` does a few of these without a system call that seccomp would see: it is the
//! namespaces that hold there, and with them a new root.

mod capabilities;
mod error;
mod idmap;
mod landlock;
mod limits;
mod namespace;
mod parent;
mod root;
pub mod seccomp;
mod sys;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::process::{DumpableBehavior, geteuid, set_dumpable_behavior};
pub use rustix::thread::CapabilitySet;
use rustix::thread::set_no_new_privs;

use crate::descriptors;

pub use self::capabilities::{CapabilityChanges, keep_capabilities};
pub use self::error::SandboxError;
use self::idmap::Maps;
pub use self::idmap::{IdRange, IdRangeError};
pub(crate) use self::limits::raise_descriptor_limit;
pub use self::limits::{forbid_core_dumps, limit_open_files};
use self::parent::Separation;
use self::root::Root;

/// How a back-end is separated from the rest of the system (`--sandbox`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum Mode {
    /// The strongest that works here: namespaces, else chroot, else Landlock, or the start fails.
    #[default]
    Auto,
    /// Namespaces and every other layer, or the start fails.
    Strict,
    /// Nothing.
    None,
    /// Namespaces, or the start fails.
    Namespace,
    /// `chroot(2)` into the only share, or the start fails; for root.
    Chroot,
}

/// What separates a back-end from the rest of the system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Level {
    /// Nothing.
    None,
    /// Landlock: files outside of the shares cannot be opened.
    Landlock,
    /// The share is the root directory.
    Chroot,
    /// Namespaces of its own.
    Namespaces {
        /// Of users too.
        users: bool,
    },
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Landlock => "landlock",
            Self::Chroot => "chroot",
            Self::Namespaces { users: false } => "namespaces",
            Self::Namespaces { users: true } => "namespaces, of users too",
        })
    }
}

/// The sandbox that a process enters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sandbox<'a> {
    /// How.
    pub mode: Mode,
    /// What stays reachable, directories or files.
    pub shares: &'a [PathBuf],
    /// Whether they are mounted such that nothing can be written, where they are mounted at all.
    pub read_only: bool,
    /// User numbers inside of a user namespace; empty: our own only, and no such namespace for
    /// root.
    pub uid_map: &'a [IdRange],
    /// Group numbers, likewise.
    pub gid_map: &'a [IdRange],
}

/// Where [`Sandbox::enter`] returns.
#[derive(Debug)]
#[must_use]
pub enum Side {
    /// In the process that serves.
    Inside(Inside),
    /// In its parent, when it has ended: nothing is left to do but to return from `main` with this
    /// status.
    Outside {
        /// The exit status of the process that served.
        status: u8,
    },
}

/// What the serving process works with.
#[derive(Debug)]
#[non_exhaustive]
pub struct Inside {
    /// The shares in their order, each by an `O_PATH` descriptor.
    pub share_roots: Vec<OwnedFd>,
    /// `/proc/self/fd`, by an `O_PATH` descriptor.
    pub proc_self_fd: OwnedFd,
    /// What was reached.
    pub level: Level,
}

impl Inside {
    /// That of a process without a sandbox and without roots.
    pub(crate) fn whole_host() -> Result<Self, SandboxError> {
        let root = root::unchanged(&[])?;
        Ok(Self {
            share_roots: root.shares,
            proc_self_fd: root.proc_self_fd,
            level: Level::None,
        })
    }
}

impl Sandbox<'_> {
    /// Enters the sandbox; except for [`Mode::None`] this process then waits for a child that has
    /// done so.
    ///
    /// To be called with a single thread, with all sockets bound, and with the signal handlers of
    /// the back-end installed.
    ///
    /// # Errors
    /// When the mode asked for cannot be had, or a share cannot be opened. No mode but
    /// [`Mode::None`] ends without any separation.
    pub fn enter(&self) -> Result<Side, SandboxError> {
        self.check()?;
        if self.mode == Mode::None {
            namespace::leave_groups()?;
            return inside(root::unchanged(self.shares)?, Level::None);
        }
        let maps = Maps::new(self.uid_map, self.gid_map);
        let separation = self.separation(&maps);
        let (split, separation) = match parent::split(separation) {
            Err(error) if self.mode == Mode::Auto && !self.has_maps() => {
                tell_lesser(&error);
                (parent::split(Separation::None)?, Separation::None)
            }
            split => (split?, separation),
        };
        if let Some(status) = split {
            return Ok(Side::Outside { status });
        }
        namespace::leave_groups()?;
        self.settle(separation)
    }

    fn separation<'a>(&self, maps: &'a Maps) -> Separation<'a> {
        if self.mode == Mode::Chroot {
            Separation::None
        } else if self.has_maps() || !geteuid().is_root() {
            Separation::Users(maps)
        } else {
            Separation::Namespaces
        }
    }

    fn check(&self) -> Result<(), SandboxError> {
        if self.has_maps() && matches!(self.mode, Mode::None | Mode::Chroot) {
            return Err(SandboxError::Maps);
        }
        if self.mode == Mode::Chroot && !self.can_chroot() {
            return Err(SandboxError::Chroot);
        }
        Ok(())
    }

    fn has_maps(&self) -> bool {
        !self.uid_map.is_empty() || !self.gid_map.is_empty()
    }

    fn can_chroot(&self) -> bool {
        geteuid().is_root() && matches!(self.shares, [share] if share.is_dir())
    }

    /// Changes the root.
    fn settle(&self, separation: Separation<'_>) -> Result<Side, SandboxError> {
        let users = matches!(separation, Separation::Users(_));
        if !matches!(separation, Separation::None) {
            match root::pivot(self.shares, self.read_only) {
                Ok(root) => return inside(root, Level::Namespaces { users }),
                Err(error) if self.mode == Mode::Auto => tell_lesser(&error),
                Err(error) => return Err(error),
            }
        }
        if let [share] = self.shares
            && self.can_chroot()
        {
            match root::change(share) {
                Ok(root) => return inside(root, Level::Chroot),
                Err(error) if self.mode == Mode::Auto => tell_lesser(&error),
                Err(error) => return Err(error),
            }
        }
        let root = root::unchanged(self.shares)?;
        match landlock::restrict(&root.shares)? {
            Level::None => Err(SandboxError::Nothing),
            level => inside(root, level),
        }
    }
}

fn inside(root: Root, level: Level) -> Result<Side, SandboxError> {
    let ours = root.proc_self_fd.try_clone();
    descriptors::keep(ours.map_err(SandboxError::system("keep /proc/self/fd"))?);
    if level == Level::None {
        log::warn!("sandbox: none");
    }
    Ok(Side::Inside(Inside {
        share_roots: root.shares,
        proc_self_fd: root.proc_self_fd,
        level,
    }))
}

fn tell_lesser(error: &SandboxError) {
    let cause = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    log::warn!("{error}: {cause}; going on with less");
}

/// Gives up ever getting more privileges by starting a program, and keeps other processes of the
/// same user from looking into this one.
///
/// # Errors
/// When the kernel refuses.
pub fn harden() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(SandboxError::system("give up new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(SandboxError::system("keep others from tracing"))
}
