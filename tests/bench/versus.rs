// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ringside-blk beside qemu-storage-daemon.

#[path = "versus/contender.rs"]
mod contender;
#[path = "figures.rs"]
mod figures;

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringside_frontend::load::{RandomRead, Stop, fill_pattern, random_read, sequential_read};
use ringside_frontend::ring::CallMode;
use rustix::thread::{CpuSet, sched_setaffinity};

use contender::{Contender, Maker, contenders};
use figures::{Series, has_option, say};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HELP: &str = "\
versus: ringside-blk beside qemu-storage-daemon on the same file, which is on the disk file system
of the target directory and in the page cache. One queue; the front-end is this project's test
front-end, which polls and wants no calls. All back-ends run all the time; each round gives every
back-end its turn for every load.

Printed are medians over rounds (and the middle 80 %) of requests per second (IOPS) and of requests
per CPU-second of the back-end process, io_uring's workers included; then ratios, of `ours` at its
defaults to that setting of theirs that does best in the figure concerned, taken round by round.
qemu-storage-daemon gets the settings that are best for it: io_uring or threads, an iothread or
none, and polling times. Back-ends have processor 0, the front-end has processor 1; where the
scheduler is free to put both on one processor, it does so now and then, and polling of either side
then only keeps the other from running.

  cargo bench -p ringside-tests --bench versus              about a minute
  cargo bench -p ringside-tests --bench versus -- --full    all settings, about ten minutes
  cargo bench -p ringside-tests --bench versus -- --ours    without qemu-storage-daemon
  cargo bench -p ringside-tests --bench versus -- --free    any processor for anyone
  cargo bench -p ringside-tests --bench versus -- --calls   a front-end that sleeps until called
  cargo bench -p ringside-tests --bench versus -- --one     one processor for both sides
  RINGSIDE_BENCH_OLD=DIR  measures DIR/ringside-blk as well, as `old`: for a change under way
";

const FILE_BYTES: u64 = 512 << 20;

/// A load.
#[derive(Clone, Copy, Debug)]
struct Load {
    name: &'static str,
    depth: usize,
    block_bytes: u32,
    sequential: bool,
}

const LOADS: [Load; 4] = [
    Load::random("4 KiB random read, depth 1", 1),
    Load::random("4 KiB random read, depth 32", 32),
    Load::random("4 KiB random read, depth 128", 128),
    Load {
        name: "128 KiB sequential read, depth 8",
        depth: 8,
        block_bytes: 128 << 10,
        sequential: true,
    },
];

impl Load {
    const fn random(name: &'static str, depth: usize) -> Self {
        Self {
            name,
            depth,
            block_bytes: 4096,
            sequential: false,
        }
    }
}

/// One contender's figures for one load, by round.
#[derive(Clone, Debug, Default)]
struct Figures {
    iops: Vec<f64>,
    per_cpu: Vec<f64>,
}

fn series(values: &[f64]) -> Series {
    let mut series = Series::default();
    values.iter().for_each(|value| series.push(*value));
    series
}

fn measure(
    contender: &mut Contender,
    load: &Load,
    slice: Duration,
    seed: u64,
) -> Result<(f64, f64)> {
    let plan = RandomRead {
        depth: load.depth,
        block_bytes: load.block_bytes,
        span_bytes: FILE_BYTES,
        stop: Stop::Elapsed(slice),
        seed,
    };
    let before = contender.cpu_seconds()?;
    let report = if load.sequential {
        sequential_read(&mut contender.driver, &plan)?
    } else {
        random_read(&mut contender.driver, &plan)?
    };
    let cpu = contender.cpu_seconds()? - before;
    let iops = report.iops();
    Ok((iops, iops * report.elapsed.as_secs_f64() / cpu))
}

/// The file, with data in all of its blocks, in the page cache.
fn image() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("versus.img");
    let have = std::fs::metadata(&path).map_or(0, |meta| meta.len());
    if have != FILE_BYTES {
        let mut file = File::create(&path)?;
        let mut chunk = vec![0; 1 << 20];
        fill_pattern(0, 0, &mut chunk);
        for _ in 0..FILE_BYTES >> 20 {
            file.write_all(&chunk)?;
        }
        file.sync_all()?;
    }
    std::io::copy(&mut File::open(&path)?, &mut std::io::sink())?;
    Ok(path)
}

/// The setting of theirs with the highest median.
fn best<'a>(
    makers: &[Maker],
    figures: &'a [Figures],
    of: impl Fn(&Figures) -> &Vec<f64>,
) -> Option<(&'static str, &'a Figures)> {
    let median = |f: &Figures| series(of(f)).median();
    makers
        .iter()
        .zip(figures)
        .filter(|(maker, _)| maker.is_theirs)
        .max_by(|(_, a), (_, b)| median(a).total_cmp(&median(b)))
        .map(|(maker, figures)| (maker.name, figures))
}

fn ratios(ours: &[f64], theirs: &[f64]) -> Series {
    let each: Vec<_> = ours
        .iter()
        .zip(theirs)
        .map(|(our, their)| our / their)
        .collect();
    series(&each)
}

fn report(load: &Load, makers: &[Maker], figures: &[Figures]) {
    say(format_args!("\n{}", load.name));
    for (maker, figures) in makers.iter().zip(figures) {
        let thousands =
            |values: &[f64]| series(&values.iter().map(|v| v / 1e3).collect::<Vec<_>>());
        say(format_args!(
            "  {:34} {:>26} k IOPS   {:>28} k per CPU-second",
            maker.name,
            thousands(&figures.iops).to_string(),
            thousands(&figures.per_cpu).to_string(),
        ));
    }
    let Some(ours) = figures.first() else { return };
    if let Some((name, theirs)) = best(makers, figures, |f| &f.iops) {
        let ratio = ratios(&ours.iops, &theirs.iops);
        say(format_args!("  IOPS ratio            {ratio}   to {name}"));
    }
    if let Some((name, theirs)) = best(makers, figures, |f| &f.per_cpu) {
        let ratio = ratios(&ours.per_cpu, &theirs.per_cpu);
        say(format_args!("  per CPU-second ratio  {ratio}   to {name}"));
    }
    let old = makers.iter().position(|maker| maker.name == "old");
    if let Some(old) = old.and_then(|at| figures.get(at)) {
        say(format_args!(
            "  to the old binary     {} IOPS   {} per CPU-second",
            ratios(&ours.iops, &old.iops),
            ratios(&ours.per_cpu, &old.per_cpu)
        ));
    }
}

fn main() -> Result<()> {
    say(HELP);
    if has_option("--help") {
        return Ok(());
    }
    let full = has_option("--full");
    let image = image()?;
    let calls = if has_option("--calls") {
        CallMode::Wanted
    } else {
        CallMode::Never
    };
    let makers = contenders(full, has_option("--ours"));
    let mut running = Vec::with_capacity(makers.len());
    for maker in &makers {
        let contender = maker.start(&image, calls)?;
        if !has_option("--free") {
            contender.bind_to(if has_option("--one") { 1 } else { 0 })?;
        }
        running.push(contender);
    }
    if !has_option("--free") {
        let mut set = CpuSet::new();
        set.set(1);
        sched_setaffinity(None, &set)?;
    }
    let (rounds, slice) = if full {
        (15_u64, Duration::from_millis(800))
    } else {
        (11, Duration::from_millis(300))
    };
    for load in &LOADS {
        let mut figures = vec![Figures::default(); makers.len()];
        for round in 0..rounds {
            // Each starts a round in turn, so that nobody always follows the same other.
            let first = usize::try_from(round)? % makers.len();
            for at in (0..makers.len()).map(|at| (first + at) % makers.len()) {
                let (Some(contender), Some(figures)) = (running.get_mut(at), figures.get_mut(at))
                else {
                    continue;
                };
                let (iops, per_cpu) = measure(contender, load, slice, round)?;
                figures.iops.push(iops);
                figures.per_cpu.push(per_cpu);
            }
        }
        report(load, &makers, &figures);
    }
    Ok(())
}
