// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pairs of queues, and what a switch learns.

use ringside_frontend::net::{NetConfig, ack, class};
use ringside_tests::net_back_end::NetBackEnd;

use crate::{
    Flow, PATIENCE, SILENCE, TestResult, builder, config, frame, loopback, open, open_as, plain,
    serves,
};

#[test]
fn pairs_enabled_and_disabled_in_turn_go_on() -> TestResult {
    let mut back_end = loopback()?;
    let config = NetConfig {
        pairs: 4,
        ..config()
    };
    let mut port = open_as(&mut back_end, 0, builder(), &config)?;
    for pairs in [1, 4, 2, 3, 4] {
        for vring in 2..8 {
            let enable = u32::from(vring < 2 * pairs);
            assert!(port.messages.enable(vring, enable)?);
        }
        for pair in port.pairs.iter_mut().take(usize::try_from(pairs)?) {
            serves(pair)?;
        }
    }
    Ok(())
}

#[test]
fn control_queue_sets_the_number_of_pairs() -> TestResult {
    const PAIRS_SET: u8 = 0;
    let mut back_end = loopback()?;
    let config = NetConfig {
        pairs: 2,
        control: true,
        ..config()
    };
    let mut port = open_as(&mut back_end, 0, builder(), &config)?;
    let control = port.control.as_mut().ok_or("no control queue")?;
    for (pairs, answer) in [(2_u16, ack::OK), (0, ack::ERR), (9, ack::ERR), (1, ack::OK)] {
        let found = control.command(class::MQ, PAIRS_SET, &pairs.to_le_bytes(), PATIENCE)?;
        assert_eq!(found, answer, "{pairs} pairs");
    }
    serves(&mut port.pairs[0])
}

#[test]
fn rule_30_address_of_another_port_is_not_to_be_had_with_anti_spoof() -> TestResult {
    let ports = [
        ",mac=02:00:00:00:00:01,anti-spoof",
        ",mac=02:00:00:00:00:02",
    ];
    let mut back_end = NetBackEnd::start_ports(&ports, &["--backend", "switch"])?;
    let mut liar = open(&mut back_end, 0)?;
    let mut other = open(&mut back_end, 1)?;
    other.pairs[0].rx.post_all()?;
    let mut sent = Vec::new();
    let mut arrived = Vec::new();
    let (own, foreign, to) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 2]);
    Flow::new(foreign, to, 0).make(0, 100, &mut sent);
    liar.pairs[0].tx.send_now(&plain(), &sent, PATIENCE)?;
    std::thread::sleep(SILENCE);
    assert_eq!(other.pairs[0].rx.poll(&mut arrived)?, None);
    Flow::new(own, to, 0).make(1, 100, &mut sent);
    liar.pairs[0].tx.send_now(&plain(), &sent, PATIENCE)?;
    other.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived, sent);
    Ok(())
}

#[test]
fn rule_30_isolated_ports_do_not_reach_each_other() -> TestResult {
    let ports = [",isolated", ",isolated", ""];
    let mut back_end = NetBackEnd::start_ports(&ports, &["--backend", "switch"])?;
    let mut first = open(&mut back_end, 0)?;
    let mut second = open(&mut back_end, 1)?;
    second.pairs[0].rx.post_all()?;
    let mut arrived = Vec::new();
    first.pairs[0]
        .tx
        .send_now(&plain(), &frame(0, 100), PATIENCE)?;
    std::thread::sleep(SILENCE);
    assert_eq!(second.pairs[0].rx.poll(&mut arrived)?, None);
    Ok(())
}

#[test]
fn rule_30_station_that_was_heard_is_not_flooded_to_nor_stolen_at_once() -> TestResult {
    let mut back_end = crate::switch(3)?;
    let mut ports = [
        open(&mut back_end, 0)?,
        open(&mut back_end, 1)?,
        open(&mut back_end, 2)?,
    ];
    for port in &mut ports {
        port.pairs[0].rx.post_all()?;
    }
    let (station, asking) = ([2, 7, 7, 7, 7, 7], [2, 8, 8, 8, 8, 8]);
    let mut sent = Vec::new();
    let mut arrived = Vec::new();
    for claimant in [1, 2] {
        Flow::new(station, [0xff; 6], 0).make(0, 60, &mut sent);
        ports[claimant].pairs[0]
            .tx
            .send_now(&plain(), &sent, PATIENCE)?;
        for (at, port) in ports.iter_mut().enumerate() {
            if at != claimant {
                port.pairs[0].rx.wait(&mut arrived, PATIENCE)?;
                assert_eq!(arrived, sent);
            }
        }
        Flow::new(asking, station, 0).make(1, 60, &mut sent);
        ports[0].pairs[0].tx.send_now(&plain(), &sent, PATIENCE)?;
        ports[1].pairs[0].rx.wait(&mut arrived, PATIENCE)?;
        assert_eq!(arrived, sent);
        std::thread::sleep(SILENCE);
        assert_eq!(ports[2].pairs[0].rx.poll(&mut arrived)?, None);
    }
    Ok(())
}
