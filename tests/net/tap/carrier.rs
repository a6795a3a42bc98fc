// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host sees whether somebody is at the other end of a tap.

use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;
use serde_json::{Value, json};

use crate::kernel::{Host, TAP};
use crate::{PATIENCE, Result, SILENCE, TestResult, eventually, open, plain, to_kernel};

/// Whether the kernel says so; what its tools show of it may come a second later.
fn has_carrier(host: &Host) -> Result<bool> {
    let said = host.network.run("ip", &["-o", "link", "show", TAP])?;
    Ok(said.contains("LOWER_UP"))
}

fn becomes(host: &Host, expected: bool) -> TestResult {
    let what = format!("carrier: {expected}");
    eventually(&what, || Ok(has_carrier(host)? == expected))
}

fn set_link(back_end: &NetBackEnd, state: &str) -> TestResult {
    back_end.control("link", &json!({"port": 0, "state": state}))?;
    Ok(())
}

#[test]
fn f5_11_carrier_of_a_tap_follows_its_guest_and_its_link() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    for queues in [1, 2] {
        let host = Host::new(queues)?;
        let mut back_end = host.back_end(queues)?;
        becomes(&host, false)?;
        let pairs = usize::from(queues);
        // The second is another guest, or the same one after a crash of its VMM.
        for _ in 0..2 {
            let port = open(&mut back_end, pairs)?;
            becomes(&host, true)?;
            // The answer comes when the host has been told.
            set_link(&back_end, "down")?;
            assert!(!has_carrier(&host)?);
            set_link(&back_end, "up")?;
            assert!(has_carrier(&host)?);
            back_end.control("drain", &Value::Null)?;
            std::thread::sleep(SILENCE);
            assert!(has_carrier(&host)?);
            back_end.control("resume", &Value::Null)?;
            assert!(has_carrier(&host)?);
            drop(port);
            becomes(&host, false)?;
        }
        // A link that is down stays so for who comes.
        set_link(&back_end, "down")?;
        let mut port = open(&mut back_end, pairs)?;
        std::thread::sleep(SILENCE);
        assert!(!has_carrier(&host)?);
        set_link(&back_end, "up")?;
        assert!(has_carrier(&host)?);
        // It reboots: its rings stop, one by one, and start again.
        let mut bases = Vec::new();
        for number in 0..pairs {
            assert!(has_carrier(&host)?);
            bases.push(port.session.stop(2 * number)?);
        }
        assert!(!has_carrier(&host)?);
        for (pair, base) in port.pairs.iter().zip(bases) {
            port.session.start(pair.rx.vring(), base)?;
        }
        becomes(&host, true)?;
        // Disabled queues are as good as none.
        for number in 0..u32::from(queues) {
            assert!(has_carrier(&host)?);
            assert!(port.messages.enable(2 * number, 0)?);
        }
        assert!(!has_carrier(&host)?);
        assert!(port.messages.enable(0, 1)?);
        becomes(&host, true)?;
        back_end.terminate()?;
        becomes(&host, false)?;
        // The next process finds no guest, and then one.
        let mut back_end = host.back_end(queues)?;
        becomes(&host, false)?;
        let mut port = open(&mut back_end, pairs)?;
        host.meet()?;
        let socket = host.socket()?;
        let frame = to_kernel((1000, socket.local_addr()?.port()), b"hello");
        port.pairs[0].tx.send_now(&plain(), &frame, PATIENCE)?;
        assert_eq!(socket.recv(&mut [0; 64])?, 5);
    }
    Ok(())
}
