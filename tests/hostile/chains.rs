// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Group D: descriptor chains, well and badly formed, against the running `ringside-blk`.
//!
//! One test per case, named after it. Each chain is laid in the ring and in an indirect table
//! where both make sense. After each, the used element, the status byte, every other byte of guest
//! memory and the whole image are what they have to be, and the same head serves good requests.
//!
//! Where a malformed chain is answered: in the last device-writable byte before the fault in its
//! links, or, where the links are sound and only an address is not, in the status byte, if that is
//! mapped. Without such a byte the used element has length 0.

use ringside_frontend::blk::{SECTOR_BYTES, kind, status};
use ringside_frontend::ring::{Descriptor, desc_flag, write_table};
use ringside_frontend::session::Session;
use ringside_tests::hostile::support_chains::{
    Answer, Bench, Disk, INDIRECT_HEAD, MAX_TABLE, Outcome, Places, RING, SECTOR, TABLES, Table,
    linked, readable, relinked, table, writable,
};

/// Header, a sector of data to write, status.
fn write_chain(at: &Places) -> Vec<Descriptor> {
    linked(&[
        readable(at.header, 16),
        readable(at.data, SECTOR),
        writable(at.status, 1),
    ])
}

/// Header, room for a sector, status.
fn read_chain(at: &Places) -> Vec<Descriptor> {
    linked(&[
        readable(at.header, 16),
        writable(at.data, SECTOR),
        writable(at.status, 1),
    ])
}

/// The last byte of the data of [`read_chain`].
fn data_end(at: &Places) -> u64 {
    at.data + u64::from(SECTOR) - 1
}

/// Entries of the table that a chain of `len` lies in.
fn table_size(place: Table, len: usize) -> u16 {
    match place {
        Table::Direct => RING,
        Table::Indirect => u16::try_from(len).unwrap_or(u16::MAX),
    }
}

/// Has a write of one sector served and notes it.
fn serve_write(bench: &mut Bench, place: Table, chain: &[Descriptor], sector: u64) -> Outcome {
    bench.header(kind::OUT, sector)?;
    let data = bench.fresh_data(SECTOR_BYTES)?;
    bench.note_written(sector, &data);
    let answer = Answer::status(bench.at.status, status::OK);
    bench.try_chain(place, chain, &answer)
}

/// What a read of `sector` into the data's place is answered with.
fn read_answer(bench: &Bench, sector: u64) -> Answer {
    let data = bench.sectors(sector, SECTOR_BYTES);
    Answer::read(bench.at.status, vec![(bench.at.data, data)])
}

/// A complete write with one more descriptor behind it, which spoils it all: it is not to be
/// served as the shorter request that it begins with.
fn spoil_complete_write(bench: &mut Bench, behind: Descriptor, answer: &Answer) -> Outcome {
    let at = bench.at;
    bench.header(kind::OUT, 3)?;
    bench.fresh_data(SECTOR_BYTES)?;
    let mut chain = write_chain(&at);
    chain.push(behind);
    bench.try_chain(Table::Direct, &relinked(&chain, 2, 3), answer)
}

#[test]
fn d1_self_loop_is_answered_with_an_error_where_a_writable_byte_precedes_it() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    for place in TABLES {
        bench.header(kind::OUT, 3)?;
        let chain = write_chain(&at);
        for link in [0, 1] {
            let looped = relinked(&chain, link, u16::try_from(link)?);
            bench.try_chain(place, &looped, &Answer::dropped())?;
        }
        let looped = relinked(&chain, 2, 2);
        bench.try_chain(place, &looped, &Answer::refused(at.status))?;
        bench.header(kind::IN, 3)?;
        let looped = relinked(&read_chain(&at), 1, 1);
        bench.try_chain(place, &looped, &Answer::refused(data_end(&at)))?;
    }
    assert_eq!(bench.malformed_chains()?, 8);
    Ok(())
}

#[test]
fn d2_cycle_of_two_is_answered_with_an_error_and_serves_nothing() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    for place in TABLES {
        bench.header(kind::OUT, 5)?;
        let chain = relinked(&write_chain(&at), 1, 0);
        bench.try_chain(place, &chain, &Answer::dropped())?;
        // Back from the status to the header: readable behind writable.
        let chain = relinked(&write_chain(&at), 2, 0);
        bench.try_chain(place, &chain, &Answer::refused(at.status))?;
        bench.header(kind::IN, 5)?;
        let chain = relinked(&read_chain(&at), 2, 1);
        // Header, then data and status in turn until the table's length is used up.
        let last = if (table_size(place, 3) - 1).is_multiple_of(2) {
            at.status
        } else {
            data_end(&at)
        };
        bench.try_chain(place, &chain, &Answer::refused(last))?;
    }
    Ok(())
}

#[test]
fn d3_loop_of_zero_length_descriptors_ends() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    for place in TABLES {
        bench.header(kind::OUT, 3)?;
        for empty in [
            readable(at.data, 0),
            writable(at.data, 0),
            readable(at.hole, 0),
        ] {
            let alone = relinked(&[empty], 0, 0);
            bench.try_chain(place, &alone, &Answer::dropped())?;
            let two = relinked(&linked(&[empty, empty]), 1, 0);
            bench.try_chain(place, &two, &Answer::dropped())?;
        }
        let mut chain = write_chain(&at);
        chain.push(writable(at.data, 0));
        let chain = relinked(&relinked(&chain, 2, 3), 3, 3);
        bench.try_chain(place, &chain, &Answer::refused(at.status))?;
    }
    Ok(())
}

#[test]
fn d4_next_outside_the_table_is_answered_with_an_error() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    for place in TABLES {
        let size = table_size(place, 3);
        for next in [size, size + 1, 0x7fff, 0x8000, u16::MAX] {
            bench.header(kind::OUT, 3)?;
            for (link, answer) in [
                (0, Answer::dropped()),
                (1, Answer::dropped()),
                (2, Answer::refused(at.status)),
            ] {
                let chain = relinked(&write_chain(&at), link, next);
                bench.try_chain(place, &chain, &answer)?;
            }
            bench.header(kind::IN, 3)?;
            let chain = relinked(&read_chain(&at), 1, next);
            bench.try_chain(place, &chain, &Answer::refused(data_end(&at)))?;
        }
    }
    // What an indirect table does not hold lies behind it all the same: it must not be used.
    let chain = relinked(&write_chain(&at), 1, 2);
    bench.header(kind::OUT, 3)?;
    bench.lay(Table::Indirect, &chain)?;
    let short = table(at.table, 2 * Descriptor::LEN);
    bench.vring.ring.set_desc(INDIRECT_HEAD, short);
    bench.try_head(INDIRECT_HEAD, &Answer::dropped())
}

#[test]
fn d5_chain_as_long_as_the_tables_is_served_and_a_longer_one_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    // All descriptors of the ring: 16 bytes of data go to each of the first 32, the rest is empty.
    let mut parts = vec![readable(at.header, 16)];
    parts.extend((0..32).map(|part| readable(at.data + 16 * part, 16)));
    parts.resize(usize::from(RING) - 1, readable(at.data, 0));
    parts.push(writable(at.status, 1));
    serve_write(&mut bench, Table::Direct, &linked(&parts), 7)?;
    // Every descriptor used, and still a link.
    bench.header(kind::OUT, 7)?;
    let looped = relinked(&linked(&parts), parts.len() - 1, 200);
    bench.try_chain(Table::Direct, &looped, &Answer::refused(at.status))?;

    // The longest indirect table, with more buffers than the kernel takes in one call: 2 bytes
    // apart, so that they cannot be joined.
    let sectors = 2_u32;
    let (count, room) = (1020_u64, 64 << 10);
    let mut data = Vec::new();
    let mut parts = vec![readable(at.header, 16)];
    bench.fresh_data(room)?;
    for part in 0..count {
        // 1020 buffers for 1024 bytes: four of two bytes.
        let len = if part < 4 { 2 } else { 1 };
        let gpa = at.data + 4 * part;
        parts.push(readable(gpa, len));
        data.extend(bench.memory.read_vec(gpa, usize::try_from(len)?)?);
    }
    assert_eq!(data.len(), SECTOR_BYTES * usize::try_from(sectors)?);
    parts.push(writable(at.status, 1));
    parts.resize(usize::from(MAX_TABLE), writable(at.status, 0));
    bench.header(kind::OUT, 9)?;
    bench.note_written(9, &data);
    let answer = Answer::status(at.status, status::OK);
    bench.try_chain(Table::Indirect, &linked(&parts), &answer)?;
    parts.push(writable(at.status, 0));
    bench.try_chain(Table::Indirect, &linked(&parts), &Answer::dropped())?;

    // Ring and table together: 250 + 1024 descriptors, 1270 buffers.
    serve_long_read(&mut bench, 250)
}

/// A read into as many pieces as `direct` descriptors and the longest table give.
fn serve_long_read(bench: &mut Bench, direct: u16) -> Outcome {
    let at = bench.at;
    bench.header(kind::IN, 11)?;
    let pieces = usize::from(direct) - 1 + usize::from(MAX_TABLE) - 1;
    let sectors = pieces.div_ceil(SECTOR_BYTES);
    let wanted = bench.sectors(11, sectors * SECTOR_BYTES);
    let (mut places, mut rest) = (Vec::new(), wanted.as_slice());
    for piece in 0..pieces {
        let len = if piece < wanted.len() - pieces { 2 } else { 1 };
        let (bytes, later) = rest.split_at(len);
        places.push((at.data + 4 * piece as u64, bytes.to_vec()));
        rest = later;
    }
    assert!(rest.is_empty());
    let parts: Vec<_> = places
        .iter()
        .map(|(gpa, bytes)| writable(*gpa, u32::try_from(bytes.len()).unwrap_or(0)))
        .collect();
    let (in_ring, in_table) = parts.split_at(usize::from(direct) - 1);
    let tail = [in_table, &[writable(at.status, 1)]].concat();
    write_table(&bench.memory, at.table, &linked(&tail))?;
    let mut front = vec![readable(at.header, 16)];
    front.extend(in_ring);
    front.push(table(
        at.table,
        u32::try_from(tail.len())? * Descriptor::LEN,
    ));
    let answer = Answer::read(at.status, places);
    bench.try_chain(Table::Direct, &linked(&front), &answer)
}

#[test]
fn d6_chain_of_more_than_four_gib_is_refused() -> Outcome {
    // Regions that a buffer of 5 MiB fits into; untouched pages cost nothing.
    const PART: u32 = 5 << 20;
    let disk = Disk::start(&[])?;
    let mut bench = Bench::on(disk, Session::builder(), 8 << 20)?;
    let at = bench.at;
    let region = at.border;
    bench.header(kind::IN, 0)?;
    let mut parts = vec![readable(at.header, 16)];
    parts.resize(821, writable(region, PART));
    parts.push(writable(at.status, 1));
    // 820 buffers of 5 MiB are above 4 GiB at the last of them; the byte before it is the answer's.
    let end = region + u64::from(PART) - 1;
    bench.try_chain(Table::Indirect, &linked(&parts), &Answer::refused(end))?;
    let mut parts = vec![readable(at.header, 16)];
    parts.resize(821, readable(region, PART));
    parts.push(writable(at.status, 1));
    bench.header(kind::OUT, 0)?;
    bench.try_chain(Table::Indirect, &linked(&parts), &Answer::dropped())?;
    // Nor does a length that wraps at 2^32 serve the rest.
    for kind in [kind::IN, kind::OUT] {
        for place in TABLES {
            bench.header(kind, 0)?;
            let flags = if kind == kind::IN {
                desc_flag::WRITE
            } else {
                0
            };
            let huge = Descriptor {
                flags,
                ..readable(at.data, 0xffff_ffff)
            };
            let rest = Descriptor {
                flags,
                ..readable(at.data, SECTOR + 1)
            };
            let parts = [readable(at.header, 16), huge, rest, writable(at.status, 1)];
            // With the header that is too long already: no sound byte before that.
            bench.try_chain(place, &linked(&parts), &Answer::dropped())?;
            let parts = [readable(at.header, 16), huge, writable(at.status, 1)];
            bench.try_chain(place, &linked(&parts), &Answer::dropped())?;
            // Too long only behind the status.
            let long = readable(at.header, 16);
            let parts = [long, writable(at.status, 1), writable(at.data, 0xffff_ffef)];
            bench.try_chain(place, &linked(&parts), &Answer::dropped())?;
            let parts = [long, writable(at.status, 1), writable(at.data, 0xffff_fff0)];
            let answer = Answer::refused(at.status);
            bench.try_chain(place, &linked(&parts), &answer)?;
        }
    }
    Ok(())
}

#[test]
fn d7_empty_chain_is_dropped() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    for place in TABLES {
        for gpa in [at.data, at.hole, 0, u64::MAX] {
            for empty in [readable(gpa, 0), writable(gpa, 0)] {
                bench.try_chain(place, &[empty], &Answer::dropped())?;
            }
            let three = linked(&[readable(gpa, 0), readable(gpa, 0), writable(gpa, 0)]);
            bench.try_chain(place, &three, &Answer::dropped())?;
        }
    }
    Ok(())
}

#[test]
fn d8_readable_behind_writable_is_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    for place in TABLES {
        bench.header(kind::OUT, 3)?;
        let chain = [
            readable(at.header, 16),
            writable(at.status, 1),
            readable(at.data, SECTOR),
        ];
        bench.try_chain(place, &linked(&chain), &Answer::refused(at.status))?;
        let chain = [writable(at.status, 1), readable(at.header, 16)];
        bench.try_chain(place, &linked(&chain), &Answer::refused(at.status))?;
        bench.header(kind::IN, 3)?;
        let chain = [
            readable(at.header, 16),
            writable(at.data, SECTOR),
            readable(at.data + 4096, SECTOR),
            writable(at.status, 1),
        ];
        let answer = Answer::refused(data_end(&at));
        bench.try_chain(place, &linked(&chain), &answer)?;
    }
    let behind = readable(at.data, SECTOR);
    spoil_complete_write(&mut bench, behind, &Answer::refused(at.status))?;
    // Across the two tables.
    bench.header(kind::OUT, 3)?;
    write_table(&bench.memory, at.table, &[readable(at.data, SECTOR)])?;
    let chain = linked(&[
        readable(at.header, 16),
        writable(at.status, 1),
        table(at.table, Descriptor::LEN),
    ]);
    bench.try_chain(Table::Direct, &chain, &Answer::refused(at.status))
}

#[test]
fn d9_unknown_flags_are_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    for place in TABLES {
        for unknown in [0x8, 0x10, 0x80, 0x100, 0x8000, 0xfff8] {
            for (kind, answers) in [
                (kind::OUT, [None, None, None]),
                (kind::IN, [None, None, Some(data_end(&at))]),
            ] {
                bench.header(kind, 3)?;
                let sound = if kind == kind::OUT {
                    write_chain(&at)
                } else {
                    read_chain(&at)
                };
                for (spoilt, answer) in (0..).zip(answers) {
                    let mut chain = sound.clone();
                    chain[spoilt].flags |= unknown;
                    let answer = answer.map_or_else(Answer::dropped, Answer::refused);
                    bench.try_chain(place, &chain, &answer)?;
                }
            }
        }
    }
    let refused = Answer::refused(at.status);
    for unknown in [0x8, 0x8000] {
        let behind = Descriptor {
            flags: unknown | desc_flag::WRITE,
            ..readable(at.data, 1)
        };
        spoil_complete_write(&mut bench, behind, &refused)?;
        // On the reference to a sound table.
        bench.header(kind::OUT, 3)?;
        bench.lay(Table::Indirect, &write_chain(&at))?;
        let spoil = |d: &mut Descriptor| d.flags |= unknown;
        bench.vring.ring.edit_desc(INDIRECT_HEAD, spoil);
        bench.try_head(INDIRECT_HEAD, &Answer::dropped())?;
    }
    Ok(())
}

#[test]
fn d10_indirect_without_the_feature_is_refused() -> Outcome {
    let mut bench = Bench::with(&[], Session::builder().indirect(false))?;
    let at = bench.at;
    bench.header(kind::OUT, 3)?;
    bench.try_chain(Table::Indirect, &write_chain(&at), &Answer::dropped())?;
    let chain = linked(&[
        readable(at.header, 16),
        writable(at.status, 1),
        table(at.table, 3 * Descriptor::LEN),
    ]);
    bench.try_chain(Table::Direct, &chain, &Answer::refused(at.status))?;
    let behind = table(at.table, Descriptor::LEN);
    spoil_complete_write(&mut bench, behind, &Answer::refused(at.status))?;
    serve_write(&mut bench, Table::Direct, &write_chain(&at), 3)
}

#[test]
fn d11_indirect_with_next_is_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    bench.header(kind::OUT, 3)?;
    bench.lay(Table::Indirect, &write_chain(&at))?;
    // The descriptor that follows is sound.
    bench.vring.ring.set_desc(9, writable(at.status, 1));
    bench.vring.ring.edit_desc(INDIRECT_HEAD, |d| {
        d.flags |= desc_flag::NEXT;
        d.next = 9;
    });
    bench.try_head(INDIRECT_HEAD, &Answer::dropped())?;
    write_table(&bench.memory, at.table, &write_chain(&at))?;
    let chain = linked(&[
        readable(at.header, 16),
        writable(at.status, 1),
        table(at.table, 3 * Descriptor::LEN),
        writable(at.status + 1, 1),
    ]);
    bench.try_chain(Table::Direct, &chain, &Answer::refused(at.status))?;
    let behind = Descriptor {
        flags: desc_flag::INDIRECT | desc_flag::NEXT,
        next: 9,
        ..table(at.table, Descriptor::LEN)
    };
    spoil_complete_write(&mut bench, behind, &Answer::refused(at.status))
}

#[test]
fn d12_nested_indirect_is_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let inner = at.data + 8192;
    write_table(&bench.memory, inner, &write_chain(&at))?;
    let nested = table(inner, 3 * Descriptor::LEN);
    bench.header(kind::OUT, 3)?;
    bench.try_chain(Table::Indirect, &[nested], &Answer::dropped())?;
    let chain = linked(&[readable(at.header, 16), nested]);
    bench.try_chain(Table::Indirect, &chain, &Answer::dropped())?;
    let chain = linked(&[readable(at.header, 16), writable(at.status, 1), nested]);
    bench.try_chain(Table::Indirect, &chain, &Answer::refused(at.status))?;
    let mut parts = write_chain(&at);
    parts.push(nested);
    let chain = relinked(&parts, 2, 3);
    bench.try_chain(Table::Indirect, &chain, &Answer::refused(at.status))?;
    // A table that is its own entry.
    let own = table(at.table, Descriptor::LEN);
    bench.try_chain(Table::Indirect, &[own], &Answer::dropped())
}

#[test]
fn d13_indirect_table_of_an_odd_length_is_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    bench.header(kind::OUT, 3)?;
    for len in [
        0,
        1,
        15,
        17,
        47,
        49,
        16 * 1025,
        16 * 65536,
        0xffff_fff0,
        u32::MAX,
    ] {
        bench.lay(Table::Indirect, &write_chain(&at))?;
        bench
            .vring
            .ring
            .set_desc(INDIRECT_HEAD, table(at.table, len));
        bench.try_head(INDIRECT_HEAD, &Answer::dropped())?;
        let chain = linked(&[
            readable(at.header, 16),
            writable(at.status, 1),
            table(at.table, len),
        ]);
        bench.try_chain(Table::Direct, &chain, &Answer::refused(at.status))?;
        let behind = table(at.table, len);
        spoil_complete_write(&mut bench, behind, &Answer::refused(at.status))?;
    }
    Ok(())
}

#[test]
fn d14_indirect_table_anywhere_in_memory_is_served_and_elsewhere_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let entry = |gpa| table(gpa, 3 * Descriptor::LEN);
    for gpa in [
        at.hole,
        at.hole - 16,
        at.end,
        at.end - 16,
        at.end - 47,
        0,
        u64::MAX - 47,
        u64::MAX - 46,
        u64::MAX - 15,
        u64::MAX,
    ] {
        bench.header(kind::OUT, 3)?;
        bench.lay(Table::Indirect, &[])?;
        bench.vring.ring.set_desc(INDIRECT_HEAD, entry(gpa));
        bench.try_head(INDIRECT_HEAD, &Answer::dropped())?;
        let chain = linked(&[readable(at.header, 16), writable(at.status, 1), entry(gpa)]);
        bench.try_chain(Table::Direct, &chain, &Answer::refused(at.status))?;
        let behind = entry(gpa);
        spoil_complete_write(&mut bench, behind, &Answer::refused(at.status))?;
    }
    let unaligned = (1..=16).map(|offset| at.table + offset);
    let crossing = (0..=48).map(|before| at.border - before);
    for gpa in unaligned.chain(crossing).chain([at.end - 48]) {
        bench.header(kind::OUT, 3)?;
        let data = bench.fresh_data(SECTOR_BYTES)?;
        bench.note_written(3, &data);
        bench.lay(Table::Indirect, &[])?;
        write_table(&bench.memory, gpa, &write_chain(&at))?;
        bench.vring.ring.set_desc(INDIRECT_HEAD, entry(gpa));
        let answer = Answer::status(at.status, status::OK);
        let served = bench.try_head(INDIRECT_HEAD, &answer);
        served.map_err(|error| format!("table at {gpa:#x}: {error}"))?;
        bench.header(kind::IN, 3)?;
        bench.memory.write(at.data, &[0; SECTOR_BYTES])?;
        write_table(&bench.memory, gpa, &read_chain(&at))?;
        bench.lay(Table::Indirect, &[])?;
        write_table(&bench.memory, gpa, &read_chain(&at))?;
        bench.vring.ring.set_desc(INDIRECT_HEAD, entry(gpa));
        let answer = read_answer(&bench, 3);
        let served = bench.try_head(INDIRECT_HEAD, &answer);
        served.map_err(|error| format!("table at {gpa:#x}: {error}"))?;
    }
    Ok(())
}

#[test]
fn d15_write_flag_of_an_indirect_descriptor_is_ignored() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    bench.header(kind::OUT, 3)?;
    let data = bench.fresh_data(SECTOR_BYTES)?;
    bench.note_written(3, &data);
    bench.lay(Table::Indirect, &write_chain(&at))?;
    let flag = |bench: &Bench| {
        let set = |d: &mut Descriptor| d.flags |= desc_flag::WRITE;
        bench.vring.ring.edit_desc(INDIRECT_HEAD, set);
    };
    flag(&bench);
    bench.try_head(INDIRECT_HEAD, &Answer::status(at.status, status::OK))?;
    bench.header(kind::IN, 3)?;
    bench.lay(Table::Indirect, &read_chain(&at))?;
    flag(&bench);
    let answer = read_answer(&bench, 3);
    bench.try_head(INDIRECT_HEAD, &answer)
}

#[test]
fn d16_indirect_table_behind_direct_descriptors_is_served() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    for kind in [kind::OUT, kind::IN] {
        let flags = if kind == kind::IN {
            desc_flag::WRITE
        } else {
            0
        };
        let mut parts = vec![readable(at.header, 9), readable(at.header + 9, 7)];
        parts.extend((0..4).map(|part| Descriptor {
            flags,
            ..readable(at.data + 128 * part, 128)
        }));
        parts.push(writable(at.status, 1));
        for direct in 0..parts.len() {
            bench.header(kind, 17)?;
            let answer = if kind == kind::OUT {
                let data = bench.fresh_data(SECTOR_BYTES)?;
                bench.note_written(17, &data);
                Answer::status(at.status, status::OK)
            } else {
                bench.memory.write(at.data, &[0; SECTOR_BYTES])?;
                read_answer(&bench, 17)
            };
            let (front, tail) = parts.split_at(direct);
            write_table(&bench.memory, at.table, &linked(tail))?;
            let len = u32::try_from(tail.len())? * Descriptor::LEN;
            let mut front = front.to_vec();
            front.push(table(at.table, len));
            bench.try_chain(Table::Direct, &linked(&front), &answer)?;
        }
    }
    Ok(())
}

/// Chains of which one buffer after the other is not (all) memory: what they are answered with.
fn spoilt_addresses(bench: &mut Bench, bad: &[(u64, u32)]) -> Outcome {
    let at = bench.at;
    for place in TABLES {
        for (addr, len) in bad.iter().copied() {
            for (kind, sound) in [(kind::OUT, write_chain(&at)), (kind::IN, read_chain(&at))] {
                bench.header(kind, 3)?;
                for (spoilt, answer) in [
                    (0, Answer::refused(at.status)),
                    (1, Answer::refused(at.status)),
                    (2, Answer::dropped()),
                ] {
                    let mut chain = sound.clone();
                    (chain[spoilt].addr, chain[spoilt].len) = (addr, len);
                    bench.try_chain(place, &chain, &answer)?;
                }
            }
        }
    }
    // Behind a sector that is memory: not to be served as that one sector.
    for (addr, len) in bad.iter().copied() {
        let hole = readable(addr, len);
        for (kind, sound) in [
            (kind::OUT, readable(at.data, SECTOR)),
            (kind::IN, writable(at.data, SECTOR)),
        ] {
            bench.header(kind, 3)?;
            let hole = Descriptor {
                flags: sound.flags,
                ..hole
            };
            let chain = linked(&[readable(at.header, 16), sound, hole, writable(at.status, 1)]);
            bench.try_chain(Table::Direct, &chain, &Answer::refused(at.status))?;
            let chain = linked(&[readable(at.header, 16), hole, sound, writable(at.status, 1)]);
            bench.try_chain(Table::Indirect, &chain, &Answer::refused(at.status))?;
        }
        let behind = writable(addr, len);
        spoil_complete_write(bench, behind, &Answer::dropped())?;
    }
    Ok(())
}

#[test]
fn d17_address_and_length_that_overflow_are_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let bad = [
        (u64::MAX, 1),
        (u64::MAX, SECTOR),
        (u64::MAX - 511, SECTOR),
        (u64::MAX - 510, SECTOR),
        (u64::MAX - 0xffff_fffe, u32::MAX - 2048),
        (1 << 63, SECTOR),
        // Wraps round to where the data is.
        (0_u64.wrapping_sub(0x1000), 0x4001_0000),
        // As long as a chain may be, and no memory.
        (bench.at.data, u32::MAX - 2048),
    ];
    spoilt_addresses(&mut bench, &bad)
}

#[test]
fn d18_buffer_in_a_hole_is_refused() -> Outcome {
    let mut bench = Bench::start()?;
    let Places { hole, end, .. } = bench.at;
    let bad = [
        (hole, SECTOR),
        (hole, 16),
        (0, SECTOR),
        (end, SECTOR),
        // Half in, half out.
        (end - 256, SECTOR),
        (end - 511, SECTOR),
        (end - 15, 16),
        (0x4000_0000 - 1, SECTOR),
        (0x4000_0000 - 511, SECTOR),
    ];
    spoilt_addresses(&mut bench, &bad)
}

#[test]
fn d19_header_in_any_pieces_is_served() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let mut headers: Vec<Vec<Descriptor>> = (1..16)
        .map(|cut| {
            let rest = readable(at.header + u64::from(cut), 16 - cut);
            vec![readable(at.header, cut), rest]
        })
        .collect();
    let byte = |offset| readable(at.header + offset, 1);
    headers.push((0..16).map(byte).collect());
    // With nothing in between, which is allowed.
    headers.push(
        (0..16)
            .flat_map(|o| [readable(at.hole, 0), byte(o)])
            .collect(),
    );
    // Sixteen places far from each other: nothing to join.
    let apart = |offset: u64| readable(at.data + 8192 + 64 * offset, 1);
    headers.push((0..16).map(apart).collect());
    for header in &headers {
        for place in TABLES {
            let mut chain = header.clone();
            chain.extend([readable(at.data, SECTOR), writable(at.status, 1)]);
            bench.header(kind::OUT, 21)?;
            scatter_header(&bench, kind::OUT, 21)?;
            serve_write(&mut bench, place, &linked(&chain), 21)?;
            let mut chain = header.clone();
            chain.extend([writable(at.data, SECTOR), writable(at.status, 1)]);
            bench.header(kind::IN, 21)?;
            scatter_header(&bench, kind::IN, 21)?;
            bench.memory.write(at.data, &[0; SECTOR_BYTES])?;
            let answer = read_answer(&bench, 21);
            bench.try_chain(place, &linked(&chain), &answer)?;
        }
    }
    Ok(())
}

/// A header with its bytes 64 apart, behind the data.
fn scatter_header(bench: &Bench, kind: u32, sector: u64) -> Outcome {
    let header = ringside_tests::hostile::support_chains::header_bytes(kind, sector);
    for (gpa, byte) in (bench.at.data + 8192..).step_by(64).zip(header) {
        bench.memory.write(gpa, &[byte])?;
    }
    Ok(())
}

#[test]
fn d20_header_and_status_at_the_edge_of_a_region_are_served() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let headers = (0..=16).map(|before| at.border - before);
    for header in headers.chain([at.end - 16]) {
        for status_gpa in [at.border - 1, at.border, at.end - 1] {
            let over = header <= status_gpa && status_gpa < header + 16;
            if over {
                continue;
            }
            for kind in [kind::OUT, kind::IN] {
                bench.header_at(header, kind, 23)?;
                let (data, answer) = if kind == kind::OUT {
                    let data = bench.fresh_data(SECTOR_BYTES)?;
                    bench.note_written(23, &data);
                    let answer = Answer::status(status_gpa, status::OK);
                    (readable(at.data, SECTOR), answer)
                } else {
                    let data = vec![(at.data, bench.sectors(23, SECTOR_BYTES))];
                    let answer = Answer::read(status_gpa, data);
                    (writable(at.data, SECTOR), answer)
                };
                let chain = linked(&[readable(header, 16), data, writable(status_gpa, 1)]);
                for place in TABLES {
                    bench.try_chain(place, &chain, &answer)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn d21_status_as_the_tail_of_the_data_is_served() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let status_gpa = at.data + u64::from(SECTOR);
    for place in TABLES {
        for cut in [0, 1, 100, 511, 512] {
            bench.header(kind::IN, 25)?;
            bench.memory.write(at.data, &[0; SECTOR_BYTES])?;
            let mut parts = vec![readable(at.header, 16)];
            if cut > 0 {
                parts.push(writable(at.data, cut));
            }
            parts.push(writable(at.data + u64::from(cut), SECTOR + 1 - cut));
            let data = vec![(at.data, bench.sectors(25, SECTOR_BYTES))];
            let answer = Answer::read(status_gpa, data);
            bench.try_chain(place, &linked(&parts), &answer)?;
        }
        // Over the border of two regions, with the status on either side.
        for start in [at.border - 512, at.border - 513, at.border - 3] {
            bench.header(kind::IN, 25)?;
            let parts = [readable(at.header, 16), writable(start, SECTOR + 1)];
            let data = vec![(start, bench.sectors(25, SECTOR_BYTES))];
            let answer = Answer::read(start + u64::from(SECTOR), data);
            bench.try_chain(place, &linked(&parts), &answer)?;
        }
    }
    Ok(())
}

#[test]
fn d22_chain_without_a_writable_byte_is_dropped_and_does_nothing() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    let kinds = [
        kind::IN,
        kind::OUT,
        kind::FLUSH,
        kind::GET_ID,
        kind::DISCARD,
        kind::WRITE_ZEROES,
        0x77,
    ];
    for place in TABLES {
        for kind in kinds {
            bench.header(kind, 3)?;
            bench.fresh_data(SECTOR_BYTES)?;
            for chain in [
                vec![readable(at.header, 16)],
                vec![readable(at.header, 16), readable(at.data, SECTOR)],
                vec![readable(at.header, 16 + SECTOR)],
                vec![
                    readable(at.header, 16),
                    readable(at.data, SECTOR),
                    readable(at.status, 1),
                ],
                vec![
                    readable(at.header, 16),
                    readable(at.data, SECTOR),
                    writable(at.status, 0),
                ],
            ] {
                bench.try_chain(place, &linked(&chain), &Answer::dropped())?;
            }
        }
    }
    Ok(())
}

#[test]
fn d23_heads_that_share_descriptors_are_each_answered() -> Outcome {
    let mut bench = Bench::start()?;
    let at = bench.at;
    // Two headers for the same data and status.
    for (kind, sectors) in [(kind::OUT, [31, 33]), (kind::IN, [31, 31])] {
        let other = at.header + 64;
        bench.header(kind, sectors[0])?;
        bench.header_at(other, kind, sectors[1])?;
        let answer = if kind == kind::OUT {
            let data = bench.fresh_data(SECTOR_BYTES)?;
            for sector in sectors {
                bench.note_written(sector, &data);
            }
            Answer::status(at.status, status::OK)
        } else {
            bench.memory.write(at.data, &[0; SECTOR_BYTES])?;
            read_answer(&bench, 31)
        };
        let chain = if kind == kind::OUT {
            write_chain(&at)
        } else {
            read_chain(&at)
        };
        bench.lay(Table::Direct, &chain)?;
        let twin = Descriptor {
            flags: desc_flag::NEXT,
            next: 1,
            ..readable(other, 16)
        };
        bench.vring.ring.set_desc(10, twin);
        bench.exchange(&[(0, answer.clone()), (10, answer)])?;
        bench.check_image()?;
        // The middle of one chain as the head of another: it has no header.
        bench.lay(Table::Direct, &chain)?;
        bench.vring.ring.set_desc(10, twin);
        let headless = Answer::refused(at.status);
        bench.exchange(&[(1, headless.clone()), (2, headless.clone())])?;
        bench.exchange(&[(2, headless)])?;
        bench.check_image()?;
        for head in [0, 1, 2, 10] {
            bench.prove_alive(head)?;
        }
    }
    // Two heads with one indirect table.
    bench.header(kind::OUT, 35)?;
    let data = bench.fresh_data(SECTOR_BYTES)?;
    bench.note_written(35, &data);
    bench.lay(Table::Indirect, &write_chain(&at))?;
    let entry = bench.vring.ring.desc(INDIRECT_HEAD);
    bench.vring.ring.set_desc(20, entry);
    let answer = Answer::status(at.status, status::OK);
    bench.exchange(&[(INDIRECT_HEAD, answer.clone()), (20, answer)])?;
    bench.check_image()?;
    bench.prove_alive(20)
}
