// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest without an operating system, for any VMM that loads an ELF file.
//!
//! It polls every queue of the virtio devices it finds (`bare_metal/guest.c`), and takes no
//! interrupt. So it runs where a hypervisor is too poor for Linux, and in VMMs whose transports
//! differ.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::child::Child;
use super::error::{BoxError, VmError};
use super::program::run_command;

/// It takes less than a second, also where each instruction is interpreted.
const LIMIT: Duration = Duration::from_secs(60);

/// No relocation, no library, and no register that a hypervisor may be unable to emulate.
const CC_OPTIONS: &[&str] = &[
    "-O1",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-tree-loop-distribute-patterns",
    "-fcf-protection=none",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-nostdlib",
    "-static",
    "-no-pie",
    // crosvm loads nothing below 2 MiB.
    "-Wl,--build-id=none,-z,noexecstack,-Ttext-segment=0x200000,-e,entry64",
];

/// The guest, and a directory for what belongs to its runs.
#[derive(Debug)]
pub struct BareMetal {
    dir: TempDir,
}

impl BareMetal {
    /// Builds the guest.
    ///
    /// # Errors
    /// When there is no C compiler, or it fails.
    pub fn build() -> Result<Self, VmError> {
        let dir = tempfile::tempdir().map_err(VmError::file(std::env::temp_dir()))?;
        let guest = Self { dir };
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/bare_metal");
        let mut cc = Command::new("cc");
        cc.args(CC_OPTIONS).arg("-o").arg(guest.kernel());
        cc.args(["entry.S", "guest.c"].map(|name| sources.join(name)));
        run_command("cc", &mut cc)?;
        Ok(guest)
    }

    /// The ELF file to be booted.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.path("kernel")
    }

    /// The file that a VMM writes the first serial port to, unless it has it on its output.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.path("console")
    }

    /// A file of a run.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `vmm` until the guest has ended, and gives what it has printed.
    ///
    /// # Errors
    /// When the VMM ends before, or the guest does not end.
    pub fn run(&self, vmm: &Path, args: &[String]) -> Result<String, BoxError> {
        fs::write(self.console(), "")?;
        let mut child = Child::spawn(vmm, args, &self.path("log"))?;
        let printed = |child: &Child| {
            fs::read_to_string(self.console()).unwrap_or_default() + child.log().as_str()
        };
        let ended = child.wait_until("run the guest to its end", LIMIT, |child| {
            printed(child).lines().any(|line| line.trim_end() == "end")
        });
        let printed = printed(&child);
        ended.map_err(|error| format!("{error}; the guest: {printed}"))?;
        Ok(printed)
    }
}
