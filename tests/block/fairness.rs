// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Vrings of one data thread share it by bytes: none waits for more than a budget of each other.
//!
//! The order in which requests reach the disk is compared, no time. They are made available while
//! the device is paused, so that the data thread finds all of them at once; or by the disk itself,
//! on the data thread, while it serves another.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringside_blk::engine::{Engine, EngineQueue, FileEngine, Ranges, Step, Target};
use ringside_blk::storage::{CacheMode, DiscardMode, Image, ImageOptions};
use ringside_common::io::{Engine as IoEngine, FileId};
use ringside_common::worker::RequestCx;
use ringside_frontend::blk::{
    BlkConfig, BlkDriver, BlkRequest, Place, RequestShape, SECTOR_BYTES, TableShape,
};
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_tests::block_engine::{CacheDisk, Pace};
use ringside_tests::in_process::Served;

type TestResult<T = ()> = Result<T, Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(60);
const LARGE_BYTES: u32 = 1 << 20;
const SMALL_BYTES: u32 = 4096;
/// What one vring may have served before the others have their turn.
const BUDGET_BYTES: u64 = 256 << 10;
const BUDGET_REQUESTS: usize = 64;

/// A read, as it reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Read {
    /// Each vring reads at a place of its own.
    vring: usize,
    bytes: u64,
}

/// Done on the data thread when so many reads have begun.
struct Hook {
    at: usize,
    run: Box<dyn FnOnce() + Send>,
}

/// Writes down in which order reads begin.
struct Recorder {
    disk: Arc<dyn Engine>,
    io_engine: IoEngine,
    order: Mutex<Vec<Read>>,
    hook: Mutex<Option<Hook>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorder").field(&self.disk).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    fn order(&self) -> Vec<Read> {
        lock(&self.order).clone()
    }
}

impl Engine for Recorder {
    fn files(&self) -> Vec<Arc<OwnedFd>> {
        self.disk.files()
    }

    fn io_engine(&self) -> IoEngine {
        self.io_engine
    }

    fn capacity_sectors(&self) -> u64 {
        self.disk.capacity_sectors()
    }

    fn can_discard(&self) -> bool {
        false
    }

    fn start_queue(
        self: Arc<Self>,
        size: u16,
        file: &dyn Fn(u32) -> FileId,
    ) -> Box<dyn EngineQueue> {
        Box::new(RecorderQueue {
            disk: Arc::clone(&self.disk).start_queue(size, file),
            recorder: self,
        })
    }

    fn flush_now(&self) -> io::Result<()> {
        self.disk.flush_now()
    }

    fn refresh(&self) -> io::Result<u64> {
        self.disk.refresh()
    }
}

/// Operations on the disk for one vring.
#[derive(Debug)]
struct RecorderQueue {
    recorder: Arc<Recorder>,
    disk: Box<dyn EngineQueue>,
}

impl EngineQueue for RecorderQueue {
    fn read(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        let bytes = cx.buffers(target.head).map_or(0, |b| b.writable_bytes());
        let begun = {
            let mut order = lock(&self.recorder.order);
            order.push(Read {
                vring: usize::try_from(target.offset_bytes / u64::from(SMALL_BYTES)).unwrap_or(0),
                bytes,
            });
            order.len()
        };
        let hook = lock(&self.recorder.hook).take_if(|hook| hook.at == begun);
        if let Some(hook) = hook {
            (hook.run)();
        }
        self.disk.read(cx, target)
    }

    fn write(&mut self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Step {
        self.disk.write(cx, target, stable)
    }

    fn flush(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        self.disk.flush(cx, target)
    }

    fn clear(&mut self, cx: &mut RequestCx<'_>, target: Target, ranges: Ranges) -> Step {
        self.disk.clear(cx, target, ranges)
    }

    fn resume(&mut self, cx: &mut RequestCx<'_>, target: Target, tag: u16, result: i32) -> Step {
        self.disk.resume(cx, target, tag, result)
    }
}

/// A disk whose queues are all served by one data thread, and a driver for each.
struct Bench {
    recorder: Arc<Recorder>,
    drivers: Vec<BlkDriver>,
    /// Where all data goes.
    gpa: u64,
    _session: Session,
    served: Served,
    _images: Option<tempfile::TempDir>,
}

impl Bench {
    /// On a file.
    fn on_file(io_engine: IoEngine, queues: u16) -> TestResult<Self> {
        let images = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let image = Image::open(&ImageOptions {
            path: images.path().join("disk.img"),
            read_only: false,
            size_bytes: Some(4 << 20),
            cache: CacheMode::Writeback,
            block_size_bytes: None,
            discard: DiscardMode::default(),
            lock: true,
        })?;
        let disk = Arc::new(FileEngine::new(image, io_engine)?);
        let mut bench = Self::on_disk(disk, io_engine, queues)?;
        bench._images = Some(images);
        Ok(bench)
    }

    fn on_disk(disk: Arc<dyn Engine>, io_engine: IoEngine, queues: u16) -> TestResult<Self> {
        let recorder = Arc::new(Recorder {
            disk,
            io_engine,
            order: Mutex::default(),
            hook: Mutex::default(),
        });
        let engine: Arc<dyn Engine> = Arc::<Recorder>::clone(&recorder);
        let mut served = Served::on_one_thread(engine, queues)?;
        let builder = Session::builder()
            .queues(usize::from(queues))
            .queue_size(2048)
            .memory(MemoryLayout::single(64 << 20))
            .calls(CallMode::Never);
        let mut session = served.connect(builder)?;
        let config = BlkConfig {
            depth: 2048,
            slot_bytes: 0,
            // One entry of the ring for a request.
            shape: RequestShape {
                table: TableShape::Indirect,
                ..RequestShape::default()
            },
            timeout: PATIENCE,
        };
        let drivers = session
            .start_all()?
            .into_iter()
            .map(|vring| BlkDriver::new(vring, config))
            .collect::<Result<Vec<_>, _>>()?;
        let gpa = session.memory().alloc(LARGE_BYTES as usize, 4096)?;
        Ok(Self {
            recorder,
            drivers,
            gpa,
            _session: session,
            served,
            _images: None,
        })
    }

    /// Makes reads available on a vring.
    fn submit(&mut self, vring: usize, reads: usize, bytes: u32) -> TestResult {
        for _ in 0..reads {
            submit_one(&mut self.drivers[vring], vring, bytes, self.gpa)?;
        }
        self.drivers[vring].publish()?;
        Ok(())
    }

    /// Has the data thread find all of what `fill` makes available at once.
    fn at_once(&mut self, fill: impl FnOnce(&mut Self) -> TestResult) -> TestResult {
        assert!(self.served.control().pause(true, PATIENCE));
        fill(self)?;
        assert!(self.served.control().pause(false, PATIENCE));
        Ok(())
    }

    /// Waits for all that is in flight.
    fn finish(&mut self) -> TestResult<Vec<Read>> {
        for driver in &mut self.drivers {
            while driver.in_flight() > 0 {
                let slot = driver.wait()?.ok()?.slot;
                driver.release(slot);
            }
        }
        Ok(std::mem::take(&mut *lock(&self.recorder.order)))
    }

    fn wait_begun(&self, reads: usize) {
        let deadline = Instant::now() + PATIENCE;
        while lock(&self.recorder.order).len() < reads {
            assert!(Instant::now() < deadline, "{reads} reads do not begin");
            std::thread::yield_now();
        }
    }
}

fn submit_one(driver: &mut BlkDriver, vring: usize, bytes: u32, gpa: u64) -> TestResult {
    let slot = driver.acquire()?;
    let sectors = u64::from(SMALL_BYTES) / SECTOR_BYTES as u64;
    let mut request = BlkRequest::read(vring as u64 * sectors, bytes);
    request.place = Place::At(gpa);
    driver.submit(slot, &request)?;
    Ok(())
}

/// How many reads began before the first one of a vring.
fn before(order: &[Read], vring: usize) -> Option<usize> {
    order.iter().position(|read| read.vring == vring)
}

const ENGINES: [IoEngine; 3] = [IoEngine::Uring, IoEngine::Threads, IoEngine::Inline];

#[test]
fn f2_1_small_read_is_answered_after_one_budget_of_the_other_vring() -> TestResult {
    for io_engine in ENGINES {
        for (large, small) in [(0, 1), (1, 0)] {
            let mut bench = Bench::on_file(io_engine, 4)?;
            bench.at_once(|bench| {
                bench.submit(large, 320, LARGE_BYTES)?;
                bench.submit(small, 1, SMALL_BYTES)
            })?;
            let order = bench.finish()?;
            assert_eq!(order.len(), 321);
            let waited = before(&order, small).ok_or("not served")?;
            assert!(
                waited <= 1,
                "{waited} large reads of vring {large} before the one of vring {small}, {io_engine:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn f2_1_small_read_that_comes_later_is_answered_after_one_budget_of_the_other_vring() -> TestResult
{
    for (large, small) in [(0, 1), (1, 0)] {
        for large_bytes in [LARGE_BYTES, 64 << 10, SMALL_BYTES] {
            let mut bench = Bench::on_file(IoEngine::Inline, 2)?;
            let at = 150;
            let mut driver = bench.drivers.remove(small);
            let gpa = bench.gpa;
            let (send, receive) = std::sync::mpsc::channel();
            *lock(&bench.recorder.hook) = Some(Hook {
                at,
                run: Box::new(move || {
                    let done = submit_one(&mut driver, small, SMALL_BYTES, gpa)
                        .and_then(|()| Ok(driver.publish()?))
                        .map_err(|error| error.to_string());
                    let _ = send.send(done.map(|_kicked| driver));
                }),
            });
            let mut flooder = bench.drivers.remove(0);
            assert!(bench.served.control().pause(true, PATIENCE));
            for _ in 0..320 {
                submit_one(&mut flooder, large, large_bytes, gpa)?;
            }
            flooder.publish()?;
            assert!(bench.served.control().pause(false, PATIENCE));
            bench.drivers.push(flooder);
            bench.drivers.push(receive.recv_timeout(PATIENCE)??);
            let order = bench.finish()?;
            let waited = before(&order, small).ok_or("not served")? - at;
            let most = usize::try_from(BUDGET_BYTES.div_ceil(large_bytes.into()))?;
            assert!(
                waited <= most,
                "{waited} of {large_bytes} bytes of vring {large} before the small one"
            );
        }
    }
    Ok(())
}

#[test]
fn f2_1_eight_vrings_of_large_reads_take_turns() -> TestResult {
    const VRINGS: usize = 8;
    for io_engine in ENGINES {
        let mut bench = Bench::on_file(io_engine, 9)?;
        bench.at_once(|bench| {
            for vring in 0..VRINGS {
                bench.submit(vring, 32, LARGE_BYTES)?;
            }
            bench.submit(VRINGS, 1, SMALL_BYTES)
        })?;
        let order = bench.finish()?;
        let waited = before(&order, VRINGS).ok_or("not served")?;
        assert!(waited <= VRINGS, "{waited} before the small one");
        let large: Vec<_> = order.iter().filter(|read| read.vring < VRINGS).collect();
        assert_eq!(large.len(), 32 * VRINGS);
        for (round, reads) in large.chunks(VRINGS).enumerate() {
            let mut vrings: Vec<_> = reads.iter().map(|read| read.vring).collect();
            vrings.sort_unstable();
            assert_eq!(vrings, Vec::from_iter(0..VRINGS), "round {round}");
        }
    }
    Ok(())
}

#[test]
fn f2_1_vrings_share_by_bytes_whatever_the_size_of_their_reads() -> TestResult {
    for sizes in [
        [LARGE_BYTES, 64 << 10, 16 << 10],
        [16 << 10, LARGE_BYTES, 64 << 10],
        [64 << 10, 16 << 10, 252 << 10],
    ] {
        let mut bench = Bench::on_file(IoEngine::Uring, 3)?;
        bench.at_once(|bench| {
            for (vring, bytes) in sizes.into_iter().enumerate() {
                bench.submit(vring, ((24 << 20) / bytes) as usize, bytes)?;
            }
            Ok(())
        })?;
        let order = bench.finish()?;
        let mut moved = BTreeMap::from([(0, 0), (1, 0), (2, 0)]);
        for read in order {
            *moved.entry(read.vring).or_insert(0) += read.bytes;
            let (least, most) = (moved.values().min(), moved.values().max());
            let (least, most) = least.zip(most).map_or((0, 0), |(a, b)| (*a, *b));
            if most > 20 << 20 {
                break;
            }
            let apart = most - least;
            assert!(
                apart <= 2 * BUDGET_BYTES + u64::from(LARGE_BYTES),
                "{moved:?} of {sizes:?}"
            );
        }
        assert!(moved.values().all(|bytes| *bytes > 16 << 20), "{moved:?}");
    }
    Ok(())
}

/// What nobody waited for is not held against a vring.
#[test]
fn f2_1_large_reads_alone_leave_no_debt() -> TestResult {
    let mut bench = Bench::on_file(IoEngine::Uring, 2)?;
    bench.submit(1, 40, LARGE_BYTES)?;
    for _ in 0..8 {
        bench.finish()?;
        bench.submit(1, 1, LARGE_BYTES)?;
    }
    bench.finish()?;
    bench.at_once(|bench| {
        bench.submit(0, 64, LARGE_BYTES)?;
        bench.submit(1, 1, SMALL_BYTES)
    })?;
    let waited = before(&bench.finish()?, 1).ok_or("not served")?;
    assert!(waited <= 1, "{waited} large reads before the small one");
    Ok(())
}

#[test]
fn f2_1_room_of_requests_in_flight_is_shared() -> TestResult {
    /// Most I/O that a data thread has in flight.
    const ROOM: usize = 3072;
    for late in [3, 0] {
        let disk = CacheDisk::new(64, 1);
        disk.set_pace(Pace::Held);
        let engine: Arc<dyn Engine> = Arc::<CacheDisk>::clone(&disk);
        let mut bench = Bench::on_disk(engine, IoEngine::Uring, 4)?;
        for vring in (0..4).filter(|vring| *vring != late) {
            bench.submit(vring, 2000, 512)?;
        }
        bench.wait_begun(ROOM);
        bench.submit(late, 1, 512)?;
        let mut begun = ROOM;
        while before(&bench.recorder.order(), late).is_none() {
            disk.release_oldest();
            begun += 1;
            bench.wait_begun(begun);
        }
        let waited = begun - 1 - ROOM;
        assert!(
            waited <= 3 * BUDGET_REQUESTS,
            "{waited} reads of the others before the one of vring {late}"
        );
        disk.set_pace(Pace::Free);
        bench.finish()?;
    }
    Ok(())
}
