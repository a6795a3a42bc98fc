// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks on devices whose blocks are larger than what the guest is shown.

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, Range, SECTOR_BYTES, kind};
use ringside_frontend::load::{check_pattern, fill_pattern};
use ringside_frontend::session::Session;
use ringside_tests::host_fs::LoopDevice;
use ringside_tests::hostile::support_chains::{
    Disk, Outcome, PATIENCE, image_pattern, launch, launch_traced,
};
use ringside_tests::skip;
use serde_json::json;

const BYTES: u64 = 4 << 20;
/// Of the pattern that a disk starts with.
const SEED: u64 = 31;

/// A disk of 512-byte blocks on a device of 4096-byte blocks.
fn disk(device: &LoopDevice, args: &[&str]) -> Outcome<Disk> {
    let launch = launch()?.args(["--block-size", "512", "--blk-file", device.path()]);
    Disk::of(launch.args(args), device.path().into())
}

macro_rules! device_or_skip {
    () => {
        match LoopDevice::attach(BYTES, &["--sector-size", "4096"]) {
            Ok(device) => device,
            Err(error) => skip!("no loop devices with blocks of 4096 bytes: {error}"),
        }
    };
}

/// Publishes `writes` of one sector or of one block at once, and waits for all.
fn write_at_once(driver: &mut BlkDriver, writes: &[(u64, u32)], mark: u8) -> Outcome {
    for (sector, bytes) in writes {
        let slot = driver.acquire()?;
        driver.data(slot).fill(0, usize::try_from(*bytes)?, mark);
        driver.submit(slot, &BlkRequest::write(*sector, *bytes))?;
    }
    driver.publish()?;
    while driver.in_flight() > 0 {
        let slot = driver.wait()?.ok()?.slot;
        driver.release(slot);
    }
    Ok(())
}

#[test]
fn f4_1_writes_to_one_block_by_more_requests_than_threads_are_all_answered() -> Outcome {
    let device = device_or_skip!();
    for args in [
        &["--cache", "none", "--aio", "threads"][..],
        &["--cache", "none", "--aio", "threads", "--threads", "1"],
        &["--cache", "none"],
        &["--cache", "writeback", "--aio", "threads"],
    ] {
        let mut disk = disk(&device, args)?;
        let mut session = disk.session(Session::builder().queues(2))?;
        let mut drivers = Vec::new();
        for vring in session.start_all()? {
            let config = BlkConfig {
                depth: 64,
                timeout: PATIENCE,
                ..BlkConfig::default()
            };
            drivers.push(BlkDriver::new(vring, config)?);
        }
        // As many as there are threads are kept busy elsewhere; then come parts of one block, and
        // behind them that block as a whole.
        let elsewhere = (0..20).map(|at| (80 + 8 * at, 512));
        let parts = (0..20).map(|at| (at % 8, 512));
        let wholes = (0..3).map(|_| (0, 4096));
        let writes: Vec<_> = elsewhere.chain(parts).chain(wholes).collect();
        for round in 0..20 {
            for driver in &mut drivers {
                write_at_once(driver, &writes, round)?;
            }
        }
        // The other way round, and with a second queue in it.
        let backwards: Vec<_> = writes.iter().rev().copied().collect();
        for (sector, bytes) in &backwards {
            let slot = drivers[0].acquire()?;
            drivers[0].submit(slot, &BlkRequest::write(*sector, *bytes))?;
        }
        drivers[0].publish()?;
        write_at_once(&mut drivers[1], &writes, 0xee)?;
        // What is in flight is completed before the position is told.
        session.stop(0)?;
        while drivers[0].in_flight() > 0 {
            let done = drivers[0]
                .poll()?
                .ok_or("stopped with requests in flight")?;
            drivers[0].release(done.ok()?.slot);
        }
        // And before the process ends.
        for (sector, bytes) in &backwards {
            let slot = drivers[1].acquire()?;
            drivers[1].submit(slot, &BlkRequest::write(*sector, *bytes))?;
        }
        drivers[1].publish()?;
        assert_eq!(
            disk.process.terminate(PATIENCE)?.code(),
            Some(0),
            "{args:?}"
        );
    }
    Ok(())
}

/// Reads sectors and compares them with the pattern, or with zeroes inside of `zeroes`.
fn check(driver: &mut BlkDriver, zeroes: std::ops::Range<u64>, what: &str) -> Outcome {
    for sector in 0..256 {
        let mut found = [0xff; SECTOR_BYTES];
        driver.read(sector, &mut found)?.ok()?;
        if zeroes.contains(&sector) {
            assert_eq!(found, [0; SECTOR_BYTES], "{what}: sector {sector}");
        } else {
            check_pattern(SEED, sector, &found).map_err(|e| format!("{what}: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn f6_1_zeroes_and_discards_of_parts_of_blocks_are_served() -> Outcome {
    let device = device_or_skip!();
    for args in [
        &[][..],
        &["--cache", "none"],
        &["--cache", "writethrough"],
        &["--cache", "none", "--aio", "threads"],
    ] {
        let mut disk = disk(&device, args)?;
        assert_eq!(disk.info("logical_block_bytes")?, json!(512));
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let mut pattern = vec![0; 64 << 10];
        for (start, end) in [
            (1, 2),
            (7, 9),
            (8, 16),
            (8, 17),
            (3, 100),
            (16, 33),
            (0, 255),
        ] {
            for flags in [0, 1] {
                let what = format!("{args:?} {start}..{end} flags {flags}");
                for at in (0..256).step_by(128) {
                    fill_pattern(SEED, at, &mut pattern);
                    driver.write(at, &pattern)?.ok()?;
                }
                let range = Range {
                    sector: start,
                    sectors: u32::try_from(end - start)?,
                    flags,
                };
                driver
                    .run_ranges(kind::WRITE_ZEROES, &[range])?
                    .ok()
                    .map_err(|e| format!("{what}: {e}"))?;
                check(&mut driver, start..end, &what)?;
            }
            // A discard may do less than it is asked for, and nothing beside it.
            let range = Range {
                sector: start,
                sectors: u32::try_from(end - start)?,
                flags: 0,
            };
            driver
                .run_ranges(kind::DISCARD, &[range])?
                .ok()
                .map_err(|e| format!("{args:?} {start}..{end}: {e}"))?;
            let mut found = [0; SECTOR_BYTES];
            for sector in (0..start).chain(end..256) {
                driver.read(sector, &mut found)?.ok()?;
                check_pattern(SEED, sector, &found)
                    .map_err(|e| format!("beside {start}..{end}: {e}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn f6_2_zeroes_and_discards_are_served_where_fallocate_fails_with_einval() -> Outcome {
    for errno in ["EINVAL", "ENOSYS", "EPERM"] {
        // The first call is the probe: the image seems to have it.
        let inject = format!("inject=fallocate:error={errno}:when=2+");
        let Some(launch) = launch_traced(&["-e", "trace=fallocate", "-e", &inject])? else {
            skip!("strace cannot trace here");
        };
        let mut disk = Disk::launched(launch, &image_pattern(64 << 10), &[])?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        for flags in [0, 1] {
            let range = Range {
                sector: 1,
                sectors: 20,
                flags,
            };
            driver.write(0, &[0x77; 32 * SECTOR_BYTES])?.ok()?;
            let zeroed = driver.run_ranges(kind::WRITE_ZEROES, &[range])?.ok();
            zeroed.map_err(|e| format!("{errno}, flags {flags}: {e}"))?;
            let mut found = [0xff; 22 * SECTOR_BYTES];
            driver.read(0, &mut found)?.ok()?;
            let mut expected = [0x77; 22 * SECTOR_BYTES];
            expected[SECTOR_BYTES..21 * SECTOR_BYTES].fill(0);
            assert_eq!(found, expected, "{errno}, flags {flags}");
        }
        let range = Range {
            sector: 1,
            sectors: 20,
            flags: 0,
        };
        driver.run_ranges(kind::DISCARD, &[range])?.ok()?;
    }
    Ok(())
}
