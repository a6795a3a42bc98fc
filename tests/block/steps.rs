// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Operations of an engine that have more than one step.
//!
//! The disk of these tests keeps each block where a table says, in a file of its own: an operation
//! reads the table on another thread, then does the I/O on the data. A flush syncs one file, then
//! the other.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ringside_blk::engine::{Engine, EngineQueue, LAST_STEP, Ranges, Step, Target};
use ringside_blk::storage::CacheMode;
use ringside_common::io::{Engine as IoEngine, FileId};
use ringside_common::worker::RequestCx;
use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, status};
use ringside_frontend::load::{check_pattern, fill_pattern};
use ringside_frontend::session::Session;
use ringside_tests::in_process::Served;
use tempfile::TempDir;

type TestResult<T = ()> = Result<T, Box<dyn Error>>;

const BLOCKS: u64 = 64;
const BLOCK_BYTES: u64 = 4096;
const BLOCK_LEN: usize = 4096;
const BLOCK_SECTORS: u64 = BLOCK_BYTES / 512;
const ENTRY_BYTES: u64 = 8;

/// The tags of steps that are not the last.
const TABLE: u16 = 1;
const FIRST_SYNC: u16 = 2;

/// Where the table keeps a block.
fn place_of(block: u64) -> u64 {
    (block * 37 + 11) % BLOCKS
}

/// A door that is open or closed; who comes to a closed one waits.
#[derive(Debug)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, open: bool) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = open;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_while(open, |open| !*open));
    }
}

#[derive(Debug)]
struct TableDisk {
    table: Arc<OwnedFd>,
    data: Arc<OwnedFd>,
    io_engine: IoEngine,
    gate: Arc<Gate>,
    /// What the next read of the table fails with; 0 for nothing.
    table_errno: Arc<AtomicI32>,
    /// Steps that followed a read of the table.
    data_steps: AtomicUsize,
}

impl Engine for TableDisk {
    fn files(&self) -> Vec<Arc<OwnedFd>> {
        vec![Arc::clone(&self.table), Arc::clone(&self.data)]
    }

    fn io_engine(&self) -> IoEngine {
        self.io_engine
    }

    fn capacity_sectors(&self) -> u64 {
        BLOCKS * BLOCK_SECTORS
    }

    fn can_discard(&self) -> bool {
        false
    }

    fn start_queue(
        self: Arc<Self>,
        size: u16,
        file: &dyn Fn(u32) -> FileId,
    ) -> Box<dyn EngineQueue> {
        Box::new(TableQueue {
            disk: self,
            table: file(0),
            data: file(1),
            operations: (0..size).map(|_| Operation::default()).collect(),
        })
    }

    fn flush_now(&self) -> io::Result<()> {
        Ok(())
    }

    fn refresh(&self) -> io::Result<u64> {
        Ok(self.capacity_sectors())
    }
}

/// An operation under way.
#[derive(Debug, Default)]
struct Operation {
    is_write: bool,
    stable: bool,
    /// What the table says; the thread that reads it writes it here.
    place: Arc<AtomicU64>,
}

#[derive(Debug)]
struct TableQueue {
    disk: Arc<TableDisk>,
    table: FileId,
    data: FileId,
    /// By head.
    operations: Box<[Operation]>,
}

impl TableQueue {
    /// The first step.
    fn look_up(&mut self, cx: &mut RequestCx<'_>, target: Target, operation: Operation) -> Step {
        let place = Arc::clone(&operation.place);
        self.operations[usize::from(target.head)] = operation;
        let (table, gate) = (Arc::clone(&self.disk.table), Arc::clone(&self.disk.gate));
        let errno = Arc::clone(&self.disk.table_errno);
        let at = target.offset_bytes / BLOCK_BYTES * ENTRY_BYTES;
        let job = move || {
            gate.pass();
            let errno = errno.swap(0, Ordering::Relaxed);
            let mut entry = [0; 8];
            match rustix::io::pread(&*table, &mut entry, at) {
                _ if errno != 0 => -errno,
                Ok(8) => {
                    place.store(u64::from_le_bytes(entry), Ordering::Release);
                    8
                }
                _ => -libc::EIO,
            }
        };
        cx.run(target.head, TABLE, Box::new(job)).into()
    }
}

impl EngineQueue for TableQueue {
    fn read(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        self.look_up(cx, target, Operation::default())
    }

    fn write(&mut self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Step {
        let operation = Operation {
            is_write: true,
            stable,
            ..Operation::default()
        };
        self.look_up(cx, target, operation)
    }

    fn flush(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        cx.fdatasync(target.head, FIRST_SYNC, self.data).into()
    }

    fn clear(&mut self, _cx: &mut RequestCx<'_>, _target: Target, _ranges: Ranges) -> Step {
        Step::Done(-libc::EIO)
    }

    fn resume(&mut self, cx: &mut RequestCx<'_>, target: Target, tag: u16, result: i32) -> Step {
        if result < 0 {
            return Step::Done(result);
        }
        if tag == FIRST_SYNC {
            return cx.fdatasync(target.head, LAST_STEP, self.table).into();
        }
        assert_eq!((tag, result), (TABLE, 8));
        self.disk.data_steps.fetch_add(1, Ordering::Relaxed);
        let operation = &self.operations[usize::from(target.head)];
        let at = operation.place.load(Ordering::Acquire) * BLOCK_BYTES;
        if operation.is_write {
            cx.write(target.head, LAST_STEP, self.data, at, operation.stable)
        } else {
            cx.read(target.head, LAST_STEP, self.data, at)
        }
        .into()
    }
}

/// A device on such a disk, and a driver of its only queue.
struct Bench {
    disk: Arc<TableDisk>,
    driver: BlkDriver,
    session: Session,
    served: Served,
    dir: TempDir,
}

impl Bench {
    fn new(io_engine: IoEngine) -> TestResult<Self> {
        let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let file = |name: &str, len_bytes: u64| {
            let path = dir.path().join(name);
            let file = File::create_new(&path)?;
            file.set_len(len_bytes)?;
            File::options().read(true).write(true).open(path)
        };
        let table = file("table", BLOCKS * ENTRY_BYTES)?;
        for block in 0..BLOCKS {
            table.write_all_at(&place_of(block).to_le_bytes(), block * ENTRY_BYTES)?;
        }
        let disk = Arc::new(TableDisk {
            table: Arc::new(table.into()),
            data: Arc::new(file("data", BLOCKS * BLOCK_BYTES)?.into()),
            io_engine,
            gate: Arc::new(Gate {
                open: Mutex::new(true),
                opened: Condvar::new(),
            }),
            table_errno: Arc::default(),
            data_steps: AtomicUsize::new(0),
        });
        let mut served = Served::new(disk.clone(), CacheMode::Writeback)?;
        let mut session = served.connect(Session::builder().queues(1).queue_size(256))?;
        let vring = session.start_all()?.remove(0);
        let config = BlkConfig {
            slot_bytes: BLOCK_LEN,
            ..BlkConfig::default()
        };
        Ok(Self {
            disk,
            driver: BlkDriver::new(vring, config)?,
            session,
            served,
            dir,
        })
    }

    /// Writes a pattern to every block, one after the other.
    fn fill(&mut self, seed: u64) -> TestResult {
        for block in 0..BLOCKS {
            let data = pattern(seed, block);
            self.driver.write(block * BLOCK_SECTORS, &data)?.ok()?;
        }
        Ok(())
    }

    /// Submits a read of a block.
    fn begin_read(&mut self, block: u64) -> TestResult {
        let slot = self.driver.acquire()?;
        let request = BlkRequest::read(block * BLOCK_SECTORS, 4096);
        Ok(self.driver.submit(slot, &request)?)
    }

    fn end(self) -> TestResult {
        let Self {
            driver,
            session,
            mut served,
            ..
        } = self;
        drop((driver, session));
        Ok(served.wait_end()?)
    }
}

fn pattern(seed: u64, block: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK_LEN];
    fill_pattern(seed, block * BLOCK_SECTORS, &mut data);
    data
}

#[test]
fn data_is_where_the_table_says_for_many_requests_at_once() -> TestResult {
    for io_engine in [IoEngine::Uring, IoEngine::Threads] {
        let mut bench = Bench::new(io_engine)?;
        bench.fill(1)?;
        assert_eq!(bench.driver.flush()?.status, status::OK);
        let file = File::open(bench.dir.path().join("data"))?;
        for block in 0..BLOCKS {
            let mut data = vec![0; BLOCK_LEN];
            file.read_exact_at(&mut data, place_of(block) * BLOCK_BYTES)?;
            check_pattern(1, block * BLOCK_SECTORS, &data)?;
        }
        // All tables are read before the first data is.
        bench.disk.gate.set(false);
        let many = u64::from(bench.driver.config().depth).min(BLOCKS);
        for block in 0..many {
            bench.begin_read(block)?;
        }
        bench.driver.publish()?;
        thread::sleep(Duration::from_millis(20));
        assert!(bench.driver.poll()?.is_none());
        bench.disk.gate.set(true);
        for _ in 0..many {
            let completion = bench.driver.wait()?;
            completion.ok()?;
            let mut data = vec![0; BLOCK_LEN];
            bench.driver.data(completion.slot).read(0, &mut data);
            check_pattern(1, completion.request.sector, &data)?;
        }
        bench.end()?;
    }
    Ok(())
}

#[test]
fn step_that_fails_fails_the_request_and_no_other() -> TestResult {
    let mut bench = Bench::new(IoEngine::Uring)?;
    bench.fill(2)?;
    let mut data = vec![0; BLOCK_LEN];
    let steps = bench.disk.data_steps.load(Ordering::Relaxed);
    bench.disk.table_errno.store(libc::EIO, Ordering::Relaxed);
    assert_eq!(bench.driver.read(0, &mut data)?.status, status::IOERR);
    bench
        .disk
        .table_errno
        .store(libc::ENOSPC, Ordering::Relaxed);
    assert_eq!(bench.driver.write(0, &data)?.status, status::IOERR);
    assert_eq!(bench.disk.data_steps.load(Ordering::Relaxed), steps);
    // An operation that was interrupted begins again with its first step.
    bench.disk.table_errno.store(libc::EINTR, Ordering::Relaxed);
    bench.driver.read(0, &mut data)?.ok()?;
    check_pattern(2, 0, &data)?;
    // The last step fails: the table leads behind the end of the data.
    let table = File::options()
        .write(true)
        .open(bench.dir.path().join("table"))?;
    table.write_all_at(&BLOCKS.to_le_bytes(), 0)?;
    assert_eq!(bench.driver.read(0, &mut data)?.status, status::IOERR);
    bench.driver.read(BLOCK_SECTORS, &mut data)?.ok()?;
    check_pattern(2, BLOCK_SECTORS, &data)?;
    bench.end()
}

#[test]
fn stop_between_two_steps_waits_for_the_last_one() -> TestResult {
    let mut bench = Bench::new(IoEngine::Uring)?;
    bench.fill(3)?;
    bench.disk.gate.set(false);
    for block in 0..8 {
        bench.begin_read(block)?;
    }
    bench.driver.publish()?;
    let (session, gate) = (&mut bench.session, &bench.disk.gate);
    let base = thread::scope(|scope| {
        let stop = scope.spawn(|| session.stop(0));
        thread::sleep(Duration::from_millis(50));
        let is_stopped = stop.is_finished();
        gate.set(true);
        assert!(!is_stopped, "stopped while requests were between two steps");
        stop.join().map_err(|_panic| "the stop panicked")
    })??;
    assert_eq!(u64::from(base), BLOCKS + 8);
    for _ in 0..8 {
        let completion = bench.driver.poll()?.ok_or("not answered before the stop")?;
        completion.ok()?;
    }
    bench.end()
}
