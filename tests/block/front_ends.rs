// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What VMMs do by default, and their drivers: rings of their sizes, legacy drivers, writes to the
//! configuration space.

use std::time::Duration;

use ringside_frontend::blk::{
    BlkConfig, BlkDriver, BlkRequest, Direction, HeaderShape, RequestShape, SECTOR_BYTES,
    StatusShape, TableShape, blk_feature, status,
};
use ringside_frontend::ids::feature;
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::session::Session;
use ringside_tests::host_fs::HostFs;
use ringside_tests::hostile::support_chains::{DISK_BYTES, Disk, Outcome, PATIENCE, launch};
use ringside_tests::process::Process;
use ringside_tests::skip;

/// Where `seg_max` lies in the configuration space.
const SEG_MAX_OFFSET: u32 = 12;

fn seg_max(session: &mut Session) -> Outcome<u32> {
    let bytes = session.config(SEG_MAX_OFFSET, 4)?;
    Ok(u32::from_le_bytes(
        *bytes.first_chunk().ok_or("no seg_max")?,
    ))
}

#[test]
fn f4_2_largest_request_that_is_asked_for_fits_a_ring_of_128_without_indirect_tables() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let builder = Session::builder().queue_size(128).indirect(false);
    let mut session = disk.session(builder)?;
    let segments = seg_max(&mut session)?;
    assert_eq!(segments, 126);
    let vring = session.start_all()?.remove(0);
    let shape = RequestShape {
        data_segment_bytes: 512,
        ..RequestShape::default()
    };
    let config = BlkConfig {
        depth: 1,
        shape,
        ..BlkConfig::default()
    };
    let mut driver = BlkDriver::new(vring, config)?;
    let data = vec![0x5a; 126 * SECTOR_BYTES];
    driver.write(8, &data)?.ok()?;
    let mut read = vec![0; data.len()];
    driver.read(8, &mut read)?.ok()?;
    assert_eq!(read, data);
    Ok(())
}

#[test]
fn f4_2_segments_are_more_for_who_asks_and_fewer_where_rings_are_small() -> Outcome {
    for (args, wanted) in [
        (&["--seg-max", "254"][..], 254),
        (&["--seg-max", "30"], 30),
        (&["--queue-size", "64"], 62),
        (&["--seg-max", "254", "--queue-size", "128"], 126),
        (&["--queue-size", "2"], 1),
    ] {
        let mut disk = Disk::start(args)?;
        let mut session = disk.session(Session::builder())?;
        assert_eq!(seg_max(&mut session)?, wanted, "{args:?}");
    }
    Ok(())
}

#[test]
fn f4_3_rings_of_every_legal_size_are_served_by_default() -> Outcome {
    let mut disk = Disk::start(&[])?;
    for exponent in 0..=15 {
        let size = 1 << exponent;
        let builder = Session::builder().queue_size(size);
        let shape = RequestShape {
            table: TableShape::Indirect,
            ..RequestShape::default()
        };
        let config = BlkConfig {
            depth: size.min(64),
            shape,
            ..BlkConfig::default()
        };
        let (_session, mut driver) = disk.driver(builder, config)?;
        for round in 0..200_u64 {
            let mark = u8::try_from(round)?;
            driver.write(round, &[mark; SECTOR_BYTES])?.ok()?;
        }
        let mut sector = [0; SECTOR_BYTES];
        driver.read(199, &mut sector)?.ok()?;
        assert_eq!(sector, [199; SECTOR_BYTES], "ring of {size}");
    }
    Ok(())
}

/// Memory of its own that a process has, in KiB.
fn anonymous_kib(process: &Process) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no RssAnon")?.parse()?)
}

#[test]
fn f4_3_many_large_rings_cost_no_more_than_as_many_small_ones() -> Outcome {
    const QUEUES: usize = 24;
    let mut grown = Vec::new();
    for size in [1024, 32768] {
        let mut disk = Disk::start(&["--threads", "1"])?;
        let builder = Session::builder()
            .queue_size(size)
            .queues(QUEUES)
            .indirect_len(0)
            .memory(MemoryLayout::single(256 << 20));
        let mut session = disk.session(builder)?;
        let before = anonymous_kib(&disk.process)?;
        let vrings = session.start_all()?;
        grown.push(anonymous_kib(&disk.process)?.saturating_sub(before));
        drop(vrings);
    }
    // A bit for each entry: 4 KiB for the largest ring.
    let more = grown[1].saturating_sub(grown[0]);
    assert!(
        more < 2048,
        "{grown:?} KiB for {QUEUES} rings of 1024 and of 32768"
    );
    Ok(())
}

#[test]
fn f4_3_ring_of_32768_has_a_bounded_number_of_requests_in_flight_and_loses_none() -> Outcome {
    const REQUESTS: u16 = 5000;
    let fs = match HostFs::ext4(64 << 20) {
        Ok(fs) => fs,
        Err(error) => skip!("no file system of our own to freeze: {error}"),
    };
    let image = fs.path().join("disk.img");
    std::fs::File::create(&image)?.set_len(DISK_BYTES)?;
    let launch = launch()?.arg("--blk-file").arg(&image);
    let mut disk = Disk::of(launch, image)?;
    let builder = Session::builder()
        .queue_size(32768)
        .memory(MemoryLayout::single(256 << 20));
    let mut session = disk.session(builder)?;
    let vring = session.start_all()?.remove(0);
    let shape = RequestShape {
        data_segment_bytes: 128,
        ..RequestShape::default()
    };
    let config = BlkConfig {
        depth: REQUESTS,
        slot_bytes: SECTOR_BYTES,
        shape,
        timeout: PATIENCE,
    };
    let mut driver = BlkDriver::new(vring, config)?;
    let before = anonymous_kib(&disk.process)?;
    let frozen = fs.freeze()?;
    for at in 0..REQUESTS {
        let slot = driver.acquire()?;
        driver.data(slot).fill(0, SECTOR_BYTES, 0x77);
        driver.submit(slot, &BlkRequest::write(u64::from(at) % 2048, 512))?;
    }
    driver.publish()?;
    // It has taken what it takes when it answers nothing more.
    std::thread::sleep(Duration::from_millis(300));
    assert!(driver.poll()?.is_none(), "answered on a frozen file system");
    let held = anonymous_kib(&disk.process)?.saturating_sub(before);
    drop(frozen);
    for _ in 0..REQUESTS {
        let done = driver.wait()?.ok()?;
        driver.release(done.slot);
    }
    assert!(held < 16 << 10, "{held} KiB");
    assert_eq!(disk.content()?[..512], [0x77; 512]);
    Ok(())
}

#[test]
fn f6_3_config_written_beside_writeback_is_refused_and_the_connection_goes_on() -> Outcome {
    for (offset, bytes) in [
        (0, &[0xff; 8][..]),
        (31, &[0, 0]),
        (32, &[0, 0]),
        (33, &[0]),
        (0, &[0; 60]),
        (56, &[0]),
        (255, &[1]),
        (256, &[1]),
        (1000, &[0; 100]),
    ] {
        for asks in [true, false] {
            let mut disk = Disk::start(&[])?;
            let builder = Session::builder().need_reply(asks);
            let (mut session, mut driver) = disk.driver(builder, BlkConfig::default())?;
            let before = session.config(0, 256)?;
            let answer = session.set_config(offset, bytes);
            assert_eq!(answer.is_err(), asks, "{offset} {bytes:?}: {answer:?}");
            assert_eq!(session.config(0, 256)?, before, "{offset} {bytes:?}");
            driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
            // What may be written still can be.
            session.set_config(32, &[0])?;
            assert_eq!(session.config(32, 1)?, [0]);
            driver.flush()?.ok()?;
        }
    }
    Ok(())
}

#[test]
fn f7_2_legacy_driver_is_served() -> Outcome {
    let mut disk = Disk::start(&["--serial", "ringside"])?;
    // As OVMF and SeaBIOS drive a transitional device, and as Linux does.
    for without in [
        !0,
        feature::VERSION_1,
        feature::VERSION_1 | feature::EVENT_IDX | blk_feature::CONFIG_WCE,
    ] {
        for header in [
            HeaderShape::Whole,
            HeaderShape::WithData,
            HeaderShape::SplitAt(8),
        ] {
            let builder = Session::builder()
                .without_features(without & !feature::PROTOCOL_FEATURES)
                .queue_size(128);
            let mut session = disk.session(builder)?;
            assert_eq!(session.negotiated().features & feature::VERSION_1, 0);
            let vring = session.start_all()?.remove(0);
            let shape = RequestShape {
                header,
                status: StatusShape::Separate,
                ..RequestShape::default()
            };
            let config = BlkConfig {
                shape,
                ..BlkConfig::default()
            };
            let mut driver = BlkDriver::new(vring, config)?;
            driver.write(5, &[0xa5; 4 * SECTOR_BYTES])?.ok()?;
            let mut read = [0; 4 * SECTOR_BYTES];
            driver.read(5, &mut read)?.ok()?;
            assert_eq!(read, [0xa5; 4 * SECTOR_BYTES]);
            assert_eq!(driver.get_id()?[0], b'r');
            // Legacy commands that this disk has not: SCSI.
            let scsi = BlkRequest::raw(2, 0, 0, Direction::ToDevice);
            assert_eq!(driver.execute(&scsi)?.status, status::UNSUPP);
            // What a legacy driver writes to its configuration space is not the end of it.
            assert!(session.set_config(0, &[1; 8]).is_err());
            driver.read(5, &mut read)?.ok()?;
        }
    }
    assert_eq!(disk.content()?[5 * SECTOR_BYTES], 0xa5);
    Ok(())
}
