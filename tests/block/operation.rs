// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of `ringside-blk` and its troubles with the host: all that needs no VM.

#[path = "operation/image.rs"]
mod image;
#[path = "operation/life.rs"]
mod life;
#[path = "operation/management.rs"]
mod management;

#[path = "operation/size.rs"]
mod size;

use std::time::Duration;

use ringside_frontend::blk::{BlkDriver, SECTOR_BYTES};
use ringside_frontend::load::{Verify, check_content, write_pattern};
use ringside_tests::hostile::support_chains::Outcome;
use ringside_tests::process::Launch;

/// Writes and verifies blocks over the whole of a disk, at depth, and flushes.
fn verify_io(driver: &mut BlkDriver, disk_bytes: u64, seed: u64) -> Outcome {
    let plan = Verify {
        depth: 16,
        block_bytes: 4096,
        first_sector: 0,
        blocks: disk_bytes / 4096,
        seed,
    };
    write_pattern(driver, &plan)?;
    driver.flush()?.ok()?;
    check_content(driver, &plan)?;
    let mut sector = [0; SECTOR_BYTES];
    driver
        .write(5, &[seed.to_le_bytes()[0]; SECTOR_BYTES])?
        .ok()?;
    driver.read(5, &mut sector)?.ok()?;
    assert_eq!(sector, [seed.to_le_bytes()[0]; SECTOR_BYTES]);
    Ok(())
}

/// Runs what ends by itself; returns its exit code and everything it wrote.
fn run(launch: Launch) -> Outcome<(Option<i32>, String)> {
    let mut process = launch.spawn()?;
    let status = process.wait_exit(Duration::from_secs(20))?;
    Ok((status.code(), process.stderr()))
}
