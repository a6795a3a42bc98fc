// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM or TCG: KVM is believed only after a guest has booted with it.
//!
//! `/dev/kvm` may exist and be unable to run an ordinary kernel (nested under a hypervisor with
//! paravirtual page tables, for example). The verdict is kept for the process, and in the cache
//! directory for as long as the host is not rebooted, so that a host with a useless `/dev/kvm`
//! pays for the attempt once.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use super::Guest;
use super::device::QemuVersion;

/// Overrides the probe: `kvm` or `tcg`.
const OVERRIDE: &str = "RINGSIDE_VM_ACCEL";

/// A boot with a working KVM takes one or two seconds; this leaves room for a loaded machine.
const PROBE_LIMIT: Duration = Duration::from_secs(25);

/// How the guest's processors are run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Accel {
    /// By hardware.
    Kvm,
    /// By translation.
    Tcg,
}

impl Accel {
    /// The best way that works on this machine.
    pub fn best(cache: &Path, qemu: QemuVersion) -> Self {
        static BEST: OnceLock<Accel> = OnceLock::new();
        *BEST.get_or_init(|| probe(cache, qemu))
    }

    /// QEMU's arguments.
    pub(crate) fn arguments(self, qemu: QemuVersion) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // What 7.2 makes of CMPXCHG16B kills Linux' allocator in some boots.
            Self::Tcg if qemu < QemuVersion(8, 0) => {
                ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off"]
            }
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg]
            .into_iter()
            .find(|accel| accel.name() == name)
    }
}

fn probe(cache: &Path, qemu: QemuVersion) -> Accel {
    if let Some(accel) = std::env::var(OVERRIDE)
        .ok()
        .as_deref()
        .and_then(Accel::parse)
    {
        return accel;
    }
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if device.is_err() {
        return Accel::Tcg;
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let key = format!("{} {}.{} ", boot_id.trim(), qemu.0, qemu.1);
    let file = cache.join("accel");
    let known = fs::read_to_string(&file).unwrap_or_default();
    if let Some(accel) = known.strip_prefix(&key).and_then(Accel::parse) {
        return accel;
    }
    let guest = Guest::new()
        .accel(Accel::Kvm)
        .timeout(PROBE_LIMIT)
        .script("exit 0");
    let accel = match guest.run() {
        Ok(outcome) if outcome.exit_code == 0 => Accel::Kvm,
        Ok(_) => Accel::Tcg,
        Err(error) => {
            log::info!("KVM does not work here: {error}");
            Accel::Tcg
        }
    };
    if let Err(error) = fs::write(&file, key + accel.name()) {
        log::warn!("{}: {error}", file.display());
    }
    accel
}
