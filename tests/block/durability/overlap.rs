// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Syncs that are under way together, and what a failed one means for the others and for later ones.
//!
//! The kernel tells one of them of an error, once. The disk of these tests fails the one that it is
//! told to fail, and ends them in the order that the test wants.

use ringside_blk::storage::CacheMode;
use ringside_frontend::blk::{kind, status};
use ringside_tests::block_engine::{CacheDisk, Op};

use crate::TestResult;
use crate::faults::{Bench, QUEUES};

/// Syncs of every kind, by how they reach the disk.
const SYNCS: [Op; 4] = [Op::Flush, Op::StableWrite, Op::WriteZeroes, Op::Discard];

/// The mode is the one that the next request is to find.
fn begin(bench: &mut Bench, op: Op, queue: usize) -> TestResult {
    let before = bench.disk.started(op);
    bench.set_cache(op == Op::Flush)?;
    match op {
        Op::Flush => bench.begin_flush(queue)?,
        Op::StableWrite => bench.begin_write(queue, 8 * queue as u64, 1)?,
        Op::WriteZeroes => bench.begin_clear(queue, kind::WRITE_ZEROES)?,
        _ => bench.begin_clear(queue, kind::DISCARD)?,
    }
    bench.wait_started(op, before + 1);
    Ok(())
}

/// A disk that has older, volatile writes.
fn with_volatile_writes() -> Result<Bench, Box<dyn std::error::Error>> {
    let mut bench = Bench::new()?;
    assert_eq!(bench.write(3, 40, 1)?, status::OK);
    Ok(bench)
}

#[test]
fn f3_2_sync_that_ends_before_one_beside_it_has_failed_is_not_answered_good() -> TestResult {
    for failing in SYNCS {
        for good in SYNCS {
            let mut bench = with_volatile_writes()?;
            // The first is under way and will fail; the second comes, and ends well at once.
            bench.disk.stall_and_fail_next(failing, libc::EIO);
            begin(&mut bench, failing, 0)?;
            begin(&mut bench, good, 1)?;
            // Requests that promise nothing go on meanwhile, on its queue too.
            for turn in 0..20 {
                bench.set_cache(true)?;
                for queue in 1..QUEUES {
                    assert_eq!(bench.write_beside(queue, 48, turn)?, status::OK);
                }
            }
            assert!(
                bench.drivers[1].in_flight() == 1,
                "{good:?} was answered while {failing:?} was under way"
            );
            bench.disk.release_all();
            assert_eq!(bench.wait(0)?.status, status::IOERR, "{failing:?}");
            assert_eq!(
                bench.wait(1)?.status,
                status::IOERR,
                "{good:?} beside {failing:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn f3_2_syncs_that_all_succeed_are_answered_good_in_any_order() -> TestResult {
    for second in SYNCS {
        let mut bench = with_volatile_writes()?;
        bench.disk.stall_next(Op::Flush);
        begin(&mut bench, Op::Flush, 0)?;
        begin(&mut bench, second, 1)?;
        begin(&mut bench, second, 1)?;
        bench.disk.release_all();
        for queue in [0, 1, 1] {
            assert_eq!(bench.wait(queue)?.status, status::OK, "{second:?}");
        }
        bench.set_cache(true)?;
        assert_eq!(bench.flush(2)?, status::OK);
    }
    Ok(())
}

/// A sync that began after the failed one had ended, or ended before it began, knows nothing of it.
#[test]
fn f3_2_sync_waits_for_those_beside_it_and_no_others() -> TestResult {
    let mut bench = with_volatile_writes()?;
    bench.disk.stall_next(Op::Flush);
    begin(&mut bench, Op::Flush, 0)?;
    // Ends while the first runs, and so waits for it ...
    begin(&mut bench, Op::Flush, 1)?;
    while bench.served.device().waiting_syncs() == 0 {
        std::thread::yield_now();
    }
    // ... but not for the third, which begins behind its end and is still under way then.
    bench.disk.stall_next(Op::Flush);
    begin(&mut bench, Op::Flush, 2)?;
    bench.disk.release_oldest();
    assert_eq!(bench.wait(1)?.status, status::OK);
    assert!(bench.drivers[2].in_flight() == 1);
    bench.disk.release_all();
    assert_eq!(bench.wait(0)?.status, status::OK);
    assert_eq!(bench.wait(2)?.status, status::OK);
    Ok(())
}

#[test]
fn f3_2_vring_stops_with_its_syncs_answered() -> TestResult {
    let mut bench = with_volatile_writes()?;
    bench.disk.stall_and_fail_next(Op::Flush, libc::EIO);
    begin(&mut bench, Op::Flush, 0)?;
    begin(&mut bench, Op::Flush, 1)?;
    let disk = bench.disk.clone();
    let release = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        disk.release_all();
    });
    // The flush of this vring has ended on the disk and waits for that of another one.
    bench.session.stop(1)?;
    let done = bench.drivers[1]
        .poll()?
        .ok_or("stopped without an answer")?;
    assert_eq!(done.status, status::IOERR);
    assert_eq!(bench.wait(0)?.status, status::IOERR);
    release.join().map_err(|_panic| "the release panicked")?;
    Ok(())
}

#[test]
fn f3_3_stable_write_without_room_beside_older_volatile_writes_is_a_loss() -> TestResult {
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EIO] {
        let mut bench = with_volatile_writes()?;
        bench.set_cache(false)?;
        bench.disk.fail_next(Op::StableWrite, errno);
        assert_eq!(bench.write(0, 0, 1)?, status::IOERR);
        // The error may have been that of the older write, which nobody will be told again.
        assert_eq!(bench.write(1, 0, 1)?, status::IOERR, "errno {errno}");
        bench.set_cache(true)?;
        assert_eq!(bench.flush(2)?, status::IOERR, "errno {errno}");
    }
    Ok(())
}

#[test]
fn f3_4_disk_that_was_never_volatile_loses_the_failed_request_only() -> TestResult {
    for cache in [CacheMode::Writeback, CacheMode::Writethrough] {
        for op in [Op::StableWrite, Op::WriteZeroes, Op::Discard, Op::Flush] {
            for errno in [libc::EIO, libc::ENOSPC, libc::ENODEV] {
                let mut bench = Bench::with_cache(cache)?;
                bench.set_cache(false)?;
                assert_eq!(bench.write(0, 0, 1)?, status::OK);
                bench.disk.fail_next(op, errno);
                let run = |bench: &mut Bench| match op {
                    Op::StableWrite => bench.write(0, 0, 2),
                    Op::WriteZeroes => bench.clear(kind::WRITE_ZEROES),
                    Op::Discard => bench.clear(kind::DISCARD),
                    _ => bench.flush(0),
                };
                assert_eq!(run(&mut bench)?, status::IOERR, "{op:?} {errno}");
                assert_eq!(run(&mut bench)?, status::OK, "{op:?} after {errno}");
                assert_eq!(bench.flush(1)?, status::OK);
                // The same disk in a later session.
                let mut bench = bench.reconnect()?;
                assert_eq!(bench.flush(1)?, status::OK);
            }
        }
    }
    Ok(())
}

/// What is written directly is in no cache of the host: whoever has failed was told so.
#[test]
fn f3_4_disk_without_a_page_cache_loses_the_failed_request_only() -> TestResult {
    for op in [Op::StableWrite, Op::Flush] {
        let disk = CacheDisk::uncached(64, 1);
        let mut bench = Bench::on(disk, CacheMode::None)?;
        assert_eq!(bench.write(0, 0, 1)?, status::OK);
        bench.set_cache(op == Op::Flush)?;
        bench.disk.fail_next(op, libc::EIO);
        let run = |bench: &mut Bench| match op {
            Op::StableWrite => bench.write(0, 0, 2),
            _ => bench.flush(0),
        };
        assert_eq!(run(&mut bench)?, status::IOERR, "{op:?}");
        assert_eq!(run(&mut bench)?, status::OK, "{op:?}");
        assert_eq!(bench.flush(1)?, status::OK);
    }
    Ok(())
}

/// The two faults meet: without volatile writes nothing is lost for good, but one of the two stable
/// writes is, and the kernel may have told the other.
#[test]
fn f3_4_stable_writes_beside_a_failed_one_fail_with_it_and_not_for_good() -> TestResult {
    let mut bench = Bench::new()?;
    bench.set_cache(false)?;
    bench.disk.stall_and_fail_next(Op::StableWrite, libc::EIO);
    begin(&mut bench, Op::StableWrite, 0)?;
    begin(&mut bench, Op::StableWrite, 1)?;
    bench.disk.release_all();
    assert_eq!(bench.wait(0)?.status, status::IOERR);
    assert_eq!(bench.wait(1)?.status, status::IOERR);
    bench.set_cache(false)?;
    for queue in 0..QUEUES {
        assert_eq!(bench.write(queue, 8, 3)?, status::OK);
        assert_eq!(bench.flush(queue)?, status::OK);
    }
    Ok(())
}

#[test]
fn f3_4_error_can_be_cleared_and_the_next_failure_counts_again() -> TestResult {
    let mut bench = with_volatile_writes()?;
    bench.disk.fail_next(Op::Flush, libc::EIO);
    assert_eq!(bench.flush(0)?, status::IOERR);
    assert_eq!(bench.flush(1)?, status::IOERR);
    assert!(bench.served.device().clear_error());
    assert_eq!(bench.flush(1)?, status::OK);
    assert!(!bench.served.device().clear_error(), "once");
    bench.disk.fail_next(Op::Flush, libc::EIO);
    assert_eq!(bench.flush(0)?, status::IOERR);
    assert_eq!(bench.flush(1)?, status::IOERR);
    Ok(())
}
