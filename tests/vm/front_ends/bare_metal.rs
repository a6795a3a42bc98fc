// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMMs that variables name, and QEMU, with a guest that polls its devices and has no operating
//! system.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringside_tests::libvirt::{LibvirtDisk, LibvirtFilesystem, LibvirtInterface};
use ringside_tests::skip;
use ringside_tests::skip::front_end;
use ringside_tests::vm::{
    BackEnd, BareMetal, BoxError, Device, Disk, DiskOptions, Guest, Network, Nic, NicOptions,
    Share, ShareOptions, ShareServer, old_qemu,
};
use serde_json::json;

use super::{GREETING, MAC, QUEUES, TAG, devices, lacking};

const SECTOR_BYTES: u64 = 512;

/// What the guest prints before it sends a frame again that has not come back.
const SENT_AGAIN: &str = "sent again: ";

/// The three back-ends, and what a guest has to do with them.
struct Served {
    disk: Disk,
    nic: Nic,
    share: Share,
}

impl Served {
    fn start() -> Result<Self, BoxError> {
        let served = Self {
            disk: Disk::start(BackEnd::Ringside, &DiskOptions::default())?,
            nic: Nic::start(&Network::new()?, NicOptions::new("loopback"))?,
            share: Share::start(ShareServer::Ringside, TAG, &ShareOptions::default())?,
        };
        let image = OpenOptions::new().write(true).open(served.disk.image())?;
        image.write_all_at(GREETING.as_bytes(), SECTOR_BYTES)?;
        fs::write(served.share.path("greeting"), GREETING)?;
        Ok(served)
    }

    fn sockets(&self) -> [PathBuf; 3] {
        [self.disk.socket(), self.nic.socket(0), self.share.socket()]
    }

    /// Compares what the guest has printed with the lines that are expected, and looks at what it
    /// has left: each queue of disk and folder a copy of the greeting.
    fn finish(mut self, name: &str, printed: &str, expected: &[&str]) -> Result<(), BoxError> {
        let kinds = ["disk: ", "network: ", "folder: ", "fault: ", SENT_AGAIN];
        let lines: Vec<&str> = printed
            .lines()
            .map(str::trim_end)
            .filter(|line| kinds.iter().any(|kind| line.starts_with(kind)))
            .collect();
        assert_eq!(lines, expected, "{name}: {printed}");
        let queues = |kind: &str| -> Option<u64> {
            let line = lines.iter().find_map(|line| line.strip_prefix(kind))?;
            line.split(' ').next()?.parse().ok()
        };
        let image = File::open(self.disk.image())?;
        for queue in 0..queues("disk: ").unwrap_or(0) {
            let mut written = [0; GREETING.len()];
            image.read_exact_at(&mut written, (2 + queue) * SECTOR_BYTES)?;
            assert_eq!(written, GREETING.as_bytes(), "{name}: queue {queue}");
        }
        if let Some(queues) = queues("folder: ") {
            let written = fs::read_to_string(self.share.path("from-guest"))?;
            let expected = GREETING.repeat(usize::try_from(queues - 1)?);
            assert_eq!(written, expected, "{name}");
        }
        self.disk.still_serving()?;
        self.nic.terminate()?;
        self.share.finish()?;
        front_end(name, &lines.join("; "));
        Ok(())
    }
}

/// VMMs that no package brings.
#[derive(Clone, Copy)]
enum Vmm {
    CloudHypervisor,
    Crosvm,
    Firecracker,
}

impl Vmm {
    fn name(self) -> &'static str {
        match self {
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Crosvm => "crosvm",
            Self::Firecracker => "Firecracker",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::CloudHypervisor => "CLOUD_HYPERVISOR",
            Self::Crosvm => "CROSVM",
            Self::Firecracker => "FIRECRACKER",
        }
    }

    /// The arguments of a machine with the devices of the README's lines, or with none.
    fn arguments(
        self,
        guest: &BareMetal,
        sockets: Option<&[PathBuf; 3]>,
    ) -> Result<Vec<String>, BoxError> {
        let (kernel, console) = (guest.kernel(), guest.console());
        let (kernel, console) = (kernel.display(), console.display());
        let [disk, nic, share] = sockets.cloned().unwrap_or_default();
        let (disk, nic, share) = (disk.display(), nic.display(), share.display());
        let line = match self {
            Self::CloudHypervisor => {
                let machine = format!(
                    "--kernel {kernel} --serial file={console} --console off \
                     --memory size=512M,shared=on --cpus boot=4"
                );
                let devices = format!(
                    "--disk vhost_user=true,socket={disk},num_queues={QUEUES},queue_size=256 \
                     --net vhost_user=true,socket={nic},num_queues={},queue_size=256,mac={MAC} \
                     --fs tag={TAG},socket={share},num_queues={QUEUES},queue_size=1024",
                    2 * QUEUES
                );
                sockets.map_or_else(|| machine.clone(), |_| format!("{machine} {devices}"))
            }
            Self::Crosvm => {
                let devices = format!(
                    "--vhost-user block,socket={disk} --vhost-user net,socket={nic} \
                     --vhost-user fs,socket={share}"
                );
                format!(
                    "run --disable-sandbox --mem size=512 \
                     --serial type=file,path={console},hardware=serial,num=1 {} {kernel}",
                    sockets.map_or("", |_| devices.as_str())
                )
            }
            Self::Firecracker => {
                let drive = json!({
                    "drive_id": "data", "is_root_device": false, "socket": disk.to_string(),
                    "cache_type": "Writeback"
                });
                let machine = json!({
                    "boot-source": { "kernel_image_path": kernel.to_string() },
                    "machine-config": { "vcpu_count": 1, "mem_size_mib": 512 },
                    "drives": sockets.map_or(json!([]), |_| json!([drive])),
                });
                let file = guest.path("machine.json");
                fs::write(&file, machine.to_string())?;
                format!("--no-api --config-file {}", file.display())
            }
        };
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }

    /// The VMM's program, or why the test is skipped: none is named, or KVM does not run the guest
    /// in it here, which is found out by doing so.
    fn program(self, guest: &BareMetal) -> Result<Result<PathBuf, String>, BoxError> {
        let variable = self.variable();
        let Some(program) = std::env::var_os(variable).map(PathBuf::from) else {
            return Ok(Err(format!(
                "no package of Debian has {}, and {variable} names none",
                self.name()
            )));
        };
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        if let Err(error) = kvm {
            return Ok(Err(format!("{} needs /dev/kvm: {error}", self.name())));
        }
        if !program.is_file() {
            return Err(format!("{variable}={} is no file", program.display()).into());
        }
        Ok(match guest.run(&program, &self.arguments(guest, None)?) {
            Ok(_) => Ok(program),
            Err(error) => Err(format!(
                "KVM does not run a guest without devices in {} here: {error}",
                self.name()
            )),
        })
    }

    /// Why the VMM is not here; `None` after it has run a guest with all devices it has, which
    /// print the lines that are `expected`.
    fn attach(self, expected: &[&str]) -> Result<Option<String>, BoxError> {
        if let Some(reason) = lacking() {
            return Ok(Some(reason));
        }
        let guest = BareMetal::build()?;
        let program = match self.program(&guest)? {
            Ok(program) => program,
            Err(reason) => {
                front_end(self.name(), "skipped");
                return Ok(Some(reason));
            }
        };
        let served = Served::start()?;
        let args = self.arguments(&guest, Some(&served.sockets()))?;
        let printed = guest.run(&program, &args)?;
        served.finish(self.name(), &printed, expected)?;
        Ok(None)
    }
}

#[test]
fn f7_8_cloud_hypervisor_takes_all_devices() -> Result<(), BoxError> {
    let expected = [
        "disk: 4 queues of 256 entries ok",
        "network: 8 queues of 256 entries ok",
        "folder: 5 queues of 1024 entries ok",
    ];
    if let Some(reason) = Vmm::CloudHypervisor.attach(&expected)? {
        skip!("{reason}");
    }
    Ok(())
}

/// crosvm has rings of 32768 entries by default, and hands on the control queue of a network.
#[test]
fn f7_8_crosvm_takes_all_devices() -> Result<(), BoxError> {
    let expected = [
        "disk: 4 queues of 32768 entries ok",
        "network: 8 queues of 32768 entries ok",
        "folder: 5 queues of 32768 entries ok",
    ];
    if let Some(reason) = Vmm::Crosvm.attach(&expected)? {
        skip!("{reason}");
    }
    Ok(())
}

/// Firecracker has vhost-user for disks only, on virtio-mmio, with one queue.
#[test]
fn f7_8_firecracker_takes_a_disk() -> Result<(), BoxError> {
    if let Some(reason) = Vmm::Firecracker.attach(&["disk: 1 queues of 256 entries ok"])? {
        skip!("{reason}");
    }
    Ok(())
}

/// Runs the guest in QEMU with the devices that `machine` makes of the sockets.
fn run_in_qemu(
    name: &str,
    machine: impl for<'p> FnOnce([&'p Path; 3]) -> Guest<'static>,
    expected: &[&str],
) -> Result<(), BoxError> {
    let (served, printed) = served_in_qemu(machine)?;
    served.finish(name, &printed, expected)
}

/// Runs the guest as [`run_in_qemu`] does; gives the back-ends, and what the guest has printed.
fn served_in_qemu(
    machine: impl for<'p> FnOnce([&'p Path; 3]) -> Guest<'static>,
) -> Result<(Served, String), BoxError> {
    let guest = BareMetal::build()?;
    let served = Served::start()?;
    let sockets = served.sockets();
    let outcome = machine(sockets.each_ref().map(PathBuf::as_path))
        .firmware_until("\nend")
        .qemu_arg("-kernel")
        .qemu_arg(guest.kernel().display().to_string())
        .run()?;
    Ok((served, outcome.console))
}

#[test]
fn f7_8_qemu_runs_the_guest_that_polls_its_devices() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    let expected = [
        "disk: 4 queues of 128 entries ok",
        "network: 8 queues of 256 entries ok",
        "folder: 5 queues of 1024 entries ok",
    ];
    let name = "QEMU, guest without an operating system";
    run_in_qemu(name, |sockets| devices(sockets, true), &expected)?;
    if let Some(qemu) = old_qemu() {
        let machine = |sockets: [&Path; 3]| devices(sockets, true).qemu(&qemu);
        let (served, printed) = served_in_qemu(machine)?;
        // Before 8.2, QEMU answers the guest before the back-end has enabled a ring, and the frames
        // of a disabled ring are lost.
        let lines = printed.lines().filter(|line| !line.starts_with(SENT_AGAIN));
        let printed = lines.collect::<Vec<_>>().join("\n");
        served.finish(&format!("oldest {name}"), &printed, &expected)?;
    }
    Ok(())
}

/// The README's lines for libvirt, with other sockets. It says nothing of request queues of a folder:
/// there is one.
#[test]
fn qemu_as_libvirt_starts_it_takes_all_devices() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    let disk = LibvirtDisk::of_readme()?;
    let interface = LibvirtInterface::of_readme()?;
    let filesystem = LibvirtFilesystem::of_readme()?;
    let machine = |sockets: [&Path; 3]| {
        let nic = Device::net("nic", sockets[1]).queue_pairs(interface.pairs);
        Guest::new()
            .device(
                Device::block("disk", sockets[0])
                    .num_queues(disk.queues)
                    .reconnect(disk.reconnect),
            )
            .device(nic.mac(&interface.mac).reconnect(interface.reconnect))
            .device(
                Device::fs("share", sockets[2], &filesystem.tag).queue_size(filesystem.queue_size),
            )
    };
    let expected = [
        format!("disk: {} queues of 128 entries ok", disk.queues),
        format!("network: {} queues of 256 entries ok", 2 * interface.pairs),
        format!("folder: 2 queues of {} entries ok", filesystem.queue_size),
    ];
    let expected = expected.each_ref().map(String::as_str);
    run_in_qemu("QEMU as libvirt starts it", machine, &expected)
}

/// QEMU's microvm has virtio-mmio, by default as it was before virtio 1, which only disks are.
#[test]
fn f7_2_microvm_takes_a_legacy_disk_and_modern_devices() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    let legacy = |[disk, _, _]: [&Path; 3]| {
        Guest::new()
            .microvm()
            .device(Device::block("disk", disk).mmio())
    };
    run_in_qemu(
        "QEMU's microvm, legacy",
        legacy,
        &["disk: 1 queues of 1024 entries ok"],
    )?;
    let modern = |[disk, nic, share]: [&Path; 3]| {
        let disk = Device::block("disk", disk).num_queues(QUEUES);
        let share = Device::fs("share", share, TAG).request_queues(QUEUES);
        Guest::new()
            .microvm()
            .qemu_arg("-global")
            .qemu_arg("virtio-mmio.force-legacy=false")
            .device(disk.mmio())
            .device(Device::net("nic", nic).queue_pairs(QUEUES).mmio())
            .device(share.queue_size(1024).mmio())
    };
    let expected = [
        "folder: 5 queues of 1024 entries ok",
        "network: 8 queues of 1024 entries ok",
        "disk: 4 queues of 1024 entries ok",
    ];
    run_in_qemu("QEMU's microvm, modern", modern, &expected)
}

/// fio drives the disk with no VM between, on the README's lines.
#[test]
fn f7_8_fio_drives_the_disk_through_libblkio() -> Result<(), BoxError> {
    let Some(fio) = std::env::var_os("FIO") else {
        front_end("fio", "skipped");
        skip!("Debian's fio is built without libblkio, and FIO names no other");
    };
    let mut disk = Disk::start(BackEnd::Ringside, &DiskOptions::default())?;
    let output = Command::new(&fio)
        .args(["--name=job", "--ioengine=libblkio", "--thread=1"])
        .arg("--libblkio_driver=virtio-blk-vhost-user")
        .arg(format!("--libblkio_path={}", disk.socket().display()))
        .args(["--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=64m"])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ])
        .output()?;
    assert!(output.status.success(), "{output:?}");
    disk.still_serving()?;
    front_end("fio", "disk: 64 MiB written and verified ok");
    Ok(())
}
