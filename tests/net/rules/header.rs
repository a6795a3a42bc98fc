// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Headers, and frames in more than one buffer.

use ringside_frontend::ids::feature;
use ringside_frontend::net::net_feature::MRG_RXBUF;
use ringside_frontend::net::{
    HEADER_LEGACY_BYTES, NetConfig, NetHeader, RxConfig, Shape, TxConfig, header_flag,
};

use crate::exchange::{Plan, exchange_with_loop};
use crate::{
    PATIENCE, SILENCE, TestResult, builder, config, frame, loopback, open, open_as, plain, serves,
};

#[test]
fn rule_12_legacy_header_has_ten_bytes_and_with_merging_twelve() -> TestResult {
    let mut back_end = loopback()?;
    for (unwanted, header_bytes) in [
        (feature::VERSION_1 | MRG_RXBUF, HEADER_LEGACY_BYTES),
        (feature::VERSION_1, 12),
        (MRG_RXBUF, 12),
    ] {
        let builder = builder().without_features(unwanted);
        let mut port = open_as(&mut back_end, 0, builder, &config())?;
        assert_eq!(port.header_bytes(), header_bytes);
        serves(&mut port.pairs[0])?;
    }
    Ok(())
}

#[test]
fn rule_12_header_may_be_split_over_any_descriptors() -> TestResult {
    let mut back_end = loopback()?;
    for unwanted in [0, MRG_RXBUF] {
        for (tx, rx) in [
            (Shape::BYTEWISE, Shape::WHOLE),
            (Shape::WHOLE, Shape::BYTEWISE),
            (Shape::BYTEWISE.in_table(), Shape::BYTEWISE.in_table()),
        ] {
            let config = NetConfig {
                rx: RxConfig {
                    buffers: 8,
                    shape: rx,
                    ..RxConfig::default()
                },
                tx: TxConfig {
                    slots: 8,
                    shape: tx,
                    ..TxConfig::default()
                },
                ..config()
            };
            let builder = builder().without_features(unwanted);
            let mut port = open_as(&mut back_end, 0, builder, &config)?;
            serves(&mut port.pairs[0])?;
        }
    }
    Ok(())
}

/// The driver side holds every frame to: a number of buffers that is right, all but the last full,
/// all published at once.
#[test]
fn rule_13_merged_buffers_are_full_counted_and_published_at_once() -> TestResult {
    let mut back_end = loopback()?;
    for buffer_bytes in [128, 500, 1526] {
        let config = NetConfig {
            rx: RxConfig {
                buffers: 200,
                buffer_bytes,
                ..RxConfig::default()
            },
            tx: TxConfig {
                slot_bytes: 9600,
                ..TxConfig::default()
            },
            ..config()
        };
        let mut port = open_as(&mut back_end, 0, builder().require(MRG_RXBUF), &config)?;
        let pair = &mut port.pairs[0];
        let edge = buffer_bytes as usize - 12;
        for bytes in [60, edge - 1, edge, edge + 1, 1500, 9000] {
            let plan = Plan {
                frames: 50,
                bytes,
                in_flight: 2,
                timeout: PATIENCE,
            };
            exchange_with_loop(pair, &plan).map_err(|e| format!("{buffer_bytes}, {bytes}: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn rule_14_fields_of_a_tx_header_that_mean_nothing_are_ignored() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open(&mut back_end, 0)?;
    let pair = &mut port.pairs[0];
    pair.rx.post_all()?;
    let header = NetHeader {
        flags: header_flag::DATA_VALID | 0xf0,
        hdr_len: 0xffff,
        gso_size: 0xffff,
        csum_start: 0xffff,
        csum_offset: 0xffff,
        num_buffers: 0xffff,
        ..plain()
    };
    pair.tx.send_now(&header, &frame(0, 100), PATIENCE)?;
    let mut arrived = Vec::new();
    let received = pair.rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived, frame(0, 100));
    // Nothing of it is passed on.
    let clean = NetHeader {
        num_buffers: 1,
        ..plain()
    };
    assert_eq!(received.header, clean);
    Ok(())
}

#[test]
fn rule_16_without_guest_csum_no_flag_reaches_the_guest() -> TestResult {
    let mut back_end = loopback()?;
    let mut port = open(&mut back_end, 0)?;
    let pair = &mut port.pairs[0];
    pair.rx.post_all()?;
    let mut arrived = Vec::new();
    let header = NetHeader {
        flags: header_flag::DATA_VALID,
        ..plain()
    };
    for sequence in 0..10 {
        pair.tx.send_now(&header, &frame(sequence, 100), PATIENCE)?;
        let received = pair.rx.wait(&mut arrived, PATIENCE)?;
        assert_eq!((received.header.flags, received.header.gso_type), (0, 0));
    }
    Ok(())
}

#[test]
fn rule_19_frame_too_long_for_a_buffer_is_dropped_without_merging() -> TestResult {
    let mut back_end = loopback()?;
    let config = NetConfig {
        rx: RxConfig {
            buffers: 16,
            buffer_bytes: 256,
            ..RxConfig::default()
        },
        ..config()
    };
    let builder = builder().without_features(MRG_RXBUF);
    let mut port = open_as(&mut back_end, 0, builder, &config)?;
    let pair = &mut port.pairs[0];
    pair.rx.post_all()?;
    let mut arrived = Vec::new();
    pair.tx
        .send_now(&plain(), &frame(0, 256 - 12 + 1), PATIENCE)?;
    std::thread::sleep(SILENCE);
    assert_eq!(pair.rx.poll(&mut arrived)?, None);
    assert_eq!(pair.rx.vring().ring.used_idx(), 0, "a buffer was used up");
    pair.tx.send_now(&plain(), &frame(1, 256 - 12), PATIENCE)?;
    pair.rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived, frame(1, 256 - 12));
    Ok(())
}

#[test]
fn rule_19_frame_too_long_for_a_whole_ring_does_not_block_it() -> TestResult {
    let mut back_end = loopback()?;
    let config = NetConfig {
        rx: RxConfig {
            buffers: 16,
            buffer_bytes: 128,
            ..RxConfig::default()
        },
        tx: TxConfig {
            slot_bytes: 9600,
            ..TxConfig::default()
        },
        ..config()
    };
    let builder = builder().require(MRG_RXBUF).queue_size(16);
    let mut port = open_as(&mut back_end, 0, builder, &config)?;
    let pair = &mut port.pairs[0];
    pair.rx.post_all()?;
    let mut arrived = Vec::new();
    pair.tx.send_now(&plain(), &frame(0, 9000), PATIENCE)?;
    pair.tx.send_now(&plain(), &frame(1, 100), PATIENCE)?;
    pair.rx.wait(&mut arrived, PATIENCE)?;
    assert_eq!(arrived, frame(1, 100));
    Ok(())
}
