// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program locks itself into, in the order of [`sandbox`](crate::sandbox).

use std::path::PathBuf;

use log::{debug, info};

use crate::inherited::Inherited;
use crate::sandbox::seccomp::{Action, AllowList};
use crate::sandbox::{
    CapabilitySet, IdRange, Mode, Sandbox, SandboxError, Side, forbid_core_dumps, harden,
    keep_capabilities, limit_open_files,
};

/// What the process may do.
#[derive(Debug)]
pub struct Confinement {
    /// How it is separated from the host.
    pub sandbox: Mode,
    /// Whether its roots are mounted such that nothing can be written.
    pub read_only: bool,
    /// User numbers of a user namespace.
    pub uid_map: Vec<IdRange>,
    /// Group numbers, likewise.
    pub gid_map: Vec<IdRange>,
    /// What happens on an unexpected system call.
    pub seccomp: Action,
    /// The capabilities that are kept.
    pub capabilities: CapabilitySet,
    /// Most open files, see [`limit_open_files`].
    pub max_open_files: Option<u64>,
}

impl Confinement {
    /// Sets the limits; returns how many files this process may have open.
    pub(super) fn limit(&self) -> Result<u64, SandboxError> {
        let files = limit_open_files(self.max_open_files)?;
        debug!("at most {files} open files");
        forbid_core_dumps()?;
        Ok(files)
    }

    /// Enters the sandbox; returns in two processes, see [`Side`].
    pub(super) fn enter(
        &self,
        roots: &[PathBuf],
        inherited: Option<Inherited>,
    ) -> Result<Side, SandboxError> {
        let sandbox = Sandbox {
            mode: self.sandbox,
            shares: roots,
            read_only: self.read_only,
            uid_map: &self.uid_map,
            gid_map: &self.gid_map,
        };
        let side = sandbox.enter()?;
        // Without a sandbox there is but one process.
        if let (Side::Inside(_), Some(inherited)) = (&side, inherited)
            && self.sandbox != Mode::None
        {
            inherited.close();
        }
        Ok(side)
    }

    /// Puts on the other layers, in the process that serves; it may go on to make connections if it
    /// `connects`.
    pub(super) fn seal(
        &self,
        connects: bool,
        allow_device: fn(&mut AllowList) -> Result<(), SandboxError>,
    ) -> Result<(), SandboxError> {
        let missing = keep_capabilities(self.capabilities)?;
        if !missing.is_empty() {
            info!("without the capabilities {missing:?}: not every user's files can be served");
        }
        harden()?;
        let mut list = AllowList::common()?;
        if connects {
            list.allow_unix_connections()?;
        }
        list.allow_heir()?;
        allow_device(&mut list)?;
        list.install(self.seccomp)
    }
}
