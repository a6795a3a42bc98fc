// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ringside-fs beside virtiofsd, with this project's front-end and no guest.

#[path = "net/contest.rs"]
mod contest;
#[path = "fs/deep.rs"]
mod deep;
#[path = "figures.rs"]
mod figures;
#[path = "fs/listing.rs"]
mod listing;
#[path = "fs/program.rs"]
mod program;
#[path = "fs/single.rs"]
mod single;
#[path = "fs/slow.rs"]
mod slow;
#[path = "fs/tree.rs"]
mod tree;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use ringside_tests::{fs_tools, skip};

use contest::{Contender, Contest, FRONT_END_CPU, bind_self};
use figures::{has_option, say};
use program::{Program, Served, is_before_and_after};
use tree::Tree;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HELP: &str = "\
fs: ringside-fs beside virtiofsd, whose settings are its default (no thread pool, file handles), a
pool of 4 threads, no file handles, and both. The front-end is this project's; it polls on
processor 1, back-ends have processor 0. All contenders of a case run all the time; each round gives
each its turn. Printed are medians over rounds (and the middle 80 %), and ratios of ours to theirs,
taken round by round: operations per second, and per CPU-second of the back-end. All of it on tmpfs,
which is judged, and on the file system of the temporary directory. No sandbox and no seccomp filter
on either side.

  getattr lookup open create getxattr   one operation at a time; open and create are counted with
                                        the RELEASE, UNLINK and FORGET that follow
  metadata read write                   32 in flight: a mix of GETATTR, LOOKUP, OPEN and RELEASE;
                                        4 KiB at random places of a cached file
  stream                                1 MiB reads, one after the other
  cold-list list                        READDIRPLUS of 100,000 entries, forgotten before or known
  slow                                  GETATTR and FORGET while a FALLOCATE hangs on every queue

  cargo bench -p ringside-tests --bench fs                  all cases
  cargo bench -p ringside-tests --bench fs -- lookup read   these cases
  cargo bench -p ringside-tests --bench fs -- --rounds 15   more rounds; 5 by default
  cargo bench -p ringside-tests --bench fs -- --tmpfs       on tmpfs only
  cargo bench -p ringside-tests --bench fs -- --calls       the front-end sleeps instead of polling
  cargo bench -p ringside-tests --bench fs -- --free        back-ends run where they like
  cargo bench -p ringside-tests --bench fs -- --rivals      virtiofsd's default takes our place
  RINGSIDE_BENCH_OLD=DIR  DIR/ringside-fs takes virtiofsd's place: for a change under way
";

/// What to run.
struct Plan {
    /// Names of cases; all where none is given.
    cases: Vec<String>,
    rounds: usize,
    slice: Duration,
}

impl Plan {
    fn of_arguments() -> Result<Self> {
        let mut plan = Self {
            cases: Vec::new(),
            rounds: 5,
            slice: Duration::from_millis(400),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--rounds" {
                let rounds = arguments.next().ok_or("--rounds of what?")?;
                plan.rounds = rounds.parse()?;
            } else if !argument.starts_with("--") {
                plan.cases.push(argument);
            }
        }
        let known = |case: &&String| CASES.iter().all(|known| known.name != **case);
        match plan.cases.iter().find(known) {
            Some(case) if case != slow::NAME => Err(format!("no case {case}").into()),
            _ => Ok(plan),
        }
    }

    fn has(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|wanted| wanted == case)
    }
}

/// Makes a back-end do what is measured.
type Prepare = fn(Served) -> Result<Box<dyn Contender>>;

/// What is measured.
struct Case {
    name: &'static str,
    title: &'static str,
    unit: (&'static str, f64),
    /// What ours is to be, compared with virtiofsd's default and with its other settings.
    wanted: [f64; 2],
    args: &'static [&'static str],
    /// Which settings can do it: without file handles each known file is an open one.
    handles_only: bool,
    prepare: Prepare,
}

impl Case {
    const fn new(name: &'static str, title: &'static str, prepare: Prepare) -> Self {
        Self {
            name,
            title,
            unit: ("thousand operations", 1e3),
            wanted: [2.0, 1.2],
            args: &[],
            handles_only: false,
            prepare,
        }
    }
}

const CASES: &[Case] = &[
    Case::new("getattr", "GETATTR", single::getattr),
    Case::new("lookup", "LOOKUP of a known name", single::lookup),
    Case::new("open", "OPEN and RELEASE", single::open),
    Case::new("create", "CREATE, RELEASE, UNLINK, FORGET", single::create),
    Case {
        wanted: [1.2, 1.0],
        args: &["--xattr"],
        ..Case::new("getxattr", "GETXATTR", single::getxattr)
    },
    Case {
        wanted: [2.0, 2.0],
        ..Case::new("metadata", "metadata, 32 in flight", deep::metadata)
    },
    Case {
        wanted: [1.5, 1.5],
        ..Case::new(
            "read",
            "READ of 4 KiB, 32 in flight (per CPU-second wanted: 1.43)",
            deep::read,
        )
    },
    Case {
        wanted: [1.5, 1.5],
        ..Case::new("write", "WRITE of 4 KiB, 32 in flight", deep::write)
    },
    Case {
        unit: ("GiB", 1024.0),
        wanted: [1.0, 1.0],
        ..Case::new("stream", "READ of 1 MiB, sequential", single::stream)
    },
    Case {
        unit: ("thousand entries", 1e3),
        wanted: [2.0, 2.0],
        handles_only: true,
        ..Case::new("cold-list", "READDIRPLUS of forgotten files", listing::cold)
    },
    Case {
        unit: ("thousand entries", 1e3),
        wanted: [2.0, 2.0],
        handles_only: true,
        ..Case::new("list", "READDIRPLUS of known files", listing::known)
    },
];

/// Measures a case with all contenders.
fn measure(case: &Case, place: &str, tree: &Tree, plan: &Plan) -> Result<()> {
    let programs = Program::contenders(has_option("--rivals"));
    let mut contenders: Vec<(&'static str, Box<dyn Contender>)> = Vec::new();
    let mut wanted = vec![None];
    for program in programs {
        if case.handles_only && !program.keeps_handles() {
            continue;
        }
        let served = Served::start(program, tree.path(), case.args, 1)?;
        contenders.push((program.name, (case.prepare)(served)?));
        wanted.push(Some(case.wanted[usize::from(!program.is_default())]));
    }
    // The first is nobody's rival.
    wanted.remove(1);
    let contest = Contest {
        name: format!("{}: {} on {place}", case.name, case.title),
        unit: case.unit,
        contenders,
        wanted,
    };
    contest.run(plan.rounds, plan.slice)
}

fn main() -> Result<()> {
    say(HELP);
    if has_option("--help") {
        return Ok(());
    }
    let plan = Plan::of_arguments()?;
    if !is_before_and_after() && fs_tools::virtiofsd().is_none() {
        skip::report("bench fs", "no virtiofsd: run tests/fs/install");
        return Ok(());
    }
    bind_self(FRONT_END_CPU)?;
    let mut places = vec![("tmpfs", PathBuf::from("/dev/shm"))];
    if !has_option("--tmpfs") {
        places.push(("the temporary directory", std::env::temp_dir()));
    }
    for (place, dir) in &places {
        if !CASES.iter().any(|case| plan.has(case.name)) {
            break;
        }
        let lists = plan.has("list") || plan.has("cold-list");
        let tree = Tree::new(dir, lists)?;
        for case in CASES.iter().filter(|case| plan.has(case.name)) {
            measure(case, place, &tree, &plan)?;
        }
    }
    if plan.has(slow::NAME) {
        match slow::lacking() {
            Some(reason) => skip::report("bench fs slow", &reason),
            None => slow::run(plan.rounds)?,
        }
    }
    Ok(())
}
