// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Group E: block requests, well and badly formed, against the running `ringside-blk`.
//!
//! One test per case, named after it. E10, the length in the used element, is checked in each of
//! them to the byte, and has a table of its own.

use std::time::{Duration, Instant};

use ringside_frontend::blk::{
    BlkConfig, BlkRequest, ID_BYTES, Range, SECTOR_BYTES, blk_feature, kind, status,
};
use ringside_frontend::load::{Rng, check_pattern, fill_pattern};
use ringside_frontend::memory::{FIRST_GPA, MemoryLayout};
use ringside_frontend::ring::Descriptor;
use ringside_frontend::session::Session;
use ringside_tests::hostile::support_chains::{
    Answer, Bench, DISK_BYTES, DISK_SECTORS, Disk, IMAGE_SEED, MAX_TABLE, MOST_THREADS, Outcome,
    PATIENCE, SECTOR, TABLES, TRACE, Table, image_pattern, launch_traced, linked, readable,
    writable,
};
use ringside_tests::skip;
use serde_json::json;

/// Request types this device does not know: SCSI, the lifetime, secure erase, zones, and numbers
/// that nobody has given a meaning.
const UNKNOWN_KINDS: [u32; 16] = [
    2,
    3,
    6,
    7,
    9,
    10,
    12,
    14,
    15,
    16,
    18,
    20,
    22,
    24,
    26,
    0x7fff_ffff,
];

/// What the serial number is unless told otherwise.
/// None was asked for.
const SERIAL: &[u8; 20] = &[0; 20];

/// Puts data of the request's ranges at the data's place.
fn put_ranges(bench: &Bench, ranges: &[Range]) -> Outcome {
    let bytes: Vec<u8> = ranges.iter().flat_map(|range| range.to_bytes()).collect();
    Ok(bench.memory.write(bench.at.data, &bytes)?)
}

#[test]
fn e1_request_without_header_or_status_is_refused_or_dropped() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let refused = Answer::refused(at.status);
    for place in TABLES {
        for kind in [kind::OUT, kind::IN, kind::FLUSH, kind::GET_ID] {
            bench.header(kind, 3)?;
            // The header is too short, with its status byte in reach.
            for len in 0..16 {
                let chain = linked(&[readable(at.header, len), writable(at.status, 1)]);
                bench.try_chain(place, &chain, &refused)?;
            }
            let chain = linked(&[
                readable(at.header, 15),
                writable(at.data, SECTOR),
                writable(at.status, 1),
            ]);
            bench.try_chain(place, &chain, &refused)?;
            // A header the device could write is none.
            let chain = linked(&[writable(at.header, 16), writable(at.status, 1)]);
            bench.try_chain(place, &chain, &refused)?;
            let chain = [writable(at.header, 16)];
            bench.try_chain(place, &chain, &Answer::refused(at.header + 15))?;
            // No status: missing, read-only, empty, not mapped.
            for status in [
                readable(at.status, 1),
                writable(at.status, 0),
                writable(at.hole, 1),
                writable(at.end, 1),
            ] {
                let chain = linked(&[readable(at.header, 16), readable(at.data, SECTOR), status]);
                bench.try_chain(place, &chain, &Answer::dropped())?;
                let chain = linked(&[readable(at.header, 16), status]);
                bench.try_chain(place, &chain, &Answer::dropped())?;
            }
        }
        // An empty status leaves its part to the last byte of the data, of which 511 remain.
        bench.header(kind::IN, 3)?;
        let chain = linked(&[
            readable(at.header, 16),
            writable(at.data, SECTOR),
            writable(at.status, 0),
        ]);
        bench.try_chain(place, &chain, &Answer::refused(at.data + 511))?;
    }
    Ok(())
}

#[test]
fn e2_unknown_request_types_are_unsupported() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let unsupported = Answer::status(at.status, status::UNSUPP);
    for place in TABLES {
        for kind in UNKNOWN_KINDS {
            // With the legacy barrier bit as well.
            for kind in [kind, kind | 0x8000_0000] {
                bench.header(kind, 3)?;
                bench.fresh_data(SECTOR_BYTES)?;
                for middle in [
                    readable(at.data, 0),
                    readable(at.data, SECTOR),
                    readable(at.data, 16),
                    writable(at.data, SECTOR),
                    writable(at.data, 20),
                ] {
                    let chain = linked(&[readable(at.header, 16), middle, writable(at.status, 1)]);
                    bench.try_chain(place, &chain, &unsupported)?;
                }
            }
        }
    }
    // Known ones whose feature was not acknowledged.
    let without = blk_feature::DISCARD
        | blk_feature::WRITE_ZEROES
        | blk_feature::FLUSH
        | blk_feature::CONFIG_WCE;
    let builder = Session::builder().without_features(without);
    let mut bench = Bench::with(&[], builder)?;
    put_ranges(&bench, &[one_range(3, 1)])?;
    for kind in [kind::DISCARD, kind::WRITE_ZEROES, kind::FLUSH, 5] {
        bench.header(kind, 0)?;
        let middle = readable(at.data, if kind < 8 { 0 } else { 16 });
        let chain = linked(&[readable(at.header, 16), middle, writable(at.status, 1)]);
        bench.try_chain(Table::Direct, &chain, &unsupported)?;
    }
    Ok(())
}

fn one_range(sector: u64, sectors: u32) -> Range {
    Range {
        sector,
        sectors,
        flags: 0,
    }
}

#[test]
fn e3_request_beyond_the_disk_or_of_odd_length_is_an_error() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let refused = Answer::refused(at.status);
    let beyond = [
        (DISK_SECTORS, 512),
        (DISK_SECTORS - 1, 1024),
        (DISK_SECTORS + 1, 512),
        (u64::MAX, 512),
        (u64::MAX, 1024),
        (u64::MAX - 1, 512),
        (u64::MAX / 512, 512),
        // In bytes, these wrap round to 0, to the last sector and to 512.
        (1 << 55, 512),
        ((1 << 55) + DISK_SECTORS - 1, 512),
        ((1 << 55) + 1, 512),
        (1 << 63, 512),
        (i64::MAX as u64 / 512, 512),
    ];
    let odd = [1, 2, 15, 16, 20, 511, 513, 1023, 1025, 65535].map(|len| (3, len));
    for place in TABLES {
        for (sector, len) in beyond
            .into_iter()
            .chain(odd)
            .chain([(3, 0), (DISK_SECTORS, 0)])
        {
            for (kind, data) in [
                (kind::IN, writable(at.data, len)),
                (kind::OUT, readable(at.data, len)),
            ] {
                bench.header(kind, sector)?;
                let chain = linked(&[readable(at.header, 16), data, writable(at.status, 1)]);
                let tried = bench.try_chain(place, &chain, &refused);
                tried.map_err(|error| format!("sector {sector:#x} + {len}: {error}"))?;
            }
        }
    }
    // The last sector itself is served.
    let last = DISK_SECTORS - 1;
    bench.header(kind::IN, last)?;
    let data = vec![(at.data, bench.sectors(last, SECTOR_BYTES))];
    let chain = linked(&[
        readable(at.header, 16),
        writable(at.data, SECTOR),
        writable(at.status, 1),
    ]);
    bench.try_chain(Table::Direct, &chain, &Answer::read(at.status, data))
}

#[test]
fn e4_data_of_the_other_direction_is_an_error() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let refused = Answer::refused(at.status);
    bench.fresh_data(SECTOR_BYTES)?;
    let both = linked(&[
        readable(at.header, 16),
        readable(at.data, SECTOR),
        writable(at.data + 4096, SECTOR),
        writable(at.status, 1),
    ]);
    let to_device = linked(&[
        readable(at.header, 16),
        readable(at.data, SECTOR),
        writable(at.status, 1),
    ]);
    let from_device = linked(&[
        readable(at.header, 16),
        writable(at.data, SECTOR),
        writable(at.status, 1),
    ]);
    let one_byte = linked(&[
        readable(at.header, 16),
        readable(at.data, SECTOR),
        writable(at.status, 2),
    ]);
    for place in TABLES {
        for (kind, chain) in [
            (kind::IN, &both),
            (kind::IN, &to_device),
            (kind::OUT, &both),
            (kind::OUT, &from_device),
        ] {
            bench.header(kind, 3)?;
            bench.try_chain(place, chain, &refused)?;
        }
        bench.header(kind::OUT, 3)?;
        bench.try_chain(place, &one_byte, &Answer::refused(at.status + 1))?;
        for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
            put_ranges(&bench, &[one_range(3, 1)])?;
            bench.header(kind, 0)?;
            let chain = linked(&[
                readable(at.header, 16),
                readable(at.data, 16),
                writable(at.data + 4096, 1),
                writable(at.status, 1),
            ]);
            bench.try_chain(place, &chain, &refused)?;
        }
        bench.header(kind::GET_ID, 0)?;
        bench.try_chain(place, &both, &refused)?;
    }
    Ok(())
}

#[test]
fn e5_read_only_disk_refuses_to_write_and_answers_all_else() -> Outcome {
    let mut disk = Disk::start(&["--read-only"])?;
    let (session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let offered = session.negotiated().offered;
    assert_ne!(offered & blk_feature::RO, 0);
    let image = disk.content()?;
    let mut sector = [0; SECTOR_BYTES];
    for round in 0..4 {
        let write = driver.write(3, &[round; SECTOR_BYTES])?;
        assert_eq!((write.status, write.used_len), (status::IOERR, 1));
        for (kind, bit) in [
            (kind::DISCARD, blk_feature::DISCARD),
            (kind::WRITE_ZEROES, blk_feature::WRITE_ZEROES),
        ] {
            assert_eq!(
                offered & bit,
                0,
                "type {kind} is offered on a read-only disk"
            );
            let clear = driver.run_ranges(kind, &[one_range(3, 1)])?;
            assert_eq!((clear.status, clear.used_len), (status::UNSUPP, 1));
        }
        // Firmware flushes read-only disks too.
        assert_eq!(driver.flush()?.ok()?.used_len, 1);
        assert_eq!(driver.get_id()?, *SERIAL);
        assert_eq!(driver.read(3, &mut sector)?.ok()?.used_len, SECTOR + 1);
        check_pattern(IMAGE_SEED, 3, &sector)?;
    }
    assert!(disk.content()? == image, "the image changed");
    // A driver that does not acknowledge RO changes nothing.
    let builder = Session::builder().without_features(blk_feature::RO);
    drop((session, driver));
    let (_session, mut driver) = disk.driver(builder, BlkConfig::default())?;
    let write = driver.write(3, &[1; SECTOR_BYTES])?;
    assert_eq!((write.status, write.used_len), (status::IOERR, 1));
    assert!(disk.content()? == image, "the image changed");
    Ok(())
}

#[test]
fn e6_get_id_writes_20_bytes_or_none() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    bench.header(kind::GET_ID, 0)?;
    for place in TABLES {
        for len in [0, 1, 19] {
            let chain = linked(&[
                readable(at.header, 16),
                writable(at.data, len),
                writable(at.status, 1),
            ]);
            bench.try_chain(place, &chain, &Answer::refused(at.status))?;
        }
        let answer = Answer::read(at.status, vec![(at.data, SERIAL.to_vec())]);
        for len in [20, 21, 512, 4096] {
            bench.memory.write(at.data, &[0xa5; 4096])?;
            let chain = linked(&[
                readable(at.header, 16),
                writable(at.data, len),
                writable(at.status, 1),
            ]);
            bench.try_chain(place, &chain, &answer)?;
        }
        // In 20 pieces, with the status as the 21st.
        let mut parts = vec![readable(at.header, 16)];
        parts.extend((0..u64::from(ID_BYTES)).map(|byte| writable(at.data + 2 * byte, 1)));
        parts.push(writable(at.status, 1));
        let data = (at.data..)
            .step_by(2)
            .zip(SERIAL.iter().map(|byte| vec![*byte]));
        let answer = Answer::read(at.status, data.collect());
        bench.try_chain(place, &linked(&parts), &answer)?;
    }
    let serial = "12345678901234567890";
    let mut disk = Disk::start(&["--serial", serial])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    assert_eq!(driver.get_id()?, serial.as_bytes());
    Ok(())
}

#[test]
fn e7_flush_with_sector_or_data_is_done() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let done = Answer::status(at.status, status::OK);
    for place in TABLES {
        for kind in [kind::FLUSH, 5, kind::FLUSH | 0x8000_0000] {
            for sector in [0, 1, DISK_SECTORS, u64::MAX] {
                bench.header(kind, sector)?;
                for middle in [
                    readable(at.data, 0),
                    readable(at.data, SECTOR),
                    readable(at.data, 3),
                    writable(at.data, SECTOR),
                ] {
                    let chain = linked(&[readable(at.header, 16), middle, writable(at.status, 1)]);
                    bench.try_chain(place, &chain, &done)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn e7_flush_that_fails_on_the_host_fails_alone_and_for_good() -> Outcome {
    // The second of each blocking thread.
    let inject = "inject=fdatasync:error=EIO:when=2";
    let Some(launch) = launch_traced(&["-e", "trace=fdatasync", "-e", inject])? else {
        skip!("strace cannot trace here");
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    driver.write(3, &[7; SECTOR_BYTES])?.ok()?;
    driver.flush()?.ok()?;
    assert_eq!(disk.info("lost_writes")?, json!(false));
    driver.write(4, &[8; SECTOR_BYTES])?.ok()?;
    let mut failed = driver.flush()?;
    for _ in 0..MOST_THREADS {
        if failed.status != status::OK {
            break;
        }
        assert_eq!(disk.info("lost_writes")?, json!(false));
        failed = driver.flush()?;
    }
    assert_eq!((failed.status, failed.used_len), (status::IOERR, 1));
    assert_eq!(disk.info("lost_writes")?, json!(true));
    // The kernel would say yes now, having dropped what it could not write.
    let failed = driver.flush()?;
    assert_eq!((failed.status, failed.used_len), (status::IOERR, 1));
    // Nobody else has lost anything.
    let mut sector = [0; SECTOR_BYTES];
    for (at, value) in [(3, 7), (4, 8)] {
        driver.read(at, &mut sector)?.ok()?;
        assert_eq!(sector, [value; SECTOR_BYTES]);
    }
    driver.write(5, &[9; SECTOR_BYTES])?.ok()?;
    assert_eq!(driver.get_id()?, *SERIAL);
    Ok(())
}

/// One row of E8.
struct Clear {
    kind: u32,
    ranges: Vec<Range>,
    /// Bytes of the data, if not those of the ranges.
    len: Option<u32>,
    status: u8,
}

fn clear(kind: u32, ranges: &[Range], status: u8) -> Clear {
    Clear {
        kind,
        ranges: ranges.to_vec(),
        len: None,
        status,
    }
}

fn bad_clears() -> Vec<Clear> {
    let good = one_range(8, 8);
    let mut rows = Vec::new();
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        for len in [0, 1, 8, 15, 17, 31, 33] {
            rows.push(Clear {
                kind,
                ranges: vec![good; 3],
                len: Some(len),
                status: status::IOERR,
            });
        }
        let bad = [
            one_range(8, 0),
            one_range(8, u32::MAX),
            one_range(DISK_SECTORS, 1),
            one_range(DISK_SECTORS - 1, 2),
            one_range(u64::MAX, 1),
            one_range(u64::MAX - 7, 8),
            one_range(1 << 55, 8),
            one_range(1 << 63, 1),
        ];
        for range in bad {
            rows.push(clear(kind, &[range], status::IOERR));
            // A good range before the bad one must not be carried out, nor one behind it.
            rows.push(clear(kind, &[good, range], status::IOERR));
            rows.push(clear(kind, &[range, good], status::IOERR));
        }
        rows.push(clear(kind, &[good; 257], status::UNSUPP));
        for flags in [2, 4, 0x8000_0000, u32::MAX] {
            let flagged = Range { flags, ..good };
            rows.push(clear(kind, &[flagged], status::UNSUPP));
            rows.push(clear(kind, &[good, flagged], status::UNSUPP));
        }
    }
    let unmap = Range { flags: 1, ..good };
    rows.push(clear(kind::DISCARD, &[unmap], status::UNSUPP));
    rows.push(clear(kind::DISCARD, &[good, unmap], status::UNSUPP));
    rows
}

#[test]
fn e8_bad_discard_and_write_zeroes_do_nothing() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let rows = bad_clears();
    for place in TABLES {
        for row in &rows {
            put_ranges(&bench, &row.ranges)?;
            bench.header(row.kind, 0)?;
            let bytes = u32::try_from(16 * row.ranges.len())?;
            let chain = linked(&[
                readable(at.header, 16),
                readable(at.data, row.len.unwrap_or(bytes)),
                writable(at.status, 1),
            ]);
            let answer = Answer::status(at.status, row.status);
            let tried = bench.try_chain(place, &chain, &answer);
            tried.map_err(|e| format!("type {} {:?}: {e}", row.kind, row.ranges.first()))?;
        }
    }
    // As many ranges as are announced, and data in the oddest pieces.
    let ranges: Vec<Range> = (0..256).map(|at| one_range(2 * at, 1)).collect();
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        put_ranges(&bench, &ranges)?;
        bench.header(kind, 0)?;
        for range in &ranges {
            bench.note_written(range.sector, &[0; SECTOR_BYTES]);
        }
        let mut parts = vec![readable(at.header, 16)];
        let total = 16 * ranges.len() as u64;
        parts.extend((0..total / 64).map(|part| readable(at.data + 64 * part, 64)));
        parts.push(writable(at.status, 1));
        // A discard may do less than it is asked to, so only zeroes are checked.
        if kind == kind::WRITE_ZEROES {
            let done = Answer::status(at.status, status::OK);
            bench.try_chain(Table::Indirect, &linked(&parts), &done)?;
        } else {
            bench.lay(Table::Indirect, &linked(&parts))?;
            let done = Answer::status(at.status, status::OK);
            bench.exchange(&[(ringside_tests::hostile::support_chains::INDIRECT_HEAD, done)])?;
        }
    }
    Ok(())
}

#[test]
fn e9_requests_of_four_gib_are_bounded() -> Outcome {
    // 65535 descriptors in one table, for one head and for all of them at once.
    let disk = Disk::start(&[])?;
    let mut bench = Bench::on(disk, Session::builder(), 8 << 20)?;
    let at = bench.at;
    let idle = bench.disk.process.sample()?;
    bench.header(kind::IN, 0)?;
    let start = at.border + (1 << 20);
    let mut parts = vec![readable(at.header, 16)];
    parts.resize(65534, writable(start, 65536));
    parts.push(writable(at.status, 1));
    let table_gpa = at.border + (6 << 20);
    ringside_frontend::ring::write_table(&bench.memory, table_gpa, &linked(&parts))?;
    let entry = ringside_tests::hostile::support_chains::table(table_gpa, 65535 * Descriptor::LEN);
    for head in 0..256 {
        bench.vring.ring.set_desc(head, entry);
    }
    let all: Vec<_> = (0..256).map(|head| (head, Answer::dropped())).collect();
    let began = Instant::now();
    bench.exchange(&all)?;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );

    // The longest table there may be, for all heads, and more than the disk holds.
    let mut parts = vec![readable(at.header, 16)];
    parts.resize(usize::from(MAX_TABLE) - 1, writable(start, 4 << 20));
    parts.push(writable(at.status, 1));
    ringside_frontend::ring::write_table(&bench.memory, table_gpa, &linked(&parts))?;
    let len = u32::from(MAX_TABLE) * Descriptor::LEN;
    for head in 0..256 {
        let entry = ringside_tests::hostile::support_chains::table(table_gpa, len);
        bench.vring.ring.set_desc(head, entry);
    }
    let refused = Answer::refused(at.status);
    let all: Vec<_> = (0..256).map(|head| (head, refused.clone())).collect();
    for _ in 0..4 {
        bench.exchange(&all)?;
    }
    let busy = bench.disk.process.sample()?;
    assert!(
        busy.rss_kib < idle.rss_kib + (16 << 10),
        "{idle:?} {busy:?}"
    );
    bench.prove_alive(3)
}

#[test]
fn e9_long_requests_are_served_in_bounded_memory() -> Outcome {
    const DATA: u32 = 16 << 20;
    let disk_bytes = 32 << 20;
    for args in [&[][..], &["--cache", "none"], &["--aio", "threads"]] {
        let mut disk = Disk::start_with(&image_pattern(disk_bytes), args)?;
        let config = BlkConfig {
            depth: 4,
            slot_bytes: DATA as usize,
            ..BlkConfig::default()
        };
        let builder = Session::builder().memory(MemoryLayout::single(96 << 20));
        let (_session, mut driver) = disk.driver(builder, config)?;
        let idle = disk.process.sample()?;
        let slots = (0..4)
            .map(|_| driver.acquire())
            .collect::<Result<Vec<_>, _>>()?;
        for (slot, sector) in slots.iter().zip((0..).step_by(8)) {
            driver.submit(*slot, &BlkRequest::read(sector, DATA))?;
        }
        driver.publish()?;
        let mut data = vec![0; DATA as usize];
        for _ in &slots {
            let done = driver.wait()?.ok()?;
            assert_eq!(done.used_len, DATA + 1);
            driver.data(done.slot).read(0, &mut data);
            check_pattern(IMAGE_SEED, done.request.sector, &data)?;
        }
        let busy = disk.process.sample()?;
        // Guest memory itself counts once it is touched.
        let guest_kib = 4 * u64::from(DATA >> 10) + (1 << 10);
        let most = idle.rss_kib + guest_kib + (16 << 10);
        assert!(busy.rss_kib < most, "{args:?}: {idle:?} {busy:?}");
    }
    Ok(())
}

#[test]
fn e10_used_length_is_what_the_device_wrote() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let slot = driver.acquire()?;
    let beyond = DISK_SECTORS;
    let rows = [
        (BlkRequest::read(0, 512), status::OK, 513),
        (BlkRequest::read(0, 65536), status::OK, 65537),
        (BlkRequest::read(beyond, 512), status::IOERR, 1),
        (BlkRequest::read(0, 511), status::IOERR, 1),
        (BlkRequest::read(0, 0), status::IOERR, 1),
        (BlkRequest::write(0, 512), status::OK, 1),
        (BlkRequest::write(beyond, 512), status::IOERR, 1),
        (BlkRequest::flush(), status::OK, 1),
        (BlkRequest::get_id(), status::OK, 21),
        (BlkRequest::ranges(kind::DISCARD, 1), status::OK, 1),
        (BlkRequest::ranges(kind::WRITE_ZEROES, 1), status::OK, 1),
        (BlkRequest::ranges(kind::DISCARD, 0), status::IOERR, 1),
        (BlkRequest::ranges(kind::SECURE_ERASE, 1), status::UNSUPP, 1),
    ];
    for (request, status, used_len) in rows {
        driver.fill_ranges(slot, &[one_range(64, 8)]);
        let done = driver.run(slot, &request)?;
        assert_eq!(
            (done.status, done.used_len),
            (status, used_len),
            "{request:?}"
        );
    }
    Ok(())
}

#[test]
fn e11_read_past_a_shrunk_end_is_an_error_and_leaks_nothing() -> Outcome {
    for args in [
        &[][..],
        &["--aio", "threads"],
        &["--cache", "none"],
        &["--cache", "none", "--aio", "threads"],
        &["--cache", "writethrough"],
    ] {
        let mut disk = Disk::start(args)?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let file = std::fs::OpenOptions::new().write(true).open(disk.image())?;
        file.set_len(DISK_BYTES / 2)?;
        let middle = DISK_SECTORS / 2;
        let slot = driver.acquire()?;
        for (sector, len, there) in [
            (middle - 8, 8192_u32, 4096),
            (middle, 4096, 0),
            (middle - 16, 8192, 8192),
            (DISK_SECTORS - 8, 4096, 0),
        ] {
            driver.data(slot).fill(0, 65536, 0x5a);
            let done = driver.run(slot, &BlkRequest::read(sector, len))?;
            let mut data = vec![0; 65536];
            driver.data(slot).read(0, &mut data);
            let (read, rest) = data.split_at(usize::try_from(len)?);
            if there == len {
                assert_eq!(
                    (done.status, done.used_len),
                    (status::OK, len + 1),
                    "{args:?}"
                );
                check_pattern(IMAGE_SEED, sector, read)?;
            } else {
                assert_eq!((done.status, done.used_len), (status::IOERR, 1), "{args:?}");
            }
            // Each byte is the disk's, or nothing, or what was there: none is the host's.
            let mut disk_bytes = vec![0; read.len()];
            fill_pattern(IMAGE_SEED, sector, &mut disk_bytes);
            let foreign = read
                .iter()
                .zip(&disk_bytes)
                .position(|(byte, disk)| ![*disk, 0, 0x5a].contains(byte));
            assert_eq!(foreign, None, "{args:?}: sector {sector}");
            assert!(
                rest.iter().all(|byte| *byte == 0x5a),
                "{args:?}: behind the buffer"
            );
        }
        driver.write(0, &[1; SECTOR_BYTES])?.ok()?;
    }
    Ok(())
}

#[test]
fn e12_overlapping_writes_leave_whole_sectors_of_one_of_them() -> Outcome {
    const SECTORS: u64 = 64;
    const LEN: u32 = 16 << 10;
    for args in [&[][..], &["--cache", "none"], &["--aio", "threads"]] {
        let mut disk = Disk::start(args)?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let mut rng = Rng::new(12);
        let mut data = vec![0; LEN as usize];
        let mut sector_data = [0; SECTOR_BYTES];
        for round in 0..30_u64 {
            let mut writes = Vec::new();
            for writer in 0..32_u64 {
                let slot = driver.acquire()?;
                let sector = rng.below(SECTORS - u64::from(LEN / SECTOR));
                let seed = 1000 + round * 32 + writer;
                fill_pattern(seed, sector, &mut data);
                driver.data(slot).write(0, &data);
                driver.submit(slot, &BlkRequest::write(sector, LEN))?;
                writes.push((seed, sector));
            }
            driver.publish()?;
            while driver.in_flight() > 0 {
                let slot = driver.wait()?.ok()?.slot;
                driver.release(slot);
            }
            driver.flush()?.ok()?;
            let found = disk.content()?;
            for (sector, found) in (0..SECTORS).zip(found.chunks(SECTOR_BYTES)) {
                let covers =
                    |start: u64| (start..start + u64::from(LEN / SECTOR)).contains(&sector);
                let mut of = writes.iter().filter(|(_, start)| covers(*start)).peekable();
                let untouched = of.peek().is_none();
                let one = of.any(|(seed, _)| {
                    fill_pattern(*seed, sector, &mut sector_data);
                    sector_data == found
                });
                assert!(one || untouched, "{args:?}: sector {sector} is torn");
            }
        }
    }
    Ok(())
}

#[test]
fn e12_flush_completes_with_the_sync_that_began_after_it() -> Outcome {
    // Each sync takes 600 ms.
    let inject = "inject=fdatasync:delay_enter=600000";
    let Some(launch) = launch_traced(&["-e", "trace=fdatasync", "-e", inject])? else {
        skip!("strace cannot trace here");
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let syncs = |disk: &Disk| -> Outcome<usize> {
        let trace = std::fs::read_to_string(disk.process.path(TRACE))?;
        Ok(trace.matches("fdatasync(").count())
    };
    driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
    assert_eq!(syncs(&disk)?, 0);
    let (flush, other) = (driver.acquire()?, driver.acquire()?);
    let began = Instant::now();
    driver.submit(flush, &BlkRequest::flush())?;
    driver.publish()?;
    driver.submit(other, &BlkRequest::write(4, SECTOR))?;
    driver.publish()?;
    // The write does not wait for the flush before it.
    let first = driver.wait()?.ok()?;
    assert_eq!(first.slot, other);
    assert!(
        began.elapsed() < Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(driver.wait()?.ok()?.slot, flush);
    assert!(
        began.elapsed() >= Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(syncs(&disk)?, 1);
    // A flush that comes while another one is under way needs a sync of its own.
    driver.submit(flush, &BlkRequest::flush())?;
    driver.publish()?;
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    driver.submit(other, &BlkRequest::flush())?;
    driver.publish()?;
    while driver.wait()?.ok()?.slot != other {}
    assert!(
        began.elapsed() >= Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(syncs(&disk)?, 3);
    Ok(())
}

#[test]
fn e13_write_cache_toggled_under_load_loses_nothing() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let builder = Session::builder().require(blk_feature::CONFIG_WCE | blk_feature::FLUSH);
    let (mut session, mut driver) = disk.driver(builder, BlkConfig::default())?;
    let blocks = DISK_SECTORS / 8;
    let mut latest = vec![IMAGE_SEED; usize::try_from(blocks)?];
    let mut rng = Rng::new(13);
    let mut data = [0; 4096];
    for round in 0..200_u64 {
        let on = round % 2 == 1;
        let first = rng.below(blocks);
        for at in 0..16 {
            let slot = driver.acquire()?;
            let block = (first + at) % blocks;
            let seed = 5000 + round;
            fill_pattern(seed, block * 8, &mut data);
            latest[usize::try_from(block)?] = seed;
            driver.data(slot).write(0, &data);
            driver.submit(slot, &BlkRequest::write(block * 8, 4096))?;
        }
        driver.publish()?;
        session.set_config(32, &[u8::from(on)])?;
        assert_eq!(session.config(32, 1)?, [u8::from(on)]);
        assert_eq!(disk.info("write_cache")?, json!(on));
        while driver.in_flight() > 0 {
            let slot = driver.wait()?.ok()?.slot;
            driver.release(slot);
        }
        if round % 50 == 0 {
            driver.flush()?.ok()?;
        }
    }
    for (sector, seed) in (0..).step_by(8).zip(&latest) {
        driver.read(sector, &mut data)?.ok()?;
        check_pattern(*seed, sector, &data)?;
    }
    Ok(())
}

#[test]
fn e13_write_started_with_the_cache_off_is_stable_when_answered() -> Outcome {
    let Some(launch) = launch_traced(&["-e", "trace=pwritev2,fdatasync"])? else {
        skip!("strace cannot trace here");
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
    let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let stable_writes = |disk: &Disk| -> Outcome<usize> {
        let trace = std::fs::read_to_string(disk.process.path(TRACE))?;
        Ok(trace.matches("RWF_DSYNC").count())
    };
    driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
    assert_eq!(stable_writes(&disk)?, 0);
    session.set_config(32, &[0])?;
    driver.write(3, &[2; SECTOR_BYTES])?.ok()?;
    driver.write(4, &[2; SECTOR_BYTES])?.ok()?;
    assert_eq!(stable_writes(&disk)?, 2);
    // Zeroes are writes too: followed by a sync.
    driver
        .run_ranges(kind::WRITE_ZEROES, &[one_range(8, 8)])?
        .ok()?;
    driver
        .run_ranges(kind::DISCARD, &[one_range(16, 8)])?
        .ok()?;
    let trace = std::fs::read_to_string(disk.process.path(TRACE))?;
    assert_eq!(trace.matches("fdatasync(").count(), 2);
    session.set_config(32, &[1])?;
    driver.write(3, &[3; SECTOR_BYTES])?.ok()?;
    assert_eq!(stable_writes(&disk)?, 2);
    Ok(())
}

/// How E14 takes the device away from its requests.
#[derive(Clone, Copy, Debug)]
enum Cut {
    StopVring,
    ResetDevice,
    Disconnect,
}

/// Counts the sectors that hold their part of the pattern `seed`; all others must be as they were,
/// and so must those before `first`.
fn new_sectors(content: &[u8], seed: u64, first: u64) -> Outcome<usize> {
    let mut count = 0;
    let mut expected = [0; SECTOR_BYTES];
    for (sector, found) in (0..).zip(content.chunks(SECTOR_BYTES)) {
        fill_pattern(IMAGE_SEED, sector, &mut expected);
        let old = found == expected;
        fill_pattern(seed, sector, &mut expected);
        let new = found == expected && sector >= first;
        if !(old || new) {
            return Err(format!("sector {sector} is neither old nor new").into());
        }
        count += usize::from(new);
    }
    Ok(count)
}

#[test]
fn e14_write_in_flight_at_a_reset_goes_to_its_sector_or_nowhere() -> Outcome {
    const SEED: u64 = 14;
    let cuts = [Cut::StopVring, Cut::ResetDevice, Cut::Disconnect];
    for args in [&[][..], &["--aio", "threads"], &["--cache", "none"]] {
        for (cut, round) in cuts.iter().cycle().zip(0..12_u64) {
            let mut disk = Disk::start(args)?;
            let (mut session, mut driver) =
                disk.driver(Session::builder(), BlkConfig::default())?;
            let mut data = vec![0; 16 << 10];
            let len = u32::try_from(data.len())?;
            // Not to sector 0, where a request without its sector would go.
            let sectors: Vec<u64> = (1..=32).map(|at| at * 32 + round).collect();
            for sector in &sectors {
                let slot = driver.acquire()?;
                fill_pattern(SEED, *sector, &mut data);
                driver.data(slot).write(0, &data);
                driver.submit(slot, &BlkRequest::write(*sector, len))?;
            }
            driver.publish()?;
            let answered = match cut {
                Cut::StopVring => {
                    let base = session.stop(0)?;
                    // What was taken has been answered.
                    assert_eq!(driver.vring().ring.used_idx(), base, "{cut:?} {args:?}");
                    usize::from(base)
                }
                Cut::ResetDevice => {
                    use vhost::vhost_user::VhostUserFrontend as _;
                    session.frontend_mut().reset_device()?;
                    usize::from(driver.vring().ring.used_idx())
                }
                Cut::Disconnect => 0,
            };
            if matches!(cut, Cut::Disconnect) {
                // The next session begins when the last one has ended altogether.
                drop(session);
                let (_session, mut next) = disk.driver(Session::builder(), BlkConfig::default())?;
                next.get_id()?;
            } else {
                // Nothing is written to the buffers any more, and nothing is taken.
                let before = driver.vring().ring.used_idx();
                driver.vring_mut().kick()?;
                std::thread::sleep(Duration::from_millis(20));
                assert_eq!(driver.vring().ring.used_idx(), before, "{cut:?} {args:?}");
            }
            let whole = new_sectors(&disk.content()?, SEED, sectors[0]);
            let whole = whole.map_err(|error| format!("{cut:?} {args:?}: {error}"))?;
            assert!(
                whole >= answered * 32,
                "{cut:?} {args:?}: {answered} answered"
            );
        }
    }
    Ok(())
}

#[test]
fn e15_image_that_looks_like_qcow2_is_served_raw() -> Outcome {
    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), [0x53; 4096])?;
    let name = secret.path().to_str().ok_or("path")?.as_bytes();
    // Magic, version 3, a backing file and its name, cluster bits, a size of 1 TiB.
    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.extend(112_u64.to_be_bytes());
    header.extend(u32::try_from(name.len())?.to_be_bytes());
    header.extend(16_u32.to_be_bytes());
    header.extend((1_u64 << 40).to_be_bytes());
    header.resize(112, 0);
    header.extend(name);
    header.resize(65536, 0);
    for magic in [
        &b"QFI\xfb"[..],
        b"conectix",
        b"KDMV",
        b"vhdxfile",
        b"LUKS\xba\xbe",
    ] {
        let mut image = header.clone();
        image[..magic.len()].copy_from_slice(magic);
        let mut disk = Disk::start_with(&image, &[])?;
        let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        assert_eq!(session.config(0, 8)?, 128_u64.to_le_bytes());
        let mut found = vec![0; image.len()];
        driver.read(0, &mut found)?.ok()?;
        assert!(found == image, "{magic:?} was taken for a format");
        // And can be written as such, over the header.
        driver.write(0, &[1; SECTOR_BYTES])?.ok()?;
        assert_eq!(disk.content()?[..SECTOR_BYTES], [1; SECTOR_BYTES]);
    }
    assert_eq!(std::fs::read(secret.path())?, [0x53; 4096]);
    Ok(())
}

#[test]
fn header_rewritten_while_it_is_served_is_read_once() -> Outcome {
    // Pitfall 10: one request after the other, while their header turns from a good write into
    // one behind the end and back.
    let mut bench = Bench::start()?;
    let at = bench.at;
    let data = bench.fresh_data(SECTOR_BYTES)?;
    let header = bench.memory.slice(at.header, 16)?;
    let chain = linked(&[
        readable(at.header, 16),
        readable(at.data, SECTOR),
        writable(at.status, 1),
    ]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    bench.header(kind::OUT, 5)?;
    bench.lay(Table::Direct, &chain)?;
    let seen = std::thread::scope(|scope| -> Outcome<[u32; 3]> {
        scope.spawn(|| {
            while !stop.load(order) {
                for sector in [DISK_SECTORS, 9, u64::MAX, 5] {
                    header.u64(8).store(sector, order);
                }
            }
        });
        let mut seen = [0; 3];
        let result = (|| -> Outcome {
            for _ in 0..5000 {
                bench.memory.write(at.status, &[status::UNTOUCHED])?;
                bench.vring.ring.push_head(0);
                bench.vring.ring.publish();
                bench.vring.kick()?;
                let deadline = Instant::now() + PATIENCE;
                let elem = loop {
                    if let Some(elem) = bench.vring.ring.peek_used()? {
                        break elem;
                    }
                    assert!(Instant::now() < deadline, "not answered");
                    std::thread::yield_now();
                };
                bench.vring.ring.advance_used();
                assert_eq!((elem.id, elem.len), (0, 1));
                let status = bench.memory.read_vec(at.status, 1)?[0];
                seen[usize::from(status).min(2)] += 1;
            }
            Ok(())
        })();
        stop.store(true, order);
        result.map(|()| seen)
    })?;
    assert_eq!(seen[2], 0, "neither OK nor an error: {seen:?}");
    assert!(seen[0] > 0, "{seen:?}");
    let found = bench.disk.content()?;
    assert_eq!(found.len(), bench.image.len());
    for (sector, (found, old)) in (0..).zip(found.chunks(512).zip(bench.image.chunks(512))) {
        let written = [5, 9].contains(&sector) && found == data;
        assert!(written || found == old, "sector {sector} was written to");
    }
    bench.note_written(5, &found[5 * 512..6 * 512]);
    bench.note_written(9, &found[9 * 512..10 * 512]);
    bench.prove_alive(0)
}

#[test]
fn layout_of_the_default_memory_starts_where_the_tests_think() {
    // D17 and D18 count on it.
    assert_eq!(FIRST_GPA, 0x4000_0000);
}
