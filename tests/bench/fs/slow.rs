// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the others have to wait for while something slow hangs on every queue.
//!
//! Slow is `FALLOCATE` of a file on a frozen file system (`fsfreeze(8)`), mounted in the share: it
//! hangs for exactly as long as wanted, whatever the machine.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringside_frontend::fuse::{FuseClient, FuseQueue, Request};
use ringside_tests::fs_back_end::FsProgram;
use tempfile::TempDir;

use crate::Result;
use crate::contest::series;
use crate::figures::say;
use crate::program::{Program, Served};
use crate::single::ROOT;

pub(crate) const NAME: &str = "slow";

/// Requests of each kind in a round.
const SAMPLES: u32 = 1000;
/// Between two of them, so that threads go to sleep.
const PAUSE: Duration = Duration::from_micros(500);
/// When an answer is given up.
const GIVE_UP: Duration = Duration::from_secs(1);
const O_RDWR: u32 = 2;

/// Why no file system can be frozen here; `None` when one can.
pub(crate) fn lacking() -> Option<String> {
    let frozen = Frozen::new().and_then(Frozen::thaw);
    frozen.err().map(|error| error.to_string())
}

/// A frozen file system in a shared directory.
struct Frozen {
    share: TempDir,
    /// Thaws when its standard input ends, so that nothing stays frozen if this program dies.
    freezer: Option<Child>,
}

impl Frozen {
    /// Makes it, with a file `file` in it and one beside it, not frozen yet.
    fn new() -> Result<Self> {
        let share = tempfile::Builder::new()
            .prefix("ringside-bench-")
            .tempdir()?;
        let frozen = Self {
            share,
            freezer: None,
        };
        shell(
            frozen.share.path(),
            "truncate -s 32M image && mkfs.ext4 -q image && mkdir slow &&
             mount -o loop image slow && touch beside slow/file",
        )?;
        Ok(frozen)
    }

    fn freeze(&mut self) -> Result<()> {
        let script = "fsfreeze -f slow && echo && read -r _; fsfreeze -u slow";
        let mut freezer = Command::new("sh")
            .args(["-c", script])
            .current_dir(self.share.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = [0];
        let stdout = freezer.stdout.as_mut().ok_or("no standard output")?;
        let read = std::io::Read::read(stdout, &mut line)?;
        self.freezer = Some(freezer);
        if read == 0 {
            return Err("fsfreeze does not freeze".into());
        }
        Ok(())
    }

    fn thaw(mut self) -> Result<()> {
        self.unfreeze()
    }

    fn unfreeze(&mut self) -> Result<()> {
        if let Some(mut freezer) = self.freezer.take() {
            drop(freezer.stdin.take());
            freezer.wait()?;
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.unfreeze();
        let _ = shell(self.share.path(), "umount slow");
    }
}

fn shell(dir: &Path, script: &str) -> Result<()> {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().into())
}

/// Microseconds from a request to its completion; `None` when it is given up.
fn latency(queue: &mut FuseQueue, request: &Request) -> Result<Option<f64>> {
    let slot = queue.acquire()?;
    let start = Instant::now();
    queue.submit(slot, request)?;
    queue.publish()?;
    while start.elapsed() < GIVE_UP {
        if let Some(completion) = queue.poll()? {
            if completion.slot != slot {
                return Err("what hung has been answered".into());
            }
            queue.release(slot);
            return Ok(Some(start.elapsed().as_secs_f64() * 1e6));
        }
        std::hint::spin_loop();
    }
    Ok(None)
}

/// The 99th percentile, or that there was no answer.
fn p99(mut sample: impl FnMut() -> Result<Option<f64>>) -> Result<Option<f64>> {
    let mut values = Vec::new();
    for _ in 0..SAMPLES {
        match sample()? {
            Some(value) => values.push(value),
            None => return Ok(None),
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Some(series(&values).percentile(99)))
}

/// The two p99 of one round: `GETATTR` over all queues, `FORGET`.
fn round(program: Program) -> Result<[Option<f64>; 2]> {
    let mut frozen = Frozen::new()?;
    let queues = match program.program {
        FsProgram::Ringside | FsProgram::Old => 2,
        FsProgram::Virtiofsd => 1,
    };
    let mut served = Served::start(program, frozen.share.path(), &[], queues)?;
    let client = &mut served.client;
    let queue = client.queue();
    let beside = queue.lookup(ROOT, "beside")?.node;
    for _ in 0..SAMPLES {
        queue.lookup(ROOT, "beside")?;
    }
    let dir = queue.lookup(ROOT, "slow")?.node;
    let file = queue.lookup(dir, "file")?.node;
    let handle = queue.open(file, O_RDWR)?.handle;
    frozen.freeze()?;
    let hangs = Request::fallocate(file, handle, 0, 4096, 0);
    for queue in &mut client.queues {
        let slot = queue.acquire()?;
        queue.submit(slot, &hangs)?;
        queue.publish()?;
    }
    std::thread::sleep(Duration::from_millis(20));
    let found = sample_both(client, beside);
    frozen.unfreeze()?;
    found
}

fn sample_both(client: &mut FuseClient, beside: u64) -> Result<[Option<f64>; 2]> {
    let getattr = Request::getattr(beside, None);
    let forget = Request::forget(beside, 1);
    let forgets = p99(|| latency(&mut client.hiprio, &forget))?;
    let mut at = 0;
    let attributes = p99(|| {
        at = (at + 1) % client.queues.len();
        latency(&mut client.queues[at], &getattr)
    })?;
    Ok([attributes, forgets])
}

/// Measures and reports.
pub(crate) fn run(rounds: usize) -> Result<()> {
    say(format_args!(
        "\n{NAME}: p99 of {SAMPLES} while a FALLOCATE hangs on every queue, microseconds \
         (wanted of ours: 1000 at most)"
    ));
    let programs = Program::contenders(crate::has_option("--rivals"));
    let mut found: Vec<_> = programs.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for _ in 0..rounds {
        for (program, found) in programs.iter().zip(&mut found) {
            for (found, p99) in found.iter_mut().zip(round(*program)?) {
                found.extend(p99);
            }
        }
    }
    for (program, found) in programs.iter().zip(&found) {
        let [getattr, forget] = found.each_ref().map(|values| {
            if values.len() == rounds {
                series(values).to_string()
            } else {
                let missing = rounds - values.len();
                format!("no answer within {GIVE_UP:?} in {missing} of {rounds} rounds")
            }
        });
        let name = program.name;
        say(format_args!(
            "  {name:22}  GETATTR {getattr}   FORGET {forget}"
        ));
    }
    Ok(())
}
