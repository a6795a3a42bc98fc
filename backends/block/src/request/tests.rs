// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One row per rule of virtio 1.3 §5.2.6 and per hostile case of group E.

use super::{
    ID_BYTES, Limits, Request, SECTOR_BYTES, Segment, SegmentKind, SegmentLimits, Status, device_id,
};

const CAPACITY_SECTORS: u64 = 2048;

fn limits() -> Limits {
    Limits {
        capacity_sectors: CAPACITY_SECTORS,
        read_only: false,
        flush: true,
        discard: Some(SegmentLimits {
            max_sectors: 1024,
            max_segments: 4,
        }),
        write_zeroes: Some(SegmentLimits {
            max_sectors: 512,
            max_segments: 2,
        }),
        write_zeroes_may_unmap: true,
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0xa5; 16];
    header[0..4].copy_from_slice(&kind.to_le_bytes());
    header[8..16].copy_from_slice(&sector.to_le_bytes());
    header
}

fn segment(sector: u64, num_sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&num_sectors.to_le_bytes());
    bytes[12..16].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// (what, type, sector, readable bytes, writable bytes, expected)
type Row = (&'static str, u32, u64, u64, u64, Result<Request, Status>);

fn check_rows(limits: &Limits, rows: &[Row]) {
    for (what, kind, sector, readable, writable, expected) in rows {
        let parsed = Request::parse(&header(*kind, *sector), *readable, *writable, limits);
        assert_eq!(parsed, *expected, "{what}");
    }
}

#[test]
fn e2_unknown_and_foreign_types_are_unsupported() {
    for kind in (0..64).chain([99, 0x100, 0x7fff_ffff]) {
        if [0, 1, 4, 5, 8, 11, 13].contains(&kind) {
            continue;
        }
        for (readable, writable) in [(0, 0), (512, 0), (0, 512), (16, 20)] {
            let parsed = Request::parse(&header(kind, 0), readable, writable, &limits());
            assert_eq!(parsed, Err(Status::Unsupp), "type {kind}");
        }
    }
}

#[test]
fn e3_e4_reads_and_writes_are_bounded_and_one_way() {
    let read = |sector, len_bytes| Ok(Request::In { sector, len_bytes });
    let write = |sector, len_bytes| Ok(Request::Out { sector, len_bytes });
    let last = CAPACITY_SECTORS - 1;
    let no = Err(Status::IoErr);
    check_rows(
        &limits(),
        &[
            ("read first", 0, 0, 0, 512, read(0, 512)),
            ("read last", 0, last, 0, 512, read(last, 512)),
            (
                "read all",
                0,
                0,
                0,
                CAPACITY_SECTORS * 512,
                read(0, CAPACITY_SECTORS * 512),
            ),
            ("barrier read", 0x8000_0000, 1, 0, 1024, read(1, 1024)),
            ("read of length 0", 0, 0, 0, 0, no),
            ("read of 1", 0, 0, 0, 1, no),
            ("read of 511", 0, 0, 0, 511, no),
            ("read of 513", 0, 0, 0, 513, no),
            ("read across the end", 0, last, 0, 1024, no),
            ("read at the end", 0, CAPACITY_SECTORS, 0, 512, no),
            (
                "read one too many",
                0,
                0,
                0,
                (CAPACITY_SECTORS + 1) * 512,
                no,
            ),
            ("read at the last address", 0, u64::MAX, 0, 512, no),
            ("read of all addresses", 0, 0, 0, u64::MAX - 511, no),
            (
                "read whose byte offset overflows",
                0,
                u64::MAX / 512,
                0,
                512,
                no,
            ),
            ("read with readable data", 0, 0, 512, 512, no),
            ("read with 1 readable byte", 0, 0, 1, 512, no),
            ("write first", 1, 0, 512, 0, write(0, 512)),
            ("write last", 1, last, 512, 0, write(last, 512)),
            ("barrier write", 0x8000_0001, 7, 4096, 0, write(7, 4096)),
            ("write of length 0", 1, 0, 0, 0, no),
            ("write of 17", 1, 0, 17, 0, no),
            ("write across the end", 1, last, 1024, 0, no),
            ("write at the last address", 1, u64::MAX, 512, 0, no),
            ("write with writable data", 1, 0, 512, 512, no),
            ("write with 1 writable byte", 1, 0, 512, 1, no),
        ],
    );
}

#[test]
fn e3_extent_arithmetic_never_wraps() {
    let near = |x: u64| (0..3).flat_map(move |d| [x.wrapping_sub(d), x.wrapping_add(d)]);
    let edges: Vec<u64> = [
        0,
        1 << 9,
        1 << 32,
        1 << 54,
        1 << 55,
        1 << 63,
        u64::MAX / 512,
    ]
    .into_iter()
    .flat_map(near)
    .collect();
    for capacity_sectors in &edges {
        for sector in &edges {
            for len in edges.iter().flat_map(|n| [*n, n.wrapping_mul(512)]) {
                let limits = Limits {
                    capacity_sectors: *capacity_sectors,
                    ..limits()
                };
                let end_sectors = u128::from(*sector) + u128::from(len / SECTOR_BYTES);
                let fits = len != 0
                    && len % SECTOR_BYTES == 0
                    && end_sectors <= u128::from(*capacity_sectors)
                    && end_sectors * 512 <= u128::from(u64::MAX);
                let parsed = Request::parse(&header(0, *sector), 0, len, &limits);
                let expected = if fits {
                    Ok(Request::In {
                        sector: *sector,
                        len_bytes: len,
                    })
                } else {
                    Err(Status::IoErr)
                };
                assert_eq!(parsed, expected, "{capacity_sectors} {sector} {len}");
            }
        }
    }
}

#[test]
fn e5_read_only_refuses_every_change_and_serves_the_rest() {
    let no = Err(Status::IoErr);
    check_rows(
        &Limits {
            read_only: true,
            ..limits()
        },
        &[
            ("write", 1, 0, 512, 0, no),
            ("discard", 11, 0, 16, 0, no),
            ("write zeroes", 13, 0, 16, 0, no),
            (
                "read",
                0,
                3,
                0,
                512,
                Ok(Request::In {
                    sector: 3,
                    len_bytes: 512,
                }),
            ),
            ("flush", 4, 0, 0, 0, Ok(Request::Flush)),
            ("get id", 8, 0, 0, 20, Ok(Request::GetId)),
        ],
    );
}

#[test]
fn e6_get_id_wants_twenty_bytes() {
    let no = Err(Status::IoErr);
    check_rows(
        &limits(),
        &[
            ("none", 8, 0, 0, 0, no),
            ("19", 8, 0, 0, 19, no),
            ("20", 8, 0, 0, 20, Ok(Request::GetId)),
            ("21", 8, 0, 0, 21, Ok(Request::GetId)),
            ("sector is ignored", 8, u64::MAX, 0, 20, Ok(Request::GetId)),
            ("readable data", 8, 0, 20, 20, no),
        ],
    );
}

#[test]
fn e7_flush_is_taken_with_a_sector_and_with_data() {
    check_rows(
        &limits(),
        &[
            ("plain", 4, 0, 0, 0, Ok(Request::Flush)),
            ("legacy FLUSH_OUT", 5, 0, 0, 0, Ok(Request::Flush)),
            ("barrier", 0x8000_0004, 0, 0, 0, Ok(Request::Flush)),
            ("sector", 4, u64::MAX, 0, 0, Ok(Request::Flush)),
            ("readable data", 4, 0, 512, 0, Ok(Request::Flush)),
            ("writable data", 4, 0, 0, 3, Ok(Request::Flush)),
        ],
    );
    let parsed = Request::parse(
        &header(4, 0),
        0,
        0,
        &Limits {
            flush: false,
            ..limits()
        },
    );
    assert_eq!(parsed, Err(Status::Unsupp));
}

#[test]
fn e8_discard_and_write_zeroes_payloads() {
    let discard = |num_segments| Ok(Request::Discard { num_segments });
    let zeroes = |num_segments| Ok(Request::WriteZeroes { num_segments });
    let (no, unsupp) = (Err(Status::IoErr), Err(Status::Unsupp));
    check_rows(
        &limits(),
        &[
            ("discard 1", 11, 0, 16, 0, discard(1)),
            ("discard 4", 11, 9, 64, 0, discard(4)),
            ("discard 5", 11, 0, 80, 0, unsupp),
            ("discard 2^32 + 1", 11, 0, 16 * ((1 << 32) + 1), 0, unsupp),
            ("discard 0", 11, 0, 0, 0, no),
            ("discard 15 bytes", 11, 0, 15, 0, no),
            ("discard 17 bytes", 11, 0, 17, 0, no),
            ("discard with writable data", 11, 0, 16, 1, no),
            ("write zeroes 2", 13, 0, 32, 0, zeroes(2)),
            ("write zeroes 3", 13, 0, 48, 0, unsupp),
            ("write zeroes 0", 13, 0, 0, 0, no),
            ("write zeroes 31 bytes", 13, 0, 31, 0, no),
            ("write zeroes with writable data", 13, 0, 16, 16, no),
        ],
    );
    let without = Limits {
        discard: None,
        write_zeroes: None,
        read_only: true,
        ..limits()
    };
    check_rows(
        &without,
        &[
            ("discard not negotiated", 11, 0, 16, 0, unsupp),
            ("write zeroes not negotiated", 13, 0, 17, 0, unsupp),
        ],
    );
}

fn check_segments(kind: SegmentKind, rows: &[(&str, [u8; 16], Result<Segment, Status>)]) {
    for (what, bytes, expected) in rows {
        assert_eq!(Segment::parse(bytes, kind, &limits()), *expected, "{what}");
    }
}

#[test]
fn e8_discard_segments() {
    let good = |sector, num_sectors| {
        Ok(Segment {
            sector,
            num_sectors,
            unmap: false,
        })
    };
    let (no, unsupp) = (Err(Status::IoErr), Err(Status::Unsupp));
    let end = CAPACITY_SECTORS;
    check_segments(
        SegmentKind::Discard,
        &[
            ("middle", segment(8, 8, 0), good(8, 8)),
            ("longest", segment(0, 1024, 0), good(0, 1024)),
            ("up to the end", segment(end - 1, 1, 0), good(end - 1, 1)),
            ("too long", segment(0, 1025, 0), no),
            ("longest on the wire", segment(0, u32::MAX, 0), no),
            ("empty", segment(0, 0, 0), no),
            ("across the end", segment(end - 1, 2, 0), no),
            ("at the end", segment(end, 1, 0), no),
            ("overflow", segment(u64::MAX, 1, 0), no),
            ("byte overflow", segment(u64::MAX / 512, 1, 0), no),
            ("unmap", segment(0, 1, 1), unsupp),
            ("unknown flag", segment(0, 1, 2), unsupp),
            (
                "unknown flag and no sector",
                segment(0, 0, 0x8000_0000),
                unsupp,
            ),
        ],
    );
}

#[test]
fn e8_write_zeroes_segments() {
    let good = |sector, num_sectors, unmap| {
        Ok(Segment {
            sector,
            num_sectors,
            unmap,
        })
    };
    let no = Err(Status::IoErr);
    check_segments(
        SegmentKind::WriteZeroes,
        &[
            ("longest", segment(1, 512, 0), good(1, 512, false)),
            ("unmap", segment(1, 1, 1), good(1, 1, true)),
            ("too long", segment(0, 513, 1), no),
            ("empty", segment(0, 0, 1), no),
            ("past the end", segment(CAPACITY_SECTORS, 1, 1), no),
            ("unknown flag", segment(0, 1, 3), Err(Status::Unsupp)),
        ],
    );
}

#[test]
fn segment_unmap_without_may_unmap_is_plain_zeroing() {
    let limits = Limits {
        write_zeroes_may_unmap: false,
        ..limits()
    };
    let parsed = Segment::parse(&segment(0, 1, 1), SegmentKind::WriteZeroes, &limits);
    assert_eq!(
        parsed,
        Ok(Segment {
            sector: 0,
            num_sectors: 1,
            unmap: false
        })
    );
}

#[test]
fn segment_of_a_feature_not_negotiated_is_unsupported() {
    let limits = Limits {
        discard: None,
        ..limits()
    };
    let parsed = Segment::parse(&segment(0, 1, 0), SegmentKind::Discard, &limits);
    assert_eq!(parsed, Err(Status::Unsupp));
}

#[test]
fn e10_used_len_counts_what_was_written() {
    let read = |len_bytes| Request::In {
        sector: 0,
        len_bytes,
    };
    let write = Request::Out {
        sector: 0,
        len_bytes: 4096,
    };
    let rows = [
        (read(4096), Status::Ok, 4097),
        (read(4096), Status::IoErr, 1),
        (read(u64::from(u32::MAX) - 1), Status::Ok, u32::MAX),
        (read(1 << 32), Status::Ok, u32::MAX),
        (read(1 << 40), Status::Ok, u32::MAX),
        (Request::GetId, Status::Ok, 21),
        (Request::GetId, Status::IoErr, 1),
        (write, Status::Ok, 1),
        (write, Status::IoErr, 1),
        (Request::Flush, Status::Ok, 1),
        (Request::Discard { num_segments: 1 }, Status::Ok, 1),
        (Request::WriteZeroes { num_segments: 1 }, Status::Unsupp, 1),
    ];
    for (request, status, expected) in rows {
        assert_eq!(request.used_len(status), expected, "{request:?} {status:?}");
    }
}

#[test]
fn device_id_is_cut_or_padded_to_twenty() {
    assert_eq!(device_id(""), [0; ID_BYTES]);
    assert_eq!(&device_id("disk0"), b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(&device_id("01234567890123456789"), b"01234567890123456789");
    assert_eq!(
        &device_id("01234567890123456789abc"),
        b"01234567890123456789"
    );
}

#[test]
fn status_bytes_are_those_of_the_specification() {
    let bytes = [Status::Ok, Status::IoErr, Status::Unsupp].map(Status::to_byte);
    assert_eq!(bytes, [0, 1, 2]);
}
