// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]

mod linux;
mod random;
mod refused;
mod sample;

use self::sample::{Sample, Segment, naive_sum};
use super::*;
use crate::header::{DATA_VALID, GSO_ECN, GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM};

/// More than any frame.
const ANY_LENGTH: usize = 1 << 20;

fn finish_bytes(
    header: NetHeader,
    frame: &[u8],
    receiver: Offloads,
    max_frame_bytes: usize,
) -> Result<Vec<Segment>, FinishFault> {
    let mut segments = Vec::new();
    let count = finish(
        header,
        &mut frame.to_vec(),
        receiver,
        max_frame_bytes,
        |finished| {
            let frame = [finished.head, finished.payload].concat();
            segments.push(Segment {
                header: finished.header,
                frame,
            });
        },
    );
    match count {
        Ok(count) => assert_eq!(count, segments.len()),
        Err(_) => assert_eq!(segments, []),
    }
    count.map(|_| segments)
}

fn finish_sample(sample: &Sample, receiver: Offloads) -> Result<Vec<Segment>, FinishFault> {
    finish_bytes(sample.header(), &sample.frame(), receiver, ANY_LENGTH)
}

fn payloads(segments: &[Segment], of: &Sample) -> Vec<Vec<u8>> {
    segments.iter().map(|segment| segment.payload(of)).collect()
}

/// A frame of 60 bytes whose UDP checksum is left out.
fn short_udp() -> (NetHeader, Vec<u8>) {
    let sample = Sample {
        udp: true,
        ..Sample::tcp4(18, 0)
    };
    (
        NetHeader {
            gso_type: 0,
            hdr_len_bytes: 0,
            ..sample.header()
        },
        sample.frame(),
    )
}

#[test]
fn complete_frame_is_given_as_it_is() {
    let header = NetHeader {
        flags: DATA_VALID,
        num_buffers: 4,
        ..NetHeader::default()
    };
    let frame = [7; 60];
    let verified = NetHeader {
        flags: DATA_VALID,
        ..NetHeader::default()
    };
    let given = finish_bytes(header, &frame, Offloads::CSUM, 60);
    assert_eq!(
        given,
        Ok(vec![Segment {
            header: verified,
            frame: frame.to_vec()
        }])
    );
    let given = finish_bytes(header, &frame, Offloads::empty(), 60);
    assert_eq!(
        given,
        Ok(vec![Segment {
            header: NetHeader::default(),
            frame: frame.to_vec()
        }])
    );
}

#[test]
fn frame_longer_than_the_receiver_takes_is_refused() {
    let fault = FinishFault::TooLong {
        frame_bytes: 1515,
        max_frame_bytes: 1514,
    };
    let given = finish_bytes(NetHeader::default(), &[0; 1515], Offloads::all(), 1514);
    assert_eq!(given, Err(fault));
}

#[test]
fn checksum_left_out_is_completed_for_who_does_not_take_it() {
    let (header, frame) = short_udp();
    let given = finish_bytes(header, &frame, Offloads::empty(), 60).unwrap();
    let sample = Sample {
        udp: true,
        ..Sample::tcp4(18, 0)
    };
    assert_eq!(payloads(&given, &sample), [sample.payload]);
    assert_eq!(given[0].header, NetHeader::default());
    assert_eq!(given[0].frame[40..42], [0xc0, 0xf5]);
}

#[test]
fn checksum_left_out_stays_so_for_who_takes_it() {
    let (header, frame) = short_udp();
    let given = finish_bytes(header, &frame, Offloads::CSUM, 60);
    assert_eq!(given, Ok(vec![Segment { header, frame }]));
}

#[test]
fn checksum_of_zero_is_written_as_ffff() {
    let (header, mut frame) = short_udp();
    // What is summed becomes 0xffff, whose complement is 0.
    frame[58..60].fill(0);
    let rest = !naive_sum(&frame[34..]);
    frame[58..60].copy_from_slice(&rest.to_be_bytes());
    assert_eq!(naive_sum(&frame[34..]), 0xffff);
    let given = finish_bytes(header, &frame, Offloads::empty(), 60).unwrap();
    assert_eq!(given[0].frame[40..42], [0xff, 0xff]);
}

#[test]
fn f3_checksum_past_the_frame_is_refused() {
    let (header, frame) = short_udp();
    for (csum_start, csum_offset) in [(34, 25), (34, 26), (61, 0), (60, 0), (65_535, 65_535)] {
        let header = NetHeader {
            csum_start,
            csum_offset,
            ..header
        };
        let given = finish_bytes(header, &frame, Offloads::empty(), 60);
        assert_eq!(
            given,
            Err(FinishFault::ChecksumPastFrame),
            "{csum_start} {csum_offset}"
        );
    }
    let mut frame = frame;
    assert_eq!(complete_checksum(&mut frame, 34, 24), Ok(()));
    assert_eq!(
        complete_checksum(&mut frame, usize::MAX, usize::MAX),
        Err(FinishFault::ChecksumPastFrame)
    );
}

#[test]
fn long_packet_stays_so_for_who_takes_it() {
    for (v6, udp, offload) in [
        (false, false, Offloads::TSO4),
        (true, false, Offloads::TSO6),
        (false, true, Offloads::USO4),
        (true, true, Offloads::USO6),
    ] {
        let sample = Sample {
            v6,
            udp,
            ..Sample::tcp4(5000, 1000)
        };
        let given = finish_bytes(
            sample.header(),
            &sample.frame(),
            offload | Offloads::CSUM,
            1,
        );
        let expected = Segment {
            header: sample.header(),
            frame: sample.frame(),
        };
        assert_eq!(given, Ok(vec![expected]));
        let given = finish_sample(&sample, Offloads::all() - offload).unwrap();
        assert_eq!(given.len(), 5);
    }
}

#[test]
fn long_packet_without_a_checksum_left_out_is_segmented_even_so() {
    let sample = Sample::tcp4(3000, 1000);
    let header = NetHeader {
        flags: DATA_VALID,
        csum_start: 0,
        csum_offset: 0,
        ..sample.header()
    };
    let given = finish_bytes(header, &sample.frame(), Offloads::TSO4, ANY_LENGTH).unwrap();
    assert_eq!(payloads(&given, &sample).concat(), sample.payload);
}

#[test]
fn tcp_segments_have_ids_sequence_numbers_and_flags_of_their_own() {
    let sample = Sample {
        id: 0xffff,
        sequence: 0xffff_ff00,
        tcp_flags: 0x80 | 0x10 | 0x08 | 0x01,
        ..Sample::tcp4(2100, 1000)
    };
    let given = finish_sample(&sample, Offloads::empty()).unwrap();
    assert_eq!(
        given.iter().map(|one| one.id(&sample)).collect::<Vec<_>>(),
        [0xffff, 0, 1]
    );
    let sequences: Vec<_> = given.iter().map(|one| one.sequence(&sample)).collect();
    assert_eq!(sequences, [0xffff_ff00, 0x2e8, 0x6d0]);
    let flags: Vec<_> = given.iter().map(|one| one.tcp_flags(&sample)).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
    let lengths: Vec<_> = given.iter().map(|one| one.frame.len()).collect();
    assert_eq!(lengths, [1054, 1054, 154]);
}

#[test]
fn only_segment_has_all_flags() {
    for payload_bytes in [0, 1, 1000] {
        let sample = Sample {
            tcp_flags: 0xff,
            ..Sample::tcp4(payload_bytes, 1000)
        };
        let given = finish_sample(&sample, Offloads::empty()).unwrap();
        assert_eq!(given.len(), 1);
        assert_eq!(given[0].tcp_flags(&sample), 0xff);
        assert_eq!(given[0].payload(&sample), sample.payload);
    }
}

#[test]
fn congestion_marks_are_segmented_for_who_does_not_take_them() {
    let sample = Sample {
        tcp_flags: 0x90,
        ..Sample::tcp4(2000, 1000)
    };
    let header = NetHeader {
        gso_type: GSO_TCPV4 | GSO_ECN,
        ..sample.header()
    };
    let receiver = Offloads::CSUM | Offloads::TSO4;
    let given = finish_bytes(header, &sample.frame(), receiver, ANY_LENGTH).unwrap();
    assert_eq!(payloads(&given, &sample).concat(), sample.payload);
    let flags: Vec<_> = given.iter().map(|one| one.tcp_flags(&sample)).collect();
    assert_eq!(flags, [0x90, 0x10]);
    let given = finish_bytes(
        header,
        &sample.frame(),
        receiver | Offloads::ECN,
        ANY_LENGTH,
    );
    assert_eq!(
        given,
        Ok(vec![Segment {
            header,
            frame: sample.frame()
        }])
    );
}

#[test]
fn segments_for_who_takes_checksums_have_them_left_out() {
    let sample = Sample {
        v6: true,
        udp: true,
        ..Sample::tcp4(2500, 1200)
    };
    let given = finish_sample(&sample, Offloads::CSUM).unwrap();
    let header = NetHeader {
        flags: NEEDS_CSUM,
        csum_start: 54,
        csum_offset: 6,
        ..NetHeader::default()
    };
    assert!(given.iter().all(|segment| segment.header == header));
    assert_eq!(payloads(&given, &sample).concat(), sample.payload);
}

#[test]
fn lengths_in_the_long_packet_are_not_believed() {
    let sample = Sample::tcp4(3000, 1000);
    let mut frame = sample.frame();
    frame[16..18].copy_from_slice(&[0, 0]);
    let given = finish_bytes(sample.header(), &frame, Offloads::empty(), ANY_LENGTH);
    assert_eq!(given, finish_sample(&sample, Offloads::empty()));
    let header = NetHeader {
        hdr_len_bytes: 1,
        ..sample.header()
    };
    let given = finish_bytes(header, &frame, Offloads::empty(), ANY_LENGTH);
    assert_eq!(given, finish_sample(&sample, Offloads::empty()));
}

#[test]
fn segments_longer_than_the_receiver_takes_are_refused() {
    let sample = Sample::tcp4(5000, 1461);
    let fault = FinishFault::TooLong {
        frame_bytes: 1515,
        max_frame_bytes: 1514,
    };
    let given = finish_bytes(sample.header(), &sample.frame(), Offloads::empty(), 1514);
    assert_eq!(given, Err(fault));
    let sample = Sample::tcp4(1460, 65_535);
    let given = finish_bytes(sample.header(), &sample.frame(), Offloads::empty(), 1514).unwrap();
    assert_eq!(payloads(&given, &sample), [sample.payload]);
}

#[test]
fn f4_size_of_zero_is_refused() {
    let sample = Sample::tcp4(100, 0);
    assert_eq!(
        finish_sample(&sample, Offloads::empty()),
        Err(FinishFault::SizeZero)
    );
}

#[test]
fn f4_more_segments_than_linux_makes_are_refused() {
    let sample = Sample::tcp4(MAX_SEGMENTS, 1);
    assert_eq!(
        finish_sample(&sample, Offloads::empty()).unwrap().len(),
        MAX_SEGMENTS
    );
    let sample = Sample::tcp4(MAX_SEGMENTS + 1, 1);
    let fault = FinishFault::TooManySegments {
        segments: MAX_SEGMENTS + 1,
    };
    assert_eq!(finish_sample(&sample, Offloads::empty()), Err(fault));
    assert_eq!(
        finish_sample(&sample, Offloads::CSUM | Offloads::TSO4)
            .unwrap()
            .len(),
        1
    );
}
