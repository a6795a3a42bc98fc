// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests and configuration space of the running `ringside-blk`, to the byte.

#[path = "requests/matrix.rs"]
mod matrix;

use ringside_frontend::blk::{BlkConfig, BlkDriver, SECTOR_BYTES, blk_feature, kind, status};
use ringside_frontend::raw::{Header, RawClient};
use ringside_frontend::session::Session;
use ringside_frontend::{FrontendError, ids};
use ringside_tests::hostile::support_chains::{Bench, DISK_SECTORS, Disk, Outcome, PATIENCE};
use serde_json::json;

use matrix::{Access, all_kinds};

/// Runs `check` for every request type on a new bench.
fn for_all_kinds(
    args: &[&str],
    access: Access,
    check: impl Fn(&mut Bench, &matrix::Meant) -> Outcome,
) -> Outcome {
    // The one that `matrix` expects.
    let args = [args, &["--serial", "ringside"]].concat();
    // On a read-only disk the good requests in between could not write.
    let mut bench = match access {
        Access::ReadWrite => Bench::with(&args, Session::builder())?,
        Access::ReadOnly => {
            Bench::with(&[&args[..], &["--read-only"]].concat(), Session::builder())?
        }
    };
    let count = all_kinds(&bench, access).len();
    for index in 0..count {
        // Made anew, since reads answer with what writes have left.
        let meant = all_kinds(&bench, access).swap_remove(index);
        let kind = meant.kind;
        check(&mut bench, &meant).map_err(|error| format!("type {kind}: {error}"))?;
    }
    Ok(())
}

#[test]
fn every_type_is_served_in_every_arrangement() -> Outcome {
    for_all_kinds(&[], Access::ReadWrite, matrix::arrangements)
}

#[test]
fn every_type_is_refused_with_every_bad_content() -> Outcome {
    for_all_kinds(&[], Access::ReadWrite, matrix::bad_contents)
}

#[test]
fn every_type_is_refused_in_every_bad_chain() -> Outcome {
    for_all_kinds(&[], Access::ReadWrite, matrix::bad_chains)
}

#[test]
fn every_type_is_served_at_every_alignment() -> Outcome {
    for_all_kinds(&[], Access::ReadWrite, |bench, meant| {
        if meant.kind < 14 && meant.kind != 2 {
            matrix::unaligned(bench, meant)?;
        }
        Ok(())
    })
}

fn whole_matrix(bench: &mut Bench, meant: &matrix::Meant) -> Outcome {
    matrix::arrangements(bench, meant)?;
    matrix::bad_contents(bench, meant)?;
    matrix::bad_chains(bench, meant)
}

#[test]
fn whole_matrix_holds_with_threads() -> Outcome {
    for_all_kinds(&["--aio", "threads"], Access::ReadWrite, whole_matrix)
}

#[test]
fn whole_matrix_holds_with_direct_io() -> Outcome {
    for_all_kinds(&["--cache", "none"], Access::ReadWrite, whole_matrix)
}

#[test]
fn every_type_is_served_at_every_alignment_with_direct_io() -> Outcome {
    for_all_kinds(&["--cache", "none"], Access::ReadWrite, |bench, meant| {
        if [kind::IN, kind::OUT].contains(&meant.kind) {
            matrix::unaligned(bench, meant)?;
        }
        Ok(())
    })
}

#[test]
fn whole_matrix_holds_on_a_read_only_disk() -> Outcome {
    for_all_kinds(&[], Access::ReadOnly, whole_matrix)
}

/// Bytes of the configuration space that say nothing: geometry, paddings, what is never offered.
const ALWAYS_ZERO: [std::ops::Range<usize>; 4] = [16..20, 33..34, 57..60, 60..256];

fn le32(config: &[u8], offset: usize) -> u32 {
    let bytes = config[offset..].first_chunk().copied().unwrap_or_default();
    u32::from_le_bytes(bytes)
}

fn le16(config: &[u8], offset: usize) -> u16 {
    let bytes = config[offset..].first_chunk().copied().unwrap_or_default();
    u16::from_le_bytes(bytes)
}

#[test]
fn configuration_space_is_exact_to_the_byte() -> Outcome {
    let mut disk = Disk::start(&["--num-queues", "5", "--queue-size", "128"])?;
    let mut session = disk.session(Session::builder())?;
    let config = session.config(0, 256)?;
    check_fields(&config);
    // The prefixes front-ends read, and pieces anywhere: exactly as long as asked for.
    for size in [1, 8, 36, 48, 57, 60, 72, 96, 256] {
        let size_bytes = usize::try_from(size)?;
        assert_eq!(session.config(0, size)?, config[..size_bytes], "{size}");
    }
    for (offset, size) in [(8, 4), (32, 1), (34, 2), (57, 3), (100, 156), (255, 1)] {
        let range = usize::try_from(offset)?..usize::try_from(offset + size)?;
        assert_eq!(
            session.config(offset, size)?,
            config[range],
            "{offset} {size}"
        );
    }
    Ok(())
}

/// Every field of a disk with 5 queues of up to 128 descriptors.
fn check_fields(config: &[u8]) {
    assert_eq!(BlkDriver::capacity(config), Some(DISK_SECTORS));
    for (what, offset, wanted) in [
        ("size_max", 8, 1 << 20),
        ("seg_max", 12, 126),
        ("blk_size", 20, 512),
        ("max_discard_sectors", 36, 1 << 21),
        ("max_discard_seg", 40, 256),
        ("max_write_zeroes_sectors", 48, 1 << 15),
        ("max_write_zeroes_seg", 52, 256),
    ] {
        assert_eq!(le32(config, offset), wanted, "{what}");
    }
    assert!(config[24] <= 7, "physical_block_exp {}", config[24]);
    assert_eq!(config[25], 0, "alignment_offset");
    assert!(le16(config, 26) >= 1, "min_io_size");
    assert_eq!(config[32], 1, "writeback");
    assert_eq!(le16(config, 34), 5, "num_queues");
    assert!(le32(config, 44) >= 1, "discard_sector_alignment");
    assert_eq!(config[56], 1, "write_zeroes_may_unmap");
    for zeroes in ALWAYS_ZERO {
        assert!(config[zeroes.clone()].iter().all(|b| *b == 0), "{zeroes:?}");
    }
}

#[test]
fn what_is_not_offered_has_zero_fields() -> Outcome {
    let mut disk = Disk::start(&["--discard", "ignore"])?;
    let mut session = disk.session(Session::builder())?;
    assert_eq!(session.negotiated().offered & blk_feature::DISCARD, 0);
    let config = session.config(0, 256)?;
    assert_eq!(config[36..48], [0; 12]);
    assert_eq!(config[56], 0, "write_zeroes_may_unmap");
    let mut disk = Disk::start(&["--read-only"])?;
    let config = disk.session(Session::builder())?.config(0, 256)?;
    assert_eq!(config[36..57], [0; 21]);
    Ok(())
}

/// The raw answer to `GET_CONFIG`, past what the front-end's library allows.
fn raw_config(client: &RawClient, offset: u32, size: u32) -> Result<Vec<u8>, FrontendError> {
    let mut body = Vec::new();
    for field in [offset, size, 0] {
        body.extend(field.to_ne_bytes());
    }
    body.resize(12 + usize::try_from(size.min(256)).unwrap_or(0), 0);
    let header = Header::new(
        ids::request::GET_CONFIG,
        u32::try_from(body.len()).unwrap_or(0),
    );
    client.send(header, &body, &[])?;
    client.recv(PATIENCE).map(|reply| reply.body)
}

#[test]
fn config_of_a_range_past_the_end_changes_nothing() -> Outcome {
    let mut disk = Disk::start(&[])?;
    for (offset, size) in [
        (256, 1),
        (255, 2),
        (1, 256),
        (u32::MAX, 1),
        (u32::MAX, 256),
        (0, 0),
    ] {
        let client = RawClient::from_stream(disk.process.connect(PATIENCE)?)?;
        client.call(ids::request::GET_FEATURES, &[], PATIENCE)?;
        match raw_config(&client, offset, size) {
            // vhost-user.rst: an answer without content is how a back-end says no.
            Ok(reply) => assert!(reply.len() <= 12, "{offset} {size}: {} bytes", reply.len()),
            Err(_) => {
                client.expect_closed(PATIENCE)?;
            }
        }
    }
    let mut session = disk.session(Session::builder())?;
    assert_eq!(
        BlkDriver::capacity(&session.config(0, 60)?),
        Some(DISK_SECTORS)
    );
    Ok(())
}

#[test]
fn config_can_be_read_before_anything_else_and_without_the_image() -> Outcome {
    let mut disk = Disk::start(&[])?;
    std::fs::remove_file(disk.image())?;
    let mut session = disk.session(Session::builder())?;
    for _ in 0..3 {
        assert_eq!(
            BlkDriver::capacity(&session.config(0, 60)?),
            Some(DISK_SECTORS)
        );
    }
    Ok(())
}

#[test]
fn write_cache_is_on_as_the_acknowledged_features_say() -> Outcome {
    // virtio 1.3 §5.2.5.2 and §5.2.6.2.
    const BOTH: u64 = blk_feature::FLUSH | blk_feature::CONFIG_WCE;
    for (args, without, on) in [
        (&[][..], 0, true),
        (&[], blk_feature::CONFIG_WCE, true),
        // CONFIG_WCE alone: the cache starts switched off.
        (&[], blk_feature::FLUSH, false),
        // A driver that cannot flush must not need to.
        (&[], BOTH, false),
        (&["--cache", "writethrough"], 0, false),
        (&["--cache", "writethrough"], blk_feature::CONFIG_WCE, false),
        (&["--cache", "none"], 0, true),
        (&["--cache", "none"], BOTH, false),
        (&["--cache", "unsafe"], BOTH, true),
    ] {
        let mut disk = Disk::start(args)?;
        let builder = Session::builder().without_features(without);
        let (mut session, mut driver) = disk.driver(builder, BlkConfig::default())?;
        assert_eq!(
            disk.info("write_cache")?,
            json!(on),
            "{args:?} {without:#x}"
        );
        driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
        let flush = driver.flush()?.status;
        let flushes = without & BOTH != BOTH;
        let wanted = if flushes { status::OK } else { status::UNSUPP };
        assert_eq!(flush, wanted, "{args:?} {without:#x}");
        if without & blk_feature::CONFIG_WCE == 0 {
            assert_eq!(
                session.config(32, 1)?,
                [u8::from(on)],
                "{args:?} {without:#x}"
            );
            for now in [!on, on, on, !on] {
                session.set_config(32, &[u8::from(now)])?;
                assert_eq!(session.config(32, 1)?, [u8::from(now)]);
                assert_eq!(disk.info("write_cache")?, json!(now), "{args:?}");
            }
        }
        // The next driver may have read that the cache is off, if the first one has switched it off;
        // a flush says that it has not.
        drop((session, driver));
        let builder = Session::builder().without_features(without);
        let (_session, mut driver) = disk.driver(builder, BlkConfig::default())?;
        driver.get_id()?;
        let is_unsafe = args.contains(&"unsafe");
        let doubt = on && without == 0 && !is_unsafe;
        assert_eq!(
            disk.info("write_cache")?,
            json!(on && !doubt),
            "{args:?} {without:#x}"
        );
        driver.flush()?;
        assert_eq!(
            disk.info("write_cache")?,
            json!(on),
            "{args:?} {without:#x}"
        );
    }
    Ok(())
}

#[test]
fn what_a_driver_writes_to_writeback_never_ends_the_connection() -> Outcome {
    // QEMU passes on whatever byte the guest wrote, acknowledged or not; the guest must not be
    // able to take its own disk away.
    let mut disk = Disk::start(&[])?;
    let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    session.set_config(32, &[0])?;
    for value in [2, 3, 0x80, 0xff] {
        session.set_config(32, &[value])?;
        assert_eq!(session.config(32, 1)?, [0], "writeback {value} was taken");
        assert_eq!(disk.info("write_cache")?, json!(false));
    }
    driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
    drop((session, driver));
    let builder = Session::builder().without_features(blk_feature::CONFIG_WCE);
    let (mut session, mut driver) = disk.driver(builder, BlkConfig::default())?;
    // The driver before has switched the cache off, until a flush says that this one has not.
    assert_eq!(session.config(32, 1)?, [0]);
    driver.flush()?.ok()?;
    session.set_config(32, &[0])?;
    assert_eq!(session.config(32, 1)?, [1], "written without CONFIG_WCE");
    assert_eq!(disk.info("write_cache")?, json!(true));
    driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
    Ok(())
}

#[test]
fn queues_offered_are_many_and_cost_nothing_until_started() -> Outcome {
    let mut disk = Disk::start(&[])?;
    // An answer means that the process is up altogether.
    disk.info("size_bytes")?;
    let idle = disk.process.sample()?;
    let session = disk.session(Session::builder())?;
    assert_eq!(session.negotiated().max_queues, 256);
    let connected = disk.process.sample()?;
    assert_eq!(
        idle.threads, connected.threads,
        "threads before a vring is started"
    );
    Ok(())
}

#[test]
fn last_queue_alone_is_served() -> Outcome {
    // Firmware starts queue 0 alone, and nobody says that it has to be that one.
    let mut disk = Disk::start(&[])?;
    let mut session = disk.session(Session::builder().queues(256))?;
    let vring = session.create_vring(255)?;
    session.start(&vring, 0)?;
    let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
    driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
    let mut sector = [0; SECTOR_BYTES];
    driver.read(3, &mut sector)?.ok()?;
    assert_eq!(sector, [1; SECTOR_BYTES]);
    let stats = disk.control("stats", &json!(null))?;
    assert_eq!(stats["queues"][0]["queue"], 255);
    Ok(())
}
