// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Serving a request takes nothing from the heap.

#[path = "../in_process/allocator.rs"]
mod allocator;
#[path = "steady/load.rs"]
mod load;

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use ringside_blk::engine::FileEngine;
use ringside_blk::storage::{CacheMode, DiscardMode, Image, ImageOptions};
use ringside_common::io::Engine as IoEngine;
use ringside_frontend::blk::{BlkConfig, BlkDriver, RequestShape, TableShape};
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_tests::in_process::Served;

use load::{BLOCK_BYTES, BLOCKS, Mix};

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
    let (ran, count) = allocator::calls_during(|| load::run(&mut drivers, mix, 10_000));
    ran?;
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
    let _alone = allocator::alone();
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
    let _alone = allocator::alone();
    let count = calls_of(
        CacheMode::Writeback,
        IoEngine::Threads,
        Mix::Both,
        TableShape::Direct,
    )?;
    assert!(count >= 10_000, "{count} calls");
    Ok(())
}
