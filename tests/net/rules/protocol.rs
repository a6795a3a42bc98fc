// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages and the states of vrings.

use ringside_frontend::ids::feature;
use ringside_frontend::net::net_feature::{MRG_RXBUF, MTU};
use ringside_frontend::net::{NetConfig, NetPort, Start};
use vhost::VhostBackend;

use crate::{
    PATIENCE, SILENCE, TestResult, builder, config, frame, loopback, open, open_as, plain, serves,
    switch,
};

#[test]
fn rule_01_enable_before_features_is_acknowledged_and_remembered() -> TestResult {
    let mut back_end = loopback()?;
    let config = NetConfig {
        start: Start::EnableFirst,
        ..config()
    };
    let mut port = open_as(&mut back_end, 0, builder(), &config)?;
    serves(&mut port.pairs[0])
}

#[test]
fn rule_01_enabling_again_changes_nothing() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open(&mut back_end, 0)?;
    for vring in [0, 1, 0, 1] {
        assert!(port.messages.enable(vring, 1)?);
    }
    serves(&mut port.pairs[0])?;
    for enable in [0, 0, 1] {
        assert!(port.messages.enable(0, enable)?);
        assert!(port.messages.enable(1, enable)?);
    }
    serves(&mut port.pairs[0])
}

#[test]
fn rule_02_vrings_start_enabled_without_protocol_features() -> TestResult {
    let mut back_end = loopback()?;
    let builder = builder().without_features(feature::PROTOCOL_FEATURES);
    let mut port = open_as(&mut back_end, 0, builder, &config())?;
    serves(&mut port.pairs[0])
}

#[test]
fn rule_02_features_set_again_do_not_stop_vrings() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open(&mut back_end, 0)?;
    serves(&mut port.pairs[0])?;
    let features = port.session.negotiated().features;
    port.session.frontend_mut().set_features(features)?;
    serves(&mut port.pairs[0])
}

#[test]
fn rule_03_chains_made_available_before_the_start_are_served_without_a_kick() -> TestResult {
    let mut back_end = loopback()?;
    // Enabled from the start, or the frame would be discarded by a ring that is still disabled.
    let config = NetConfig {
        start: Start::EnableFirst,
        ..config()
    };
    let (session, messages) = NetPort::negotiate(back_end.connect(0)?, builder(), &config)?;
    let mut port = NetPort::with_queues(session, messages, &config)?;
    let pair = &mut port.pairs[0];
    pair.rx.post_all()?;
    assert!(pair.tx.send(&plain(), &frame(0, 100))?);
    pair.tx.publish()?;
    // What was kicked so far is forgotten.
    pair.rx.vring().kick.take()?;
    pair.tx.vring().kick.take()?;
    port.start(config.start)?;
    let mut arrived = Vec::new();
    port.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived, frame(0, 100));
    Ok(())
}

#[test]
fn rule_03_nothing_touches_guest_memory_after_get_vring_base() -> TestResult {
    let mut back_end = switch(2)?;
    let mut sender = open(&mut back_end, 0)?;
    let mut receiver = open(&mut back_end, 1)?;
    receiver.pairs[0].rx.post_all()?;
    let mut arrived = Vec::new();
    sender.pairs[0]
        .tx
        .send_now(&plain(), &frame(0, 100), PATIENCE)?;
    receiver.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    let base = receiver.session.stop(0)?;
    assert_eq!(base, 1);
    for buffer in receiver.pairs[0].rx.buffers() {
        buffer.fill(0, buffer.len_bytes(), 0xee);
    }
    for sequence in 1..50 {
        sender.pairs[0]
            .tx
            .send_now(&plain(), &frame(sequence, 100), PATIENCE)?;
    }
    std::thread::sleep(SILENCE);
    for buffer in receiver.pairs[0].rx.buffers() {
        let mut bytes = vec![0; buffer.len_bytes()];
        buffer.read(0, &mut bytes);
        assert!(
            bytes.iter().all(|byte| *byte == 0xee),
            "a stopped ring was filled"
        );
    }
    assert_eq!(receiver.pairs[0].rx.vring().ring.used_idx(), 1);
    Ok(())
}

#[test]
fn rule_04_started_but_disabled_tx_is_discarded_and_rx_is_not_filled() -> TestResult {
    let mut back_end = switch(2)?;
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    left.pairs[0].rx.post_all()?;
    right.pairs[0].rx.post_all()?;
    assert!(left.messages.enable(0, 0)?);
    assert!(left.messages.enable(1, 0)?);
    let mut arrived = Vec::new();
    for sequence in 0..40 {
        left.pairs[0]
            .tx
            .send_now(&plain(), &frame(sequence, 100), PATIENCE)?;
        right.pairs[0]
            .tx
            .send_now(&plain(), &frame(sequence, 100), PATIENCE)?;
    }
    std::thread::sleep(SILENCE);
    assert_eq!(right.pairs[0].rx.poll(&mut arrived)?, None);
    assert_eq!(left.pairs[0].rx.poll(&mut arrived)?, None);
    // Enabled again, both pass frames.
    assert!(left.messages.enable(0, 1)?);
    assert!(left.messages.enable(1, 1)?);
    left.pairs[0]
        .tx
        .send_now(&plain(), &frame(99, 100), PATIENCE)?;
    right.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived, frame(99, 100));
    right.pairs[0]
        .tx
        .send_now(&plain(), &frame(99, 100), PATIENCE)?;
    left.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived, frame(99, 100));
    Ok(())
}

/// cloud-hypervisor gives the available index of a ring that has buffers in it as the base.
#[test]
fn rule_05_used_idx_is_where_a_ring_goes_on_whatever_the_base_says() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open(&mut back_end, 0)?;
    serves(&mut port.pairs[0])?;
    let memory = std::sync::Arc::clone(port.session.memory());
    let NetPort {
        session,
        pairs,
        messages,
        ..
    } = port;
    drop((session, messages));
    let builder = builder().existing_memory(memory);
    let (session, messages) = NetPort::negotiate(back_end.connect(0)?, builder, &config())?;
    let mut port = NetPort {
        session,
        pairs,
        control: None,
        messages,
    };
    for vring in [port.pairs[0].rx.vring(), port.pairs[0].tx.vring()] {
        port.session.start(vring, vring.ring.avail_idx())?;
    }
    port.set_driver_ok()?;
    assert!(port.pairs[0].rx.posted() > 0);
    serves(&mut port.pairs[0])
}

#[test]
fn rule_06_new_call_descriptor_is_called_at_once() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open(&mut back_end, 0)?;
    serves(&mut port.pairs[0])?;
    let vring = port.pairs[0].rx.vring();
    vring.call.take()?;
    port.session
        .frontend_mut()
        .set_vring_call(0, vring.call.fd())?;
    vring.wait_call(PATIENCE)?;
    serves(&mut port.pairs[0])
}

#[test]
fn rule_07_mtu_out_of_range_is_refused_and_the_session_goes_on() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open_as(&mut back_end, 0, builder().require(MTU), &config())?;
    for (mtu, taken) in [
        (0, false),
        (67, false),
        (68, true),
        (1500, true),
        (65_535, true),
        (65_536, false),
        (u64::MAX, false),
    ] {
        assert_eq!(port.messages.set_mtu(mtu)?, taken, "{mtu}");
    }
    serves(&mut port.pairs[0])
}

#[test]
fn rule_07_rarp_goes_to_other_ports_and_not_back() -> TestResult {
    const MAC: [u8; 6] = [2, 1, 2, 3, 4, 5];
    let mut back_end = switch(2)?;
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    left.pairs[0].rx.post_all()?;
    right.pairs[0].rx.post_all()?;
    assert!(left.messages.send_rarp(MAC)?);
    let mut arrived = Vec::new();
    right.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived.len(), 60);
    assert_eq!(arrived[..6], [0xff; 6]);
    assert_eq!(arrived[6..12], MAC);
    // RARP, Ethernet and IPv4, operation 3, and the address twice.
    assert_eq!(arrived[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    assert_eq!((&arrived[22..28], &arrived[32..38]), (&MAC[..], &MAC[..]));
    std::thread::sleep(SILENCE);
    assert_eq!(left.pairs[0].rx.poll(&mut arrived)?, None);
    // The switch has learned it: a frame for that address goes there.
    right.pairs[0].tx.send_now(
        &plain(),
        &[&MAC[..], &[2; 6], &[0x88, 0xb5], &[0; 46]].concat(),
        PATIENCE,
    )?;
    left.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived[..6], MAC);
    Ok(())
}

#[test]
fn rule_08_vring_beyond_the_last_is_refused() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open(&mut back_end, 0)?;
    let vrings = u32::try_from(port.session.negotiated().max_queues)?;
    serves(&mut port.pairs[0])?;
    assert!(!port.messages.enable(vrings, 1)?);
    // Whether or not the connection outlives it, the next one is served.
    drop(port);
    serves(&mut open(&mut back_end, 0)?.pairs[0])
}

#[test]
fn rule_10_memory_table_replaced_under_traffic_loses_nothing() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open_as(&mut back_end, 0, builder().require(MRG_RXBUF), &config())?;
    let memory = std::sync::Arc::clone(port.session.memory());
    port.pairs[0].rx.post_all()?;
    let mut arrived = Vec::new();
    for sequence in 0..50 {
        assert!(port.pairs[0].tx.send(&plain(), &frame(sequence, 100))?);
        port.pairs[0].tx.publish()?;
        port.session.set_mem_table(&memory)?;
        port.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
        assert_eq!(arrived, frame(sequence, 100));
        port.pairs[0].rx.post_all()?;
        port.pairs[0].tx.wait_all(PATIENCE)?;
    }
    Ok(())
}

#[test]
fn f2_6_mtu_that_is_refused_again_and_again_is_told_once_a_second() -> TestResult {
    let mut back_end = loopback()?;
    let port = open(&mut back_end, 0)?;
    let start = std::time::Instant::now();
    for _ in 0..2000 {
        assert!(!port.messages.set_mtu(1)?);
    }
    let log = back_end.process().stderr();
    let lines = log.lines().filter(|line| line.contains("MTU")).count();
    let seconds = usize::try_from(start.elapsed().as_secs())? + 1;
    // Two causes: who refuses, and that it was refused.
    assert!(
        (2..=2 * (seconds + 1)).contains(&lines),
        "{lines} lines in {seconds} s"
    );
    Ok(())
}
