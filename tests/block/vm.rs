// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block back-end under QEMU, with a Linux guest; see `firmware.rs` for what boots from it.
//!
//! `RINGSIDE_VM_BACKEND=qemu-storage-daemon` runs the same tests on QEMU's own back-end.

use ringside_tests::vm::{
    BackEnd, BoxError, Device, Disk, DiskOptions, Guest, Outcome, needs, skip,
};

/// Functions that every guest script here starts with.
const DISK_LIB: &str = include_str!("../vm/guest/disk.sh");

const MIB: u64 = 1 << 20;

/// The back-end to test, or `None` after saying loudly why there is none.
fn back_end(test: &str) -> Result<Option<BackEnd>, BoxError> {
    match needs() {
        None => Ok(Some(BackEnd::under_test())),
        Some(reason) => skip(test, &reason).map(|()| None).map_err(BoxError::from),
    }
}

/// Asserts that the script ended well, and shows what it printed if not.
fn assert_passed(outcome: &Outcome) {
    let Outcome {
        exit_code,
        output,
        console,
        ..
    } = outcome;
    assert_eq!(*exit_code, 0, "output:\n{output}\nconsole:\n{console}");
}

fn script(text: &str) -> String {
    format!("{DISK_LIB}\n{text}")
}

#[test]
fn default_options_and_online_resize_pass() -> Result<(), BoxError> {
    let Some(kind) = back_end("default_options_and_online_resize_pass")? else {
        return Ok(());
    };
    let mut disk = Disk::start(kind, &DiskOptions::default())?;
    let outcome = Guest::new()
        .cpus(2)
        .program("blkdiscard")
        .device(Device::block("disk", &disk.socket()))
        .env("BYTES", 256 * MIB)
        .env("BYTES_GROWN", 320 * MIB)
        .env("SERIAL", disk.serial())
        .script(&script(include_str!("../vm/guest/one_disk.sh")))
        .on("grow", |_| Ok(disk.resize(320)?))
        .run()?;
    assert_passed(&outcome);
    disk.still_serving()?;
    Ok(())
}

/// A disk of the test below: size (tells the disks apart), queues, other options.
type Variant = (u64, u16, fn(Device) -> Device);

#[test]
fn queue_counts_sizes_and_layouts_pass() -> Result<(), BoxError> {
    let Some(kind) = back_end("queue_counts_sizes_and_layouts_pass")? else {
        return Ok(());
    };
    const CPUS: u16 = 16;
    let variants: [Variant; 6] = [
        (64, 1, |device| device),
        (65, 4, |device| device.packed(false)),
        (66, CPUS, |device| device),
        (67, 2, |device| device.queue_size(1024)),
        (68, 2, |device| device.config_wce(false)),
        (69, 2, |device| device.queue_size(16)),
    ];
    let mut disks = Vec::new();
    let mut guest = Guest::new().cpus(CPUS.into()).program("fio");
    let mut expected = String::new();
    for ((size_mib, queues, options), letter) in variants.into_iter().zip('a'..) {
        let serial = format!("disk-{letter}");
        let disk = Disk::start(
            kind,
            &DiskOptions {
                size_mib,
                serial,
                ..DiskOptions::default()
            },
        )?;
        let device = Device::block(&format!("disk-{letter}"), &disk.socket()).num_queues(queues);
        guest = guest.device(options(device));
        let bytes = size_mib * MIB;
        expected.push_str(&format!("vd{letter} {bytes} {} {queues}\n", disk.serial()));
        disks.push(disk);
    }
    let outcome = guest
        .env("DISKS", expected.trim_end())
        .env("BUSIEST", "vdc")
        .script(&script(include_str!("../vm/guest/many_disks.sh")))
        .run()?;
    assert_passed(&outcome);
    assert_eq!(
        outcome.output.matches("IOPS=").count(),
        2 * disks.len(),
        "{}",
        outcome.output
    );
    disks.iter_mut().try_for_each(Disk::still_serving)?;
    Ok(())
}

#[test]
fn hot_plugged_disk_comes_goes_and_comes_back() -> Result<(), BoxError> {
    let Some(kind) = back_end("hot_plugged_disk_comes_goes_and_comes_back")? else {
        return Ok(());
    };
    let mut disk = Disk::start(kind, &DiskOptions::default())?;
    let device = Device::block("disk", &disk.socket());
    let outcome = Guest::new()
        .cpus(2)
        .hotplug_ports(1)
        .env("BYTES", 256 * MIB)
        .env("SERIAL", disk.serial())
        .script(&script(include_str!("../vm/guest/hotplug.sh")))
        .on("plug", |machine| Ok(machine.plug(&device)?))
        .on("unplug", |machine| Ok(machine.unplug(&device)?))
        .run()?;
    assert_passed(&outcome);
    disk.still_serving()?;
    Ok(())
}

#[test]
fn memory_in_two_regions_and_plugged_under_load_passes() -> Result<(), BoxError> {
    let Some(kind) = back_end("memory_in_two_regions_and_plugged_under_load_passes")? else {
        return Ok(());
    };
    const PLUGGED_MIB: u64 = 256;
    let mut disk = Disk::start(kind, &DiskOptions::default())?;
    let outcome = Guest::new()
        .cpus(2)
        .memory_mib(768)
        .numa_nodes(2)
        .memory_slots(2, 2048)
        .program("fio")
        .device(Device::block("disk", &disk.socket()))
        .env("NODES", 2)
        .env("PLUGGED_MIB", PLUGGED_MIB)
        .script(&script(include_str!("../vm/guest/memory.sh")))
        .on("plug_memory", |machine| {
            Ok(machine.plug_memory(PLUGGED_MIB)?)
        })
        .run()?;
    assert_passed(&outcome);
    disk.still_serving()?;
    Ok(())
}

#[test]
fn data_survive_reboot_and_reset() -> Result<(), BoxError> {
    let Some(kind) = back_end("data_survive_reboot_and_reset")? else {
        return Ok(());
    };
    let mut disk = Disk::start(kind, &DiskOptions::default())?;
    let outcome = Guest::new()
        .cpus(2)
        .reboots(2)
        .device(Device::block("disk", &disk.socket()))
        .env("BYTES", 256 * MIB)
        .env("SERIAL", disk.serial())
        .script(&script(include_str!("../vm/guest/reboot.sh")))
        .on("reset", |machine| {
            machine.system_reset().map(|_| ()).map_err(BoxError::from)
        })
        .run()?;
    assert_passed(&outcome);
    assert_eq!(outcome.boots, 3, "{}", outcome.output);
    disk.still_serving()?;
    Ok(())
}

#[test]
fn f7_2_linux_drives_a_legacy_pci_disk() -> Result<(), BoxError> {
    let Some(kind) = back_end("f7_2_linux_drives_a_legacy_pci_disk")? else {
        return Ok(());
    };
    let mut disk = Disk::start(kind, &DiskOptions::default())?;
    let outcome = Guest::new()
        .cpus(2)
        .program("blkdiscard")
        .device(Device::block("disk", &disk.socket()).property("disable-modern", true))
        .env("BYTES", 256 * MIB)
        .env("BYTES_GROWN", 320 * MIB)
        .env("SERIAL", disk.serial())
        .script(&script(include_str!("../vm/guest/one_disk.sh")))
        .on("grow", |_| Ok(disk.resize(320)?))
        .run()?;
    assert_passed(&outcome);
    disk.still_serving()?;
    Ok(())
}
