// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Faults of the host's storage (J1 to J6), each seen by a driver of the real device.

use std::error::Error;
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::time::Duration;

use ringside_blk::storage::CacheMode;
use ringside_frontend::FrontendError;
use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, Completion, Range, kind, status};
use ringside_frontend::load::{Rng, check_pattern, fill_pattern};
use ringside_frontend::session::Session;
use ringside_frontend::vring::Vring;
use ringside_tests::block_engine::{CacheDisk, Op, Pace};
use ringside_tests::in_process::Served;

use crate::{PATIENCE, TestResult, WCE_OFFSET, builder};

const DISK_SECTORS: u64 = 64;
pub(crate) const QUEUES: usize = 4;

/// A device on a faulty disk, and a driver on each of four queues.
pub(crate) struct Bench {
    pub(crate) disk: Arc<CacheDisk>,
    pub(crate) served: Served,
    pub(crate) session: Session,
    pub(crate) drivers: Vec<BlkDriver>,
}

impl Bench {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        Self::with_cache(CacheMode::Writeback)
    }

    pub(crate) fn with_cache(cache: CacheMode) -> Result<Self, Box<dyn Error>> {
        Self::on(CacheDisk::new(DISK_SECTORS, 1), cache)
    }

    pub(crate) fn on(disk: Arc<CacheDisk>, cache: CacheMode) -> Result<Self, Box<dyn Error>> {
        let mut served = Served::new(disk.clone(), cache)?;
        let (session, drivers) = connect(&mut served)?;
        Ok(Self {
            disk,
            served,
            session,
            drivers,
        })
    }

    /// The front-end goes and comes again.
    pub(crate) fn reconnect(self) -> Result<Self, Box<dyn Error>> {
        let Self {
            disk,
            mut served,
            session,
            drivers,
        } = self;
        drop((session, drivers));
        let (session, drivers) = connect(&mut served)?;
        Ok(Self {
            disk,
            served,
            session,
            drivers,
        })
    }

    pub(crate) fn set_cache(&mut self, on: bool) -> TestResult {
        Ok(self.session.set_config(WCE_OFFSET, &[u8::from(on)])?)
    }

    /// Writes a pattern of this seed; the status.
    pub(crate) fn write(
        &mut self,
        queue: usize,
        sector: u64,
        seed: u64,
    ) -> Result<u8, Box<dyn Error>> {
        Ok(self.drivers[queue]
            .write(sector, &pattern(seed, sector, 4))?
            .status)
    }

    pub(crate) fn flush(&mut self, queue: usize) -> Result<u8, Box<dyn Error>> {
        Ok(self.drivers[queue].flush()?.status)
    }

    pub(crate) fn clear(&mut self, kind: u32) -> Result<u8, Box<dyn Error>> {
        let range = Range {
            sector: 8,
            sectors: 8,
            flags: 0,
        };
        Ok(self.drivers[0].run_ranges(kind, &[range])?.status)
    }

    /// Reads, which must succeed, and compares with the pattern of this seed.
    pub(crate) fn verify(&mut self, queue: usize, sector: u64, seed: u64) -> TestResult {
        let mut data = vec![0; 4 * 512];
        self.drivers[queue].read(sector, &mut data)?.ok()?;
        Ok(check_pattern(seed, sector, &data)?)
    }

    /// Submits a write, and does not wait for it.
    pub(crate) fn begin_write(&mut self, queue: usize, sector: u64, seed: u64) -> TestResult {
        let driver = &mut self.drivers[queue];
        let slot = driver.acquire()?;
        driver.data(slot).write(0, &pattern(seed, sector, 4));
        driver.submit(slot, &BlkRequest::write(sector, 4 * 512))?;
        driver.publish()?;
        Ok(())
    }

    pub(crate) fn begin_flush(&mut self, queue: usize) -> TestResult {
        let driver = &mut self.drivers[queue];
        let slot = driver.acquire()?;
        driver.submit(slot, &BlkRequest::flush())?;
        driver.publish()?;
        Ok(())
    }

    /// Writes a pattern on a queue on which something else is under way; the status.
    pub(crate) fn write_beside(
        &mut self,
        queue: usize,
        sector: u64,
        seed: u64,
    ) -> Result<u8, Box<dyn Error>> {
        let driver = &mut self.drivers[queue];
        let slot = driver.acquire()?;
        driver.data(slot).write(0, &pattern(seed, sector, 4));
        driver.submit(slot, &BlkRequest::write(sector, 4 * 512))?;
        driver.publish()?;
        let done = driver.wait()?;
        driver.release(done.slot);
        assert_eq!(done.slot, slot, "what is under way was answered");
        Ok(done.status)
    }

    pub(crate) fn begin_clear(&mut self, queue: usize, kind: u32) -> TestResult {
        let range = Range {
            sector: 8,
            sectors: 8,
            flags: 0,
        };
        let driver = &mut self.drivers[queue];
        let slot = driver.acquire()?;
        driver.fill_ranges(slot, &[range]);
        driver.submit(slot, &BlkRequest::ranges(kind, 1))?;
        driver.publish()?;
        Ok(())
    }

    pub(crate) fn wait(&mut self, queue: usize) -> Result<Completion, Box<dyn Error>> {
        let completion = self.drivers[queue].wait()?;
        self.drivers[queue].release(completion.slot);
        Ok(completion)
    }

    /// Until so many operations of this kind have reached the disk.
    pub(crate) fn wait_started(&self, op: Op, count: u64) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.disk.started(op) < count {
            assert!(std::time::Instant::now() < deadline, "no {op:?}");
            std::thread::yield_now();
        }
    }

    /// What is left when all is lost that may be.
    fn worst_cut(&self) -> Vec<[u8; 512]> {
        let mut rng = Rng::new(0);
        let mut cuts = std::iter::repeat_with(|| self.disk.cut(&mut rng)).take(64);
        let first = cuts.next().unwrap_or_default();
        // The cut that loses all is the one with the most untouched sectors.
        let zeroes = |cut: &Vec<[u8; 512]>| cut.iter().filter(|s| **s == [0; 512]).count();
        cuts.fold(first, |worst, cut| {
            if zeroes(&cut) > zeroes(&worst) {
                cut
            } else {
                worst
            }
        })
    }
}

pub(crate) fn driver(vring: Vring) -> Result<BlkDriver, FrontendError> {
    let config = BlkConfig {
        depth: 8,
        slot_bytes: 4096,
        timeout: PATIENCE,
        ..BlkConfig::default()
    };
    BlkDriver::new(vring, config)
}

fn connect(served: &mut Served) -> Result<(Session, Vec<BlkDriver>), Box<dyn Error>> {
    let mut session = served.connect(builder(QUEUES))?;
    let drivers = session
        .start_all()?
        .into_iter()
        .map(driver)
        .collect::<Result<_, _>>()?;
    Ok((session, drivers))
}

fn pattern(seed: u64, sector: u64, sectors: usize) -> Vec<u8> {
    let mut data = vec![0; sectors * 512];
    fill_pattern(seed, sector, &mut data);
    data
}

#[test]
fn j1_failed_read_fails_alone() -> TestResult {
    let mut bench = Bench::new()?;
    assert_eq!(bench.write(0, 0, 1)?, status::OK);
    bench.disk.fail_next(Op::Read, libc::EIO);
    let mut data = [0; 512];
    let failed = bench.drivers[0].read(0, &mut data)?;
    assert_eq!((failed.status, failed.used_len), (status::IOERR, 1));
    bench.verify(0, 0, 1)?;
    bench.verify(1, 0, 1)?;
    assert_eq!(bench.flush(0)?, status::OK);
    Ok(())
}

/// A stable one only where there are no older writes whose failure it may have been told.
#[test]
fn j2_full_disk_fails_the_write_and_nothing_later() -> TestResult {
    for (cache, op) in [(true, Op::Write), (false, Op::StableWrite)] {
        let mut bench = Bench::new()?;
        bench.set_cache(cache)?;
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            bench.disk.fail_next(op, errno);
            assert_eq!(bench.write(0, 0, 1)?, status::IOERR);
            assert_eq!(bench.write(0, 0, 2)?, status::OK);
            assert_eq!(bench.flush(1)?, status::OK);
            bench.verify(1, 0, 2)?;
        }
    }
    Ok(())
}

/// From the failure on: every flush and every stable write fails; the rest goes on.
fn assert_lost(bench: &mut Bench) -> TestResult {
    bench.set_cache(true)?;
    let synced = |disk: &CacheDisk| disk.started(Op::Flush) + disk.started(Op::StableWrite);
    let before = synced(&bench.disk);
    for queue in 0..QUEUES {
        assert_eq!(bench.flush(queue)?, status::IOERR, "flush on {queue}");
        assert_eq!(bench.write(queue, 32, 9)?, status::OK);
        bench.verify(queue, 32, 9)?;
    }
    bench.set_cache(false)?;
    for queue in 0..QUEUES {
        assert_eq!(bench.write(queue, 40, 8)?, status::IOERR, "stable write");
        bench.verify(queue, 32, 9)?;
    }
    for kind in [kind::WRITE_ZEROES, kind::DISCARD] {
        assert_eq!(bench.clear(kind)?, status::IOERR, "stable clear {kind}");
    }
    assert_eq!(synced(&bench.disk), before, "there is nothing to try");
    bench.set_cache(true)
}

#[test]
fn j3_failed_flush_is_never_followed_by_a_good_one() -> TestResult {
    for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::ENODEV] {
        let mut bench = Bench::new()?;
        assert_eq!(bench.write(0, 0, 1)?, status::OK);
        bench.disk.fail_next(Op::Flush, errno);
        assert_eq!(bench.flush(0)?, status::IOERR, "errno {errno}");
        assert_lost(&mut bench)?;
        let mut bench = bench.reconnect()?;
        assert_lost(&mut bench)?;
    }
    Ok(())
}

#[test]
fn j3_failed_stable_write_is_never_followed_by_a_good_flush() -> TestResult {
    for op in [Op::StableWrite, Op::WriteZeroes, Op::Discard] {
        let mut bench = Bench::new()?;
        // Older writes that are not stable: what has failed may be theirs.
        assert_eq!(bench.write(0, 16, 1)?, status::OK);
        bench.set_cache(false)?;
        bench.disk.fail_next(op, libc::EIO);
        let status = match op {
            Op::StableWrite => bench.write(0, 0, 1)?,
            Op::WriteZeroes => bench.clear(kind::WRITE_ZEROES)?,
            _ => bench.clear(kind::DISCARD)?,
        };
        assert_eq!(status, status::IOERR, "{op:?}");
        assert_lost(&mut bench)?;
        let mut bench = bench.reconnect()?;
        assert_lost(&mut bench)?;
    }
    Ok(())
}

#[test]
fn j3_failed_volatile_write_fails_alone() -> TestResult {
    let mut bench = Bench::new()?;
    bench.disk.fail_next(Op::Write, libc::EIO);
    assert_eq!(bench.write(0, 0, 1)?, status::IOERR);
    assert_eq!(bench.write(0, 0, 2)?, status::OK);
    assert_eq!(bench.flush(0)?, status::OK);
    bench.verify(0, 0, 2)
}

/// The kernel tells of a failed sync once: of two under way, one may come back as if all were well.
#[test]
fn j3_sync_that_was_under_way_beside_a_failed_one_fails_too() -> TestResult {
    for stable_write in [false, true] {
        let mut bench = Bench::new()?;
        bench.set_cache(!stable_write)?;
        bench.disk.stall_next(if stable_write {
            Op::StableWrite
        } else {
            Op::Flush
        });
        if stable_write {
            bench.begin_write(1, 8, 1)?;
            bench.wait_started(Op::StableWrite, 1);
        } else {
            bench.begin_flush(1)?;
            bench.wait_started(Op::Flush, 1);
        }
        bench.disk.fail_next(Op::Flush, libc::EIO);
        assert_eq!(bench.flush(0)?, status::IOERR);
        bench.disk.release_all();
        assert_eq!(bench.wait(1)?.status, status::IOERR, "{stable_write}");
    }
    Ok(())
}

/// `drain` makes everything stable by itself, and may be the one who is told.
#[test]
fn j3_failed_sync_of_a_drain_is_never_followed_by_a_good_flush() -> TestResult {
    let mut bench = Bench::new()?;
    assert_eq!(bench.write(0, 0, 1)?, status::OK);
    bench.disk.fail_next(Op::Flush, libc::EIO);
    assert!(
        !bench.served.control().pause(true, Duration::from_secs(1)),
        "a drain that could not make its writes stable has not succeeded"
    );
    bench.served.control().pause(false, PATIENCE);
    assert_lost(&mut bench)?;
    let mut bench = bench.reconnect()?;
    assert_lost(&mut bench)
}

#[test]
fn j4_short_and_interrupted_operations_are_continued() -> TestResult {
    let mut bench = Bench::new()?;
    for (seed, cache, op) in [(1, true, Op::Write), (2, false, Op::StableWrite)] {
        bench.set_cache(cache)?;
        let before = bench.disk.started(op);
        bench.disk.short_next(op);
        bench.disk.fail_next(op, libc::EINTR);
        bench.disk.short_next(op);
        bench.disk.fail_next(op, libc::EAGAIN);
        assert_eq!(bench.write(0, 4, seed)?, status::OK);
        // 4 sectors: 2, interrupted, 1, interrupted, 1.
        assert_eq!(bench.disk.started(op) - before, 5);
        let before = bench.disk.started(Op::Read);
        bench.disk.fail_next(Op::Read, libc::EAGAIN);
        bench.disk.short_next(Op::Read);
        bench.disk.fail_next(Op::Read, libc::EINTR);
        bench.disk.short_next(Op::Read);
        bench.verify(1, 4, seed)?;
        assert_eq!(bench.disk.started(Op::Read) - before, 5);
    }
    for errno in [libc::EINTR, libc::EAGAIN] {
        bench.disk.fail_next(Op::Flush, errno);
        assert_eq!(bench.flush(0)?, status::OK, "errno {errno}");
    }
    Ok(())
}

#[test]
fn j4_operation_that_is_interrupted_for_ever_fails() -> TestResult {
    let mut bench = Bench::new()?;
    for _ in 0..1000 {
        bench.disk.fail_next(Op::Read, libc::EINTR);
    }
    let mut data = [0; 512];
    assert_eq!(bench.drivers[0].read(0, &mut data)?.status, status::IOERR);
    Ok(())
}

#[test]
fn j6_stalled_disk_holds_up_nobody_else_and_get_vring_base_waits() -> TestResult {
    let mut bench = Bench::new()?;
    for op in [Op::Write, Op::Read] {
        bench.disk.stall_next(op);
    }
    bench.begin_write(0, 0, 1)?;
    bench.wait_started(Op::Write, 1);
    // The same queue and the others go on.
    let mut data = [0; 512];
    let slot = bench.drivers[0].acquire()?;
    bench.drivers[0].submit(slot, &BlkRequest::read(20, 512))?;
    bench.drivers[0].publish()?;
    bench.wait_started(Op::Read, 1);
    for turn in 0..50 {
        for queue in 1..QUEUES {
            assert_eq!(bench.write(queue, 8, turn)?, status::OK);
            bench.verify(queue, 8, turn)?;
            assert_eq!(bench.flush(queue)?, status::OK);
        }
        assert_eq!(bench.drivers[0].execute(&BlkRequest::flush())?.status, 0);
    }
    assert_eq!(bench.drivers[0].in_flight(), 2);

    let Bench {
        disk,
        mut served,
        mut session,
        mut drivers,
    } = bench;
    let (send, stopped) = sync_channel(1);
    let stopper = std::thread::spawn(move || {
        let base = session.stop(0);
        // The test may have failed and gone.
        let _ = send.send(());
        (session, base)
    });
    for _ in 0..200 {
        let done = drivers[1].read(8, &mut data)?;
        assert_eq!(done.status, status::OK);
        assert_eq!(stopped.try_recv(), Err(TryRecvError::Empty));
    }
    disk.release_all();
    let (session, base) = stopper.join().map_err(|_panic| "the stop panicked")?;
    // 2 stalled and 50 flushes, all of them answered before the reply.
    assert_eq!(base?, 52);
    for _ in 0..2 {
        let done = drivers[0].poll()?.ok_or("not answered before the stop")?;
        assert_eq!(done.status, status::OK);
    }
    drop((session, drivers));
    served.wait_end()?;
    Ok(())
}

#[test]
fn flush_covers_what_was_complete_on_all_queues_and_waits_for_nothing_else() -> TestResult {
    let mut bench = Bench::new()?;
    for flusher in 0..QUEUES {
        let seed = flusher as u64 + 1;
        let stalled = bench.disk.started(Op::Write);
        for queue in 0..QUEUES {
            bench.disk.stall_next(Op::Write);
            bench.begin_write(queue, 32 + 4 * queue as u64, seed)?;
            // One at a time, so that it is these that stall.
            bench.wait_started(Op::Write, stalled + queue as u64 + 1);
        }
        for queue in 0..QUEUES {
            // On its own queue too, with the other still under way.
            let driver = &mut bench.drivers[queue];
            let sector = 4 * queue as u64;
            assert_eq!(
                driver.write(sector, &pattern(seed, sector, 4))?.status,
                status::OK
            );
        }
        assert_eq!(bench.flush(flusher)?, status::OK);
        let left = bench.worst_cut();
        for queue in 0..QUEUES as u64 {
            for sector in 4 * queue..4 * queue + 4 {
                check_pattern(seed, sector, &left[sector as usize])?;
            }
        }
        assert!(bench.drivers.iter().all(|driver| driver.in_flight() == 1));
        bench.disk.release_all();
        for queue in 0..QUEUES {
            assert_eq!(bench.wait(queue)?.status, status::OK);
        }
    }
    Ok(())
}

/// A flush that the disk is still at has saved nothing yet, so it must not be answered.
#[test]
fn flush_is_answered_when_the_disk_has_done_it_and_not_before() -> TestResult {
    let mut bench = Bench::new()?;
    bench.disk.set_pace(Pace::Held);
    bench.begin_flush(0)?;
    bench.wait_started(Op::Flush, 1);
    bench.disk.set_pace(Pace::Free);
    assert_eq!(bench.wait(0)?.status, status::OK);
    bench.disk.stall_next(Op::Flush);
    bench.begin_flush(0)?;
    bench.wait_started(Op::Flush, 2);
    for seed in 0..100 {
        assert_eq!(bench.write(1, 0, seed)?, status::OK);
        assert!(bench.drivers[0].poll()?.is_none(), "answered too early");
    }
    bench.disk.release_all();
    assert_eq!(bench.wait(0)?.status, status::OK);
    Ok(())
}

/// What a driver is to be told, and whether the disk counts as lossy from then on.
fn expected(op: Op, errno: Option<i32>) -> (u8, bool) {
    let Some(errno) = errno else {
        return (status::OK, false);
    };
    if matches!(errno, libc::EINTR | libc::EAGAIN) {
        return (status::OK, false);
    }
    let is_sync = match op {
        Op::Flush => true,
        // What has no room may as well be an older write.
        Op::StableWrite => true,
        Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => false,
    };
    (status::IOERR, is_sync)
}

#[test]
fn r9_every_operation_answers_every_fault_and_goes_on() -> TestResult {
    let faults = [
        Some(libc::EIO),
        Some(libc::ENOSPC),
        Some(libc::EINTR),
        Some(libc::EAGAIN),
        Some(libc::ENODEV),
        None,
    ];
    let mut cases = 0;
    for op in Op::ALL {
        for fault in faults {
            let mut bench = Bench::new()?;
            assert_eq!(bench.write(0, 0, 1)?, status::OK);
            bench.set_cache(op != Op::StableWrite)?;
            match fault {
                Some(errno) => bench.disk.fail_next(op, errno),
                None => bench.disk.short_next(op),
            }
            let run = |bench: &mut Bench, good: bool| -> Result<u8, Box<dyn Error>> {
                match op {
                    Op::Read => {
                        let mut data = [0; 2048];
                        let done = bench.drivers[0].read(0, &mut data)?;
                        if good {
                            check_pattern(1, 0, &data)?;
                        }
                        Ok(done.status)
                    }
                    Op::Write | Op::StableWrite => bench.write(0, 16, 2),
                    Op::Flush => bench.flush(0),
                    Op::Discard => bench.clear(kind::DISCARD),
                    Op::WriteZeroes => bench.clear(kind::WRITE_ZEROES),
                }
            };
            let (status, lossy) = expected(op, fault);
            assert_eq!(
                run(&mut bench, status == status::OK)?,
                status,
                "{op:?} {fault:?}"
            );
            // The same again is good, unless it would claim what cannot be known any more.
            let again = if lossy { status::IOERR } else { status::OK };
            assert_eq!(run(&mut bench, true)?, again, "{op:?} after {fault:?}");
            bench.verify(1, 0, 1)?;
            bench.set_cache(true)?;
            assert_eq!(bench.write(2, 24, 3)?, status::OK);
            bench.verify(3, 24, 3)?;
            assert_eq!(bench.flush(3)?, again);
            cases += 1;
        }
    }
    assert_eq!(cases, 36);
    Ok(())
}
