// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rings that are empty, full, broken or never at rest.

use std::time::Instant;

use ringside_frontend::ring::{CallMode, Descriptor, desc_flag};

use ringside_tests::net_back_end::NetBackEnd;

use crate::{
    PATIENCE, SILENCE, TestResult, builder, config, frame, loopback, open, open_as, plain, serves,
    switch,
};

#[test]
fn rule_18_buffers_posted_late_are_filled_after_a_kick() -> TestResult {
    // Always a frame there.
    let mut back_end = NetBackEnd::start(1, &["--backend", "null:64"])?;
    let mut port = open(&mut back_end, 0)?;
    let rx = &mut port.pairs[0].rx;
    let mut arrived = Vec::new();
    for _ in 0..20 {
        std::thread::sleep(SILENCE / 20);
        rx.post(1)?;
        rx.wait(&mut arrived, PATIENCE)?;
        assert_eq!(arrived.len(), 64);
        assert_eq!(rx.poll(&mut arrived)?, None);
    }
    Ok(())
}

#[test]
fn rule_22_bad_chain_is_used_with_length_0_and_the_next_is_served() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open(&mut back_end, 0)?;
    let pair = &mut port.pairs[0];
    serves(pair)?;
    // A loop, an address nowhere, a descriptor to write to, a chain of nothing.
    let looped = |d: &mut Descriptor| (d.flags, d.next) = (desc_flag::NEXT, 0);
    let nowhere = |d: &mut Descriptor| d.addr = 0xdead_0000_0000;
    let writable = |d: &mut Descriptor| d.flags |= desc_flag::WRITE;
    let empty = |d: &mut Descriptor| d.len = 0;
    let edits: [&dyn Fn(&mut Descriptor); 4] = [&looped, &nowhere, &writable, &empty];
    for edit in edits {
        pair.tx.set_shape(ringside_frontend::net::Shape::WHOLE);
        assert!(pair.tx.send(&plain(), &frame(0, 100))?);
        let ring = &pair.tx.vring().ring;
        let head = ring.avail_slot(ring.next_avail().wrapping_sub(1));
        ring.edit_desc(head, |descriptor| {
            edit(descriptor);
            if descriptor.flags & desc_flag::NEXT != 0 {
                descriptor.next = head;
            }
        });
        pair.tx.publish()?;
        // `reap` holds the device to a used length of 0.
        pair.tx.wait_all(PATIENCE)?;
        serves(pair)?;
    }
    Ok(())
}

#[test]
fn rule_23_jump_of_the_available_idx_stops_that_ring_only() -> TestResult {
    let mut back_end = switch(2)?;
    let mut broken = open(&mut back_end, 0)?;
    let mut left = open(&mut back_end, 1)?;
    serves_alone(&mut left)?;
    let vring = broken.pairs[0].tx.vring_mut();
    vring.ring.set_avail_idx(5000);
    vring.kick()?;
    vring.wait_err(PATIENCE)?;
    let before = back_end.process().sample()?.cpu;
    let start = Instant::now();
    std::thread::sleep(SILENCE * 5);
    let cpu = back_end.process().sample()?.cpu - before;
    assert!(
        cpu < start.elapsed() / 10,
        "{cpu:?} of {:?}: it spins",
        start.elapsed()
    );
    serves_alone(&mut left)
}

/// Its frames are taken, with nobody to send them to.
fn serves_alone(port: &mut ringside_frontend::net::NetPort) -> TestResult {
    for sequence in 0..100 {
        port.pairs[0]
            .tx
            .send_now(&plain(), &frame(sequence, 100), PATIENCE)?;
    }
    Ok(())
}

#[test]
fn rule_24_no_kick_or_call_is_lost_one_frame_at_a_time() -> TestResult {
    let mut back_end = loopback()?;
    for event_idx in [true, false] {
        let builder = builder().event_idx(event_idx).calls(CallMode::Wanted);
        let mut port = open_as(&mut back_end, 0, builder, &config())?;
        let pair = &mut port.pairs[0];
        let mut arrived = Vec::new();
        for sequence in 0..2000 {
            pair.rx.post(1)?;
            assert!(pair.tx.send(&plain(), &frame(sequence, 64))?);
            pair.tx.publish()?;
            pair.rx.wait(&mut arrived, PATIENCE)?;
            pair.tx.wait_all(PATIENCE)?;
        }
    }
    Ok(())
}

#[test]
fn rule_25_flood_on_one_pair_does_not_starve_another_direction() -> TestResult {
    let mut back_end = switch(3)?;
    let mut flooding = open(&mut back_end, 0)?;
    let mut left = open(&mut back_end, 1)?;
    let mut right = open(&mut back_end, 2)?;
    right.pairs[0].rx.post_all()?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let flooding_now = std::sync::atomic::AtomicBool::new(false);
    // To the sender itself, which a switch that has learned keeps from others.
    let mut to_itself = Vec::new();
    crate::Flow::new(crate::OURS, crate::OURS, 0).make(0, 64, &mut to_itself);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| -> Result<u64, String> {
            let mut count = 0;
            let tx = &mut flooding.pairs[0].tx;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                while tx.send(&plain(), &to_itself).map_err(|e| e.to_string())? {
                    count += 1;
                }
                tx.publish().map_err(|e| e.to_string())?;
                tx.reap().map_err(|e| e.to_string())?;
                flooding_now.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            Ok(count)
        });
        let mut passed = || -> TestResult {
            while !flooding_now.load(std::sync::atomic::Ordering::Relaxed) && !flood.is_finished() {
                std::thread::yield_now();
            }
            let there = crate::Flow::new([2; 6], [4; 6], 3);
            // The switch learns where the receiver is, so that the frames are for it alone.
            let mut hello = Vec::new();
            crate::Flow::new([4; 6], [6; 6], 3).make(0, 64, &mut hello);
            right.pairs[0].tx.send_now(&plain(), &hello, PATIENCE)?;
            let mut arrived = Vec::new();
            let mut checked = there.clone();
            let mut sent = Vec::new();
            for sequence in 0..200 {
                there.make(sequence, 64, &mut sent);
                left.pairs[0].tx.send_now(&plain(), &sent, PATIENCE)?;
                right.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
                right.pairs[0].rx.post_all()?;
                let found = checked
                    .check(&arrived, 64)
                    .map_err(|e| format!("frame {sequence}: {e}: {arrived:02x?}"))?;
                assert_eq!(found, sequence);
            }
            Ok(())
        };
        let outcome = passed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let flooded = flood.join().map_err(|_panic| "the flood has panicked")??;
        outcome?;
        assert!(flooded > 0);
        Ok(())
    })
}
