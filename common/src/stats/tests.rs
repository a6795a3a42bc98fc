// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

const KINDS: &[&str] = &["read", "write", "flush"];

#[test]
fn record_counts_by_kind_and_queue() {
    let stats = DeviceStats::new("blk", KINDS);
    let queue = stats.queue(3);
    queue.record(0, 4096, true, 1_000);
    queue.record(0, 4096, false, 3_000);
    queue.record(2, 0, true, 500);
    stats.queue(1).record(0, 512, true, 2_000);

    let snapshot = stats.snapshot();

    assert_eq!(snapshot.device, "blk");
    let indices: Vec<u16> = snapshot.queues.iter().map(|queue| queue.queue).collect();
    assert_eq!(indices, [1, 3]);
    let ops: Vec<_> = snapshot.queues[1]
        .operations
        .iter()
        .map(|op| (op.op, op.operations, op.bytes))
        .collect();
    assert_eq!(ops, [("read", 2, 8192), ("flush", 1, 0)]);
    assert_eq!(snapshot.queues[1].operations[0].errors, 1);
    let total = &snapshot.operations[0];
    assert_eq!(
        (total.op, total.operations, total.bytes, total.errors),
        ("read", 3, 8704, 1)
    );
    assert_eq!(total.latency.sum_ns, 6_000);
    assert_eq!(total.latency.mean_ns, 2_000);
    assert_eq!(total.latency.max_ns, 3_000);
}

#[test]
fn record_of_unknown_kind_is_not_counted() {
    let stats = DeviceStats::new("blk", KINDS);
    stats.queue(0).record(3, 1, true, 1);
    stats.queue(0).record(usize::MAX, 1, true, 1);
    assert!(stats.snapshot().operations.is_empty());
}

#[test]
fn queue_counters_survive_a_restart() {
    let stats = DeviceStats::new("blk", KINDS);
    let first = stats.queue(0);
    first.add_kick();
    drop(first);
    let second = stats.queue(0);
    second.add_kick();
    assert_eq!(stats.snapshot().queues[0].kicks, 2);
}

#[test]
fn queue_counters_are_each_their_own() {
    let stats = DeviceStats::new("net", KINDS);
    let queue = stats.queue(0);
    let times = |n: u64, count: &dyn Fn()| (0..n).for_each(|_| count());
    times(1, &|| queue.add_kick());
    times(2, &|| queue.add_call());
    times(3, &|| queue.add_call_suppressed());
    queue.add_chains(4);
    times(5, &|| queue.add_malformed_chain());
    times(6, &|| queue.add_poll_hit());
    times(7, &|| queue.add_poll_miss());
    queue.set_in_flight(8);

    let json = serde_json::to_value(&stats.snapshot().queues[0]).unwrap();

    let expected = serde_json::json!({
        "queue": 0, "kicks": 1, "calls": 2, "calls_suppressed": 3, "chains": 4,
        "malformed_chains": 5, "poll_hits": 6, "poll_misses": 7, "in_flight": 8, "operations": [],
    });
    assert_eq!(json, expected);
}

#[test]
fn buckets_of_a_snapshot_hold_every_operation_once() {
    let stats = DeviceStats::new("blk", KINDS);
    let queue = stats.queue(0);
    for ns in [1, 256, 257, 512, 513, 1 << 36, u64::MAX >> 1] {
        queue.record(0, 0, true, ns);
    }
    let snapshot = stats.snapshot();
    let buckets = &snapshot.operations[0].latency.buckets;
    let filled: Vec<_> = buckets
        .iter()
        .filter(|bucket| bucket.count > 0)
        .map(|bucket| (bucket.upper_bound_ns, bucket.count))
        .collect();
    let expected = [
        (Some(256), 2),
        (Some(512), 2),
        (Some(1024), 1),
        (Some(1 << 36), 1),
        (None, 1),
    ];
    assert_eq!(filled, expected);
    assert_eq!(buckets.len(), 30);
}

#[test]
fn snapshot_beside_a_writer_never_goes_back_and_ends_exact() {
    const TOTAL: u64 = 200_000;
    let stats = Arc::new(DeviceStats::new("blk", KINDS));
    let done = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (stats, done) = (Arc::clone(&stats), Arc::clone(&done));
        move || {
            let queue = stats.queue(0);
            for i in 0..TOTAL {
                queue.record(1, 512, true, i);
            }
            done.store(true, Ordering::Release);
        }
    });

    let mut last = 0;
    while !done.load(Ordering::Acquire) {
        let now = stats
            .snapshot()
            .operations
            .first()
            .map_or(0, |op| op.operations);
        assert!(now >= last, "{now} after {last}");
        last = now;
    }
    writer.join().unwrap();

    let snapshot = stats.snapshot();
    assert_eq!(snapshot.operations[0].operations, TOTAL);
    assert_eq!(snapshot.operations[0].bytes, TOTAL * 512);
}

#[test]
fn queue_stats_share_no_cache_line() {
    assert_eq!(align_of::<QueueStats>(), 128);
    assert_eq!(size_of::<QueueStats>() % 128, 0);
    assert_eq!(align_of::<PaddedKind>(), 128);
}
