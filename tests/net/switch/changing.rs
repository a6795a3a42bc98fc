// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with a second processor that changes frames while they are sent.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use ringside_frontend::memory::GuestSlice;
use ringside_frontend::net::{HEADER_MODERN_BYTES, NetPort};
use ringside_frontend::ring::Segment;
use ringside_tests::net_back_end::NetBackEnd;

use crate::uplink::Uplink;
use crate::{Result, TestResult, frame, mac, open, open_listening};

/// Frames that have to arrive: before the fault was mended, one of some hundred was another than
/// was checked.
const FRAMES: usize = 200_000;
const BYTES: usize = 600;
/// Or this long, on a machine that is busy.
const ENOUGH: Duration = Duration::from_secs(5);

/// Sends one chain after the other, all of the same bytes, until `take` has got enough frames of
/// them while `flip` keeps changing those bytes; returns how many of these were foreign, which
/// `take` returns beside their number.
fn count_foreign(
    sender: &mut NetPort,
    sent: &[u8],
    flip: impl Fn(&GuestSlice) + Sync,
    mut take: impl FnMut() -> Result<(usize, usize)>,
) -> Result<usize> {
    let _one = crate::alone();
    let tx = &mut sender.pairs[0].tx;
    let memory = tx.vring().memory();
    let bytes = HEADER_MODERN_BYTES + sent.len();
    let gpa = memory.alloc(bytes, 64)?;
    let window = memory.slice(gpa, bytes)?;
    window.write(HEADER_MODERN_BYTES, sent);
    let chain = [Segment::readable(gpa, u32::try_from(bytes)?)];
    let stop = AtomicBool::new(false);
    let (stop, flip, window) = (&stop, &flip, &window);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                flip(window);
            }
        });
        let mut exchange = || -> Result<usize> {
            let (mut arrived, mut foreign) = (0, 0);
            let start = Instant::now();
            while arrived < FRAMES && start.elapsed() < ENOUGH {
                let vring = tx.vring_mut();
                while vring.ring.pop_used()?.is_some() {}
                while vring.ring.free_len() > 0 {
                    vring.ring.add(&chain, &[])?;
                }
                vring.publish()?;
                let (more, more_foreign) = take()?;
                arrived += more;
                foreign += more_foreign;
            }
            assert!(arrived > FRAMES / 100, "only {arrived} frames arrived");
            Ok(foreign)
        };
        let foreign = exchange();
        stop.store(true, Ordering::Relaxed);
        foreign
    })
}

/// What has come to a guest: frames, and those among them that `is_foreign` finds.
fn received(port: &mut NetPort, is_foreign: impl Fn(&[u8]) -> bool) -> Result<(usize, usize)> {
    let (mut frames, mut foreign, mut got) = (0, 0, Vec::new());
    let rx = &mut port.pairs[0].rx;
    while rx.poll(&mut got)?.is_some() {
        frames += 1;
        foreign += usize::from(is_foreign(&got));
    }
    rx.post_all()?;
    Ok((frames, foreign))
}

/// A byte of the frame, `at` bytes from its start.
fn byte(window: &GuestSlice, at: usize) -> &AtomicU8 {
    window.u8(HEADER_MODERN_BYTES + at)
}

/// The source is once that of the guest, once another.
fn flip_source(window: &GuestSlice) {
    const LAST_OF_SOURCE: usize = 11;
    byte(window, LAST_OF_SOURCE).store(0x66, Ordering::Relaxed);
    byte(window, LAST_OF_SOURCE).store(1, Ordering::Relaxed);
}

fn is_from_another(got: &[u8]) -> bool {
    got.get(6..12) != Some(&mac(1)[..])
}

#[test]
fn f5_15_source_that_changes_while_it_is_checked_never_arrives_as_another() -> TestResult {
    let ports = [",mac=02:00:00:00:00:01,anti-spoof", ""];
    let mut back_end = NetBackEnd::start_ports(&ports, &["--backend", "switch"])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut receiver = open_listening(&mut back_end, 1)?;
    let sent = frame(mac(1), [0xff; 6], BYTES);
    let take = || received(&mut receiver, is_from_another);
    let foreign = count_foreign(&mut sender, &sent, flip_source, take)?;
    assert_eq!(foreign, 0, "frames arrived from an address of others");
    Ok(())
}

#[test]
fn f5_15_source_that_changes_while_it_is_checked_never_leaves_as_another() -> TestResult {
    let ports = [",mac=02:00:00:00:00:01,anti-spoof"];
    let (mut back_end, listener) = Uplink::start(&ports, &[])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut uplink = Uplink::accept(&listener)?;
    let sent = frame(mac(1), [0xff; 6], BYTES);
    let take = || {
        let frames = uplink.frames()?;
        let foreign = frames.iter().filter(|got| is_from_another(got)).count();
        Ok((frames.len(), foreign))
    };
    let foreign = count_foreign(&mut sender, &sent, flip_source, take)?;
    assert_eq!(foreign, 0, "frames left from an address of others");
    Ok(())
}

#[test]
fn f5_15_tag_that_changes_while_it_is_checked_never_arrives_as_another() -> TestResult {
    const LAST_OF_TAG: usize = 15;
    const ALLOWED: u8 = 99;
    // VLAN 10 belongs to the third port: no other may tag its frames so.
    let ports = ["", "", ",vlan=10"];
    let mut back_end = NetBackEnd::start_ports(&ports, &["--backend", "switch"])?;
    let mut sender = open(&mut back_end, 0)?;
    let mut receiver = open_listening(&mut back_end, 1)?;
    let mut sent = frame(mac(1), [0xff; 6], BYTES);
    sent[12..16].copy_from_slice(&[0x81, 0, 0, ALLOWED]);
    let flip = |window: &GuestSlice| {
        byte(window, LAST_OF_TAG).store(10, Ordering::Relaxed);
        byte(window, LAST_OF_TAG).store(ALLOWED, Ordering::Relaxed);
    };
    let is_foreign = |got: &[u8]| got.get(12..16) != Some(&sent[12..16]);
    let take = || received(&mut receiver, is_foreign);
    let foreign = count_foreign(&mut sender, &sent, flip, take)?;
    assert_eq!(foreign, 0, "frames arrived in a VLAN of others");
    Ok(())
}
