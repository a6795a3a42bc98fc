// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `SEND_RARP`: what a front-end has announced is no more than what its guest may say.

use ringside_frontend::ids::request;
use ringside_frontend::net::{Mac, NetConfig, NetPort, Start};
use ringside_frontend::raw::Header;
use ringside_frontend::session::Session;
use ringside_tests::net_back_end::NetBackEnd;
use serde_json::json;

use crate::uplink::Uplink;
use crate::{
    PATIENCE, Result, TestResult, config, counted, eventually, frame, mac, open, open_listening,
    receive, send,
};

const BROADCAST: Mac = [0xff; 6];

/// The source of what came last, which is an announcement.
fn heard(port: &mut NetPort) -> Result<Vec<Mac>> {
    let frames = receive(port)?;
    let sources = frames.iter().map(|got| {
        assert_eq!(
            (&got[..6], &got[12..14]),
            (&BROADCAST[..], &[0x80, 0x35][..])
        );
        // The source says the same as what is asked for.
        assert_eq!(got[6..12], got[22..28]);
        got.get(6..12)
            .and_then(|source| source.try_into().ok())
            .ok_or_else(|| "a short frame".into())
    });
    sources.collect()
}

/// The front-end of a port has `address` announced; the switch has done with it.
fn announce(back_end: &NetBackEnd, port: &NetPort, number: usize, address: Mac) -> TestResult {
    let done = || -> Result<u64> {
        let counted = counted(back_end, number, 1)?;
        Ok(counted.passed() + counted.all_lost())
    };
    let before = done()?;
    assert!(port.messages.send_rarp(address)?);
    eventually("the announcement", || Ok(done()? == before + 1))
}

#[test]
fn f5_4_address_of_another_is_not_announced_and_counted_as_spoofed() -> TestResult {
    let ports = [
        "",
        ",mac=02:00:00:00:00:01",
        ",mac=02:00:00:00:00:02,anti-spoof",
        "",
    ];
    let mut back_end = NetBackEnd::start_ports(&ports, &["--backend", "switch"])?;
    let senders = (0..3)
        .map(|port| open(&mut back_end, port))
        .collect::<Result<Vec<_>>>()?;
    let mut listener = open_listening(&mut back_end, 3)?;
    for (port, address, reason) in [
        (0, mac(1), Some("spoofed")),
        (0, mac(2), Some("spoofed")),
        (0, mac(7), None),
        (1, mac(1), None),
        (1, mac(7), Some("spoofed")),
        (1, mac(2), Some("spoofed")),
        (2, mac(2), None),
        (2, mac(1), Some("spoofed")),
        (2, mac(7), Some("spoofed")),
        (0, BROADCAST, Some("malformed")),
        (0, [1, 0, 0x5e, 0, 0, 1], Some("malformed")),
        (0, [0; 6], Some("malformed")),
    ] {
        let what = format!("port {port}, {address:02x?}");
        let before = counted(&back_end, port, 1)?;
        announce(&back_end, &senders[port], port, address)?;
        let after = counted(&back_end, port, 1)?;
        match reason {
            None => {
                assert_eq!(after.passed(), before.passed() + 1, "{what}");
                assert_eq!(heard(&mut listener)?, [address], "{what}");
            }
            Some(reason) => {
                assert_eq!(after.lost(reason), before.lost(reason) + 1, "{what}");
                assert_eq!(heard(&mut listener)?.len(), 0, "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn f5_4_traffic_of_another_is_not_taken_over_by_an_announcement() -> TestResult {
    let ports = [",mac=02:00:00:00:00:aa,anti-spoof", "", ""];
    let mut back_end = NetBackEnd::start_ports(&ports, &["--backend", "switch"])?;
    let mut thief = open_listening(&mut back_end, 0)?;
    let mut victim = open_listening(&mut back_end, 1)?;
    let mut sender = open_listening(&mut back_end, 2)?;
    send(&mut victim, &frame(mac(1), BROADCAST, 60))?;
    // After the time in which a station does not move.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    announce(&back_end, &thief, 0, mac(1))?;
    receive(&mut thief)?;
    send(&mut sender, &frame(mac(2), mac(1), 60))?;
    assert_eq!(receive(&mut thief)?.len(), 0);
    assert_eq!(receive(&mut victim)?.len(), 1);
    Ok(())
}

#[test]
fn f5_4_announcement_keeps_to_vlan_isolation_link_and_limits() -> TestResult {
    let ports = [
        ",vlan=10,isolated,limit-tx-packets=1,burst=3",
        ",vlan=10",
        ",vlan=10,isolated",
        ",vlan=11",
        "",
    ];
    let (mut back_end, listener) = Uplink::start(&ports, &[])?;
    let sender = open(&mut back_end, 0)?;
    let mut others = (1..5)
        .map(|port| open_listening(&mut back_end, port))
        .collect::<Result<Vec<_>>>()?;
    let mut peer = Uplink::accept(&listener)?;
    announce(&back_end, &sender, 0, mac(5))?;
    assert_eq!(heard(&mut others[0])?, [mac(5)]);
    for other in &mut others[1..] {
        assert_eq!(heard(other)?.len(), 0);
    }
    let mut out = Vec::new();
    eventually("the announcement outside", || {
        out.extend(peer.frames()?);
        Ok(!out.is_empty())
    })?;
    assert_eq!(out.len(), 1);
    assert_eq!(
        out[0][12..18],
        [0x81, 0, 0, 10, 0x80, 0x35],
        "its VLAN's tag"
    );
    back_end.control("link", &json!({"port": "port0", "state": "down"}))?;
    announce(&back_end, &sender, 0, mac(5))?;
    assert_eq!(counted(&back_end, 0, 1)?.lost("link_down"), 1);
    back_end.control("link", &json!({"port": "port0", "state": "up"}))?;
    for _ in 0..10 {
        announce(&back_end, &sender, 0, mac(5))?;
    }
    let counted = counted(&back_end, 0, 1)?;
    assert!(counted.lost("rate_limited") > 0, "{}", counted.0);
    Ok(())
}

#[test]
fn f1_7_million_announcements_without_a_vring_take_no_memory_and_the_last_is_sent() -> TestResult {
    const MESSAGES: u32 = 1_000_000;
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let builder = Session::builder();
    let (session, messages) = NetPort::negotiate(back_end.connect(0)?, builder, &config())?;
    assert!(messages.send_rarp(mac(0))?);
    let before = back_end.process().sample()?.rss_kib;
    for number in 0..MESSAGES {
        let [a, b, c, d] = number.to_be_bytes();
        let body = [2, 0, a, b, c, d, 0, 0];
        messages
            .raw()
            .send(Header::new(request::SEND_RARP, 8), &body, &[])?;
    }
    // Answered when all before are done with.
    let last = [2, 0x77, 0, 0, 0, 1];
    assert!(messages.send_rarp(last)?);
    let grown = back_end.process().sample()?.rss_kib.saturating_sub(before);
    assert!(grown < 1024, "{grown} KiB for {MESSAGES} messages");
    let mut listener = open_listening(&mut back_end, 1)?;
    assert_eq!(receive(&mut listener)?.len(), 0);
    let mut port = NetPort::with_queues(session, messages, &config())?;
    port.start(Start::EnableLast)?;
    let mut sources = Vec::new();
    eventually("the last announcement", || {
        sources.extend(heard(&mut listener)?);
        Ok(!sources.is_empty())
    })?;
    assert_eq!(sources, [last]);
    Ok(())
}

#[test]
fn f1_7_announcement_of_a_front_end_that_leaves_is_forgotten() -> TestResult {
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let mut listener = open_listening(&mut back_end, 1)?;
    let config = NetConfig {
        timeout: PATIENCE,
        ..config()
    };
    let (session, messages) =
        NetPort::negotiate(back_end.connect(0)?, Session::builder(), &config)?;
    assert!(messages.send_rarp(mac(9))?);
    drop((session, messages));
    let mut next = open(&mut back_end, 0)?;
    send(&mut next, &frame(mac(0), BROADCAST, 60))?;
    // Whatever was left would have been sent before.
    let frames = receive(&mut listener)?;
    assert_eq!(frames, [frame(mac(0), BROADCAST, 60)]);
    Ok(())
}
