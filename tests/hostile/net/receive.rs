// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! F5 and F6: buffers that are missing, tiny or wrong.

use std::time::{Duration, Instant};

use ringside_frontend::net::net_feature::MRG_RXBUF;
use ringside_frontend::net::{NetConfig, NetFault, RxConfig, Shape};
use ringside_frontend::ring::Segment;
use ringside_tests::hostile::{PATIENCE, TestResult};

use crate::scene::{Scene, builder, config, hears};

#[test]
fn f5_no_buffers_cost_nothing_and_frames_come_when_there_are_some() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port()?;
    scene.goes_on()?;
    port.pairs[0].rx.post_all()?;
    hears(&mut port)?;
    drop(port);
    scene.check()
}

#[test]
fn f5_buffers_of_any_length_merged_hold_the_frame_and_no_half_is_published() -> TestResult {
    let mut scene = Scene::start()?;
    // Together 312 bytes; none of one byte, since a header has to fit the first.
    for buffer_bytes in [12, 13, 64, 311, 312, 313] {
        let config = NetConfig {
            rx: RxConfig {
                buffers: 64,
                buffer_bytes,
                ..RxConfig::default()
            },
            ..config()
        };
        let mut port = scene.port_as(builder().require(MRG_RXBUF), &config)?;
        port.pairs[0].rx.post_all()?;
        let received = hears(&mut port).map_err(|e| format!("{buffer_bytes}: {e}"))?;
        assert_eq!(u32::from(received.chains), 312_u32.div_ceil(buffer_bytes));
    }
    scene.check()
}

#[test]
fn f5_buffers_too_small_are_not_used_up_without_merging() -> TestResult {
    let mut scene = Scene::start()?;
    for buffer_bytes in [1, 11, 12, 311] {
        let config = NetConfig {
            rx: RxConfig {
                buffers: 64,
                buffer_bytes,
                ..RxConfig::default()
            },
            ..config()
        };
        let mut port = scene.port_as(builder().without_features(MRG_RXBUF), &config)?;
        port.pairs[0].rx.post_all()?;
        scene.goes_on()?;
        let mut frame = Vec::new();
        // Whatever comes back, it is no frame.
        match port.pairs[0].rx.poll(&mut frame) {
            Ok(None) => {}
            Err(ringside_frontend::FrontendError::Net(NetFault::NoHeader { used_len: 0 })) => {}
            other => return Err(format!("{buffer_bytes}: {other:?}").into()),
        }
    }
    scene.check()
}

#[test]
fn f5_chain_that_fails_half_way_leaves_the_others_whole() -> TestResult {
    let mut scene = Scene::start()?;
    for unwanted in [0, MRG_RXBUF] {
        let config = NetConfig {
            rx: RxConfig {
                buffers: 8,
                shape: Shape::HEADER_APART,
                ..RxConfig::default()
            },
            ..config()
        };
        let mut port = scene.port_as(builder().without_features(unwanted), &config)?;
        let rx = &mut port.pairs[0].rx;
        let gpa = rx.vring().memory().alloc(4096, 64)?;
        let vring = rx.vring_mut();
        let bad = [
            // Nowhere after a sound start, readable, and of no length.
            vec![
                Segment::writable(gpa, 12),
                Segment::writable(0xdead_0000_0000, 2000),
            ],
            vec![
                Segment::writable(gpa, 12),
                Segment::readable(gpa + 64, 2000),
            ],
            vec![Segment::readable(gpa, 2000)],
        ];
        for segments in &bad {
            vring.ring.add(segments, &[])?;
        }
        vring.publish()?;
        for number in 0..bad.len() {
            vring.wait_used(PATIENCE)?;
            let used = vring.ring.pop_used()?.ok_or("nothing used")?;
            assert_eq!(used.len, 0, "chain {number}");
        }
        rx.post_all()?;
        hears(&mut port)?;
    }
    scene.check()
}

#[test]
fn f6_flood_without_buffers_is_dropped_without_a_flood_of_the_log() -> TestResult {
    let mut scene = Scene::start()?;
    let port = scene.port()?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        scene.goes_on()?;
    }
    let lines = scene.back_end.process().stderr().lines().count();
    assert!(lines < 50, "{lines} lines");
    drop(port);
    scene.check()
}
