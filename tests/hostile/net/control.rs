// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! F7 and F8: commands on the control queue, and queues that are not there.

use ringside_frontend::net::{NetConfig, NetHeader, ack, class};
use ringside_frontend::ring::{Segment, desc_flag};
use ringside_tests::hostile::{PATIENCE, TestResult};

use crate::scene::{Scene, builder, config, serves};

#[test]
fn f7_commands_unknown_short_or_out_of_range_are_refused() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port()?;
    let control = port.control.as_mut().ok_or("no control queue")?;
    let mut huge_table = u32::MAX.to_le_bytes().to_vec();
    huge_table.extend([0; 60]);
    let cases: [(u8, u8, &[u8]); 16] = [
        (class::RX, 0, &[]),
        (class::RX, 77, &[1]),
        (77, 0, &[1]),
        (0xff, 0xff, &[]),
        (class::MAC, 0, &[]),
        (class::MAC, 0, &[1, 0, 0, 0, 2, 2]),
        (class::MAC, 0, &huge_table),
        (class::MAC, 1, &[2, 0, 0]),
        (class::MAC, 7, &[2, 0, 0, 0, 0, 1]),
        (class::VLAN, 0, &[1]),
        (class::VLAN, 0, &4096_u16.to_le_bytes()),
        (class::VLAN, 0, &u16::MAX.to_le_bytes()),
        (class::MQ, 0, &0_u16.to_le_bytes()),
        (class::MQ, 0, &u16::MAX.to_le_bytes()),
        (class::MQ, 0, &[1]),
        (class::MQ, 1, &[0xff; 64]),
    ];
    for (class, command, data) in cases {
        let answer = control.command(class, command, data, PATIENCE)?;
        assert_eq!(
            answer,
            ack::ERR,
            "class {class}, command {command}, {data:?}"
        );
    }
    serves(&mut port)?;
    drop(port);
    scene.check()
}

#[test]
fn f7_chains_without_a_command_or_room_for_an_answer_are_returned() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port()?;
    let control = port.control.as_mut().ok_or("no control queue")?;
    let (gpa, window) = control.room();
    window.write(0, &[class::RX, 0, 1]);
    // No class, no command, no data, no answer.
    for (readable, ack_bytes) in [(0, 1), (1, 1), (2, 1), (3, 0), (1, 0)] {
        let segments = [Segment::readable(gpa, readable)];
        let segments = if readable == 0 {
            &[][..]
        } else {
            &segments[..]
        };
        let (answer, _) = control.chain(segments, ack_bytes, PATIENCE)?;
        assert_ne!(answer, ack::OK, "{readable} and {ack_bytes} bytes");
    }
    // The answer may have more room than it takes.
    let (answer, used_len) = control.chain(&[Segment::readable(gpa, 3)], 8, PATIENCE)?;
    assert_eq!((answer, used_len), (ack::OK, 1));
    serves(&mut port)?;
    drop(port);
    scene.check()
}

#[test]
fn f7_cyclic_chain_is_returned() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port()?;
    let control = port.control.as_mut().ok_or("no control queue")?;
    let (gpa, _) = control.room();
    let vring = control.vring_mut();
    let head = vring.ring.add(&[Segment::readable(gpa, 2)], &[])?;
    vring.ring.edit_desc(head, |descriptor| {
        (descriptor.flags, descriptor.next) = (desc_flag::NEXT, head);
    });
    vring.publish()?;
    vring.wait_used(PATIENCE)?;
    let used = vring.ring.pop_used()?.ok_or("nothing used")?;
    assert_eq!((used.head, used.len), (head, 0));
    serves(&mut port)?;
    drop(port);
    scene.check()
}

#[test]
fn f8_pairs_agreed_on_and_never_started_take_nothing_with_them() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port_as(builder(), &config())?;
    let control = port.control.as_mut().ok_or("no control queue")?;
    let answer = control.command(class::MQ, 0, &2_u16.to_le_bytes(), PATIENCE)?;
    assert_eq!(answer, ack::OK);
    // Frames for a queue that was not started are lost or come elsewhere; the port goes on.
    for _ in 0..100 {
        port.pairs[0]
            .tx
            .send_now(&NetHeader::default(), &[2; 60], PATIENCE)?;
    }
    scene.goes_on()?;
    drop(port);
    scene.check()
}

#[test]
fn f8_pair_stopped_under_traffic_is_passed_over() -> TestResult {
    let mut scene = Scene::start()?;
    let config = NetConfig {
        pairs: 2,
        ..config()
    };
    let mut port = scene.port_as(builder(), &config)?;
    for pair in &mut port.pairs {
        pair.rx.post_all()?;
    }
    for vring in [2, 3] {
        port.session.stop(vring)?;
    }
    serves(&mut port)?;
    drop(port);
    scene.check()
}

#[test]
fn f2_6_bad_commands_again_and_again_are_told_of_once_a_second() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port()?;
    let control = port.control.as_mut().ok_or("no control queue")?;
    for _ in 0..2000 {
        let answer = control.command(77, 0, &[1], PATIENCE)?;
        assert_eq!(answer, ack::ERR);
    }
    serves(&mut port)?;
    drop(port);
    // What floods the log fails as the back-end is dropped.
    scene.check()
}
