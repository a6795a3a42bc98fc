// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Durability of the real binary, seen from the kernel: which sync began and ended when, between
//! what a driver was told before and after.
//!
//! The driver does one thing after the other, and takes the time around each on the clock that the
//! trace uses, so that an entry of the trace belongs to exactly one request. `--aio=threads` is
//! traced by strace; `io_uring` makes no calls that strace could see and is traced by the kernel's
//! own tracepoints.

#[path = "trace/parse.rs"]
mod parse;
#[path = "trace/tracer.rs"]
mod tracer;

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use ringside_frontend::blk::{BlkConfig, BlkDriver, blk_feature, status};
use ringside_frontend::load::Rng;
use ringside_frontend::session::Session;
use ringside_tests::process::{Launch, Process, thread_ids, tracing_available};
use ringside_tests::skip;
use rustix::time::{ClockId, clock_gettime};

use parse::{Entry, What};
use tracer::{Strace, Tracepoints};

type TestResult = Result<(), Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(60);
/// Of the `writeback` field in the configuration space (virtio 1.3 §5.2.4).
const WCE_OFFSET: u32 = 32;
const IMAGE: &str = "disk.img";
const QUEUES: usize = 2;
/// `EXT4_SUPER_MAGIC`.
const EXT4_MAGIC: i64 = 0xef53;
const STEPS: u64 = 300;

/// What the driver did, and the time just before and just after.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: Request,
    submitted_ns: u64,
    completed_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Write,
    WriteThrough,
    Flush,
}

fn now_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let part = |value| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

fn start(aio: &str) -> Result<(Process, tempfile::TempDir), Box<dyn Error>> {
    let images = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let launch = Launch::back_end("ringside-blk")?;
    let mut image = OsString::from("--blk-file=");
    image.push(images.path().join(IMAGE));
    let mut socket = OsString::from("--socket-path=");
    socket.push(launch.socket());
    let mut process = launch
        .args([image, socket])
        .args(["--size=16M", aio])
        .spawn()?;
    process.wait_listening(PATIENCE)?;
    Ok((process, images))
}

/// Writes, written through or not, and flushes at random; returns each with its time.
fn drive(
    session: &mut Session,
    drivers: &mut [BlkDriver],
    clock: ClockId,
) -> Result<Vec<Step>, Box<dyn Error>> {
    let mut rng = Rng::new(1);
    let mut steps = Vec::new();
    let mut writeback = true;
    for _ in 0..STEPS {
        let driver = &mut drivers[usize::from(rng.below(QUEUES as u64) == 0)];
        let what = match rng.below(10) {
            0 => {
                writeback = !writeback;
                session.set_config(WCE_OFFSET, &[u8::from(writeback)])?;
                continue;
            }
            1..4 => Request::Flush,
            _ if writeback => Request::Write,
            _ => Request::WriteThrough,
        };
        let submitted_ns = now_ns(clock);
        let done = match what {
            Request::Flush => driver.flush()?,
            _ => driver.write(8 * rng.below(512), &[0x77; 4096])?,
        };
        let completed_ns = now_ns(clock);
        assert_eq!(done.status, status::OK);
        steps.push(Step {
            what,
            submitted_ns,
            completed_ns,
        });
    }
    for what in [Request::Write, Request::WriteThrough, Request::Flush] {
        let count = steps.iter().filter(|step| step.what == what).count();
        assert!(count > 20, "{count} of {what:?}");
    }
    Ok(steps)
}

fn connect(process: &mut Process) -> Result<(Session, Vec<BlkDriver>), Box<dyn Error>> {
    let builder = Session::builder()
        .queues(QUEUES)
        .require(blk_feature::FLUSH | blk_feature::CONFIG_WCE)
        .timeout(PATIENCE);
    let mut session = builder.from_stream(process.connect(PATIENCE)?)?;
    let config = BlkConfig {
        depth: 4,
        slot_bytes: 4096,
        timeout: PATIENCE,
        ..BlkConfig::default()
    };
    let drivers = session
        .start_all()?
        .into_iter()
        .map(|vring| BlkDriver::new(vring, config))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((session, drivers))
}

/// Each flush is a sync that succeeded between its submission and its completion, hence began
/// after every earlier completion; each write through is one that says so.
fn check(steps: &[Step], trace: &[Entry]) {
    for step in steps {
        let within: Vec<&Entry> = trace
            .iter()
            .filter(|entry| {
                entry.began_ns >= step.submitted_ns && entry.ended_ns <= step.completed_ns
            })
            .collect();
        let wanted = match step.what {
            Request::Write => What::Write { dsync: false },
            Request::WriteThrough => What::Write { dsync: true },
            Request::Flush => What::Fdatasync,
        };
        assert!(
            within.len() == 1 && within[0].what == wanted && within[0].succeeded,
            "{step:?} was {within:?}"
        );
    }
    // Nothing was made in vain, and nothing seen twice.
    assert_eq!(trace.len(), steps.len());
}

#[test]
fn threads_sync_for_each_flush_and_write_through_by_strace() -> TestResult {
    if let Err(reason) = Strace::available() {
        skip!("{reason}");
    }
    let (mut process, _images) = start("--aio=threads")?;
    let (mut session, mut drivers) = connect(&mut process)?;
    let strace = Strace::attach(process.id())?;
    let steps = drive(&mut session, &mut drivers, ClockId::Realtime)?;
    let trace = parse::strace(&strace.finish()?)?;
    check(&steps, &trace);
    Ok(())
}

#[test]
fn io_uring_syncs_for_each_flush_and_write_through_by_tracepoints() -> TestResult {
    if let Err(reason) = tracing_available() {
        skip!("{reason}");
    }
    if rustix::fs::statfs(env!("CARGO_TARGET_TMPDIR"))?.f_type != EXT4_MAGIC {
        skip!("the target directory is not on ext4, whose tracepoints are used");
    }
    let (mut process, images) = start("--aio=io_uring")?;
    let (mut session, mut drivers) = connect(&mut process)?;
    let threads = thread_ids(process.id(), "data-")?;
    let tracepoints = Tracepoints::attach(&threads, &images.path().join(IMAGE))?;
    let steps = drive(&mut session, &mut drivers, ClockId::Monotonic)?;
    let trace = parse::tracepoints(&tracepoints.finish()?)?;
    check(&steps, &trace);
    Ok(())
}
