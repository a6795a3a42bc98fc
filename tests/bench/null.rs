// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests per second of everything but the storage.

#[path = "figures.rs"]
mod figures;

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ringside_blk::device::{BlockDevice, BlockOptions};
use ringside_blk::engine::NullEngine;
use ringside_blk::storage::CacheMode;
use ringside_common::daemon::{Control, Source, serve};
use ringside_common::worker::WorkerOptions;
use ringside_frontend::blk::{BlkConfig, BlkDriver, RequestShape, TableShape};
use ringside_frontend::load::{RandomRead, Stop, random_read};
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use rustix::thread::{CpuSet, sched_setaffinity};

use figures::{Series, has_option, say};

const HELP: &str = "\
null: 4 KiB reads from a disk that does nothing (NullEngine), through the whole device in this
process: vhost-user over a socket pair, one queue, 128 requests in flight, direct descriptors and
indirect ones. The data thread has processor 0, the front-end polls on processor 1.

Printed are requests per second, and requests per CPU-second of the data thread; the latter is the
figure on a machine that others use as well. The front-end has about as much work per request as
the device; where it is the slower one, the data thread polls for the rest of the time, which
counts as its CPU time all the same.

  cargo bench -p ringside-tests --bench null
";

const DEPTH: u16 = 128;
const DISK_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 31;
const ROUND: Duration = Duration::from_millis(100);

/// CPU time of the data thread so far.
fn data_thread_seconds() -> Result<f64, Box<dyn Error>> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim_end() == "data-0" {
            let schedstat = std::fs::read_to_string(task.join("schedstat"))?;
            let nanos: f64 = schedstat.split(' ').next().unwrap_or_default().parse()?;
            return Ok(nanos / 1e9);
        }
    }
    Err("there is no data thread".into())
}

fn bind_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(error) = sched_setaffinity(None, &set) {
        say(format_args!("not bound to processor {cpu}: {error}"));
    }
}

fn device() -> Arc<BlockDevice> {
    let engine = Arc::new(NullEngine::new(DISK_BYTES / 512));
    let options = BlockOptions {
        num_queues: 1,
        queue_size: 1024,
        seg_max: 126,
        serial: "null".to_owned(),
        cache: CacheMode::default(),
    };
    Arc::new(BlockDevice::new(engine, options))
}

fn measure(table: TableShape) -> Result<(), Box<dyn Error>> {
    let (ours, theirs) = UnixStream::pair()?;
    let control = Control::new()?;
    let options = WorkerOptions {
        max_threads: 1,
        cpus: vec![0],
        max_poll_ns: 50_000,
        stop_timeout: None,
        file_memory: false,
    };
    std::thread::scope(|scope| {
        let server =
            scope.spawn(|| serve(&device(), Source::Connected(theirs), &options, &control));
        load(ours, table)?;
        server.join().map_err(|_panic| "the server panicked")??;
        Ok(())
    })
}

fn load(stream: UnixStream, table: TableShape) -> Result<(), Box<dyn Error>> {
    let direct = table == TableShape::Direct;
    let mut session = Session::builder()
        .queue_size(if direct { 512 } else { 256 })
        .indirect(!direct)
        .calls(CallMode::Never)
        .memory(MemoryLayout::single(64 << 20).populate(true))
        .from_stream(stream)?;
    let vring = session.start_all()?.remove(0);
    let config = BlkConfig {
        depth: DEPTH,
        slot_bytes: 4096,
        shape: RequestShape {
            table,
            ..RequestShape::default()
        },
        ..BlkConfig::default()
    };
    let mut driver = BlkDriver::new(vring, config)?;
    let mut plan = RandomRead {
        depth: usize::from(DEPTH),
        block_bytes: 4096,
        span_bytes: DISK_BYTES,
        stop: Stop::Elapsed(ROUND),
        seed: 0,
    };
    let (mut rate, mut efficiency) = (Series::default(), Series::default());
    let mut kicks = 0.0;
    for seed in 0..=ROUNDS as u64 {
        plan.seed = seed;
        let before = data_thread_seconds()?;
        let report = random_read(&mut driver, &plan)?;
        let cpu = data_thread_seconds()? - before;
        // The first one warms up.
        if seed > 0 {
            rate.push(report.iops() / 1e6);
            efficiency.push(report.iops() * report.elapsed.as_secs_f64() / cpu / 1e6);
            kicks += report.kicks as f64 / report.completed as f64 / ROUNDS as f64;
        }
    }
    say(format_args!(
        "{table:?} descriptors   {rate} M requests/s, best {:.2}   {efficiency} M requests per \
         CPU-second of the data thread, best {:.2}   {kicks:.5} kicks per request",
        rate.percentile(100),
        efficiency.percentile(100),
    ));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    say(HELP);
    if has_option("--help") {
        return Ok(());
    }
    bind_to(1);
    measure(TableShape::Direct)?;
    measure(TableShape::Indirect)
}
