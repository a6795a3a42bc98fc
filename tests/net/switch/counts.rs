// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sent is delivered and counted: a frame is lost with its sender's counters, or makes a copy for
//! each place it goes to, which arrives there or is counted as lost there.

use ringside_frontend::net::{Mac, NetPort};
use ringside_tests::net_back_end::NetBackEnd;
use serde_json::json;

use crate::uplink::Uplink;
use crate::{Result, TestResult, counted, eventually, frame, mac, open, plain, receive, send};

/// Guests on the switch: the second is in another VLAN, the third and fourth are isolated from each
/// other, the fifth is never there.
const PORTS: [&str; 6] = ["", ",vlan=10", ",isolated", ",isolated", "", ""];
const UPLINK: usize = PORTS.len();
const OUTSIDE: Mac = [2, 0, 0, 0, 0xff, 1];
const BROADCAST: Mac = [0xff; 6];
const FRAMES: u64 = 1001;

/// What a guest has sent and the switch has taken of it, and what of it is counted where.
struct Tally<'a> {
    back_end: &'a NetBackEnd,
    /// By port, with the uplink: passed and lost of the vring it sends on.
    sent: Vec<(u64, u64)>,
    /// Likewise of the vring it receives on.
    received: Vec<(u64, u64)>,
}

impl<'a> Tally<'a> {
    fn take(back_end: &'a NetBackEnd) -> Result<Self> {
        let of = |vring| -> Result<Vec<(u64, u64)>> {
            (0..=UPLINK)
                .map(|port| {
                    let counted = counted(back_end, port, vring)?;
                    Ok((counted.passed(), counted.all_lost()))
                })
                .collect()
        };
        Ok(Self {
            back_end,
            sent: of(1)?,
            received: of(0)?,
        })
    }

    /// Waits until all that `port` has sent since then to `places` is counted, while the guests take
    /// what comes: what waits for a limit comes later.
    fn settle(&self, port: usize, places: &[usize], listening: &mut [NetPort]) -> TestResult {
        eventually("what waits for a limit", || {
            for port in &mut *listening {
                receive(port)?;
            }
            let now = Tally::take(self.back_end)?;
            let passed = now.sent[port].0 - self.sent[port].0;
            let sum = |(arrived, missed): (u64, u64)| arrived + missed;
            let is_counted =
                |place: &usize| sum(now.received[*place]) - sum(self.received[*place]) == passed;
            Ok(places.iter().all(is_counted))
        })
    }

    /// Since then `port` has sent [`FRAMES`], which went to `places` each, or nowhere. All of them
    /// are counted, each once, and nothing else is.
    fn check(&self, what: &str, port: usize, places: &[usize]) -> TestResult {
        let now = Tally::take(self.back_end)?;
        let since = |now: &[(u64, u64)], then: &[(u64, u64)]| -> Vec<(u64, u64)> {
            let pairs = now.iter().zip(then);
            pairs.map(|(n, t)| (n.0 - t.0, n.1 - t.1)).collect()
        };
        let sent = since(&now.sent, &self.sent);
        let received = since(&now.received, &self.received);
        let (passed, lost) = sent[port];
        assert_eq!(passed + lost, FRAMES, "{what}: of port {port}");
        for place in 0..=UPLINK {
            let (arrived, missed) = received[place];
            let copies = if places.contains(&place) { passed } else { 0 };
            assert_eq!(arrived + missed, copies, "{what}: to port {place}");
            if place != port {
                assert_eq!(sent[place], (0, 0), "{what}: port {place} sent nothing");
            }
        }
        Ok(())
    }
}

/// Sends [`FRAMES`] of these, and has the guests that listen take what comes.
fn send_all(sender: &mut NetPort, listening: &mut [NetPort], bytes: &[u8]) -> TestResult {
    let mut left = FRAMES;
    while left > 0 {
        let tx = &mut sender.pairs[0].tx;
        while left > 0 && tx.send(&plain(), bytes)? {
            left -= 1;
        }
        tx.publish()?;
        tx.reap()?;
        for port in &mut *listening {
            receive(port)?;
        }
    }
    Ok(sender.pairs[0].tx.wait_all(crate::PATIENCE)?)
}

/// The first guest, the next four, and the other end of the uplink; all of them are known.
struct Scene {
    back_end: NetBackEnd,
    sender: NetPort,
    others: Vec<NetPort>,
    peer: Uplink,
}

impl Scene {
    fn start() -> Result<Self> {
        Self::start_with(&PORTS, "1K,burst=2K")
    }

    fn start_with(ports: &[&str], flood_limit: &str) -> Result<Self> {
        let (mut back_end, listener) = Uplink::start(ports, &["--flood-limit", flood_limit])?;
        let mut sender = open(&mut back_end, 0)?;
        let mut others = (1..5)
            .map(|port| open(&mut back_end, port))
            .collect::<Result<Vec<_>>>()?;
        let mut peer = Uplink::accept(&listener)?;
        for (number, port) in (1..).zip(&mut others) {
            send(port, &frame(mac(number), BROADCAST, 60))?;
        }
        send(&mut sender, &frame(mac(0), BROADCAST, 60))?;
        peer.send(&frame(OUTSIDE, BROADCAST, 60))?;
        eventually("the station outside", || {
            Ok(counted(&back_end, UPLINK, 1)?.passed() == 1)
        })?;
        Ok(Self {
            back_end,
            sender,
            others,
            peer,
        })
    }

    fn set_link(&self, port: &str, state: &str) -> TestResult {
        let params = json!({"port": port, "state": state});
        self.back_end.control("link", &params)?;
        Ok(())
    }

    /// The first guest sends to `destination`, which is `places`, while others listen, or not.
    fn sends(&mut self, what: &str, to: Mac, places: &[usize], listens: bool) -> TestResult {
        let tally = Tally::take(&self.back_end)?;
        let listening = if listens {
            &mut self.others[..]
        } else {
            &mut []
        };
        send_all(&mut self.sender, listening, &frame(mac(0), to, 200))?;
        tally.settle(0, places, &mut self.others)?;
        tally.check(&format!("{what}, listening: {listens}"), 0, places)
    }

    /// The third guest, an isolated one, sends.
    fn isolated_sends(&mut self, what: &str, to: Mac, places: &[usize]) -> TestResult {
        let tally = Tally::take(&self.back_end)?;
        let (left, right) = self.others.split_at_mut(2);
        send_all(&mut left[1], right, &frame(mac(2), to, 200))?;
        tally.check(what, 2, places)
    }

    /// The peer sends in.
    fn peer_sends(&mut self, what: &str, to: Mac, places: &[usize], listens: bool) -> TestResult {
        let tally = Tally::take(&self.back_end)?;
        let before = tally.sent[UPLINK];
        for _ in 0..FRAMES {
            self.peer.send(&frame(OUTSIDE, to, 200))?;
            if listens {
                for port in &mut self.others {
                    receive(port)?;
                }
            }
        }
        eventually("frames from outside", || {
            let now = counted(&self.back_end, UPLINK, 1)?;
            Ok(now.passed() + now.all_lost() == before.0 + before.1 + FRAMES)
        })?;
        tally.settle(UPLINK, places, &mut self.others)?;
        tally.check(&format!("{what}, listening: {listens}"), UPLINK, places)
    }
}

/// What the copies of the first guest may reach: not the other VLAN.
const REACHED: [usize; 5] = [2, 3, 4, 5, UPLINK];

#[test]
fn f5_8_every_frame_of_a_guest_arrives_or_is_counted_once() -> TestResult {
    let mut scene = Scene::start()?;
    for (what, to, places) in [
        ("unicast", mac(4), &[4][..]),
        ("unicast to an isolated port", mac(2), &[2]),
        ("to another VLAN, hence unknown", mac(1), &REACHED),
        ("broadcast", BROADCAST, &REACHED),
        ("multicast", [0x33, 0x33, 0, 0, 0, 1], &REACHED),
        ("out", OUTSIDE, &[UPLINK]),
        ("to itself", mac(0), &[]),
    ] {
        for listens in [false, true] {
            scene.sends(what, to, places, listens)?;
        }
    }
    scene.set_link("port4", "down")?;
    scene.sends("to a port whose link is down", mac(4), &[4], true)?;
    scene.sends("to all, one's link is down", BROADCAST, &REACHED, true)?;
    scene.set_link("port4", "up")?;
    scene.isolated_sends("between isolated ports", mac(3), &[])?;
    scene.isolated_sends("broadcast of one", BROADCAST, &[0, 4, 5, UPLINK])?;
    scene.isolated_sends("unicast of one", mac(4), &[4])?;
    scene.set_link("port0", "down")?;
    scene.sends("of a port whose link is down", BROADCAST, &[], true)
}

#[test]
fn f5_8_every_frame_arrives_or_is_counted_once_whatever_is_limited() -> TestResult {
    // Of the sender; of receivers, by packets, by bytes, and both ways.
    for limits in [
        [",limit-tx-packets=2K,burst=20", "", "", ""],
        [
            "",
            ",limit-rx-packets=2K,burst=20",
            ",limit-rx-bytes=200K,burst=4K",
            "",
        ],
        [
            ",limit-tx-bytes=1M,burst=10K",
            ",limit-rx-packets=1K,burst=1",
            ",limit-rx-bytes=500K,burst=1K",
            ",limit-tx-packets=10,burst=1",
        ],
    ] {
        let [sender, by_packets, by_bytes, other] = limits;
        let ports = [sender, ",vlan=10", by_packets, by_bytes, other, ""];
        let mut scene = Scene::start_with(&ports, "3K,burst=100")?;
        for (what, to, places) in [
            ("to who is limited by packets", mac(2), &[2][..]),
            ("to who is limited by bytes", mac(3), &[3]),
            ("to who may not send", mac(4), &[4]),
            ("broadcast", BROADCAST, &REACHED),
            ("out", OUTSIDE, &[UPLINK]),
        ] {
            for listens in [true, false] {
                scene.sends(&format!("{what}, {limits:?}"), to, places, listens)?;
            }
        }
        // What comes in waits for nobody.
        scene.peer_sends("in, to who is limited by packets", mac(2), &[2], true)?;
        scene.peer_sends("in, to all", BROADCAST, &[0, 2, 3, 4, 5], true)?;
    }
    Ok(())
}

#[test]
fn f5_8_every_frame_that_is_rubbish_is_counted_with_its_sender() -> TestResult {
    let mut scene = Scene::start()?;
    let mut tagged = frame(mac(0), BROADCAST, 200);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 10]);
    for (what, bytes) in [
        ("of a group", frame([1; 6], BROADCAST, 200)),
        ("too short", frame(mac(0), BROADCAST, 60)[..13].to_vec()),
        ("of the VLAN of another", tagged),
    ] {
        let tally = Tally::take(&scene.back_end)?;
        send_all(&mut scene.sender, &mut scene.others, &bytes)?;
        tally.check(what, 0, &[])?;
    }
    Ok(())
}

#[test]
fn f5_8_every_frame_that_comes_in_arrives_or_is_counted_once() -> TestResult {
    const GUESTS: [usize; 5] = [0, 2, 3, 4, 5];
    let mut scene = Scene::start()?;
    for (what, to, places) in [
        ("to a guest", mac(4), &[4][..]),
        ("to a guest that is not there", mac(5), &GUESTS),
        ("to all", BROADCAST, &GUESTS),
        ("to the station outside", OUTSIDE, &[]),
    ] {
        for listens in [false, true] {
            scene.peer_sends(what, to, places, listens)?;
        }
    }
    Ok(())
}

#[test]
fn f5_8_broadcasts_that_the_uplink_does_not_take_are_counted_there() -> TestResult {
    let (mut back_end, listener) = Uplink::start(&["", ""], &["--flood-limit", "100M"])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut peer = Uplink::accept(&listener)?;
    let sent = frame(mac(0), BROADCAST, 1500);
    for _ in 0..FRAMES {
        send(&mut sender, &sent)?;
    }
    let out = counted(&back_end, 2, 0)?;
    assert!(out.lost("no_buffer") > 0, "{}", out.0);
    assert_eq!(out.passed() + out.all_lost(), FRAMES, "{}", out.0);
    // What was counted as passed is what the peer gets.
    let mut got = 0;
    eventually("what was sent out", || {
        got += u64::try_from(peer.frames()?.len())?;
        Ok(got == out.passed())
    })?;
    let absent = counted(&back_end, 1, 0)?;
    assert_eq!(absent.lost("link_down"), FRAMES, "{}", absent.0);
    Ok(())
}
