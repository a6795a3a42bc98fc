// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block back-end under QEMU: a Linux guest, and firmware alone.

use ringside_tests::vm::{BackEnd, BoxError, Device, Disk, DiskOptions, Guest};

const LIB: &str = include_str!("../vm/guest/disk.sh");

#[test]
fn default_options_serve_a_disk() -> Result<(), BoxError> {
    let disk = Disk::start(BackEnd::under_test(), &DiskOptions::default())?;
    let script = format!(
        "{LIB}\ndisk_identity vda $((256 << 20)) {} 2\nwrite_and_read vda 9\ndiscard_zeroes vda 8\n",
        disk.serial()
    );
    let outcome = Guest::new()
        .cpus(2)
        .program("blkdiscard")
        .device(Device::block("disk0", &disk.socket()))
        .script(&script)
        .run()?;
    eprintln!(
        "{}\n{}\n{:?} {:?}",
        outcome.output, outcome.console, outcome.elapsed, outcome.accel
    );
    assert_eq!(outcome.exit_code, 0);
    Ok(())
}
