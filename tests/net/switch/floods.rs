// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The limit of what one guest may have the switch copy.

use ringside_frontend::net::{Mac, NetPort};
use ringside_tests::net_back_end::NetBackEnd;

use crate::{Result, TestResult, counted, frame, mac, open, open_listening, plain, receive, send};

/// So few that none but the burst passes during the test.
const LIMIT: [&str; 4] = ["--backend", "switch", "--flood-limit", "1,burst=60"];
const SENT: u64 = 100;

/// Three guests that listen, and one that sends.
fn scene() -> Result<(NetBackEnd, NetPort, Vec<NetPort>)> {
    let mut back_end = NetBackEnd::start(4, &LIMIT)?;
    let sender = open(&mut back_end, 0)?;
    let others = (1..4)
        .map(|port| open_listening(&mut back_end, port))
        .collect::<Result<_>>()?;
    Ok((back_end, sender, others))
}

/// Sends frames to `destination`, each followed by one to the guest that is known.
fn send_mixed(sender: &mut NetPort, destination: Mac) -> TestResult {
    let (flood, unicast) = (frame(mac(0), destination, 100), frame(mac(0), mac(1), 100));
    for _ in 0..SENT {
        send(sender, &flood)?;
        send(sender, &unicast)?;
    }
    Ok(())
}

#[test]
fn f2_7_flood_limit_counts_copies_and_holds_nothing_but_floods() -> TestResult {
    for destination in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [2, 9, 9, 9, 9, 9]] {
        let (back_end, mut sender, mut others) = scene()?;
        // The receiver is known from a flood of its own.
        send(&mut others[0], &frame(mac(1), mac(0), 100))?;
        send(&mut sender, &frame(mac(0), mac(1), 100))?;
        receive(&mut others[0])?;
        receive(&mut others[1])?;
        receive(&mut others[2])?;
        send_mixed(&mut sender, destination)?;
        let known = receive(&mut others[0])?;
        let (floods, unicasts): (Vec<_>, Vec<_>) =
            known.iter().partition(|got| got[..6] == destination);
        assert_eq!(u64::try_from(unicasts.len())?, SENT, "{destination:02x?}");
        // 60 copies are 20 frames for three; a little is added while they are sent.
        assert!((20..=24).contains(&floods.len()), "{}", floods.len());
        for other in &mut others[1..] {
            assert_eq!(receive(other)?.len(), floods.len());
        }
        let sent = counted(&back_end, 0, 1)?;
        let lost = SENT - u64::try_from(floods.len())?;
        assert_eq!(sent.lost("rate_limited"), lost, "{}", sent.0);
        assert_eq!(sent.all_lost(), lost, "{}", sent.0);
    }
    Ok(())
}

#[test]
fn f2_7_what_goes_to_one_place_is_no_flood() -> TestResult {
    let mut back_end = NetBackEnd::start(2, &LIMIT)?;
    let mut sender = open(&mut back_end, 0)?;
    let mut other = open_listening(&mut back_end, 1)?;
    for _ in 0..SENT {
        sender.pairs[0]
            .tx
            .send_now(&plain(), &frame(mac(0), [0xff; 6], 100), crate::PATIENCE)?;
    }
    assert_eq!(u64::try_from(receive(&mut other)?.len())?, SENT);
    Ok(())
}
