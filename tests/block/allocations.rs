// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Serving a request takes nothing from the heap.
//!
//! The allocator of this test binary counts what threads named `data-*` do, which are the data
//! threads of the device that is served in this process.

#![expect(unsafe_code, reason = "an allocator, and a call for the thread's name")]

#[path = "steady/load.rs"]
mod load;

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ringside_blk::engine::FileEngine;
use ringside_blk::image::{CacheMode, DiscardMode, Image, ImageOptions};
use ringside_common::io::Engine as IoEngine;
use ringside_tests::frontend::blk::{BlkConfig, BlkDriver, RequestShape, TableShape};
use ringside_tests::frontend::ring::CallMode;
use ringside_tests::frontend::session::Session;
use ringside_tests::in_process::Served;

use load::{BLOCK_BYTES, BLOCKS, Mix};

static COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
/// The counts are those of one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn note() {
    if !COUNTING.load(Ordering::Relaxed) {
        return;
    }
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes to the buffer.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"data-") {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        note();
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Calls to the allocator that 10 000 requests make on data threads.
fn calls_of(
    cache: CacheMode,
    io_engine: IoEngine,
    mix: Mix,
    table: TableShape,
) -> Result<u64, Box<dyn Error>> {
    // A disk file system: the target directory is on one.
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let image = Image::open(&ImageOptions {
        path: dir.path().join("disk.img"),
        read_only: false,
        size_bytes: Some(BLOCKS * u64::from(BLOCK_BYTES)),
        cache,
        block_size_bytes: None,
        discard: DiscardMode::default(),
        lock: true,
    })?;
    let engine = FileEngine::new(image, io_engine)?;
    let mut served = Served::new(Arc::new(engine), cache)?;
    let builder = Session::builder().queues(2).calls(CallMode::Never);
    let mut session = served.connect(builder)?;
    let config = BlkConfig {
        slot_bytes: BLOCK_BYTES as usize,
        shape: RequestShape {
            table,
            ..RequestShape::default()
        },
        ..BlkConfig::default()
    };
    let mut drivers = session
        .start_all()?
        .into_iter()
        .map(|vring| BlkDriver::new(vring, config))
        .collect::<Result<Vec<_>, _>>()?;
    load::run(&mut drivers, Mix::Both, 10_000)?;
    COUNT.store(0, Ordering::Relaxed);
    COUNTING.store(true, Ordering::Release);
    let ran = load::run(&mut drivers, mix, 10_000);
    COUNTING.store(false, Ordering::Release);
    ran?;
    let count = COUNT.load(Ordering::Relaxed);
    writeln!(
        std::io::stderr(),
        "allocations: {count} calls for 10000 requests: {mix:?}, {cache:?}, {io_engine:?}, {table:?}"
    )?;
    drop((session, drivers));
    served.wait_end()?;
    Ok(count)
}

#[test]
fn request_in_steady_state_allocates_nothing() -> Result<(), Box<dyn Error>> {
    let _one = ONE_AT_A_TIME.lock()?;
    for mix in [Mix::Reads, Mix::Writes, Mix::Both] {
        for table in [TableShape::Direct, TableShape::Indirect] {
            for cache in [CacheMode::Writeback, CacheMode::None] {
                assert_eq!(calls_of(cache, IoEngine::Uring, mix, table)?, 0);
            }
        }
    }
    Ok(())
}

/// The threads engine boxes each job; this is what shows that the count counts.
#[test]
fn count_sees_the_jobs_of_the_threads_engine() -> Result<(), Box<dyn Error>> {
    let _one = ONE_AT_A_TIME.lock()?;
    let count = calls_of(
        CacheMode::Writeback,
        IoEngine::Threads,
        Mix::Both,
        TableShape::Direct,
    )?;
    assert!(count >= 10_000, "{count} calls");
    Ok(())
}
