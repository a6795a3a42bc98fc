// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The test front-end against qemu-storage-daemon, which nobody here wrote: what fails here is a
//! fault of the front-end, before it is used to judge our own back-end.

#[path = "frontend_selftest/control.rs"]
mod control;
#[path = "frontend_selftest/daemon.rs"]
mod daemon;

use ringside_frontend::blk::{
    BlkConfig, BlkDriver, BlkRequest, HeaderShape, Range, RequestShape, SECTOR_BYTES, StatusShape,
    TableShape, blk_feature, kind, status,
};
use ringside_frontend::load::{
    RandomRead, Stop, Verify, check_content, check_pattern, fill_pattern, random_read,
    write_pattern,
};
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::{MemoryMessages, Session};
use ringside_frontend::{FrontendError, ids};
use vhost::vhost_user::VhostUserProtocolFeatures;

use daemon::{DISK_BYTES, PATIENCE, TestResult, connect, storage_daemon_or_skip};

/// Writes an area at depth 32 and reads it back.
fn write_and_verify(driver: &mut BlkDriver, seed: u64) -> TestResult {
    let plan = Verify {
        depth: usize::from(driver.config().depth),
        block_bytes: 8192,
        first_sector: 128,
        blocks: 128,
        seed,
    };
    write_pattern(driver, &plan)?;
    check_content(driver, &plan)?;
    let other = Verify {
        seed: !seed,
        ..plan
    };
    let stale = check_content(driver, &other);
    assert!(
        matches!(stale, Err(FrontendError::Mismatch { .. })),
        "the check must be able to fail: {stale:?}"
    );
    Ok(())
}

#[test]
fn content_at_depth_32_survives_every_negotiation() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    for (seed, event_idx, indirect, calls) in [
        (1, false, false, CallMode::Wanted),
        (2, false, true, CallMode::Never),
        (3, true, false, CallMode::Never),
        (4, true, true, CallMode::Wanted),
    ] {
        let builder = Session::builder()
            .event_idx(event_idx)
            .indirect(indirect)
            .calls(calls)
            .need_reply(seed % 2 == 0)
            .require(ids::feature::PROTOCOL_FEATURES);
        let table = if indirect {
            TableShape::Indirect
        } else {
            TableShape::Direct
        };
        let config = BlkConfig {
            shape: RequestShape {
                table,
                ..RequestShape::default()
            },
            ..BlkConfig::default()
        };
        let (session, mut driver) = connect(&mut process, builder, config)?;
        let agreed = session.negotiated().features;
        assert_eq!(agreed & ids::feature::EVENT_IDX != 0, event_idx);
        assert_eq!(agreed & ids::feature::INDIRECT_DESC != 0, indirect);
        write_and_verify(&mut driver, seed)?;
        // libvhost-user calls by itself at SET_VRING_CALL and, with EVENT_IDX, once after a start.
        let folded = driver.vring().call.take()?.unwrap_or_default();
        if calls == CallMode::Never {
            assert!(folded <= 2, "{folded} calls although polling, seed {seed}");
        }
    }
    Ok(())
}

#[test]
fn every_request_shape_works() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    let headers = [
        HeaderShape::Whole,
        HeaderShape::SplitAt(1),
        HeaderShape::SplitAt(15),
        HeaderShape::Bytewise,
        HeaderShape::WithData,
    ];
    // Not FirstDirect: libvhost-user looks for INDIRECT in a chain's first descriptor only, against
    // virtio 1.3 §2.7.5.3.2, takes the table for data and never completes the request.
    let tables = [TableShape::Direct, TableShape::Indirect];
    // Merged from the start, so that slots have room for all shapes.
    let merged = RequestShape {
        header: HeaderShape::WithData,
        status: StatusShape::WithData,
        ..RequestShape::default()
    };
    let config = BlkConfig {
        depth: 8,
        shape: merged,
        ..BlkConfig::default()
    };
    let (_session, mut driver) = connect(&mut process, Session::builder(), config)?;
    let mut seed = 100;
    for header in headers {
        for table in tables {
            for (status, data_segment_bytes) in
                [(StatusShape::WithData, 0), (StatusShape::Separate, 1024)]
            {
                seed += 1;
                driver.set_shape(RequestShape {
                    header,
                    status,
                    data_segment_bytes,
                    table,
                });
                write_and_verify(&mut driver, seed)?;
            }
        }
    }
    Ok(())
}

#[test]
fn buffers_straddle_adjacent_regions() -> TestResult {
    const BYTES: usize = 8192;
    let mut process = storage_daemon_or_skip!();
    for messages in [MemoryMessages::Table, MemoryMessages::Slots] {
        let layout = MemoryLayout::adjacent(4, 4 << 20).uva_base(0x7000_0000_0000);
        let builder = Session::builder()
            .memory(layout)
            .memory_messages(messages)
            .require_protocol(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
        let (_session, mut driver) = connect(&mut process, builder, BlkConfig::default())?;
        let memory = driver.memory().clone();
        for (sector, before) in [(0, 1), (64, 4096), (128, BYTES - 1)] {
            let gpa = memory.alloc_straddling(before, BYTES - before)?;
            let mut data = vec![0; BYTES];
            fill_pattern(9, sector, &mut data);
            memory.write(gpa, &data)?;
            let length = u32::try_from(BYTES)?;
            driver
                .execute(&BlkRequest::write(sector, length).at(gpa))?
                .ok()?;
            memory.write(gpa, &vec![0; BYTES])?;
            let read = driver.execute(&BlkRequest::read(sector, length).at(gpa))?;
            assert_eq!(read.ok()?.used_len, length + 1);
            check_pattern(9, sector, &memory.read_vec(gpa, BYTES)?)?;
        }
        let none_left = memory.alloc_straddling(1, 1);
        assert!(
            matches!(none_left, Err(FrontendError::NoBorder { .. })),
            "{none_left:?}"
        );
    }
    Ok(())
}

#[test]
fn regions_with_gaps_hold_rings_and_data_apart() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    let layout = MemoryLayout::spread(3, 2 << 20, 1 << 30).reversed();
    let config = BlkConfig {
        depth: 16,
        ..BlkConfig::default()
    };
    // 16 slots of 64 KiB do not all fit beside the ring and its indirect tables.
    let builder = Session::builder().memory(layout).indirect_len(256);
    let (_session, mut driver) = connect(&mut process, builder, config)?;
    let gpas = (0..16).map(|_| driver.acquire().map(|slot| (slot, driver.data_gpa(slot))));
    let slots = gpas.collect::<Result<Vec<_>, _>>()?;
    let region = |gpa: u64| {
        driver
            .memory()
            .regions()
            .iter()
            .position(|r| (r.gpa()..r.gpa() + r.len_bytes() as u64).contains(&gpa))
    };
    let used: std::collections::BTreeSet<_> = slots.iter().map(|(_, gpa)| region(*gpa)).collect();
    let ring = region(driver.vring().ring.layout().desc_gpa);
    assert!(used.iter().any(|r| *r != ring), "{used:?} {ring:?}");
    for (slot, _) in slots {
        driver.release(slot);
    }
    write_and_verify(&mut driver, 5)
}

#[test]
fn two_queues_serve_two_threads() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    let builder = Session::builder().queues(2).require(blk_feature::MQ);
    let mut session = builder.from_stream(process.connect(PATIENCE)?)?;
    assert_eq!(session.negotiated().max_queues, 2);
    let vrings = session.start_all()?;
    let failures: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = vrings
            .into_iter()
            .map(|vring| {
                scope.spawn(move || {
                    let plan = Verify {
                        depth: 32,
                        block_bytes: 4096,
                        first_sector: vring.index as u64 * 32768,
                        blocks: 2048,
                        seed: vring.index as u64,
                    };
                    let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
                    write_pattern(&mut driver, &plan)?;
                    check_content(&mut driver, &plan)
                })
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| match thread.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("a driver thread panicked".to_owned()),
            })
            .collect()
    });
    assert_eq!(failures, Vec::<String>::new());
    Ok(())
}

#[test]
fn index_wraps_after_70_000_requests() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    for (event_idx, calls) in [
        (true, CallMode::Wanted),
        (true, CallMode::Never),
        (false, CallMode::Never),
    ] {
        let builder = Session::builder().event_idx(event_idx).calls(calls);
        let (_session, mut driver) = connect(&mut process, builder, BlkConfig::default())?;
        let plan = RandomRead {
            depth: 32,
            block_bytes: 512,
            span_bytes: DISK_BYTES,
            stop: Stop::Requests(70_001),
            seed: 1,
        };
        let report = random_read(&mut driver, &plan)?;
        assert_eq!(report.completed, 70_001);
        assert_eq!(u64::from(driver.vring().ring.used_idx()), 70_001 - 65_536);
        assert!(report.kicks > 0 && report.iops() > 0.0);
    }
    Ok(())
}

#[test]
fn ring_of_1024_descriptors_works_from_index_65535() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    let builder = Session::builder().queue_size(1024).indirect(false);
    let mut session = builder.from_stream(process.connect(PATIENCE)?)?;
    let mut vring = session.create_vring(0)?;
    vring.ring.reset(u16::MAX);
    session.start(&vring, u16::MAX)?;
    let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
    write_and_verify(&mut driver, 6)
}

#[test]
fn stop_and_restart_lose_nothing() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    let (mut session, mut driver) =
        connect(&mut process, Session::builder(), BlkConfig::default())?;
    let mut data = vec![0; 4096];
    for round in 0..100_u64 {
        // Published while the vring is stopped. (With requests in flight the daemon answers
        // GET_VRING_BASE at once and breaks down on their completion.)
        let base = session.stop(0)?;
        assert_eq!(driver.vring().ring.used_idx(), base, "round {round}");
        for at in 0..16 {
            let sector = (round * 16 + at) * 8;
            let slot = driver.acquire()?;
            fill_pattern(7, sector, &mut data);
            driver.data(slot).write(0, &data);
            driver.submit(slot, &BlkRequest::write(sector, 4096))?;
        }
        driver.vring_mut().ring.publish();
        session.start(driver.vring(), base)?;
        driver.vring_mut().kick()?;
        while driver.in_flight() > 0 {
            let slot = driver.wait()?.ok()?.slot;
            driver.release(slot);
        }
    }
    let plan = Verify {
        depth: 32,
        block_bytes: 4096,
        first_sector: 0,
        blocks: 1600,
        seed: 7,
    };
    check_content(&mut driver, &plan)?;
    Ok(())
}

#[test]
fn other_requests_and_configuration_space_work() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    let builder = Session::builder()
        .require(blk_feature::FLUSH | blk_feature::DISCARD | blk_feature::WRITE_ZEROES)
        .require_protocol(VhostUserProtocolFeatures::CONFIG);
    let (mut session, mut driver) = connect(&mut process, builder, BlkConfig::default())?;
    let config = session.config(0, 60)?;
    let sectors = BlkDriver::capacity(&config).ok_or("no capacity")?;
    assert_eq!(sectors, DISK_BYTES / SECTOR_BYTES as u64);
    assert_eq!(&driver.get_id()?[..14], b"vhost_user_blk");

    let mut data = vec![0; 8192];
    fill_pattern(8, 16, &mut data);
    driver.write(16, &data)?.ok()?;
    driver.flush()?.ok()?;
    let range = Range {
        sector: 16,
        sectors: 8,
        flags: 0,
    };
    driver.run_ranges(kind::WRITE_ZEROES, &[range])?.ok()?;
    let mut back = vec![1; 8192];
    driver.read(16, &mut back)?.ok()?;
    assert_eq!(back[..4096], [0; 4096]);
    assert_eq!(back[4096..], data[4096..]);
    let range = Range {
        sector: 24,
        ..range
    };
    driver.run_ranges(kind::DISCARD, &[range])?.ok()?;
    driver.read(16, &mut back)?.ok()?;
    assert_eq!(back, [0; 8192]);

    let unknown = BlkRequest {
        kind: 0x77,
        ..BlkRequest::flush()
    };
    assert_eq!(driver.execute(&unknown)?.status, status::UNSUPP);
    let beyond = driver.read(sectors, &mut [0; 512])?;
    assert_eq!(beyond.status, status::IOERR);
    let refused = beyond.ok();
    assert!(
        matches!(refused, Err(FrontendError::Status { .. })),
        "{refused:?}"
    );
    Ok(())
}
