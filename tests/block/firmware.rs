// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Firmware that boots from the disk, with no operating system: BIOS and UEFI, on each way that QEMU
//! has to attach it. What is on a PCI root bus is transitional, and most firmware drives that as a
//! legacy device.

#[path = "firmware/boot_sector.rs"]
mod boot_sector;
#[path = "firmware/efi.rs"]
mod efi;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ringside_tests::vm::{
    BackEnd, BoxError, Device, Disk, DiskOptions, Guest, Outcome, needs, skip,
};

use boot_sector::{READ_LBA, WRITE_LBA, boot_sector};

/// UEFI firmware of Debian's `ovmf`.
const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

/// A back-end with an empty disk, or `None` after saying loudly why there is none.
fn disk(test: &str) -> Result<Option<(Disk, File)>, BoxError> {
    if let Some(reason) = needs() {
        skip(test, &reason)?;
        return Ok(None);
    }
    let disk = Disk::start(BackEnd::under_test(), &DiskOptions::default())?;
    let image = OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk.image())?;
    Ok(Some((disk, image)))
}

fn assert_passed(name: &str, outcome: &Outcome) {
    let Outcome {
        exit_code, console, ..
    } = outcome;
    assert_eq!(*exit_code, 0, "{name}: console:\n{console}");
}

/// A machine of firmware alone, which has shown `text`.
fn boots(name: &str, device: Device, text: &str, arguments: &[&str]) -> Result<(), BoxError> {
    let guest = Guest::new().device(device).firmware_until(text);
    let guest = arguments.iter().fold(guest, |g, arg| g.qemu_arg(*arg));
    assert_passed(name, &guest.run()?);
    Ok(())
}

/// A BIOS boots from a disk attached in this way, reads and writes.
fn bios_boots(
    test: &str,
    attached: impl Fn(Device) -> Device,
    arguments: &[&str],
) -> Result<(), BoxError> {
    let Some((mut disk, image)) = disk(test)? else {
        return Ok(());
    };
    let text = "ringside: the firmware has read sector 1000";
    image.write_all_at(&boot_sector(), 0)?;
    image.write_all_at(text.as_bytes(), READ_LBA * 512)?;
    let device = Device::block("disk", &disk.socket()).boot_index(0);
    boots(test, attached(device), text, arguments)?;
    let mut written = vec![0; text.len()];
    image.read_exact_at(&mut written, WRITE_LBA * 512)?;
    assert_eq!(String::from_utf8_lossy(&written), text);
    disk.still_serving()?;
    Ok(())
}

#[test]
fn firmware_boots_reads_and_writes() -> Result<(), BoxError> {
    bios_boots("firmware_boots_reads_and_writes", |device| device, &[])
}

#[test]
fn f7_2_bios_boots_from_a_legacy_disk() -> Result<(), BoxError> {
    let legacy = |device: Device| device.property("disable-modern", true);
    bios_boots("f7_2_bios_boots_from_a_legacy_disk", legacy, &[])
}

#[test]
fn f7_2_ovmf_boots_from_the_disk() -> Result<(), BoxError> {
    let test = "f7_2_ovmf_boots_from_the_disk";
    if !Path::new(OVMF).exists() {
        return skip(test, "no OVMF: run tests/vm/install").map_err(BoxError::from);
    }
    for modern in [None, Some(false), Some(true)] {
        let Some((mut disk, image)) = disk(test)? else {
            return Ok(());
        };
        let text = "ringside: UEFI has read its boot loader";
        image.write_all_at(&efi::file_system(text), 0)?;
        let device = Device::block("disk", &disk.socket()).boot_index(0);
        // README's own line first; then as a device that is only legacy, or only modern.
        let device = match modern {
            None => device,
            Some(false) => device.property("disable-modern", true),
            Some(true) => device.property("disable-legacy", "on"),
        };
        boots(test, device, text, &["-bios", OVMF])?;
        disk.still_serving()?;
    }
    Ok(())
}
