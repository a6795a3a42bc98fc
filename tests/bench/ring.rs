// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Nanoseconds per descriptor chain, beside the crate `virtio-queue`.

#[path = "figures.rs"]
mod figures;
#[path = "ring/sides.rs"]
mod sides;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};

use figures::{Series, has_option, say};
use sides::{Ours, Setup, Theirs};

const HELP: &str = "\
ring: nanoseconds to take one descriptor chain, find the host address of each of its buffers and
give it back, on one core with a warm cache. Queue of 256, EVENT_IDX, one publish and one question
for a call per batch of 128 chains of 2 descriptors or 85 of 3; buffers in 1 region, or each in
another of 4 regions. `ours` is ringside_common::ring with all its checks; `theirs` is
virtio_queue: iterator, get_slices for every buffer, add_used.

Both sides run in turn in rounds of 40 batches. Minimum and median are over rounds, the ratio is
the median of the rounds' own ratios (and the middle 80 % of them).

  cargo bench -p ringside-tests --bench ring                   the table
  cargo bench -p ringside-tests --bench ring -- --criterion    the same with criterion
";

const BATCHES: u32 = 40;
const ROUNDS: usize = 400;

/// Nanoseconds per chain of some batches.
fn measure(chains: u32, mut batch: impl FnMut() -> usize) -> (f64, usize) {
    let mut sum = 0;
    let start = Instant::now();
    for _ in 0..BATCHES {
        sum = batch();
    }
    let nanos = start.elapsed().as_secs_f64() * 1e9;
    (nanos / f64::from(chains * BATCHES), sum)
}

fn compare(setup: &Setup) {
    let mut ours = Ours::new(setup);
    let mut theirs = Theirs::new(setup);
    let (mut our_ns, mut their_ns, mut ratios) =
        (Series::default(), Series::default(), Series::default());
    for _ in 0..ROUNDS {
        let (our, our_sum) = measure(setup.chains(), || ours.batch());
        let (their, their_sum) = measure(setup.chains(), || theirs.batch());
        assert_eq!(our_sum, their_sum, "both find the same host addresses");
        our_ns.push(our);
        their_ns.push(their);
        ratios.push(their / our);
    }
    say(format_args!(
        "{} descriptors, {} regions   ours {:6.1} min {:6.1} median   theirs {:6.1} min {:6.1} \
         median   ratio of minima {:5.2}, of rounds {ratios}",
        setup.descriptors,
        setup.regions,
        our_ns.percentile(0),
        our_ns.median(),
        their_ns.percentile(0),
        their_ns.median(),
        their_ns.percentile(0) / our_ns.percentile(0),
    ));
}

fn criterion(setups: &[Setup]) {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots();
    let mut group = criterion.benchmark_group("ring");
    for setup in setups {
        let name = format!("{}x{}", setup.descriptors, setup.regions);
        group.throughput(criterion::Throughput::Elements(setup.chains().into()));
        let mut ours = Ours::new(setup);
        group.bench_function(BenchmarkId::new("ours", &name), |b| b.iter(|| ours.batch()));
        let mut theirs = Theirs::new(setup);
        group.bench_function(BenchmarkId::new("theirs", &name), |b| {
            b.iter(|| theirs.batch());
        });
    }
    group.finish();
}

fn main() {
    say(HELP);
    if has_option("--help") {
        return;
    }
    let shapes = [(2, 1), (2, 4), (3, 1), (3, 4)];
    let setups = shapes.map(|(descriptors, regions)| Setup::new(descriptors, regions));
    if has_option("--criterion") {
        criterion(&setups);
    } else {
        setups.iter().for_each(compare);
    }
}
