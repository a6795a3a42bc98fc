// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A scratch network namespace with tap devices, entered by the thread that measures.

use std::fs::{self, File};
use std::io::IoSlice;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use ringside_frontend::net::NetHeader;
use ringside_net::link::tap::TapSpec;
use ringside_net::link::{Link, LinkQueue, LinkSpec};
use ringside_tests::vm::Network;
use rustix::time::{ClockId, clock_gettime};

use crate::Result;
use crate::contest::{BACK_END_CPU, Contender, FRONT_END_CPU, Turn, bind_self, for_a_while};

/// Runs `part` in a thread that is in a new namespace, and so is what it starts.
pub(crate) fn inside(part: impl FnOnce(&Network) -> Result<()> + Send) -> Result<()> {
    let network = Network::new()?;
    // Nobody is there to say anything by itself.
    for set in ["all", "default"] {
        let setting = format!("net.ipv6.conf.{set}.disable_ipv6=1");
        network.run("sysctl", &["-q", "-w", &setting])?;
    }
    let namespace = File::open(network.path())?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
            part(&network).map_err(|e| e.to_string())
        });
        inside.join().map_err(|_panic| "a panic")??;
        Ok(())
    })
}

/// Frames that a tap of the calling thread's namespace was given, whatever became of them.
pub(crate) fn frames_of(tap: &str) -> Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(tap)?.strip_prefix(':'));
    let line = line.ok_or_else(|| format!("no {tap}"))?;
    let packets = line.split_whitespace().nth(1).ok_or("no counter")?;
    Ok(packets.parse()?)
}

/// Somebody who writes the same frame to a tap, header and frame apart, and does nothing else.
pub(crate) struct RawWriter {
    tap: String,
    queue: LinkQueue,
    header: Vec<u8>,
    frame: Vec<u8>,
}

impl RawWriter {
    pub(crate) fn open(tap: &str, header: NetHeader, frame: Vec<u8>) -> Result<Self> {
        let spec = LinkSpec::Tap(TapSpec::named(tap));
        let queue = Link::open(&spec, 1)?.queue(0).ok_or("no queue")?;
        Ok(Self {
            tap: tap.to_owned(),
            queue,
            header: header.to_bytes().to_vec(),
            frame,
        })
    }
}

impl Contender for RawWriter {
    fn turn(&mut self, slice: Duration) -> Result<Turn> {
        bind_self(BACK_END_CPU)?;
        let (before, cpu) = (frames_of(&self.tap)?, thread_cpu());
        let descriptor = self.queue.descriptor().ok_or("no descriptor")?;
        let parts = [IoSlice::new(&self.header), IoSlice::new(&self.frame)];
        let elapsed = for_a_while(slice, || {
            // Few enough that the clock costs nothing, many enough for long frames.
            for _ in 0..64 {
                rustix::io::writev(descriptor, &parts)?;
            }
            Ok(())
        })?;
        let cpu_seconds = (thread_cpu() - cpu).as_secs_f64();
        let count = frames_of(&self.tap)? - before;
        bind_self(FRONT_END_CPU)?;
        Ok(Turn {
            count,
            seconds: elapsed.as_secs_f64(),
            cpu_seconds,
        })
    }
}

/// Processor time of the calling thread.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), nanoseconds)
}
