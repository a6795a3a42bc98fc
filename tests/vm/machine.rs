// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run consists of before it runs: its files, QEMU's arguments, the script's settings.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use super::accel::Accel;
use super::cache_dir;
use super::device::QemuVersion;
use super::error::VmError;
use super::program::run_program;
use super::{Guest, Machine};

pub(super) const QEMU: &str = "qemu-system-x86_64";

/// The kernel keeps to errors so that the console stays short; a panic reboots at once, which
/// ends QEMU (`-no-reboot`) or is seen as an unexpected boot.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 memhp_default_state=online";

/// What the kernel is told.
pub(super) fn kernel_command_line(machine: Machine, accel: Accel) -> Result<String, VmError> {
    let mut line = KERNEL_COMMAND_LINE.to_owned();
    if matches!((machine, accel), (Machine::Microvm, Accel::Tcg)) {
        // The machine has no clock of known frequency, and without KVM's Linux would never
        // end to measure its timers against one. The emulator's TSC is that of the host.
        line.push_str(&format!(" tsc=reliable tsc_early_khz={}", host_tsc_khz()?));
    }
    Ok(line)
}

/// The frequency of this machine's TSC, about: that of its first processor.
fn host_tsc_khz() -> Result<u64, VmError> {
    let source = "/proc/cpuinfo";
    let text = fs::read_to_string(source).map_err(VmError::file(source))?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"));
    let mhz = line.and_then(|line| line.rsplit([' ', '.']).nth(1)?.parse().ok());
    Ok(mhz.unwrap_or(2000_u64) * 1000)
}

/// The files of one run.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) qmp: PathBuf,
    pub(super) results: PathBuf,
    pub(super) console: PathBuf,
    pub(super) log: PathBuf,
    pub(super) initramfs: PathBuf,
}

impl Files {
    pub(super) fn new(dir: &TempDir) -> Self {
        let path = |name: &str| dir.path().join(name);
        Self {
            qmp: path("qmp"),
            results: path("results"),
            console: path("console"),
            log: path("qemu.log"),
            initramfs: path("initramfs"),
        }
    }
}

/// QEMU's arguments, but for what it boots.
pub(super) fn machine_arguments(
    guest: &Guest<'_>,
    files: &Files,
    accel: Accel,
    qemu: QemuVersion,
) -> Vec<String> {
    let mut args: Vec<String> = accel.arguments(qemu).map(String::from).into();
    let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
    let memory_slots = guest.memory_slots.map_or(String::new(), |(n, max)| {
        format!(",slots={n},maxmem={max}M")
    });
    add("-m", format!("{}M{memory_slots}", guest.memory_mib));
    add("-smp", guest.cpus.to_string());
    if guest.numa_nodes == 0 {
        add(
            "-machine",
            format!("{},memory-backend=mem0", guest.machine.name()),
        );
        add("-object", memory_object(0, guest.memory_mib));
    } else {
        add("-machine", guest.machine.name().into());
        for node in 0..guest.numa_nodes {
            add(
                "-object",
                memory_object(node, guest.memory_mib / u64::from(guest.numa_nodes)),
            );
            add("-numa", format!("node,nodeid={node},memdev=mem{node}"));
        }
    }
    add("-display", "none".into());
    add("-serial", format!("file:{}", files.console.display()));
    add(
        "-chardev",
        format!("socket,id=results,path={}", files.results.display()),
    );
    match guest.machine {
        Machine::Q35 => add("-serial", "chardev:results".into()),
        // Has one serial port of its own.
        Machine::Microvm => add(
            "-device",
            "isa-serial,chardev=results,index=1,iobase=0x2f8,irq=3".into(),
        ),
    }
    add(
        "-chardev",
        format!("socket,id=qmp,path={}", files.qmp.display()),
    );
    add("-mon", "chardev=qmp,mode=control".into());
    for port in 0..guest.hotplug_ports {
        add(
            "-device",
            format!("pcie-root-port,id=port{port},chassis={port},slot={port}"),
        );
    }
    args.extend(
        guest
            .devices
            .iter()
            .flat_map(|device| device.arguments(qemu)),
    );
    args.push("-nodefaults".into());
    if guest.reboots == 0 {
        args.push("-no-reboot".into());
    }
    args.extend(guest.extra.iter().cloned());
    args
}

fn memory_object(index: u32, mib: u64) -> String {
    format!("memory-backend-memfd,id=mem{index},size={mib}M,share=on")
}

/// The file of shell variables the guest starts with.
pub(super) fn environment(guest: &Guest<'_>, nonce: &str) -> String {
    let mut text = format!("export NONCE={nonce}\n");
    for (name, value) in &guest.env {
        let quoted = value.replace('\'', r"'\''");
        text.push_str(&format!("export {name}='{quoted}'\n"));
    }
    text
}

/// A word that nothing else prints.
pub(super) fn nonce() -> Result<String, VmError> {
    let source = "/proc/sys/kernel/random/uuid";
    let uuid = fs::read_to_string(source).map_err(VmError::file(source))?;
    Ok(format!("@{}", uuid.trim()))
}

pub(super) fn qemu_version(qemu: &Path) -> Result<QemuVersion, VmError> {
    static VERSIONS: Mutex<BTreeMap<PathBuf, QemuVersion>> = Mutex::new(BTreeMap::new());
    let mut versions = VERSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(version) = versions.get(qemu) {
        return Ok(*version);
    }
    let program = qemu.to_string_lossy();
    let text = run_program(&program, &["--version"])?;
    let version = QemuVersion::parse(&String::from_utf8_lossy(&text));
    let version = version.ok_or_else(|| VmError::Start {
        program: program.into_owned(),
        source: io::ErrorKind::InvalidData.into(),
    })?;
    versions.insert(qemu.to_owned(), version);
    Ok(version)
}

/// The oldest QEMU that has to work: the one that `QEMU_OLD` names, or else the one that
/// `tests/vm/install` has unpacked.
#[must_use]
pub fn old_qemu() -> Option<PathBuf> {
    let named = std::env::var_os("QEMU_OLD").map(PathBuf::from);
    let path = named.unwrap_or_else(|| cache_dir().join("qemu-old").join(QEMU));
    path.is_file().then_some(path)
}
