// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! F1 to F4, F9: frames and headers that are none.

use ringside_frontend::ids::feature;
use ringside_frontend::load::Rng;
use ringside_frontend::net::net_feature::MRG_RXBUF;
use ringside_frontend::net::{
    Flow, NetConfig, NetHeader, NetPort, Shape, TxConfig, gso, header_flag,
};
use ringside_frontend::ring::Segment;
use ringside_frontend::session::Session;
use ringside_tests::hostile::{PATIENCE, Result, TestResult};

use crate::scene::{HOSTILE, Scene, builder, config};

fn frame(bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    Flow::new(HOSTILE, [2, 0, 0, 0, 0, 1], 1).make(0, bytes.max(22), &mut frame);
    frame.truncate(bytes);
    frame
}

/// Sends one and waits until it is used: `send_now` holds the device to a used length of 0.
fn dropped(port: &mut NetPort, header: &NetHeader, bytes: usize) -> TestResult {
    port.pairs[0]
        .tx
        .send_now(header, &frame(bytes), PATIENCE)
        .map_err(|e| format!("{header:?} and {bytes} bytes: {e}").into())
}

fn large() -> NetConfig {
    NetConfig {
        tx: TxConfig {
            slots: 8,
            slot_bytes: 128 << 10,
            ..TxConfig::default()
        },
        ..config()
    }
}

#[test]
fn f1_chains_shorter_than_a_header_or_as_long_are_dropped() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port()?;
    let tx = &mut port.pairs[0].tx;
    let gpa = tx.vring().memory().alloc(64, 64)?;
    for bytes in 1..=12 {
        for cut in 0..bytes {
            let parts = [
                Segment::readable(gpa, cut),
                Segment::readable(gpa + u64::from(cut), bytes - cut),
            ];
            let parts = if cut == 0 { &parts[1..] } else { &parts[..] };
            let vring = tx.vring_mut();
            let head = vring.ring.add(parts, &[])?;
            vring.publish()?;
            vring.wait_used(PATIENCE)?;
            let used = vring.ring.pop_used()?.ok_or("nothing used")?;
            assert_eq!((used.head, used.len), (head, 0), "{bytes} cut at {cut}");
        }
    }
    drop(port);
    scene.check()
}

#[test]
fn f1_header_split_over_many_descriptors_is_read_whole() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port()?;
    for shape in [Shape::BYTEWISE, Shape::BYTEWISE.in_table(), Shape::CUT] {
        port.pairs[0].tx.set_shape(shape);
        crate::scene::serves(&mut port)?;
    }
    drop(port);
    scene.check()
}

#[test]
fn f2_frames_too_long_or_too_short_are_dropped() -> TestResult {
    let mut scene = Scene::start()?;
    let mut port = scene.port_as(builder(), &large())?;
    for bytes in [0, 1, 13, 14, 65_535, 65_550, 65_551, 100_000, 131_000] {
        dropped(&mut port, &NetHeader::default(), bytes)?;
    }
    drop(port);
    scene.check()
}

#[test]
fn f3_checksum_fields_outside_the_frame_are_dropped() -> TestResult {
    let mut scene = Scene::start()?;
    // All offloads.
    let mut port = scene.port_as(Session::builder(), &large())?;
    for csum_start in [
        0, 1, 13, 14, 33, 34, 98, 99, 100, 101, 0x7fff, 0xfffe, 0xffff,
    ] {
        for csum_offset in [0, 1, 6, 16, 66, 67, 0x7fff, 0xfffe, 0xffff] {
            let header = NetHeader {
                flags: header_flag::NEEDS_CSUM,
                csum_start,
                csum_offset,
                ..NetHeader::default()
            };
            dropped(&mut port, &header, 100)?;
        }
    }
    drop(port);
    scene.check()
}

#[test]
fn f4_segmentation_that_makes_no_sense_is_dropped() -> TestResult {
    let mut scene = Scene::start()?;
    // Negotiated, and not.
    for builder in [Session::builder(), builder()] {
        let mut port = scene.port_as(builder, &large())?;
        for gso_type in [
            gso::TCPV4,
            2,
            gso::UDP,
            gso::TCPV6,
            gso::UDP_L4,
            6,
            0x20,
            0x40,
            0x60,
            0x7f,
            gso::ECN,
            gso::ECN | gso::TCPV4,
            0xff,
        ] {
            for (gso_size, hdr_len) in [(0, 54), (1, 54), (1448, 0), (1448, 0xffff), (0xffff, 54)] {
                for flags in [0, header_flag::NEEDS_CSUM] {
                    let header = NetHeader {
                        flags,
                        gso_type,
                        hdr_len,
                        gso_size,
                        csum_start: 34,
                        csum_offset: 16,
                        ..NetHeader::default()
                    };
                    dropped(&mut port, &header, 5000)?;
                }
            }
        }
        drop(port);
    }
    scene.check()
}

/// Random headers in front of random bytes, some of which look like TCP over IP.
fn random(seed: u64, port: &mut NetPort) -> TestResult {
    let mut rng = Rng::new(seed);
    for _ in 0..2000 {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        bytes[8..].copy_from_slice(&rng.next_u64().to_le_bytes()[..4]);
        let mut header = NetHeader::from_bytes(bytes);
        if rng.below(2) == 0 {
            header.flags &= 3;
            header.gso_type &= 7;
            header.csum_start &= 0x7f;
            header.csum_offset &= 0x1f;
            header.gso_size &= 0x7ff;
        }
        let length = usize::try_from(rng.below(3000))?;
        let mut frame = frame(length);
        let kinds: [&[u8]; 4] = [&[8, 0, 0x45], &[0x86, 0xdd, 0x60], &[0x81, 0, 0, 5], &[]];
        let kind = kinds[usize::try_from(rng.below(4))?];
        for (place, byte) in frame.iter_mut().skip(12).zip(kind) {
            *place = *byte;
        }
        if let Some(protocol) = frame.get_mut(23) {
            *protocol = [6, 17][usize::try_from(rng.below(2))?];
        }
        port.pairs[0].tx.send_now(&header, &frame, PATIENCE)?;
    }
    Ok(())
}

#[test]
fn f4_random_headers_never_stop_the_queue() -> TestResult {
    let mut scene = Scene::start()?;
    for seed in 1..5 {
        let mut port = scene.port_as(Session::builder(), &large())?;
        random(seed, &mut port).map_err(|e| format!("seed {seed}: {e}"))?;
    }
    scene.check()
}

#[test]
fn f9_header_length_follows_from_the_features_alone() -> TestResult {
    let mut scene = Scene::start()?;
    for unwanted in [
        0,
        MRG_RXBUF,
        feature::VERSION_1,
        feature::VERSION_1 | MRG_RXBUF,
    ] {
        let mut port = scene.port_as(builder().without_features(unwanted), &config())?;
        let served: Result<()> = crate::scene::serves(&mut port);
        served.map_err(|e| format!("without {unwanted:#x}: {e}"))?;
    }
    scene.check()
}
