// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The back-ends that are measured, and how each is started.

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use ringside_frontend::blk::{BlkConfig, BlkDriver, RequestShape, TableShape};
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_tests::process::{Launch, Process, old_back_end_binary};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

const PACKAGE: &str = "ringside-blk";
const PATIENCE: Duration = Duration::from_secs(20);

/// Describes a back-end.
pub(crate) struct Maker {
    pub(crate) name: &'static str,
    pub(crate) is_theirs: bool,
    /// Ours: more arguments. Theirs: aio, then the options of the iothread if there is one.
    options: &'static [&'static str],
}

const OURS: Maker = Maker::ours("ours", &[]);
const OURS_SHORT: [Maker; 1] = [Maker::ours("ours --poll-us=0", &["--poll-us=0"])];
const OURS_FULL: [Maker; 3] = [
    Maker::ours("ours --poll-us=0", &["--poll-us=0"]),
    Maker::ours("ours --poll-us=200", &["--poll-us=200"]),
    Maker::ours("ours --aio=threads", &["--aio=threads"]),
];
const THEIRS_SHORT: [Maker; 2] = [
    Maker::theirs("qsd io_uring, iothread", &["io_uring", ""]),
    Maker::theirs("qsd threads, iothread", &["threads", ""]),
];
const THEIRS_FULL: [Maker; 6] = [
    Maker::theirs("qsd io_uring, iothread", &["io_uring", ""]),
    Maker::theirs(
        "qsd io_uring, iothread, no poll",
        &["io_uring", ",poll-max-ns=0"],
    ),
    Maker::theirs(
        "qsd io_uring, iothread, 200 us",
        &["io_uring", ",poll-max-ns=200000"],
    ),
    Maker::theirs("qsd io_uring, main loop", &["io_uring"]),
    Maker::theirs("qsd threads, iothread", &["threads", ""]),
    Maker::theirs("qsd threads, main loop", &["threads"]),
];

/// All back-ends of a run; the first is ours at its defaults.
pub(crate) fn contenders(full: bool, ours_only: bool) -> Vec<Maker> {
    let mut makers = vec![OURS];
    if old_back_end_binary(PACKAGE).is_some() {
        makers.push(Maker::ours("old", &[]));
    }
    if full {
        makers.extend(OURS_FULL);
    } else {
        makers.extend(OURS_SHORT);
    }
    if ours_only {
        return makers;
    }
    if full {
        makers.extend(THEIRS_FULL);
    } else {
        makers.extend(THEIRS_SHORT);
    }
    makers
}

/// A back-end that runs, with a driver connected to it.
pub(crate) struct Contender {
    process: Process,
    /// Kept: the connection ends with it.
    _session: Session,
    pub(crate) driver: BlkDriver,
}

impl Maker {
    const fn ours(name: &'static str, options: &'static [&'static str]) -> Self {
        Self {
            name,
            is_theirs: false,
            options,
        }
    }

    const fn theirs(name: &'static str, options: &'static [&'static str]) -> Self {
        Self {
            name,
            is_theirs: true,
            options,
        }
    }

    /// Starts it on `image` and connects a driver.
    pub(crate) fn start(&self, image: &Path, calls: CallMode) -> Result<Contender, Box<dyn Error>> {
        let launch = if self.is_theirs {
            self.their_launch(image)?
        } else {
            self.our_launch(image)?
        };
        let mut process = launch.spawn()?;
        let mut session = Session::builder()
            .calls(calls)
            .memory(MemoryLayout::single(64 << 20).populate(true))
            .from_stream(process.connect(PATIENCE)?)?;
        let vring = session.start_all()?.remove(0);
        let config = BlkConfig {
            depth: 128,
            slot_bytes: 128 << 10,
            // As Linux sends them.
            shape: RequestShape {
                table: TableShape::Indirect,
                ..RequestShape::default()
            },
            ..BlkConfig::default()
        };
        Ok(Contender {
            process,
            driver: BlkDriver::new(vring, config)?,
            _session: session,
        })
    }

    fn our_launch(&self, image: &Path) -> Result<Launch, Box<dyn Error>> {
        let launch = match old_back_end_binary(PACKAGE) {
            Some(old) if self.name == "old" => Launch::program(old)?,
            _ => Launch::back_end(PACKAGE)?,
        };
        let socket = launch.socket();
        Ok(launch
            .arg("--socket-path")
            .arg(socket)
            .arg("--blk-file")
            .arg(image)
            // Several serve the same file, to read from it.
            .arg("--no-lock")
            .args(self.options))
    }

    fn their_launch(&self, image: &Path) -> Result<Launch, Box<dyn Error>> {
        let mut launch = Launch::program("qemu-storage-daemon")?;
        let aio = self.options.first().copied().unwrap_or("threads");
        let mut blockdev = OsString::from(format!(
            "driver=file,node-name=f,locking=off,read-only=on,aio={aio},filename="
        ));
        blockdev.push(image);
        let mut export = OsString::from("type=vhost-user-blk,id=e,node-name=f,num-queues=1,");
        if let Some(options) = self.options.get(1) {
            launch = launch.args(["--object", &format!("iothread,id=t{options}")]);
            export.push("iothread=t,");
        }
        export.push("addr.type=unix,addr.path=");
        export.push(launch.socket());
        Ok(launch
            .args(["--blockdev".into(), blockdev])
            .args(["--export".into(), export]))
    }
}

impl Contender {
    /// Binds all threads of the back-end, as they are now, to processor `cpu`.
    pub(crate) fn bind_to(&self, cpu: usize) -> Result<(), Box<dyn Error>> {
        let mut set = CpuSet::new();
        set.set(cpu);
        for task in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let id = task?.file_name().to_string_lossy().parse()?;
            sched_setaffinity(Pid::from_raw(id), &set)?;
        }
        Ok(())
    }

    /// CPU time of the process, threads that have ended included.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, Box<dyn Error>> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // Behind the name, which may hold anything, the 12th and 13th: utime and stime.
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
        let ticks = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<f64>)
            .sum::<Result<f64, _>>()?;
        let ticks_per_second = u32::try_from(rustix::param::clock_ticks_per_second())?;
        Ok(ticks / f64::from(ticks_per_second))
    }
}
