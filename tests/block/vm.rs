// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block back-end under QEMU: a Linux guest, and firmware alone.
//!
//! `RINGSIDE_VM_BACKEND=qemu-storage-daemon` runs the same tests on QEMU's own back-end.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

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

/// Sector that the boot sector below reads, and the one it writes.
const READ_LBA: u64 = 1000;
const WRITE_LBA: u64 = 2000;

/// A boot sector that reads [`READ_LBA`] to 0000:8000 by the firmware (INT 13h AH=42h), writes it to
/// [`WRITE_LBA`] (AH=43h), prints the text in it on the first serial port and halts.
fn boot_sector() -> [u8; 512] {
    #[rustfmt::skip]
    const CODE: [u8; 0x39] = [
        0x31, 0xc0,             // 00       xor ax, ax
        0x8e, 0xd8,             // 02       mov ds, ax
        0x8e, 0xd0,             // 04       mov ss, ax
        0xbc, 0x00, 0x7c,       // 06       mov sp, 0x7c00
        0xbe, 0x80, 0x7c,       // 09       mov si, read packet; dl is the boot drive
        0xb4, 0x42,             // 0c       mov ah, 0x42
        0xcd, 0x13,             // 0e       int 0x13
        0x72, 0x24,             // 10       jc halt
        0xbe, 0x90, 0x7c,       // 12       mov si, write packet
        0xb8, 0x00, 0x43,       // 15       mov ax, 0x4300
        0xcd, 0x13,             // 18       int 0x13
        0x72, 0x1a,             // 1a       jc halt
        0xbe, 0x00, 0x80,       // 1c       mov si, 0x8000
        0xac,                   // 1f next: lodsb
        0x84, 0xc0,             // 20       test al, al
        0x74, 0x12,             // 22       jz halt
        0x88, 0xc3,             // 24       mov bl, al
        0xba, 0xfd, 0x03,       // 26 wait: mov dx, line status
        0xec,                   // 29       in al, dx
        0xa8, 0x20,             // 2a       test al, transmitter empty
        0x74, 0xf8,             // 2c       jz wait
        0x88, 0xd8,             // 2e       mov al, bl
        0xba, 0xf8, 0x03,       // 30       mov dx, data
        0xee,                   // 33       out dx, al
        0xeb, 0xe9,             // 34       jmp next
        0xf4,                   // 36 halt: hlt
        0xeb, 0xfd,             // 37       jmp halt
    ];
    let mut sector = [0; 512];
    sector[..CODE.len()].copy_from_slice(&CODE);
    for (at, lba) in [(0x80, READ_LBA), (0x90, WRITE_LBA)] {
        // Disk address packet: size 16, one sector, buffer 0000:8000.
        sector[at..at + 8].copy_from_slice(&[16, 0, 1, 0, 0x00, 0x80, 0, 0]);
        sector[at + 8..at + 16].copy_from_slice(&lba.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn firmware_boots_reads_and_writes() -> Result<(), BoxError> {
    let Some(kind) = back_end("firmware_boots_reads_and_writes")? else {
        return Ok(());
    };
    let mut disk = Disk::start(kind, &DiskOptions::default())?;
    let image = OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk.image())?;
    let text = "ringside: the firmware has read sector 1000";
    image.write_all_at(&boot_sector(), 0)?;
    image.write_all_at(text.as_bytes(), READ_LBA * 512)?;
    let outcome = Guest::new()
        .device(Device::block("disk", &disk.socket()).boot_index(0))
        .firmware_until(text)
        .run()?;
    assert_passed(&outcome);
    let mut written = vec![0; text.len()];
    image.read_exact_at(&mut written, WRITE_LBA * 512)?;
    assert_eq!(String::from_utf8_lossy(&written), text);
    disk.still_serving()?;
    Ok(())
}
