// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The back-ends with their settings, each with a front-end of its own.

use std::path::Path;
use std::time::Duration;

use ringside_frontend::fuse::{FuseClient, FuseConfig, QueueConfig};
use ringside_frontend::ring::CallMode;
use ringside_tests::fs_back_end::{FsBackEnd, FsProgram};
use ringside_tests::process::old_back_end_binary;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

use crate::Result;
use crate::contest::{BACK_END_CPU, Contender, Turn, for_a_while};
use crate::figures::has_option;

/// Requests in flight at most.
pub(crate) const DEPTH: u16 = 32;

/// The most a request carries.
pub(crate) const DATA_BYTES: u32 = 1 << 20;

/// A back-end with its settings.
#[derive(Clone, Copy)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) program: FsProgram,
    args: &'static [&'static str],
}

const OURS: Program = Program {
    name: "ringside-fs",
    program: FsProgram::Ringside,
    args: &[],
};

/// Ours from before a change.
const OLD: Program = Program {
    name: "old",
    program: FsProgram::Old,
    args: &[],
};

const POOL: &str = "--thread-pool-size=4";
const NO_HANDLES: &str = "--inode-file-handles=never";

/// The default is the first.
const THEIRS: [Program; 4] = [
    virtiofsd("virtiofsd", &[]),
    virtiofsd("virtiofsd, pool", &[POOL]),
    virtiofsd("virtiofsd, no handles", &[NO_HANDLES]),
    virtiofsd("virtiofsd, pool, no h.", &[POOL, NO_HANDLES]),
];

const fn virtiofsd(name: &'static str, args: &'static [&'static str]) -> Program {
    Program {
        name,
        program: FsProgram::Virtiofsd,
        args,
    }
}

impl Program {
    /// Ours, unless only its rivals are asked for, and theirs; or ours before and after a change.
    pub(crate) fn contenders(rivals_only: bool) -> Vec<Self> {
        if is_before_and_after() {
            return vec![OURS, OLD];
        }
        let ours = (!rivals_only).then_some(OURS);
        ours.into_iter().chain(THEIRS).collect()
    }

    pub(crate) fn keeps_handles(self) -> bool {
        !self.args.contains(&NO_HANDLES)
    }

    pub(crate) fn is_default(self) -> bool {
        self.args.is_empty()
    }
}

/// Whether a change is measured, and no rival.
pub(crate) fn is_before_and_after() -> bool {
    old_back_end_binary("ringside-fs").is_some()
}

/// A running back-end and its front-end.
pub(crate) struct Served {
    pub(crate) back_end: FsBackEnd,
    pub(crate) client: FuseClient,
}

impl Served {
    /// Serves `dir` with that many request queues, one of which is all virtiofsd has.
    pub(crate) fn start(
        program: Program,
        dir: &Path,
        args: &[&str],
        queues: usize,
    ) -> Result<Self> {
        let number = queues.to_string();
        let mut all = vec!["--seccomp=none"];
        if program.program != FsProgram::Virtiofsd {
            all.extend(["--num-request-queues", &number]);
        }
        all.extend(program.args.iter().chain(args));
        let back_end = FsBackEnd::start_program(program.program, dir, &all)?;
        if !has_option("--free") {
            // Threads that come with the front-end take after the one there is.
            bind(back_end.process().id(), BACK_END_CPU)?;
        }
        let mut config = FuseConfig {
            request_queues: queues,
            queue_size: 1024,
            queue: QueueConfig {
                depth: DEPTH,
                data_bytes: DATA_BYTES as usize,
                timeout: Duration::from_secs(10),
                ..QueueConfig::default()
            },
            ..FuseConfig::default()
        };
        if !has_option("--calls") {
            config = config.calls(CallMode::Never);
        }
        let client = FuseClient::connect(&back_end.socket(), &config)?;
        Ok(Self { back_end, client })
    }
}

/// Binds all threads of a process, as they are now, to a processor.
fn bind(process: u32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let id = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(id), &set)?;
    }
    Ok(())
}

/// A back-end that is given the same again and again: `step` gives the number of what it has done,
/// `finish` ends a turn.
pub(crate) struct Repeated<S> {
    pub(crate) served: Served,
    pub(crate) step: S,
    pub(crate) finish: fn(&mut FuseClient) -> Result<()>,
}

impl<S> Contender for Repeated<S>
where
    S: FnMut(&mut FuseClient) -> Result<f64>,
{
    fn turn(&mut self, slice: Duration) -> Result<Turn> {
        let before = self.served.back_end.process().sample()?.cpu;
        let mut count = 0.0;
        let client = &mut self.served.client;
        let elapsed = for_a_while(slice, || {
            count += (self.step)(client)?;
            Ok(())
        })?;
        let cpu = self.served.back_end.process().sample()?.cpu - before;
        (self.finish)(client)?;
        Ok(Turn {
            count,
            seconds: elapsed.as_secs_f64(),
            cpu_seconds: cpu.as_secs_f64(),
        })
    }
}
