// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whose an address is: configured ones, and how many a port may have others learn.

use ringside_frontend::net::{Mac, NetPort};
use ringside_tests::net_back_end::NetBackEnd;
use serde_json::Value;

use crate::{Result, TestResult, counted, frame, mac, open_listening, receive, send};

const BROADCAST: Mac = [0xff; 6];

fn start(ports: &[&str]) -> Result<(NetBackEnd, Vec<NetPort>)> {
    let mut back_end = NetBackEnd::start_ports(ports, &["--backend", "switch"])?;
    let guests = (0..ports.len())
        .map(|port| open_listening(&mut back_end, port))
        .collect::<Result<_>>()?;
    Ok((back_end, guests))
}

/// How many frames have come to each.
fn arrived(guests: &mut [NetPort]) -> Result<Vec<usize>> {
    guests
        .iter_mut()
        .map(|guest| Ok(receive(guest)?.len()))
        .collect()
}

#[test]
fn f5_5_configured_address_is_not_taken_over_by_a_frame_of_another_port() -> TestResult {
    let (back_end, mut guests) = start(&[",mac=02:00:00:00:00:01", "", ""])?;
    // The guest itself is silent; another says to be it, again and again, after the time in which
    // a station does not move.
    for round in 0..3 {
        send(&mut guests[1], &frame(mac(1), BROADCAST, 60))?;
        arrived(&mut guests)?;
        send(&mut guests[2], &frame(mac(9), mac(1), 60))?;
        assert_eq!(arrived(&mut guests)?, [1, 0, 0], "round {round}");
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    // Nor when all is forgotten, and it is said to be there.
    back_end.control("mac-flush", &Value::Null)?;
    send(&mut guests[2], &frame(mac(9), mac(1), 60))?;
    assert_eq!(arrived(&mut guests)?, [1, 0, 0]);
    let table = back_end.control("mac-table", &Value::Null)?;
    let configured: Vec<_> = table
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry["configured"] == true)
        .map(|entry| (entry["mac"].clone(), entry["port"].clone()))
        .collect();
    assert_eq!(
        configured,
        [("02:00:00:00:00:01".into(), "port0".into())],
        "{table}"
    );
    Ok(())
}

#[test]
fn f5_5_frame_to_an_unknown_address_does_not_go_to_ports_whose_address_is_configured() -> TestResult
{
    let ports = [
        "",
        "",
        ",mac=02:00:00:00:00:03",
        ",mac=02:00:00:00:00:04,anti-spoof",
    ];
    let (back_end, mut guests) = start(&ports)?;
    for (destination, expected) in [
        ([2, 9, 9, 9, 9, 9], [0, 1, 0, 0]),
        (BROADCAST, [0, 1, 1, 1]),
        ([0x33, 0x33, 0, 0, 0, 1], [0, 1, 1, 1]),
        (mac(3), [0, 0, 1, 0]),
        (mac(4), [0, 0, 0, 1]),
    ] {
        send(&mut guests[0], &frame(mac(0), destination, 60))?;
        assert_eq!(arrived(&mut guests)?, expected, "{destination:02x?}");
    }
    // What is behind a guest with a configured address is learned when it is heard.
    send(&mut guests[2], &frame(mac(33), BROADCAST, 60))?;
    arrived(&mut guests)?;
    send(&mut guests[0], &frame(mac(0), mac(33), 60))?;
    assert_eq!(arrived(&mut guests)?, [0, 0, 1, 0]);
    // Where all others are configured, nobody is left for an unknown one.
    let (alone, mut guests) = start(&["", ",mac=02:00:00:00:00:02"])?;
    send(&mut guests[0], &frame(mac(0), mac(9), 60))?;
    assert_eq!(arrived(&mut guests)?, [0, 0]);
    assert_eq!(counted(&alone, 0, 1)?.lost("no_receiver"), 1);
    drop(back_end);
    Ok(())
}

#[test]
fn f5_5_port_has_no_more_addresses_learned_than_its_limit() -> TestResult {
    let ports = [",mac-limit=2", ",mac=02:00:00:00:00:01,mac-limit=0", ""];
    let (back_end, mut guests) = start(&ports)?;
    for number in 10..20 {
        for guest in [0, 1] {
            send(
                &mut guests[guest],
                &frame([2, 0, 0, 0, number, u8::try_from(guest)?], BROADCAST, 60),
            )?;
        }
        arrived(&mut guests)?;
    }
    let table = back_end.control("mac-table", &Value::Null)?;
    let behind = |port: &str| {
        let entries = table.as_array().into_iter().flatten();
        entries.filter(|entry| entry["port"] == port).count()
    };
    // The address of the second is configured, not learned.
    assert_eq!((behind("port0"), behind("port1")), (2, 1), "{table}");
    Ok(())
}

#[test]
fn f5_5_guest_that_comes_late_is_learned_beside_two_that_invent_addresses() -> TestResult {
    let args = ["--backend", "switch", "--mac-table-size", "256"];
    let mut back_end = NetBackEnd::start(4, &args)?;
    let mut guests = (0..4)
        .map(|port| open_listening(&mut back_end, port))
        .collect::<Result<Vec<_>>>()?;
    let mut invented = 0_u32;
    let mut invent = |guests: &mut [NetPort], count: u32| -> TestResult {
        for _ in 0..count {
            for guest in &mut guests[..2] {
                let [a, b, c, d] = invented.to_be_bytes();
                // To itself: only the address is of interest.
                send(
                    guest,
                    &frame([2, 0x10, a, b, c, d], [2, 0x10, a, b, c, d], 60),
                )?;
                invented += 1;
            }
        }
        Ok(())
    };
    invent(&mut guests, 2000)?;
    for number in 0..20 {
        let late = [2, 0x20, 0, 0, 0, number];
        send(&mut guests[2], &frame(late, BROADCAST, 60))?;
        invent(&mut guests, 100)?;
        arrived(&mut guests)?;
        send(&mut guests[3], &frame(mac(3), late, 60))?;
        assert_eq!(arrived(&mut guests)?, [0, 0, 1, 0], "guest {number}");
    }
    Ok(())
}
