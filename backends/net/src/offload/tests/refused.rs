// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Long packets that are not what their header says, or nothing that can be segmented.

use super::*;
use crate::header::{GSO_TCPV6, GSO_UDP, GSO_UDP_L4};

/// The fault of a long packet with some bytes of its frame changed.
fn fault_with(sample: &Sample, header: NetHeader, changes: &[(usize, u8)]) -> Option<FinishFault> {
    let mut frame = sample.frame();
    for (at, byte) in changes {
        frame[*at] = *byte;
    }
    let fault = finish_bytes(header, &frame, Offloads::empty(), ANY_LENGTH).err();
    assert_eq!(check_long(&header, &frame).err(), fault);
    let all = finish_bytes(header, &frame, Offloads::all(), ANY_LENGTH).err();
    assert_eq!(all, fault);
    fault
}

#[test]
fn f4_header_that_disagrees_with_the_packet_is_refused() {
    let tcp4 = Sample::tcp4(3000, 1000);
    let udp6 = Sample {
        v6: true,
        udp: true,
        ..tcp4.clone()
    };
    let typed = |sample: &Sample, gso_type| NetHeader {
        gso_type,
        ..sample.header()
    };
    let other = Some(FinishFault::OtherProtocol);
    assert_eq!(fault_with(&tcp4, typed(&tcp4, GSO_TCPV6), &[]), other);
    assert_eq!(fault_with(&tcp4, typed(&tcp4, GSO_UDP_L4), &[]), other);
    assert_eq!(fault_with(&udp6, typed(&udp6, GSO_TCPV6), &[]), other);
    assert_eq!(fault_with(&tcp4, typed(&tcp4, 2), &[]), other);
    assert_eq!(
        fault_with(&tcp4, tcp4.header(), &[(12, 0x08), (13, 0x06)]),
        other
    );
    assert_eq!(fault_with(&tcp4, tcp4.header(), &[(23, 132)]), other);
    let elsewhere = Some(FinishFault::ChecksumElsewhere);
    let header = NetHeader {
        csum_start: 36,
        ..tcp4.header()
    };
    assert_eq!(fault_with(&tcp4, header, &[]), elsewhere);
    let header = NetHeader {
        csum_offset: 6,
        ..tcp4.header()
    };
    assert_eq!(fault_with(&tcp4, header, &[]), elsewhere);
    let fragmentation = Some(FinishFault::Fragmentation);
    assert_eq!(fault_with(&udp6, typed(&udp6, GSO_UDP), &[]), fragmentation);
}

#[test]
fn f4_malformed_packet_is_refused() {
    let tcp4 = Sample::tcp4(3000, 1000);
    let tcp6 = Sample {
        v6: true,
        ..tcp4.clone()
    };
    let malformed = Some(FinishFault::Malformed);
    for changes in [[(14, 0x55)], [(14, 0x44)], [(46, 0x40)], [(46, 0)]] {
        assert_eq!(
            fault_with(&tcp4, tcp4.header(), &changes),
            malformed,
            "{changes:?}"
        );
    }
    assert_eq!(fault_with(&tcp6, tcp6.header(), &[(14, 0x40)]), malformed);
    let fragment = Some(FinishFault::Fragment);
    assert_eq!(fault_with(&tcp4, tcp4.header(), &[(20, 0x20)]), fragment);
    assert_eq!(fault_with(&tcp4, tcp4.header(), &[(21, 1)]), fragment);
}

#[test]
fn f4_extension_header_that_cannot_be_repeated_is_refused() {
    let tcp6 = Sample {
        v6: true,
        ip_options: 1,
        ..Sample::tcp4(3000, 1000)
    };
    for next in [44, 50, 51, 59] {
        let fault = fault_with(&tcp6, tcp6.header(), &[(20, next)]);
        assert_eq!(fault, Some(FinishFault::OtherProtocol), "{next}");
    }
    let too_long = Some(FinishFault::HeadersTooLong);
    assert_eq!(fault_with(&tcp6, tcp6.header(), &[(55, 255)]), too_long);
    // A header that says that another of its kind follows, for ever.
    let endless = Sample {
        payload: vec![0; 3000],
        ..tcp6
    };
    let changes: Vec<_> = (54..2000).step_by(8).map(|at| (at, 60)).collect();
    assert_eq!(fault_with(&endless, endless.header(), &changes), too_long);
}

#[test]
fn f4_packet_cut_in_its_headers_is_refused() {
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let sample = Sample {
            v6,
            udp,
            tags: 2,
            ip_options: 1,
            ..Sample::tcp4(1, 1000)
        };
        let frame = sample.frame();
        for bytes in 0..sample.headers_bytes() {
            let given = finish_bytes(
                sample.header(),
                &frame[..bytes],
                Offloads::empty(),
                ANY_LENGTH,
            );
            assert_eq!(given, Err(FinishFault::Truncated), "{bytes}");
            assert_eq!(
                check_long(&sample.header(), &frame[..bytes]),
                Err(FinishFault::Truncated)
            );
        }
        let header = NetHeader {
            gso_type: 0,
            ..sample.header()
        };
        assert_eq!(check_long(&header, &[]), Ok(()));
    }
}

#[test]
fn f4_headers_longer_than_can_be_repeated_are_refused() {
    let with = |ip_options| Sample {
        v6: true,
        ip_options,
        ..Sample::tcp4(3000, 1000)
    };
    let longest = with(22);
    assert_eq!(fault_with(&longest, longest.header(), &[]), None);
    let too_long = with(23);
    let fault = fault_with(&too_long, too_long.header(), &[]);
    assert_eq!(fault, Some(FinishFault::HeadersTooLong));
}

/// A TCP packet over IPv6 behind a routing header of this kind, with two addresses.
fn routed(kind: u8, segments_left: u8) -> (Sample, Vec<u8>) {
    let sample = Sample {
        v6: true,
        // 8 bytes and two addresses.
        ip_options: 5,
        ..Sample::tcp4(3000, 1000)
    };
    let mut frame = sample.frame();
    let (ip, routing) = (14, 14 + 40);
    frame[ip + 6] = 43;
    frame[routing + 2..routing + 4].copy_from_slice(&[kind, segments_left]);
    for (at, last) in [(8, 0x77), (24, 0x88)] {
        frame[routing + at..][..16].copy_from_slice(&[0xfd; 16]);
        frame[routing + at + 15] = last;
    }
    (sample, frame)
}

#[test]
fn f5_9_long_packet_behind_a_routing_header_passes_a_receiver_that_takes_it() {
    for kind in [0, 1, 2, 3, 4, 253] {
        for segments_left in [0, 1, 2] {
            let (sample, mut frame) = routed(kind, segments_left);
            let expected = frame.clone();
            assert_eq!(check_long(&sample.header(), &frame), Ok(()));
            let takes = Offloads::CSUM | Offloads::TSO6;
            let mut passed = Vec::new();
            let count = finish(sample.header(), &mut frame, takes, 1514, |part| {
                passed.push((part.header, [part.head, part.payload].concat()));
            });
            assert_eq!(count, Ok(1), "{kind}");
            assert!(passed == [(sample.header(), expected)], "{kind}");
        }
    }
}

#[test]
fn f5_9_segments_behind_a_routing_header_have_the_sum_of_the_last_address() {
    for (kind, segments_left, last) in [
        (0, 2, Some(24)),
        (2, 1, Some(24)),
        (4, 1, Some(8)),
        (0, 0, None),
        (3, 0, None),
    ] {
        let (sample, mut frame) = routed(kind, segments_left);
        let mut segments = Vec::new();
        let count = finish(
            sample.header(),
            &mut frame,
            Offloads::empty(),
            1514,
            |part| {
                segments.push([part.head, part.payload].concat());
            },
        );
        assert_eq!(count, Ok(3), "{kind}");
        for segment in segments {
            let transport = sample.transport_offset();
            let at = last.map_or(14 + 24, |last| 14 + 40 + last);
            let bytes = u32::try_from(segment.len() - transport).unwrap();
            let summed = [
                &segment[14 + 8..14 + 24],
                &segment[at..at + 16],
                &bytes.to_be_bytes(),
                &[0, 0, 0, 6],
                &segment[transport..],
            ]
            .concat();
            assert_eq!(naive_sum(&summed), 0xffff, "{kind}, {segments_left}");
        }
    }
    for (kind, segments_left) in [(3, 1), (1, 1), (253, 9)] {
        let (sample, mut frame) = routed(kind, segments_left);
        let fault = finish(sample.header(), &mut frame, Offloads::empty(), 1514, |_| {
            panic!("cut");
        });
        assert_eq!(fault, Err(FinishFault::OtherProtocol), "{kind}");
    }
}
