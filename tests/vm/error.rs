// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong when a guest is prepared and run.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

use crate::process::ProcessError;

/// What a closure called by the runner may return.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A guest that could not be prepared, or that did not run to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmError {
    /// A back-end of this workspace could not be built.
    #[error("no back-end to test")]
    Build(#[source] ProcessError),
    /// A file could not be read, written or created.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A closure given to [`Guest::on`](super::Guest::on) failed.
    #[error("handler {name}")]
    Handler {
        /// The marker the guest printed.
        name: String,
        /// What the closure returned.
        #[source]
        source: BoxError,
    },
    /// No file of the kernel package was found where it is expected.
    #[error("no {what} in {}; run tests/vm/install", tree.display())]
    Kernel {
        /// What was looked for.
        what: String,
        /// The unpacked kernel package.
        tree: PathBuf,
    },
    /// A channel of the virtual machine failed.
    #[error("{channel} of the virtual machine")]
    Channel {
        /// Which channel.
        channel: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QEMU did something wrong of its own before the guest's script began.
    #[error("QEMU failed: {log}")]
    Emulator {
        /// What it said.
        log: String,
    },
    /// The process ended before its work was done.
    #[error("{name} ended early ({status}); it said: {log}")]
    Ended {
        /// Name of the process.
        name: String,
        /// Its exit status.
        status: ExitStatus,
        /// The end of its output.
        log: String,
    },
    /// The guest sent a message that the runner does not know, or has no handler for.
    #[error("unexpected message of the guest: {0}")]
    Message(String),
    /// A program the runner needs failed.
    #[error("{program} failed ({status}): {output}")]
    Program {
        /// The program.
        program: String,
        /// Its exit status.
        status: ExitStatus,
        /// What it printed to its standard error.
        output: String,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QEMU refused a command.
    #[error("QMP {command}: {reply}")]
    Qmp {
        /// The command.
        command: String,
        /// The error object of the reply.
        reply: String,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {limit:?}; end of the console: {console}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The limit.
        limit: Duration,
        /// The end of the guest's console, empty when there is none yet.
        console: String,
    },
    /// The guest started again although nobody asked for it.
    #[error("unexpected boot number {boot}; end of the console: {console}")]
    UnexpectedBoot {
        /// The number of the boot.
        boot: u32,
        /// The end of the guest's console.
        console: String,
    },
}

impl VmError {
    /// A closure that turns an [`io::Error`] on `path` into a [`VmError::File`].
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// A closure that turns an [`io::Error`] on `channel` into a [`VmError::Channel`].
    pub(crate) fn channel(channel: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Channel { channel, source }
    }
}
