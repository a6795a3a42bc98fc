// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ports with limits: who waits for them, and who does not. What TCP makes of limits is in
//! `net/limits.rs`.

use std::time::{Duration, Instant};

use ringside_frontend::net::NetPort;
use ringside_tests::net_back_end::NetBackEnd;
use serde_json::{Value, json};

use crate::waits::{BYTES, goes_on, introduce, rounds, to_itself};
use crate::{
    PATIENCE, TestResult, counted, eventually, frame, mac, open, open_listening, plain, receive,
    send,
};

/// Publishes so many frames without waiting for any.
fn publish(port: &mut NetPort, bytes: &[u8], frames: usize) -> TestResult {
    for _ in 0..frames {
        assert!(port.pairs[0].tx.send(&plain(), bytes)?);
    }
    port.pairs[0].tx.publish()?;
    Ok(())
}

/// Takes what comes until there are so many.
fn receive_until(port: &mut NetPort, frames: usize) -> TestResult {
    let mut got = 0;
    eventually("all frames", || {
        got += receive(port)?.len();
        Ok(got >= frames)
    })
}

#[test]
fn f5_7_limited_receiver_holds_up_no_other_and_all_is_counted() -> TestResult {
    let _one = crate::alone();
    let limits = ["", "", ",limit-rx-packets=50,burst=1"];
    let mut back_end = NetBackEnd::start_ports(&limits, &[])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut good = open_listening(&mut back_end, 1)?;
    let mut limited = open_listening(&mut back_end, 2)?;
    introduce(std::slice::from_mut(&mut good), 1)?;
    introduce(std::slice::from_mut(&mut limited), 2)?;
    let to_limited = [frame(mac(0), mac(2), BYTES)];
    let mut sent = 0;
    goes_on("beside a receiver with a limit", |disturbed| {
        let others = if disturbed {
            &to_limited
        } else {
            &[to_itself()]
        };
        let others = others.to_vec();
        let arrived = rounds(&mut sender, &mut good, &others)?;
        sent += if disturbed { arrived } else { 0 };
        receive(&mut limited)?;
        Ok(arrived)
    })?;
    let before = counted(&back_end, 2, 0)?;
    assert!(before.lost("rate_limited") > 0, "{}", before.0);
    assert_eq!(before.all_lost(), before.lost("rate_limited"));
    // What waits is lost with the guest, and counted. One was a broadcast of the other.
    drop(limited);
    let sent = u64::try_from(sent)?;
    eventually("all frames to be counted", || {
        let after = counted(&back_end, 2, 0)?;
        Ok(after.passed() + after.all_lost() == sent + 1)
    })?;
    let after = counted(&back_end, 2, 0)?;
    assert!(after.lost("link_down") > 0, "{}", after.0);
    Ok(())
}

#[test]
fn f5_7_frames_that_wait_for_a_limit_come_in_order_and_at_its_pace() -> TestResult {
    const FRAMES: usize = 100;
    const PER_S: usize = 200;
    let limit = format!(",limit-rx-packets={PER_S},burst=1");
    let mut back_end = NetBackEnd::start_ports(&["", &limit], &[])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut limited = open(&mut back_end, 1)?;
    introduce(std::slice::from_mut(&mut limited), 1)?;
    limited.pairs[0].rx.post(10)?;
    let start = Instant::now();
    for number in 0..FRAMES {
        let mut bytes = frame(mac(0), mac(1), 60 + number);
        bytes[14..16].copy_from_slice(&u16::try_from(number)?.to_be_bytes());
        assert!(sender.pairs[0].tx.send(&plain(), &bytes)?);
    }
    sender.pairs[0].tx.publish()?;
    // Nobody waits, not even when what waits finds no buffers in its turn.
    sender.pairs[0].tx.wait_all(PATIENCE)?;
    eventually("a guest without buffers", || {
        Ok(counted(&back_end, 1, 0)?.0["no_buffer_waits"].as_u64() > Some(0))
    })?;
    let mut next = 0;
    eventually("all frames", || {
        for got in receive(&mut limited)? {
            assert_eq!(got.len(), 60 + next);
            assert_eq!(got[14..16], u16::try_from(next)?.to_be_bytes());
            next += 1;
        }
        Ok(next == FRAMES)
    })?;
    // The first two are a burst and a debt.
    let least = Duration::from_millis(1000) * u32::try_from(FRAMES - 2)? / u32::try_from(PER_S)?;
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    // When there is no limit any more, nothing waits for it.
    publish(&mut sender, &frame(mac(0), mac(1), BYTES), FRAMES)?;
    let off = json!({"port": "port1", "direction": "rx", "packets": "off"});
    back_end.control("limit", &off)?;
    receive_until(&mut limited, FRAMES)
}

#[test]
fn f5_7_limits_hold_up_neither_a_drain_nor_the_end_of_a_ring() -> TestResult {
    const FRAMES: usize = 100;
    let limits = [
        ",limit-tx-packets=2,burst=1",
        "",
        ",limit-rx-packets=2,burst=1",
    ];
    let mut back_end = NetBackEnd::start_ports(&limits, &[])?;
    let mut slow = open_listening(&mut back_end, 0)?;
    let mut sender = open_listening(&mut back_end, 1)?;
    let mut limited = open_listening(&mut back_end, 2)?;
    introduce(std::slice::from_mut(&mut limited), 2)?;
    publish(&mut slow, &frame(mac(0), mac(1), BYTES), FRAMES)?;
    publish(&mut sender, &frame(mac(1), mac(2), BYTES), FRAMES)?;
    sender.pairs[0].tx.wait_all(PATIENCE)?;
    let drained = back_end.control("drain", &Value::Null)?;
    assert_eq!(drained["done"], true, "{drained}");
    back_end.control("resume", &Value::Null)?;
    // Those behind the limit are still in the ring.
    let taken = slow.session.stop(1)?;
    assert!(usize::from(taken) < FRAMES, "{taken}");
    limited.session.stop(0)?;
    let lost = counted(&back_end, 2, 0)?;
    assert!(lost.lost("link_down") > 0, "{}", lost.0);
    // A port without limits goes on.
    send(&mut sender, &frame(mac(1), mac(0), BYTES))?;
    assert!(back_end.terminate()?.success());
    Ok(())
}
