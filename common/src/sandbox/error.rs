// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong on the way into the sandbox.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the sandbox cannot be entered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// A system call failed.
    #[error("sandbox: cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A shared file or directory cannot be had.
    #[error("sandbox: {path}: cannot {action}")]
    Share {
        /// Which one.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// `chroot(2)` is for root, and to one directory.
    #[error("sandbox: chroot is for root and a single share, use namespace instead")]
    Chroot,
    /// There is no way to separate the process here.
    #[error(
        "sandbox: neither namespaces nor chroot nor Landlock are to be had here; \
         only --sandbox none serves without"
    )]
    Nothing,
    /// Maps of user and group numbers belong to a user namespace.
    #[error("sandbox: --uid-map and --gid-map need the sandbox `namespace`")]
    Maps,
    /// The parent went away before we could serve.
    #[error("sandbox: the parent process has ended")]
    ParentGone,
    /// A filter that cannot be built.
    #[error("sandbox: seccomp filter")]
    Filter(#[from] seccompiler::BackendError),
    /// A filter that the kernel did not take.
    #[error("sandbox: seccomp filter")]
    Seccomp(#[from] seccompiler::Error),
    /// Landlock rules that the kernel did not take.
    #[error("sandbox: landlock")]
    Landlock(#[from] landlock::RulesetError),
    /// More files than this system lets a process open.
    #[error("sandbox: {wanted} open files, this system allows {most}")]
    TooManyFiles {
        /// What was asked for.
        wanted: u64,
        /// `/proc/sys/fs/nr_open`.
        most: u64,
    },
    /// A change of capabilities that is none.
    #[error("sandbox: {text:?} is not +CAPABILITY or -CAPABILITY")]
    Capability {
        /// What was given.
        text: String,
    },
}

impl SandboxError {
    /// A mapper for `map_err` that says what was tried.
    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }
}
