// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames of every kind and of none.

use proptest::prelude::*;

use super::*;

fn sample() -> impl Strategy<Value = Sample> {
    let shape = (any::<bool>(), any::<bool>(), 0..3_usize, 0..8_u8, 0..=10_u8);
    let payload = prop_oneof![
        9 => proptest::collection::vec(any::<u8>(), 0..300),
        1 => (0..65_000_usize, any::<u8>()).prop_map(|(bytes, fill)| vec![fill; bytes]),
    ];
    let numbers = (any::<u8>(), any::<u32>(), any::<u16>());
    (shape, numbers, payload, 1..1500_u16).prop_map(|(shape, numbers, payload, size)| {
        let (v6, udp, tags, ip_options, tcp_options) = shape;
        let (tcp_flags, sequence, id) = numbers;
        // Long payloads in pieces that are not too many.
        let gso_size_bytes = size.max(u16::try_from(payload.len().div_ceil(MAX_SEGMENTS)).unwrap());
        Sample {
            v6,
            udp,
            tags,
            ip_options,
            tcp_options,
            tcp_flags,
            sequence,
            id,
            gso_size_bytes,
            payload,
        }
    })
}

/// A frame of any kind, mostly one that begins like a good one.
fn mangled() -> impl Strategy<Value = (NetHeader, Vec<u8>)> {
    let changes = proptest::collection::vec((0..150_usize, any::<u8>()), 0..4);
    let cut = prop_oneof![Just(usize::MAX), 0..200_usize];
    let header = proptest::option::weighted(0.3, any::<[u8; 12]>());
    (sample(), changes, cut, header).prop_map(|(sample, changes, cut, header)| {
        let mut frame = sample.frame();
        frame.truncate(cut);
        for (at, byte) in changes {
            if let Some(changed) = frame.get_mut(at) {
                *changed = byte;
            }
        }
        (
            header.map_or_else(|| sample.header(), NetHeader::decode),
            frame,
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn segments_are_the_packet_in_pieces(sample in sample(), takes_checksums: bool) {
        let receiver = if takes_checksums { Offloads::CSUM } else { Offloads::empty() };
        let segments = finish_sample(&sample, receiver).unwrap();
        let size = usize::from(sample.gso_size_bytes);
        let pieces = payloads(&segments, &sample);
        prop_assert_eq!(pieces.concat(), &sample.payload[..]);
        let (last, full) = pieces.split_last().unwrap();
        prop_assert!(full.iter().all(|piece| piece.len() == size) && last.len() <= size);
        let mut sequence = sample.sequence;
        let mut id = sample.id;
        for (index, (segment, piece)) in segments.iter().zip(&pieces).enumerate() {
            if !sample.v6 {
                prop_assert_eq!(segment.id(&sample), id);
                id = id.wrapping_add(1);
            }
            if !sample.udp {
                prop_assert_eq!(segment.sequence(&sample), sequence);
                sequence = sequence.wrapping_add(u32::try_from(piece.len()).unwrap());
                let last = if index + 1 == segments.len() { 0xff } else { 0xf6 };
                let first = if index == 0 { 0xff } else { 0x7f };
                prop_assert_eq!(segment.tcp_flags(&sample), sample.tcp_flags & first & last);
            }
        }
    }

    #[test]
    fn any_frame_is_finished_or_refused_within_bounds(
        (header, frame) in mangled(), receiver: u8, max_frame_bytes in 0..70_000_usize
    ) {
        let receiver = Offloads::from_bits_truncate(receiver);
        let long = header.gso_type != GSO_NONE;
        let given = finish_bytes(header, &frame, receiver, max_frame_bytes);
        prop_assert_eq!(long && check_long(&header, &frame).is_err() && given.is_ok(), false);
        for segment in given.unwrap_or_default() {
            let header = segment.header;
            prop_assert!(segment.frame.len() <= frame.len());
            prop_assert!(header.gso_type != 0 || segment.frame.len() <= max_frame_bytes);
            if header.gso_type != GSO_UDP_L4 {
                prop_assert_eq!(header.for_receiver(receiver), Some(header));
            }
        }
    }

    #[test]
    fn checked_frame_of_a_driver_is_finished_for_who_takes_nothing_or_refused_for_its_bytes(
        (header, frame) in mangled()
    ) {
        let Ok(header) = header.check_sent(frame.len(), Offloads::SOFTWARE) else { return Ok(()) };
        match finish_bytes(header, &frame, Offloads::empty(), ANY_LENGTH) {
            Ok(segments) => {
                for segment in segments {
                    prop_assert_eq!(segment.header, NetHeader::default());
                }
            }
            Err(fault) => {
                let of_header = [
                    FinishFault::ChecksumPastFrame, FinishFault::Fragmentation, FinishFault::SizeZero
                ];
                prop_assert!(!of_header.contains(&fault), "{fault}");
            }
        }
    }
}
