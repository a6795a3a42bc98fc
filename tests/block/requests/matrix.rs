// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every request type in every arrangement and with every defect.
//!
//! A request is two streams of bytes: what the device reads (header, data) and what it writes
//! (data, status). A [`Variant`] lays them out over descriptors, or spoils them, and says whether
//! the request is to be served as it was meant, refused or dropped.

use ringside_frontend::blk::{Range, SECTOR_BYTES, kind, status};
use ringside_frontend::ring::{Descriptor, write_table};
use ringside_tests::hostile::support_chains::{
    Answer, Bench, DISK_SECTORS, INDIRECT_HEAD, Outcome, RING, Table, header_bytes, linked,
    readable, relinked, table, writable,
};

/// Where requests that change the disk do so.
const SECTOR_UNDER_TEST: u64 = 40;
/// Where the device-readable stream lies, and the device-writable one.
const READABLE_AT: u64 = 0;
const WRITABLE_AT: u64 = 16 << 10;

/// Whether the matrix runs on a disk that is read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// A sound request, and what a sound device does with it.
#[derive(Clone, Debug)]
pub(crate) struct Meant {
    pub(crate) kind: u32,
    pub(crate) sector: u64,
    /// The reserved field of the header.
    reserved: u32,
    /// Data behind the header.
    to: Vec<u8>,
    /// Length of the data before the status.
    from_len: usize,
    /// What the device writes there.
    from: Vec<u8>,
    pub(crate) status: u8,
    /// What the disk holds at the sector afterwards.
    effect: Option<Vec<u8>>,
}

/// How the bytes get into descriptors.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Lengths of the pieces of the readable stream; the rest is one more.
    to_cuts: Vec<u32>,
    /// The same for the writable stream.
    from_cuts: Vec<u32>,
    /// Where the streams start.
    to_gpa: u64,
    from_gpa: u64,
    /// Bytes skipped between two pieces.
    gap: u64,
    table: Placing,
}

/// Where the descriptors go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placing {
    Direct,
    Indirect,
    /// As many in the ring, the others in a table.
    Mixed(usize),
}

/// Every request type there is, as it is meant.
pub(crate) fn all_kinds(bench: &Bench, access: Access) -> Vec<Meant> {
    let sound = |kind| Meant {
        kind,
        sector: SECTOR_UNDER_TEST,
        reserved: 0,
        to: Vec::new(),
        from_len: 0,
        from: Vec::new(),
        status: status::OK,
        effect: None,
    };
    let writes = |kind, to: Vec<u8>, effect: Vec<u8>, refusal| Meant {
        to,
        status: if access == Access::ReadOnly {
            refusal
        } else {
            status::OK
        },
        effect: (access == Access::ReadWrite).then_some(effect),
        ..sound(kind)
    };
    let range = Range {
        sector: SECTOR_UNDER_TEST,
        sectors: 1,
        flags: 0,
    };
    let zeroes = vec![0; SECTOR_BYTES];
    let data: Vec<u8> = (1..=255).cycle().take(SECTOR_BYTES).collect();
    let read = bench.sectors(SECTOR_UNDER_TEST, SECTOR_BYTES);
    let mut serial = b"ringside".to_vec();
    serial.resize(20, 0);
    let mut kinds = vec![
        Meant {
            from_len: SECTOR_BYTES,
            from: read,
            ..sound(kind::IN)
        },
        writes(kind::OUT, data.clone(), data, status::IOERR),
        sound(kind::FLUSH),
        // FLUSH_OUT
        sound(5),
        Meant {
            from_len: 20,
            from: serial,
            ..sound(kind::GET_ID)
        },
    ];
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        let to = range.to_bytes().to_vec();
        kinds.push(writes(kind, to, zeroes.clone(), status::UNSUPP));
    }
    // SECURE_ERASE, GET_LIFETIME, SCSI twice, APPEND, REPORT, OPEN, CLOSE, FINISH, RESET,
    // RESET_ALL of zones, and one that nobody knows.
    for kind in [14, 10, 2, 3, 15, 16, 18, 20, 22, 24, 26, 0x77] {
        kinds.push(Meant {
            to: range.to_bytes().to_vec(),
            status: status::UNSUPP,
            ..sound(kind)
        });
    }
    kinds
}

impl Meant {
    /// The readable stream.
    fn to_stream(&self) -> Vec<u8> {
        let mut stream = header_bytes(self.kind, self.sector).to_vec();
        stream[4..8].copy_from_slice(&self.reserved.to_le_bytes());
        stream.extend(&self.to);
        stream
    }

    /// The same request answered with `status` alone.
    fn answered(&self, status: u8) -> Self {
        Self {
            from: Vec::new(),
            effect: None,
            status,
            ..self.clone()
        }
    }

    fn is_transfer(&self) -> bool {
        [kind::IN, kind::OUT].contains(&self.kind)
    }

    fn has_ranges(&self) -> bool {
        [kind::DISCARD, kind::WRITE_ZEROES].contains(&self.kind)
    }

    fn is_unsupported(&self) -> bool {
        self.status == status::UNSUPP
    }
}

impl Layout {
    /// Header, data and status in a descriptor of its own each, in `table`.
    pub(crate) fn usual(bench: &Bench, meant: &Meant, table: Placing) -> Self {
        let from_len = u32::try_from(meant.from_len).unwrap_or(u32::MAX);
        Self {
            to_cuts: vec![16],
            from_cuts: if from_len == 0 {
                vec![]
            } else {
                vec![from_len]
            },
            to_gpa: bench.at.data + READABLE_AT,
            from_gpa: bench.at.data + WRITABLE_AT,
            gap: 0,
            table,
        }
    }

    fn pieces(cuts: &[u32], total: usize, start: u64, gap: u64) -> Vec<(u64, u32)> {
        let mut pieces = Vec::new();
        let (mut gpa, mut left) = (start, u32::try_from(total).unwrap_or(u32::MAX));
        for cut in cuts.iter().copied().chain([u32::MAX]) {
            let len = cut.min(left);
            // The rest may be empty; a cut of nothing is meant to be.
            if len > 0 || cut == 0 {
                pieces.push((gpa, len));
                gpa += u64::from(len) + gap;
                left -= len;
            }
        }
        pieces
    }
}

/// A request as descriptors, with what is expected of it.
struct Laid {
    chain: Vec<Descriptor>,
    status_gpa: u64,
    from: Vec<(u64, Vec<u8>)>,
}

/// Writes the streams into memory and makes the descriptors.
fn lay_out(bench: &Bench, meant: &Meant, layout: &Layout) -> Outcome<Laid> {
    let stream = meant.to_stream();
    let mut chain = Vec::new();
    let mut rest = stream.as_slice();
    for (gpa, len) in Layout::pieces(&layout.to_cuts, stream.len(), layout.to_gpa, layout.gap) {
        let (piece, later) = rest.split_at(usize::try_from(len)?);
        bench.memory.write(gpa, piece)?;
        rest = later;
        chain.push(readable(gpa, len));
    }
    let total = meant.from_len + 1;
    let pieces = Layout::pieces(&layout.from_cuts, total, layout.from_gpa, layout.gap);
    let (mut from, mut rest) = (Vec::new(), meant.from.as_slice());
    for (gpa, len) in &pieces {
        bench
            .memory
            .write(*gpa, &vec![0xa5; usize::try_from(*len)?])?;
        let (piece, later) = rest.split_at(rest.len().min(usize::try_from(*len)?));
        from.push((*gpa, piece.to_vec()));
        rest = later;
        chain.push(writable(*gpa, *len));
    }
    let last = pieces.iter().rev().find(|(_, len)| *len > 0);
    let (gpa, len) = last.ok_or("no status")?;
    Ok(Laid {
        chain: linked(&chain),
        status_gpa: gpa + u64::from(*len) - 1,
        from,
    })
}

/// Has one request served as it is meant.
pub(crate) fn serve(bench: &mut Bench, meant: &Meant, layout: &Layout) -> Outcome {
    let laid = lay_out(bench, meant, layout)?;
    let from: Vec<_> = if meant.status == status::OK {
        laid.from
    } else {
        Vec::new()
    };
    let answer = Answer {
        status: Some((laid.status_gpa, meant.status)),
        ..Answer::read(laid.status_gpa, from)
    };
    if let Some(effect) = &meant.effect {
        bench.note_written(meant.sector, effect);
    }
    let head = place(bench, &laid.chain, layout.table)?;
    let tried = bench.try_head(head, &answer);
    tried.map_err(|error| format!("{meant:x?} {layout:x?}: {error}").into())
}

/// Puts a chain where it belongs and returns its head.
fn place(bench: &Bench, chain: &[Descriptor], placing: Placing) -> Outcome<u16> {
    match placing {
        Placing::Direct => bench.lay(Table::Direct, chain),
        Placing::Indirect => bench.lay(Table::Indirect, chain),
        Placing::Mixed(direct) => {
            let (front, tail) = chain.split_at(direct.min(chain.len() - 1));
            write_table(&bench.memory, bench.at.table, &linked(tail))?;
            let mut front = front.to_vec();
            let len = u32::try_from(tail.len())? * Descriptor::LEN;
            front.push(table(bench.at.table, len));
            bench.lay(Table::Direct, &linked(&front))
        }
    }
}

/// Every arrangement that has to be served.
pub(crate) fn arrangements(bench: &mut Bench, meant: &Meant) -> Outcome {
    let placings = [
        Placing::Direct,
        Placing::Indirect,
        Placing::Mixed(1),
        Placing::Mixed(2),
    ];
    for placing in placings {
        let usual = Layout::usual(bench, meant, placing);
        serve(bench, meant, &usual)?;
        for layout in cut_layouts(meant, &usual) {
            serve(bench, meant, &layout)?;
        }
        straddle(bench, meant, &usual)?;
    }
    Ok(())
}

/// The usual layout in other pieces.
fn cut_layouts(meant: &Meant, usual: &Layout) -> Vec<Layout> {
    let to = |to_cuts: Vec<u32>| Layout {
        to_cuts,
        ..usual.clone()
    };
    let from = |from_cuts: Vec<u32>| Layout {
        from_cuts,
        ..usual.clone()
    };
    let bytewise = |count: usize| vec![1; count.min(usize::from(RING) / 2)];
    let from_len = u32::try_from(meant.from_len).unwrap_or(u32::MAX);
    // The header cut at each byte, bytewise, and in one with the data.
    let mut layouts: Vec<_> = (1..16).map(|cut| to(vec![cut, 16 - cut])).collect();
    layouts.extend([
        to(vec![]),
        to(bytewise(16)),
        to(bytewise(meant.to_stream().len())),
        to(vec![0, 16, 0]),
        to(vec![7, 0, 0, 9, 0]),
        // The status in one with the data, alone, and behind nothing.
        from(vec![]),
        from(bytewise(meant.from_len)),
        from(vec![0, 0]),
        from(vec![1, 0]),
        from(vec![from_len, 1, 0]),
    ]);
    // Pieces that do not touch.
    layouts.extend([1, 3, 64].map(|gap| Layout {
        to_cuts: vec![5, 5, 9],
        from_cuts: vec![3, 10],
        gap,
        ..usual.clone()
    }));
    layouts
}

/// Both streams across the border between two regions, at some of their bytes.
fn straddle(bench: &mut Bench, meant: &Meant, usual: &Layout) -> Outcome {
    let border = bench.at.border;
    for before in [1, 8, 15, 16, 17, 24, 31, 500] {
        for (to_cuts, from_cuts) in [
            (vec![], vec![]),
            (usual.to_cuts.clone(), usual.from_cuts.clone()),
        ] {
            let layout = Layout {
                to_gpa: border - before,
                to_cuts: to_cuts.clone(),
                ..usual.clone()
            };
            serve(bench, meant, &layout)?;
            let layout = Layout {
                from_gpa: border - before,
                from_cuts,
                ..usual.clone()
            };
            serve(bench, meant, &layout)?;
        }
    }
    Ok(())
}

/// Both streams at every address from 1 to 511 past an aligned one.
pub(crate) fn unaligned(bench: &mut Bench, meant: &Meant) -> Outcome {
    for offset in 1..512 {
        let placing = if offset % 2 == 0 {
            Placing::Direct
        } else {
            Placing::Indirect
        };
        let mut layout = Layout::usual(bench, meant, placing);
        layout.to_gpa += offset;
        layout.from_gpa += offset;
        serve(bench, meant, &layout)?;
    }
    Ok(())
}

/// Contents of the request that are wrong, in a sound chain.
pub(crate) fn bad_contents(bench: &mut Bench, meant: &Meant) -> Outcome {
    for placing in [Placing::Direct, Placing::Indirect] {
        for bad in contents(meant) {
            let usual = Layout::usual(bench, &bad, placing);
            serve(bench, &bad, &usual)?;
        }
    }
    Ok(())
}

fn contents(meant: &Meant) -> Vec<Meant> {
    [bad_headers(meant), bad_lengths(meant)].concat()
}

/// The same request refused, unless its type is refused anyway.
fn refused(meant: &Meant) -> Meant {
    let status = if meant.is_unsupported() {
        meant.status
    } else {
        status::IOERR
    };
    meant.answered(status)
}

fn bad_headers(meant: &Meant) -> Vec<Meant> {
    let mut rows = Vec::new();
    // Bits of the type: the legacy barrier flag is ignored, others make it another type.
    let barrier = meant.kind | 0x8000_0000;
    rows.push(Meant {
        kind: barrier,
        ..meant.clone()
    });
    for bit in [1 << 8, 1 << 16, 1 << 30] {
        let unknown = meant.answered(status::UNSUPP);
        rows.push(Meant {
            kind: meant.kind | bit,
            ..unknown
        });
    }
    for reserved in [1, 7, u32::MAX] {
        rows.push(Meant {
            reserved,
            ..meant.clone()
        });
    }
    // Sectors nowhere on the disk; those without data do not care.
    for sector in [DISK_SECTORS, u64::MAX, u64::MAX / 512, 1 << 55, 1 << 63] {
        let mut row = Meant {
            sector,
            ..meant.clone()
        };
        if meant.is_transfer() {
            row = refused(&row);
        } else if meant.has_ranges() {
            // The header's sector is reserved: the range tells.
            row.sector = meant.sector;
            row.to[..8].copy_from_slice(&sector.to_le_bytes());
            row = refused(&row);
        }
        rows.push(row);
    }
    rows
}

/// No data, one byte less, one more.
fn bad_lengths(meant: &Meant) -> Vec<Meant> {
    let mut rows = Vec::new();
    let mut short = vec![
        Meant {
            to: vec![],
            from_len: 0,
            ..meant.clone()
        },
        Meant {
            from_len: meant.from_len.saturating_sub(1),
            ..meant.clone()
        },
    ];
    let mut cut = meant.clone();
    if cut.to.pop().is_some() {
        short.push(cut);
    }
    let flushes = [kind::FLUSH, 5].contains(&meant.kind);
    for row in short {
        let same = row.to.len() == meant.to.len() && row.from_len == meant.from_len;
        rows.push(if flushes || same { row } else { refused(&row) });
    }
    let mut longer = meant.clone();
    longer.to.push(0);
    rows.push(if flushes { longer } else { refused(&longer) });
    let longer = Meant {
        from_len: meant.from_len + 1,
        ..meant.clone()
    };
    let harmless = flushes || meant.kind == kind::GET_ID;
    rows.push(if harmless { longer } else { refused(&longer) });
    rows
}

/// Chains that are wrong, whatever they ask for.
pub(crate) fn bad_chains(bench: &mut Bench, meant: &Meant) -> Outcome {
    for place in [Table::Direct, Table::Indirect] {
        for (chain, answer) in chains(bench, meant)? {
            bench.try_chain(place, &chain, &answer)?;
        }
    }
    let nested = table(bench.at.table, 16 * 3);
    let usual = Layout::usual(bench, meant, Placing::Direct);
    let laid = lay_out(bench, meant, &usual)?;
    let mut parts = laid.chain.clone();
    parts.push(nested);
    let refused = Answer::refused(laid.status_gpa);
    let chain = linked(
        &parts
            .iter()
            .map(|d| Descriptor { next: 0, ..*d })
            .collect::<Vec<_>>(),
    );
    bench.try_chain(Table::Indirect, &chain, &refused)?;
    bench.lay(Table::Indirect, &laid.chain)?;
    bench.vring.ring.edit_desc(INDIRECT_HEAD, |d| d.flags |= 1);
    bench.try_head(INDIRECT_HEAD, &Answer::dropped())
}

fn chains(bench: &Bench, meant: &Meant) -> Outcome<Vec<(Vec<Descriptor>, Answer)>> {
    let at = bench.at;
    let usual = Layout::usual(bench, meant, Placing::Direct);
    let laid = lay_out(bench, meant, &usual)?;
    let chain = &laid.chain;
    let last = chain.len() - 1;
    let refused = Answer::refused(laid.status_gpa);
    // Where the answer goes if the status does not count.
    let before_status = if meant.from_len == 0 {
        Answer::dropped()
    } else {
        Answer::refused(laid.status_gpa - 1)
    };
    let spoilt = |index: usize, spoil: &dyn Fn(&mut Descriptor)| {
        let mut chain = chain.clone();
        spoil(&mut chain[index]);
        chain
    };
    let mut rows = vec![
        // The status is read-only, empty, not memory, of an unknown kind, missing.
        (spoilt(last, &|d| d.flags = 0), before_status.clone()),
        (spoilt(last, &|d| d.addr = at.hole), Answer::dropped()),
        (spoilt(last, &|d| d.addr = u64::MAX), Answer::dropped()),
        (spoilt(last, &|d| d.flags |= 0x10), before_status.clone()),
        // Loops and links to nowhere.
        (relinked(chain, last, 0), refused.clone()),
        (relinked(chain, last, u16::try_from(last)?), refused.clone()),
        (relinked(chain, last, u16::MAX), refused.clone()),
        (relinked(chain, 0, 0), Answer::dropped()),
        (relinked(chain, 0, u16::MAX), Answer::dropped()),
        // Not memory, too long, of an unknown kind, the wrong way round.
        (spoilt(0, &|d| d.addr = at.hole), refused.clone()),
        (spoilt(0, &|d| d.addr = u64::MAX - 7), refused.clone()),
        (spoilt(0, &|d| d.len = u32::MAX - 4096), refused.clone()),
        (spoilt(0, &|d| d.flags |= 0x10), Answer::dropped()),
    ];
    // An unterminated status: the next entry of the table is empty.
    let mut open = chain.clone();
    open.push(readable(at.data, 0));
    rows.push((
        relinked(&open, last, u16::try_from(last + 1)?),
        refused.clone(),
    ));
    for len in 0..16 {
        rows.push((spoilt(0, &|d| d.len = len), short_header(meant, &laid, len)));
    }
    if last > 1 {
        rows.push((spoilt(1, &|d| d.addr = at.hole), refused.clone()));
        rows.push((spoilt(1, &|d| d.flags |= 0x20), Answer::dropped()));
        rows.push((spoilt(1, &|d| d.addr = at.end - 3), refused));
    }
    if meant.from_len > 0 {
        // Without the status descriptor, the data's last byte stands in for it.
        let missing = spoilt(last - 1, &|d| d.flags = 2);
        let missing = missing[..last].to_vec();
        rows.push((missing, before_status.clone()));
        rows.push((spoilt(last, &|d| d.len = 0), before_status));
    } else {
        let mut missing = chain[..last].to_vec();
        if let Some(end) = missing.last_mut() {
            end.flags = 0;
        }
        rows.push((missing, Answer::dropped()));
        rows.push((spoilt(last, &|d| d.len = 0), Answer::dropped()));
    }
    Ok(rows)
}

/// What a request with `len` bytes of header before its data is answered with.
fn short_header(meant: &Meant, laid: &Laid, len: u32) -> Answer {
    // The data makes up for what the header lacks: either the type is another then, which nobody
    // knows, or what is left of the data is too little for it.
    let stream = usize::try_from(len).unwrap_or(0) + meant.to.len();
    let status = match len {
        _ if stream < 16 => status::IOERR,
        0..4 => status::UNSUPP,
        _ if meant.is_unsupported() => status::UNSUPP,
        _ => status::IOERR,
    };
    Answer::status(laid.status_gpa, status)
}
