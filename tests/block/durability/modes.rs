// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who decides about the write cache, from one session to the next.
//!
//! QEMU sends `writeback` when the guest changes it, and never again: not when it connects anew, and
//! not when the guest boots, which then reads QEMU's copy and believes it.

use std::error::Error;
use std::sync::Arc;

use ringside_blk::storage::CacheMode;
use ringside_frontend::blk::{blk_feature, status};
use ringside_frontend::session::SessionBuilder;
use ringside_tests::block_engine::{CacheDisk, Op};

use vhost::VhostBackend as _;
use vhost::vhost_user::VhostUserFrontend as _;

use crate::faults::{Bench, QUEUES, driver};
use crate::{TestResult, WCE_OFFSET, builder};

/// Writes on every queue; the stable ones, of as many as there are queues.
fn stable_writes(bench: &mut Bench) -> Result<u64, Box<dyn Error>> {
    let before = bench.disk.started(Op::StableWrite);
    for queue in 0..QUEUES {
        assert_eq!(bench.write(queue, 8 * queue as u64, 5)?, status::OK);
    }
    Ok(bench.disk.started(Op::StableWrite) - before)
}

const ALL: u64 = QUEUES as u64;

fn writeback_field(bench: &mut Bench) -> Result<u8, Box<dyn Error>> {
    Ok(bench.session.config(WCE_OFFSET, 1)?[0])
}

/// The front-end connects anew and hands over the rings as they are; nothing else is said.
fn resume(bench: Bench, builder: SessionBuilder) -> Result<Bench, Box<dyn Error>> {
    let Bench {
        disk,
        mut served,
        session,
        drivers,
    } = bench;
    let memory = Arc::clone(session.memory());
    drop(session);
    let mut session = served.connect(builder.existing_memory(memory))?;
    for driver in &drivers {
        session.start(driver.vring(), driver.vring().ring.next_avail())?;
    }
    Ok(Bench {
        disk,
        served,
        session,
        drivers,
    })
}

/// The back-end dies and another one takes over.
fn replace(mut bench: Bench, cache: CacheMode) -> Result<Bench, Box<dyn Error>> {
    let disk = CacheDisk::new(64, 2);
    // The old one ends with its connection, which `resume` closes.
    let other = ringside_tests::in_process::Served::new(disk.clone(), cache)?;
    let old = std::mem::replace(&mut bench.served, other);
    bench.disk = disk;
    let bench = resume(bench, builder(QUEUES))?;
    drop(old);
    Ok(bench)
}

#[test]
fn f3_1_write_through_outlives_the_session_for_its_rings_and_for_a_fresh_driver() -> TestResult {
    let mut bench = Bench::new()?;
    assert_eq!(stable_writes(&mut bench)?, 0);
    bench.set_cache(false)?;
    assert_eq!(stable_writes(&mut bench)?, ALL);
    // On the same rings.
    let mut bench = resume(bench, builder(QUEUES))?;
    assert_eq!(stable_writes(&mut bench)?, ALL, "the same rings");
    assert_eq!(writeback_field(&mut bench)?, 0);
    // The guest has booted.
    let mut bench = bench.reconnect()?;
    assert_eq!(stable_writes(&mut bench)?, ALL, "a fresh driver");
    assert_eq!(writeback_field(&mut bench)?, 0);
    // And once more.
    let mut bench = bench.reconnect()?;
    assert_eq!(stable_writes(&mut bench)?, ALL, "the driver after it");
    // Until the driver says otherwise.
    bench.set_cache(true)?;
    assert_eq!(stable_writes(&mut bench)?, 0);
    assert_eq!(writeback_field(&mut bench)?, 1);
    let mut bench = bench.reconnect()?;
    assert_eq!(stable_writes(&mut bench)?, 0, "after write-back");
    assert_eq!(writeback_field(&mut bench)?, 1);
    Ok(())
}

#[test]
fn f3_1_flush_of_a_later_driver_brings_the_write_cache_back() -> TestResult {
    for queue in 0..QUEUES {
        let mut bench = Bench::new()?;
        bench.set_cache(false)?;
        // Its own flush says nothing: it has asked for what it has.
        assert_eq!(bench.flush(queue)?, status::OK);
        assert_eq!(stable_writes(&mut bench)?, ALL);
        let mut bench = bench.reconnect()?;
        assert_eq!(stable_writes(&mut bench)?, ALL);
        assert_eq!(bench.flush(queue)?, status::OK);
        assert_eq!(stable_writes(&mut bench)?, 0, "flushed on {queue}");
        assert_eq!(writeback_field(&mut bench)?, 1);
    }
    Ok(())
}

/// Nobody knows what the driver was told by the process before.
#[test]
fn f3_1_rings_with_a_history_are_written_through_by_a_new_process() -> TestResult {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let mut bench = Bench::new()?;
        stable_writes(&mut bench)?;
        let mut bench = replace(bench, cache)?;
        assert_eq!(writeback_field(&mut bench)?, 0);
        assert_eq!(stable_writes(&mut bench)?, ALL, "{cache:?}");
        assert_eq!(bench.flush(2)?, status::OK);
        assert_eq!(stable_writes(&mut bench)?, 0, "{cache:?}");
    }
    Ok(())
}

#[test]
fn f3_1_one_ring_with_a_history_is_enough() -> TestResult {
    for used in 0..QUEUES {
        let mut bench = Bench::new()?;
        assert_eq!(bench.write(used, 0, 1)?, status::OK);
        let mut bench = replace(bench, CacheMode::Writeback)?;
        assert_eq!(stable_writes(&mut bench)?, ALL, "only {used} was used");
    }
    Ok(())
}

/// The indices of a ring are of 16 bits.
#[test]
fn f3_1_ring_whose_index_has_wrapped_to_zero_has_a_history() -> TestResult {
    let mut bench = Bench::new()?;
    let ring = &mut bench.drivers[0];
    for _ in 0..1 << 16 {
        ring.get_id()?;
    }
    assert_eq!(ring.vring().ring.next_avail(), 0);
    let mut bench = replace(bench, CacheMode::Writeback)?;
    assert_eq!(stable_writes(&mut bench)?, ALL);
    Ok(())
}

#[test]
fn f3_1_driver_that_cannot_tell_of_a_cache_changes_nothing_for_the_next() -> TestResult {
    // What cannot flush is written through, by its own features and not by a wish.
    let bench = Bench::new()?;
    let bare = builder(QUEUES).without_features(blk_feature::FLUSH | blk_feature::CONFIG_WCE);
    let mut bench = resume(bench, bare)?;
    assert_eq!(stable_writes(&mut bench)?, ALL);
    let mut bench = bench.reconnect()?;
    assert_eq!(stable_writes(&mut bench)?, 0);
    Ok(())
}

#[test]
fn f3_1_write_through_outlives_reset_device_and_a_connection_that_does_nothing() -> TestResult {
    let mut bench = Bench::new()?;
    bench.set_cache(false)?;
    assert_eq!(stable_writes(&mut bench)?, ALL);
    // A driver is reset with its device; QEMU's copy of the field is not.
    let features = bench.session.negotiated().features;
    bench.session.frontend_mut().reset_device()?;
    bench.session.frontend_mut().set_features(features)?;
    bench.drivers.clear();
    for index in 0..QUEUES {
        let vring = bench.session.create_vring(index)?;
        bench.session.start(&vring, 0)?;
        bench.drivers.push(driver(vring)?);
    }
    assert_eq!(writeback_field(&mut bench)?, 0);
    assert_eq!(stable_writes(&mut bench)?, ALL);
    // Someone looks and goes.
    let Bench {
        disk,
        mut served,
        session,
        drivers,
    } = bench;
    drop((session, drivers));
    drop(served.connect(builder(QUEUES))?);
    let mut session = served.connect(builder(QUEUES))?;
    let drivers = session
        .start_all()?
        .into_iter()
        .map(driver)
        .collect::<Result<_, _>>()?;
    let mut bench = Bench {
        disk,
        served,
        session,
        drivers,
    };
    assert_eq!(stable_writes(&mut bench)?, ALL);
    Ok(())
}

/// A pause of the VM is no reason to doubt what its driver has said in this session.
#[test]
fn f3_1_rings_stopped_and_started_in_one_session_keep_the_mode() -> TestResult {
    let mut bench = Bench::new()?;
    for on in [true, false] {
        bench.set_cache(on)?;
        stable_writes(&mut bench)?;
        for queue in 0..QUEUES {
            let base = bench.session.stop(queue)?;
            bench.session.start(bench.drivers[queue].vring(), base)?;
        }
        assert_eq!(stable_writes(&mut bench)?, if on { 0 } else { ALL });
        assert_eq!(writeback_field(&mut bench)?, u8::from(on));
    }
    Ok(())
}

#[test]
fn f3_1_unsafe_disk_writes_nothing_through_whatever_was_said() -> TestResult {
    let mut bench = Bench::with_cache(CacheMode::Unsafe)?;
    bench.set_cache(false)?;
    let mut bench = resume(bench, builder(QUEUES))?;
    assert_eq!(stable_writes(&mut bench)?, 0);
    Ok(())
}

#[test]
fn f3_1_disk_that_writes_through_by_option_goes_on_after_a_flush() -> TestResult {
    let mut bench = Bench::with_cache(CacheMode::Writethrough)?;
    assert_eq!(stable_writes(&mut bench)?, ALL);
    let mut bench = resume(bench, builder(QUEUES))?;
    assert_eq!(bench.flush(0)?, status::OK);
    assert_eq!(stable_writes(&mut bench)?, ALL);
    bench.set_cache(true)?;
    assert_eq!(stable_writes(&mut bench)?, 0);
    Ok(())
}
