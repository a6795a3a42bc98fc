// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ring against a device played by hand on the same memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::memory::MemoryLayout;

fn ring(size: u16, event_idx: bool, calls: CallMode) -> (Arc<GuestMemory>, SplitRing) {
    let memory = GuestMemory::new(&MemoryLayout::default()).unwrap();
    let config = RingConfig {
        size,
        event_idx,
        indirect_len: 4,
        calls,
    };
    let ring = SplitRing::new(&memory, config).unwrap();
    (memory, ring)
}

/// The device completes `head` as its `at`-th chain.
fn complete(ring: &SplitRing, at: u16, head: u32, len: u32) {
    let slot = 4 + 8 * usize::from(at & (ring.config().size - 1));
    ring.used.u32(slot).store(head, Ordering::Relaxed);
    ring.used.u32(slot + 4).store(len, Ordering::Relaxed);
    ring.set_used_idx(at.wrapping_add(1));
}

fn segment(len: u32) -> Segment {
    Segment::readable(0x1000, len)
}

#[test]
fn add_direct_and_indirect_writes_linked_descriptors() {
    let (memory, mut ring) = ring(8, true, CallMode::Never);

    let head = ring
        .add(
            &[segment(1), Segment::writable(0x2000, 2)],
            &[segment(3), segment(4)],
        )
        .unwrap();

    let first = ring.desc(head);
    assert_eq!((first.len, first.flags), (1, desc_flag::NEXT));
    let second = ring.desc(first.next);
    assert_eq!(second.flags, desc_flag::NEXT | desc_flag::WRITE);
    let table = ring.desc(second.next);
    assert_eq!((table.len, table.flags), (32, desc_flag::INDIRECT));
    let entries = memory.read_vec(table.addr, 32).unwrap();
    let expected = [
        Descriptor {
            addr: 0x1000,
            len: 3,
            flags: desc_flag::NEXT,
            next: 1,
        },
        Descriptor {
            addr: 0x1000,
            len: 4,
            flags: 0,
            next: 0,
        },
    ];
    assert_eq!(entries, expected.map(Descriptor::to_bytes).concat());
    assert_eq!(ring.free_len(), 5);
}

#[test]
fn add_more_than_free_is_refused_and_completion_frees() {
    let (_memory, mut ring) = ring(4, false, CallMode::Wanted);
    let one = ring.add(&[segment(1); 3], &[]).unwrap();

    let refused = ring.add(&[segment(1); 2], &[]);
    assert!(
        matches!(refused, Err(FrontendError::RingFull { needed: 2, free: 1 })),
        "{refused:?}"
    );

    let two = ring.add(&[segment(1)], &[]).unwrap();
    assert!(ring.publish(), "no flags set: a kick is wanted");
    complete(&ring, 0, two.into(), 7);
    assert_eq!(ring.pop_used().unwrap(), Some(Used { head: two, len: 7 }));
    complete(&ring, 1, one.into(), 9);
    assert_eq!(ring.pop_used().unwrap(), Some(Used { head: one, len: 9 }));
    assert_eq!(ring.pop_used().unwrap(), None);
    assert_eq!(ring.free_len(), 4);
    ring.add(&[segment(1); 4], &[]).unwrap();
}

#[test]
fn pop_used_of_a_head_twice_or_out_of_range_is_an_error() {
    let (_memory, mut ring) = ring(4, false, CallMode::Wanted);
    let head = u32::from(ring.add(&[segment(1)], &[]).unwrap());
    complete(&ring, 0, head, 0);
    ring.pop_used().unwrap();

    for bad in [head, 4, 0x1_0000 + head] {
        complete(&ring, 1, bad, 0);
        let found = ring.pop_used();
        assert!(
            matches!(found, Err(FrontendError::UnknownHead { id }) if id == bad),
            "{found:?}"
        );
    }
}

#[test]
fn pop_used_with_idx_beyond_the_ring_is_an_error() {
    let (_memory, mut ring) = ring(4, false, CallMode::Wanted);
    ring.set_used_idx(5);
    let found = ring.pop_used();
    assert!(
        matches!(found, Err(FrontendError::UsedIdxJump { ahead: 5, .. })),
        "{found:?}"
    );
}

#[test]
fn publish_asks_for_a_kick_as_the_device_says() {
    let (_memory, mut flags) = ring(8, false, CallMode::Wanted);
    flags.used.u16(0).store(USED_NO_NOTIFY, Ordering::Relaxed);
    flags.add(&[segment(1)], &[]).unwrap();
    assert!(!flags.publish());

    let (_memory, mut events) = ring(8, true, CallMode::Wanted);
    let avail_event = 4 + 8 * 8;
    events.used.u16(avail_event).store(2, Ordering::Relaxed);
    for wanted in [false, false, true, false] {
        events.add(&[segment(1)], &[]).unwrap();
        assert_eq!(events.publish(), wanted);
    }
    assert!(!events.publish(), "nothing new to publish");
}

#[test]
fn polling_never_wants_a_call_through_three_wraps() {
    for event_idx in [false, true] {
        let (_memory, mut ring) = ring(8, event_idx, CallMode::Never);
        ring.reset(u16::MAX - 3);
        for step in 0..200_000_u32 {
            let old = ring.next_used();
            let head = ring.add(&[segment(1)], &[]).unwrap();
            ring.publish();
            complete(&ring, old, head.into(), step);
            let used_event = u16::from_le(ring.avail.u16(4 + 2 * 8).load(Ordering::Relaxed));
            let flags = u16::from_le(ring.avail.u16(0).load(Ordering::Relaxed));
            let call = if event_idx {
                need_event(used_event, ring.used_idx(), old)
            } else {
                flags & AVAIL_NO_INTERRUPT == 0
            };
            assert!(!call, "event_idx {event_idx}, step {step}");
            assert_eq!(ring.pop_used().unwrap(), Some(Used { head, len: step }));
        }
    }
}

#[test]
fn arm_call_reports_completions_that_are_there_already() {
    for event_idx in [false, true] {
        let (_memory, mut ring) = ring(8, event_idx, CallMode::Wanted);
        let head = ring.add(&[segment(1)], &[]).unwrap();
        assert!(!ring.arm_call());
        complete(&ring, 0, head.into(), 0);
        assert!(ring.arm_call());
    }
}

#[test]
fn the_largest_ring_fills_and_empties() {
    let (_memory, mut ring) = ring(1 << 15, true, CallMode::Never);
    ring.reset(u16::MAX);
    let heads: Vec<u16> = (0..1 << 15)
        .map(|_| ring.add(&[segment(1)], &[]).unwrap())
        .collect();
    assert_eq!(ring.free_len(), 0);
    ring.publish();
    assert_eq!(ring.avail_idx(), u16::MAX.wrapping_add(1 << 15));
    for (at, head) in (0..).zip(&heads) {
        assert_eq!(ring.avail_slot(u16::MAX.wrapping_add(at)), *head);
        complete(&ring, u16::MAX.wrapping_add(at), (*head).into(), 0);
    }
    for head in heads {
        assert_eq!(ring.pop_used().unwrap(), Some(Used { head, len: 0 }));
    }
    assert_eq!(ring.free_len(), 1 << 15);
}
