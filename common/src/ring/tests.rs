// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules of kicks and calls without `EVENT_IDX` (virtio 1.3 §2.7.7.2, §2.7.10), which
//! `virtio-queue` lacks, and the index around its wrap.

use super::reference::{Bench, avail_flags, avail_idx, used_event, used_flags, used_idx};
use super::*;

const SIZE: u16 = 8;
const PLAIN: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: false,
};
const EVENTS: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: true,
};

#[test]
fn publish_without_event_idx_calls_unless_no_interrupt_is_set() {
    let bench = Bench::new();
    let mut ring = bench.ring(SIZE, PLAIN, 0);
    for (flags, call) in [(0, true), (1, false), (2, true), (3, false), (0xfffe, true)] {
        bench.put_u16(avail_flags(), flags);
        ring.push_used(1, 0);
        assert_eq!(ring.publish(), call, "flags {flags:#x}");
    }
}

#[test]
fn publish_without_event_idx_does_not_look_at_used_event() {
    let bench = Bench::new();
    bench.put_u16(used_event(SIZE), 0x8000);
    let mut ring = bench.ring(SIZE, PLAIN, 0);
    ring.push_used(0, 0);
    assert!(ring.publish());
}

#[test]
fn publish_with_event_idx_does_not_look_at_no_interrupt() {
    let bench = Bench::new();
    bench.put_u16(avail_flags(), 1);
    let mut ring = bench.ring(SIZE, EVENTS, 0);
    ring.push_used(0, 0);
    assert!(ring.publish());
}

#[test]
fn publish_of_nothing_calls_nobody() {
    let bench = Bench::new();
    for features in [PLAIN, EVENTS] {
        let mut ring = bench.ring(SIZE, features, 0);
        assert!(!ring.publish());
    }
}

#[test]
fn used_elements_are_not_visible_before_publish() {
    let bench = Bench::new();
    let mut ring = bench.ring(SIZE, PLAIN, 0);
    ring.push_used(3, 17);
    ring.push_used(4, 0);
    assert!(ring.has_unpublished());
    assert_eq!(bench.get_u16(used_idx()), 0);
    ring.publish();
    assert!(!ring.has_unpublished());
    assert_eq!(bench.get_u16(used_idx()), 2);
}

#[test]
fn suppressed_kicks_without_event_idx_are_no_notify_until_allowed() {
    let bench = Bench::new();
    let mut ring = bench.ring(SIZE, PLAIN, 0);
    ring.suppress_kicks();
    assert_eq!(bench.get_u16(used_flags()), 1);
    assert!(!ring.allow_kicks());
    assert_eq!(bench.get_u16(used_flags()), 0);
}

#[test]
fn allow_kicks_finds_a_chain_that_came_before() {
    let bench = Bench::new();
    for features in [PLAIN, EVENTS] {
        bench.put_u16(avail_idx(), 5);
        let mut ring = bench.ring(SIZE, features, 5);
        ring.suppress_kicks();
        assert!(!ring.allow_kicks());
        ring.suppress_kicks();
        bench.put_u16(avail_idx(), 6);
        assert!(ring.allow_kicks());
        assert!(ring.has_available());
    }
}

#[test]
fn calls_with_event_idx_survive_the_wrap_of_the_index() {
    let bench = Bench::new();
    for (from, event, pushed, call) in [
        (0xfffe, 0xffff, 2, true),
        (0xfffe, 0, 2, false),
        (0xffff, 0xffff, 1, true),
        (0xffff, 0xfffe, 1, false),
        (0xfffc, 0x0002, 8, true),
        (0xfffc, 0x0004, 8, false),
    ] {
        bench.put_u16(used_idx(), from);
        bench.put_u16(used_event(SIZE), event);
        let mut ring = bench.ring(SIZE, EVENTS, 0);
        for head in 0..pushed {
            ring.push_used(head, 0);
        }
        assert_eq!(
            ring.publish(),
            call,
            "{from:#x} + {pushed}, event {event:#x}"
        );
    }
}

#[test]
fn heads_come_in_order_across_the_wrap_of_the_index() {
    let bench = Bench::new();
    let mut ring = bench.ring(SIZE, PLAIN, 0xfffd);
    for (slot, head) in (0..u64::from(SIZE)).zip([0, 1, 2, 3, 4, 5, 6, 7]) {
        bench.put_u16(avail_idx() + 2 + 2 * slot, head);
    }
    bench.put_u16(avail_idx(), 3);
    for head in [5, 6, 7, 0, 1, 2] {
        assert_eq!(ring.next().unwrap(), Some(head));
    }
    assert_eq!(ring.next().unwrap(), None);
    assert_eq!(ring.position(), 3);
}
