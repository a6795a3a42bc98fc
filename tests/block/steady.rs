// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the running back-end costs: system calls, copies, wake-ups, memory, and what a session
//! leaves behind. Counts only, no times.
//!
//! The image lies in cargo's target directory, on a disk file system, and is in the page cache.

#[path = "steady/load.rs"]
mod load;

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, Place};
use ringside_frontend::load::{Verify, check_content, write_pattern};
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::process::{
    Launch, Process, ProcessError, Sample, SyscallCounter, ThreadActivity, thread_activity,
    thread_ids, tracing_available,
};
use ringside_tests::skip;
use serde_json::{Value, json};

use load::{BLOCK_BYTES, BLOCKS, Mix};

type TestResult = Result<(), Box<dyn Error>>;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests that a figure is taken of.
const REQUESTS: u64 = 20_000;

/// One figure at a time: they are of whole processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A running back-end with its image.
struct BackEnd {
    process: Process,
    /// Removed with it.
    _images: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl BackEnd {
    fn start(arguments: &[&str]) -> Result<Self, Box<dyn Error>> {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let images = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let image = images.path().join("disk.img");
        // Written, not sparse: a first write that allocates is another thing.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&image)?;
        let block = vec![0x5a; 1 << 20];
        for _ in 0..(BLOCKS * u64::from(BLOCK_BYTES)) >> 20 {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        let launch = Launch::back_end("ringside-blk")?;
        let option = |name: &str, path: &Path| {
            let mut option = OsString::from(name);
            option.push(path);
            option
        };
        let socket = option("--socket-path=", &launch.socket());
        let control = option("--control-socket=", &launch.path("control.sock"));
        let image = option("--blk-file=", &image);
        let mut process = launch
            .args([socket, control, image])
            .args(arguments)
            .spawn()?;
        process.wait_listening(PATIENCE)?;
        Ok(Self {
            process,
            _images: images,
            _alone: alone,
        })
    }

    fn connect(&mut self, builder: SessionBuilder) -> Result<Session, Box<dyn Error>> {
        Ok(builder.from_stream(self.process.connect(PATIENCE)?)?)
    }

    /// A member of what `info` on the control socket replies.
    fn info(&self, member: &str) -> Result<Value, Box<dyn Error>> {
        let mut stream = UnixStream::connect(self.process.path("control.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "info"});
        writeln!(stream, "{call}")?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line)?;
        let reply: Value = serde_json::from_str(&line)?;
        let value = &reply["result"][member];
        if value.is_null() {
            return Err(format!("no {member} in {line}").into());
        }
        Ok(value.clone())
    }

    fn data_thread(&self) -> Result<u32, Box<dyn Error>> {
        match *thread_ids(self.process.id(), "data-")? {
            [thread] => Ok(thread),
            ref others => Err(format!("data threads: {others:?}").into()),
        }
    }

    /// What our threads have done, once the load's last traces are gone. The kernel's own helpers
    /// of `io_uring` retire after five idle seconds, all but one per ring, which wakes up every five
    /// seconds to look whether it may.
    fn settled(&mut self) -> Result<Activity, Box<dyn Error>> {
        let mut before = activity(&self.process)?;
        let mut quiet = 0;
        Ok(self
            .process
            .poll_until("quiet process", PATIENCE, |process| {
                std::thread::sleep(Duration::from_millis(100));
                let now = activity(process)?;
                quiet = if now == before { quiet + 1 } else { 0 };
                before.clone_from(&now);
                Ok((quiet == 10 && helpers(process)? <= 4).then_some(now))
            })?)
    }
}

type Activity = BTreeMap<u32, ThreadActivity>;

/// The prefix of the names of the kernel's helpers of `io_uring`.
const HELPER: &str = "iou-wrk";

fn activity(process: &Process) -> Result<Activity, ProcessError> {
    let mut threads = thread_activity(process.id())?;
    threads.retain(|_, thread| !thread.name.starts_with(HELPER));
    Ok(threads)
}

fn helpers(process: &Process) -> Result<usize, ProcessError> {
    Ok(thread_ids(process.id(), HELPER)?.len())
}

fn config() -> BlkConfig {
    BlkConfig {
        depth: 32,
        slot_bytes: BLOCK_BYTES as usize,
        timeout: PATIENCE,
        ..BlkConfig::default()
    }
}

fn drivers(session: &mut Session, config: BlkConfig) -> Result<Vec<BlkDriver>, Box<dyn Error>> {
    let vrings = session.start_all()?;
    Ok(vrings
        .into_iter()
        .map(|vring| BlkDriver::new(vring, config))
        .collect::<Result<_, _>>()?)
}

/// Past libtest's capture, which keeps the figures of a test that passes to itself.
fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "steady: {text}");
}

/// System calls of the data thread per thousand requests at depth 32.
fn syscalls_per_thousand(
    arguments: &[&str],
    calls: CallMode,
    mix: Mix,
) -> Result<u64, Box<dyn Error>> {
    let mut back_end = BackEnd::start(arguments)?;
    let mut session = back_end.connect(Session::builder().calls(calls))?;
    let mut drivers = drivers(&mut session, config())?;
    load::run(&mut drivers, Mix::Both, REQUESTS)?;
    let counter = SyscallCounter::attach(back_end.data_thread()?)?;
    load::run(&mut drivers, mix, REQUESTS)?;
    let count = counter.finish()?;
    let per_thousand = count * 1000 / REQUESTS;
    report(&format!(
        "{count} system calls for {REQUESTS} requests: {mix:?}, calls {calls:?}, {arguments:?}"
    ));
    Ok(per_thousand)
}

#[test]
fn request_costs_at_most_a_quarter_of_a_system_call() -> TestResult {
    if let Err(reason) = tracing_available() {
        skip!("{reason}");
    }
    let mut worst = 0;
    for calls in [CallMode::Never, CallMode::Wanted] {
        for mix in [Mix::Reads, Mix::Writes, Mix::Both] {
            // How many requests a call serves depends on who else runs; the best of three counts.
            let mut best = u64::MAX;
            for _ in 0..3 {
                best = best.min(syscalls_per_thousand(&[], calls, mix)?);
                if best <= 250 {
                    break;
                }
            }
            worst = worst.max(best);
        }
    }
    assert!(worst <= 250, "{worst} system calls per thousand requests");
    Ok(())
}

#[test]
fn payload_is_copied_only_where_the_kernel_does_not_take_it() -> TestResult {
    for cache in ["--cache=writeback", "--cache=none"] {
        let mut back_end = BackEnd::start(&[cache])?;
        let mut session = back_end.connect(Session::builder().calls(CallMode::Never))?;
        let mut drivers = drivers(&mut session, config())?;
        load::run(&mut drivers, Mix::Both, REQUESTS)?;
        assert_eq!(back_end.info("bounced_bytes")?, 0, "{cache}");
        let driver = &mut drivers[0];
        let slot = driver.acquire()?;
        let gpa = driver.memory().alloc(2 * BLOCK_BYTES as usize, 4096)? + 3;
        for mut request in [
            BlkRequest::write(0, BLOCK_BYTES),
            BlkRequest::read(0, BLOCK_BYTES),
        ] {
            request.place = Place::At(gpa);
            driver.run(slot, &request)?.ok()?;
        }
        let copied = if cache == "--cache=none" {
            2 * BLOCK_BYTES
        } else {
            0
        };
        assert_eq!(back_end.info("bounced_bytes")?, copied, "{cache}");
        report(&format!(
            "0 bytes copied for {REQUESTS} aligned requests, {copied} for 2 misaligned ones: {cache}"
        ));
    }
    Ok(())
}

#[test]
fn idle_device_does_not_wake_up() -> TestResult {
    for engine in ["--aio=io_uring", "--aio=threads"] {
        let mut back_end = BackEnd::start(&[engine])?;
        let builder = Session::builder().queues(4).calls(CallMode::Wanted);
        let mut session = back_end.connect(builder)?;
        let mut drivers = drivers(&mut session, config())?;
        load::run(&mut drivers, Mix::Both, REQUESTS)?;
        drivers[0].flush()?.ok()?;
        let before = back_end.settled()?;
        std::thread::sleep(Duration::from_secs(10));
        let after = activity(&back_end.process)?;
        let sum = |threads: &Activity| -> (u64, u64) {
            let each = threads.values();
            each.fold((0, 0), |(sleeps, cpu), thread| {
                (sleeps + thread.voluntary_switches, cpu + thread.cpu_ns)
            })
        };
        let ((sleeps_before, cpu_before), (sleeps, cpu_ns)) = (sum(&before), sum(&after));
        report(&format!(
            "idle for 10 s with {engine}: {} wake-ups, {} ns of processor time, {} threads, {} \
             helpers of the kernel",
            sleeps - sleeps_before,
            cpu_ns - cpu_before,
            after.len(),
            helpers(&back_end.process)?
        ));
        assert_eq!(after, before, "{engine}");
        // Idle, not dead.
        load::run(&mut drivers, Mix::Both, 100)?;
    }
    Ok(())
}

#[test]
fn busy_device_has_at_most_20_mib_and_8_kib_per_queue_entry() -> TestResult {
    const SIZE: u16 = 1024;
    const QUEUES: usize = 4;
    let mut back_end = BackEnd::start(&[])?;
    let builder = Session::builder()
        .queues(QUEUES)
        .queue_size(SIZE)
        .memory(MemoryLayout::single(128 << 20))
        .calls(CallMode::Never);
    let mut session = back_end.connect(builder)?;
    // A request with indirect descriptors takes one entry: all entries are busy.
    let mut config = BlkConfig {
        depth: SIZE,
        ..config()
    };
    config.shape.table = ringside_frontend::blk::TableShape::Indirect;
    let mut drivers = drivers(&mut session, config)?;
    load::run(&mut drivers, Mix::Both, 200_000)?;
    let sample = back_end.process.sample()?;
    let limit_kib = 20 * 1024 + 8 * u64::from(SIZE) * QUEUES as u64;
    report(&format!(
        "{} KiB of anonymous memory with {QUEUES} queues of {SIZE}, limit {limit_kib} KiB",
        sample.rss_anon_kib
    ));
    assert!(sample.rss_anon_kib <= limit_kib, "{sample:?}");
    Ok(())
}

#[test]
fn a_thousand_sessions_leave_nothing_behind() -> TestResult {
    const WARM_UP: u64 = 50;
    const SESSIONS: u64 = 1000;
    let mut back_end = BackEnd::start(&[])?;
    let mut start = None;
    for number in 0..WARM_UP + SESSIONS {
        if number == WARM_UP {
            start = Some(at_rest(&mut back_end.process)?);
        }
        let builder = Session::builder()
            .queues(2)
            .memory(MemoryLayout::single(4 << 20));
        let mut session = back_end.connect(builder)?;
        let mut drivers = drivers(&mut session, config())?;
        for (driver, first_sector) in drivers.iter_mut().zip([0, 1024]) {
            let plan = Verify {
                depth: 16,
                block_bytes: BLOCK_BYTES,
                first_sector,
                blocks: 16,
                seed: number,
            };
            write_pattern(driver, &plan)?;
            check_content(driver, &plan)?;
        }
        if number % 2 == 0 {
            session.stop(0)?;
            session.stop(1)?;
        }
    }
    let (start, end) = (start.ok_or("no start")?, at_rest(&mut back_end.process)?);
    report(&format!(
        "{SESSIONS} sessions: descriptors {} -> {}, threads {} -> {}, mappings {} -> {}, anonymous \
         memory {} -> {} KiB",
        start.fds,
        end.fds,
        start.threads,
        end.threads,
        start.maps,
        end.maps,
        start.rss_anon_kib,
        end.rss_anon_kib
    ));
    assert_eq!(
        (end.fds, end.threads, end.maps),
        (start.fds, start.threads, start.maps)
    );
    assert!(end.rss_kib < start.rss_kib + 1024, "{start:?} {end:?}");
    Ok(())
}

/// Figures after the last session has been let go of: the fewest threads seen, twice in a row.
fn at_rest(process: &mut Process) -> Result<Sample, Box<dyn Error>> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = process.sample()?;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = process.sample()?;
        let data = thread_ids(process.id(), "data-")?;
        if data.is_empty() && now.threads == before.threads && now.fds == before.fds {
            return Ok(now);
        }
        if Instant::now() > deadline {
            return Err(format!("no rest: {now:?}").into());
        }
        before = now;
    }
}
