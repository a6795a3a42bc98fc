// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use proptest::prelude::*;
use virtio_bindings::bindings::virtio_net;

use super::*;

/// A frame of 1514 bytes whose TCP checksum over IPv4 is left out.
const CHECKSUM: NetHeader = NetHeader {
    flags: NEEDS_CSUM,
    gso_type: GSO_NONE,
    hdr_len_bytes: 0,
    gso_size_bytes: 0,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};

/// A long frame of the same.
const LONG: NetHeader = NetHeader {
    gso_type: GSO_TCPV4,
    hdr_len_bytes: 54,
    gso_size_bytes: 1460,
    ..CHECKSUM
};

fn misplaced(csum_start: u16, csum_offset: u16, frame_bytes: usize) -> HeaderFault {
    HeaderFault::ChecksumMisplaced {
        csum_start,
        csum_offset,
        frame_bytes,
    }
}

#[test]
fn constants_are_those_of_the_bindings() {
    let ours = [
        NEEDS_CSUM, DATA_VALID, GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN,
    ];
    let theirs = [
        virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM,
        virtio_net::VIRTIO_NET_HDR_F_DATA_VALID,
        virtio_net::VIRTIO_NET_HDR_GSO_NONE,
        virtio_net::VIRTIO_NET_HDR_GSO_TCPV4,
        virtio_net::VIRTIO_NET_HDR_GSO_UDP,
        virtio_net::VIRTIO_NET_HDR_GSO_TCPV6,
        virtio_net::VIRTIO_NET_HDR_GSO_UDP_L4,
        virtio_net::VIRTIO_NET_HDR_GSO_ECN,
    ];
    assert_eq!(ours.map(u32::from), theirs);
}

#[test]
fn bytes_are_little_endian_in_this_order() {
    let bytes = [1, 0x81, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let header = NetHeader::decode(bytes);
    let expected = NetHeader {
        flags: 1,
        gso_type: 0x81,
        hdr_len_bytes: 0x0403,
        gso_size_bytes: 0x0605,
        csum_start: 0x0807,
        csum_offset: 0x0a09,
        num_buffers: 0x0c0b,
    };
    assert_eq!(header, expected);
    assert_eq!(header.encode(), bytes);
}

#[test]
fn f9_header_is_12_bytes_with_either_feature_and_10_without() {
    const MRG: u64 = 1 << 15;
    const V1: u64 = 1 << 32;
    assert_eq!(header_bytes(0), 10);
    assert_eq!(header_bytes(!(MRG | V1)), 10);
    for features in [MRG, V1, MRG | V1, u64::MAX] {
        assert_eq!(header_bytes(features), 12);
    }
}

#[test]
fn complete_frame_has_an_empty_header() {
    let noise = NetHeader {
        flags: 0xfe,
        gso_type: GSO_NONE,
        hdr_len_bytes: 1,
        gso_size_bytes: 2,
        csum_start: 3,
        csum_offset: 4,
        num_buffers: 5,
    };
    for negotiated in [Offloads::empty(), Offloads::all()] {
        assert_eq!(noise.check_sent(60, negotiated), Ok(NetHeader::default()));
    }
}

#[test]
fn good_header_is_kept_without_what_is_to_be_ignored() {
    let noise = NetHeader {
        flags: 0xff,
        num_buffers: 9,
        ..CHECKSUM
    };
    assert_eq!(noise.check_sent(1514, Offloads::CSUM), Ok(CHECKSUM));
    let noise = NetHeader {
        flags: 0xff,
        num_buffers: 9,
        ..LONG
    };
    assert_eq!(
        noise.check_sent(65_549, Offloads::CSUM | Offloads::TSO4),
        Ok(LONG)
    );
}

#[test]
fn f2_frame_of_13_bytes_is_refused() {
    let fault = HeaderFault::FrameTooShort { frame_bytes: 13 };
    assert_eq!(
        NetHeader::default().check_sent(13, Offloads::all()),
        Err(fault)
    );
    let empty = HeaderFault::FrameTooShort { frame_bytes: 0 };
    assert_eq!(CHECKSUM.check_sent(0, Offloads::all()), Err(empty));
    assert_eq!(
        NetHeader::default().check_sent(14, Offloads::all()),
        Ok(NetHeader::default())
    );
}

#[test]
fn f2_frame_of_more_than_65558_bytes_is_refused() {
    assert_eq!(LONG.check_sent(65_558, Offloads::all()), Ok(LONG));
    for frame_bytes in [65_559, usize::MAX] {
        let fault = HeaderFault::FrameTooLong { frame_bytes };
        assert_eq!(LONG.check_sent(frame_bytes, Offloads::all()), Err(fault));
        assert_eq!(
            NetHeader::default().check_sent(frame_bytes, Offloads::all()),
            Err(fault)
        );
    }
}

#[test]
fn f3_checksum_past_the_frame_is_refused() {
    assert_eq!(CHECKSUM.check_sent(52, Offloads::CSUM), Ok(CHECKSUM));
    assert_eq!(
        CHECKSUM.check_sent(51, Offloads::CSUM),
        Err(misplaced(34, 16, 51))
    );
    for (csum_start, csum_offset) in [(34, 65_534), (65_534, 16), (65_534, 65_534), (1514, 0)] {
        let header = NetHeader {
            csum_start,
            csum_offset,
            ..CHECKSUM
        };
        let fault = misplaced(csum_start, csum_offset, 1514);
        assert_eq!(header.check_sent(1514, Offloads::CSUM), Err(fault));
    }
}

#[test]
fn f3_checksum_in_the_ethernet_header_is_refused() {
    for csum_start in [0, 12] {
        let header = NetHeader {
            csum_start,
            ..CHECKSUM
        };
        assert_eq!(
            header.check_sent(60, Offloads::CSUM),
            Err(misplaced(csum_start, 16, 60))
        );
    }
    let header = NetHeader {
        csum_start: 14,
        ..CHECKSUM
    };
    assert_eq!(header.check_sent(60, Offloads::CSUM), Ok(header));
}

#[test]
fn f3_odd_checksum_is_refused() {
    for (csum_start, csum_offset) in [(35, 16), (34, 17), (35, 17)] {
        let header = NetHeader {
            csum_start,
            csum_offset,
            ..CHECKSUM
        };
        let fault = misplaced(csum_start, csum_offset, 1514);
        assert_eq!(header.check_sent(1514, Offloads::CSUM), Err(fault));
    }
}

#[test]
fn f3_checksum_left_out_without_negotiation_is_refused() {
    let without = Offloads::all() - Offloads::CSUM;
    let fault = HeaderFault::ChecksumNotNegotiated;
    assert_eq!(CHECKSUM.check_sent(1514, without), Err(fault));
}

#[test]
fn f4_unknown_type_is_refused() {
    let known = [0, 1, 3, 4, 5, 0x81, 0x84];
    for gso_type in (0..=255).filter(|gso_type| !known.contains(gso_type)) {
        let fault = HeaderFault::GsoUnknown { gso_type };
        let header = NetHeader { gso_type, ..LONG };
        assert_eq!(header.check_sent(1514, Offloads::all()), Err(fault));
    }
}

#[test]
fn f4_type_that_was_not_negotiated_is_refused() {
    let cases = [
        (GSO_TCPV4, Offloads::TSO4),
        (GSO_TCPV4 | GSO_ECN, Offloads::TSO4),
        (GSO_TCPV4 | GSO_ECN, Offloads::ECN),
        (GSO_TCPV6, Offloads::TSO6),
        (GSO_TCPV6 | GSO_ECN, Offloads::ECN),
        (GSO_UDP_L4, Offloads::USO4),
        (GSO_UDP_L4, Offloads::USO6),
        (GSO_UDP, Offloads::UFO),
    ];
    for (gso_type, offload) in cases {
        let header = NetHeader { gso_type, ..LONG };
        let fault = HeaderFault::GsoNotNegotiated { gso_type };
        assert_eq!(
            header.check_sent(1514, Offloads::all() - offload),
            Err(fault)
        );
        assert_eq!(header.check_sent(1514, Offloads::all()), Ok(header));
    }
}

#[test]
fn f4_type_without_a_checksum_left_out_is_refused() {
    let header = NetHeader {
        flags: DATA_VALID,
        ..LONG
    };
    let fault = HeaderFault::GsoWithoutChecksum {
        gso_type: GSO_TCPV4,
    };
    assert_eq!(header.check_sent(1514, Offloads::all()), Err(fault));
}

#[test]
fn f4_size_of_zero_is_refused() {
    let header = NetHeader {
        gso_size_bytes: 0,
        ..LONG
    };
    assert_eq!(
        header.check_sent(1514, Offloads::all()),
        Err(HeaderFault::GsoSizeZero)
    );
}

#[test]
fn f4_header_length_past_the_frame_is_cut_to_it() {
    let header = NetHeader {
        hdr_len_bytes: 65_535,
        ..LONG
    };
    let cut = NetHeader {
        hdr_len_bytes: 1514,
        ..LONG
    };
    assert_eq!(header.check_sent(1514, Offloads::all()), Ok(cut));
    assert_eq!(header.check_sent(65_558, Offloads::all()), Ok(header));
}

#[test]
fn complete_frame_passes_to_everyone_and_says_verified_only_to_who_may_hear_it() {
    let verified = NetHeader {
        flags: DATA_VALID,
        ..NetHeader::default()
    };
    let noise = NetHeader {
        flags: 0xfe,
        num_buffers: 7,
        csum_start: 1,
        ..verified
    };
    assert_eq!(noise.for_receiver(Offloads::CSUM), Some(verified));
    assert_eq!(
        noise.for_receiver(Offloads::empty()),
        Some(NetHeader::default())
    );
    assert_eq!(
        NetHeader::default().for_receiver(Offloads::all()),
        Some(NetHeader::default())
    );
}

#[test]
fn checksum_left_out_passes_to_who_takes_it() {
    let noise = NetHeader {
        flags: 0xff,
        num_buffers: 3,
        ..CHECKSUM
    };
    assert_eq!(noise.for_receiver(Offloads::CSUM), Some(CHECKSUM));
    assert_eq!(
        CHECKSUM.for_receiver(Offloads::all() - Offloads::CSUM),
        None
    );
}

#[test]
fn long_frame_passes_to_who_takes_its_type() {
    let cases = [
        (GSO_TCPV4, Offloads::TSO4),
        (GSO_TCPV4 | GSO_ECN, Offloads::TSO4 | Offloads::ECN),
        (GSO_TCPV6, Offloads::TSO6),
        (GSO_TCPV6 | GSO_ECN, Offloads::TSO6 | Offloads::ECN),
        (GSO_UDP_L4, Offloads::USO),
        (GSO_UDP, Offloads::UFO),
    ];
    for (gso_type, needed) in cases {
        let header = NetHeader { gso_type, ..LONG };
        assert_eq!(header.for_receiver(needed | Offloads::CSUM), Some(header));
        assert_eq!(header.for_receiver(needed), None);
        for one in needed.iter() {
            assert_eq!(header.for_receiver(Offloads::all() - one), None);
        }
    }
    let unknown = NetHeader {
        gso_type: 2,
        ..LONG
    };
    assert_eq!(unknown.for_receiver(Offloads::all()), None);
    let complete = NetHeader {
        flags: DATA_VALID,
        ..LONG
    };
    assert_eq!(complete.for_receiver(Offloads::all()), None);
}

#[test]
fn moved_header_points_at_the_same_packet() {
    let moved = NetHeader {
        csum_start: 38,
        hdr_len_bytes: 58,
        ..LONG
    };
    assert_eq!(LONG.moved(4), Some(moved));
    assert_eq!(moved.moved(-4), Some(LONG));
    assert_eq!(LONG.moved(-35), None);
    assert_eq!(NetHeader::default().moved(-4), Some(NetHeader::default()));
}

fn header() -> impl Strategy<Value = NetHeader> {
    let near = prop_oneof![0..100_u16, any::<u16>()];
    let flags = prop_oneof![Just(NEEDS_CSUM), any::<u8>()];
    let gso_type = prop_oneof![
        Just(GSO_NONE),
        Just(GSO_TCPV4),
        Just(GSO_TCPV6),
        Just(GSO_UDP_L4),
        any::<u8>()
    ];
    (flags, gso_type, any::<[u16; 3]>(), near.clone(), near).prop_map(
        |(
            flags,
            gso_type,
            [hdr_len_bytes, gso_size_bytes, num_buffers],
            csum_start,
            csum_offset,
        )| {
            NetHeader {
                flags,
                gso_type,
                hdr_len_bytes,
                gso_size_bytes,
                csum_start,
                csum_offset,
                num_buffers,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200_000))]

    #[test]
    fn checked_header_stays_in_the_frame_and_in_what_was_negotiated(
        header in header(),
        frame_bytes in prop_oneof![0..200_usize, any::<usize>()],
        negotiated: u8,
    ) {
        let negotiated = Offloads::from_bits_truncate(negotiated);
        let Ok(checked) = header.check_sent(frame_bytes, negotiated) else { return Ok(()) };
        prop_assert_eq!(checked.flags & !NEEDS_CSUM, 0);
        prop_assert_eq!(checked.num_buffers, 0);
        prop_assert!(usize::from(checked.hdr_len_bytes) <= frame_bytes);
        let end = u32::from(checked.csum_start).wrapping_add(checked.csum_offset.into());
        prop_assert!(usize::try_from(end.wrapping_add(2)).unwrap() <= frame_bytes);
        if checked.flags != 0 {
            prop_assert!(negotiated.contains(Offloads::CSUM) && checked.csum_start >= 14);
        }
        if checked.gso_type != GSO_NONE {
            prop_assert!(checked.flags == NEEDS_CSUM && checked.gso_size_bytes != 0);
        }
        prop_assert_eq!(checked.check_sent(frame_bytes, negotiated), Ok(checked));
        prop_assert_eq!(checked.for_receiver(negotiated), Some(checked));
    }

    #[test]
    fn passed_header_says_only_what_the_receiver_takes(header in header(), receiver: u8) {
        let receiver = Offloads::from_bits_truncate(receiver);
        let Some(passed) = header.for_receiver(receiver) else { return Ok(()) };
        prop_assert_eq!(passed.gso_type, header.gso_type);
        if !receiver.contains(Offloads::CSUM) {
            prop_assert_eq!(passed, NetHeader::default());
        }
        prop_assert_eq!(passed.for_receiver(receiver), Some(passed));
    }
}

#[test]
fn f5_7_frame_counts_as_the_segments_it_is_cut_into() {
    let tcp = |options_words: u8| move |at: usize| (at == 46).then_some((5 + options_words) << 4);
    let long = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size_bytes: 1448,
        csum_start: 34,
        csum_offset: 16,
        // Drivers say anything here.
        hdr_len_bytes: 60_000,
        ..NetHeader::default()
    };
    for (payload_bytes, expected) in [(0, 1), (1448, 1), (1449, 2), (65_160, 45), (65_161, 46)] {
        assert_eq!(long.segments(54 + payload_bytes, tcp(0)), expected);
        assert_eq!(long.segments(66 + payload_bytes, tcp(3)), expected);
    }
    let of_type = |gso_type| NetHeader { gso_type, ..long };
    let tcp6 = of_type(GSO_TCPV6 | GSO_ECN);
    assert_eq!(tcp6.segments(54 + 2 * 1448, tcp(0)), 2);
    let uso = of_type(GSO_UDP_L4);
    assert_eq!(uso.segments(42 + 3 * 1448, |_| None), 3);
    // Eight bytes of the first fragment are UDP's header.
    let ufo = of_type(GSO_UDP);
    assert_eq!(ufo.segments(34 + 3 * 1448, |_| None), 3);
    // A link may hand out long packets whose sums are right already.
    let summed = NetHeader {
        flags: 0,
        hdr_len_bytes: 66,
        ..long
    };
    assert_eq!(summed.segments(66 + 2 * 1448, |_| None), 2);
    let whole = of_type(GSO_NONE);
    assert_eq!(whole.segments(9014, tcp(0)), 1);
    let endless = NetHeader {
        gso_size_bytes: 0,
        ..long
    };
    assert_eq!(endless.segments(54, tcp(0)), 1);
}
