// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Headers of disk requests, and the segments of DISCARD and `WRITE_ZEROES`.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ringside_blk::engine::FileEngine;
use ringside_blk::storage::{CacheMode, DiscardMode, Image, ImageOptions};
use ringside_common::io::Engine as IoEngine;
use ringside_frontend::blk::{ID_BYTES, Range, SECTOR_BYTES, kind};
use ringside_frontend::ring::{CallMode, Segment, SplitRing};
use ringside_frontend::session::Session;
use ringside_frontend::vring::Vring;
use ringside_tests::hostile::{PATIENCE, Result, TestResult};
use ringside_tests::in_process::Served;
use ringside_tests::in_process::watch::{self, Change, Moment, Seen, Watch};
use ringside_tests::skip;

const PAGE_BYTES: usize = 4096;
const SECTORS: u64 = 64;
const HEADER_BYTES: usize = 16;
/// Of a read or write.
const DATA_BYTES: u32 = 1024;

/// A request: the bytes that are parsed, and the data.
struct Case {
    bytes: Vec<u8>,
    data: Option<fn(u64, u32) -> Segment>,
    data_bytes: u32,
}

impl Case {
    fn new(kind: u32, sector: u64) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        Self {
            bytes,
            data: None,
            data_bytes: 0,
        }
    }

    fn data(mut self, data: fn(u64, u32) -> Segment, bytes: u32) -> Self {
        self.data = Some(data);
        self.data_bytes = bytes;
        self
    }

    fn ranges(mut self, ranges: [Range; 2]) -> Self {
        self.bytes
            .extend(ranges.iter().flat_map(|range| range.to_bytes()));
        self
    }

    fn all() -> Vec<Self> {
        let range = |sector, flags| Range {
            sector,
            sectors: 8,
            flags,
        };
        vec![
            Self::new(kind::IN, 3).data(Segment::writable, DATA_BYTES),
            Self::new(kind::OUT, 5).data(Segment::readable, DATA_BYTES),
            Self::new(kind::FLUSH, 0),
            Self::new(kind::GET_ID, 0).data(Segment::writable, ID_BYTES),
            Self::new(kind::DISCARD, 0).ranges([range(8, 0), range(24, 0)]),
            Self::new(kind::WRITE_ZEROES, 0).ranges([range(16, 1), range(40, 0)]),
        ]
    }

    /// Each byte becomes another, and each field one that leads elsewhere or is forbidden.
    fn changes(&self) -> Vec<Change> {
        let field = |at: usize, value: u64, bytes: usize| Change {
            at,
            bytes: value.to_le_bytes()[..bytes].to_vec(),
        };
        let kinds = [kind::IN, kind::OUT, kind::FLUSH, kind::GET_ID];
        let more_kinds = [kind::DISCARD, kind::WRITE_ZEROES, kind::SECURE_ERASE];
        let mut changes: Vec<_> = kinds
            .into_iter()
            .chain(more_kinds)
            .map(|kind| field(0, kind.into(), 4))
            .collect();
        for sector in [1, SECTORS - 1, SECTORS, u64::MAX >> 9, u64::MAX] {
            let segments = (HEADER_BYTES..self.bytes.len()).step_by(HEADER_BYTES);
            changes.extend(segments.map(|at| field(at, sector, 8)));
            changes.push(field(8, sector, 8));
        }
        for (at, &byte) in self.bytes.iter().enumerate() {
            changes.extend([1, 0xff].map(|mask| Change::byte(at, byte ^ mask)));
        }
        changes
    }
}

/// What a request comes to: status, used length, what was read, what the disk has then.
type Outcome = (u8, u32, Vec<u8>, Vec<u8>);

struct Scene {
    _dir: tempfile::TempDir,
    image: fs::File,
    before: Vec<u8>,
    served: Served,
    session: Session,
    vring: Vring,
    watch: Watch,
    /// Of the first indirect tables.
    tables: Watch,
    gpa: u64,
    data_gpa: u64,
}

impl Scene {
    fn start(read_only: bool) -> Result<Self> {
        let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let path = dir.path().join("disk.img");
        let before: Vec<u8> = (0..SECTORS)
            .flat_map(|sector| [sector.to_le_bytes()[0] | 0x80; SECTOR_BYTES])
            .collect();
        fs::write(&path, &before)?;
        let image = Image::open(&ImageOptions {
            path: path.clone(),
            read_only,
            size_bytes: None,
            cache: CacheMode::Writeback,
            block_size_bytes: None,
            discard: DiscardMode::default(),
            lock: false,
        })?;
        let engine = FileEngine::new(image, IoEngine::Threads)?;
        let mut served = Served::new(Arc::new(engine), CacheMode::Writeback)?;
        let mut session = served.connect(Session::builder().calls(CallMode::Never))?;
        let mut vring = session.create_vring(0)?;
        let memory = Arc::clone(vring.memory());
        // What comes next begins with a page: the tables, of which there are many pages.
        let tables_gpa = memory.alloc(PAGE_BYTES, PAGE_BYTES)? + PAGE_BYTES as u64;
        vring.ring = SplitRing::at(&memory, vring.ring.config(), vring.ring.layout())?;
        session.start(&vring, 0)?;
        let gpa = memory.alloc(PAGE_BYTES, PAGE_BYTES)?;
        Ok(Self {
            image: fs::File::options().read(true).write(true).open(&path)?,
            _dir: dir,
            before,
            served,
            watch: Watch::new(&memory, gpa, PAGE_BYTES)?,
            tables: Watch::new(&memory, tables_gpa, PAGE_BYTES)?,
            gpa,
            data_gpa: memory.alloc(PAGE_BYTES, PAGE_BYTES)?,
            session,
            vring,
        })
    }

    /// The parsed bytes in pieces of so many, the rest as they are; all direct.
    fn chain(&self, case: &Case, piece_bytes: usize) -> Result<Vec<Segment>> {
        let mut chain = Vec::new();
        for at in (0..case.bytes.len()).step_by(piece_bytes) {
            let len = piece_bytes.min(case.bytes.len() - at);
            // From the end of the page to its front, so that no two become one again.
            let place = PAGE_BYTES - at - piece_bytes;
            chain.push(Segment::readable(
                self.gpa + place as u64,
                u32::try_from(len)?,
            ));
        }
        if let Some(data) = case.data {
            chain.push(data(self.data_gpa, case.data_bytes));
        }
        chain.push(Segment::writable(self.data_gpa + 2048, 1));
        Ok(chain)
    }

    fn run(
        &mut self,
        case: &Case,
        piece_bytes: usize,
        change: &Change,
        moment: Moment,
    ) -> Result<(Outcome, Seen)> {
        let place = |at: usize| {
            PAGE_BYTES - at / piece_bytes * piece_bytes - piece_bytes + at % piece_bytes
        };
        for (at, &byte) in case.bytes.iter().enumerate() {
            self.watch.memory().write(place(at), &[byte]);
        }
        let placed = Change {
            at: place(change.at),
            bytes: change.bytes.clone(),
        };
        let chain = self.chain(case, piece_bytes)?;
        self.vring.ring.add(&chain, &[])?;
        self.publish(false, &placed, moment)
    }

    /// As [`run`](Self::run), with the change in the table of descriptors.
    fn run_described(
        &mut self,
        case: &Case,
        change: &Change,
        moment: Moment,
    ) -> Result<(Outcome, Seen)> {
        let bytes = &case.bytes;
        self.watch.memory().write(PAGE_BYTES - bytes.len(), bytes);
        let chain = self.chain(case, bytes.len())?;
        let head = self.vring.ring.add(&[], &chain)?;
        let table_bytes = usize::from(self.vring.ring.config().indirect_len) * 16;
        let placed = Change {
            at: usize::from(head) * table_bytes + change.at,
            bytes: change.bytes.clone(),
        };
        self.publish(true, &placed, moment)
    }

    /// Has the request served that was added.
    fn publish(
        &mut self,
        described: bool,
        change: &Change,
        moment: Moment,
    ) -> Result<(Outcome, Seen)> {
        let memory = Arc::clone(self.vring.memory());
        memory.write(self.data_gpa, &[0xee; 2048 + 1])?;
        let watch = if described { &self.tables } else { &self.watch };
        let vring = &mut self.vring;
        let (used, seen) = watch.during(change, moment, || -> Result<u32> {
            vring.publish()?;
            let start = Instant::now();
            loop {
                if let Some(used) = vring.ring.pop_used()? {
                    return Ok(used.len);
                }
                assert!(start.elapsed() < PATIENCE, "no answer");
                std::thread::yield_now();
            }
        });
        let data = memory.read_vec(self.data_gpa, 2048 + 1)?;
        let mut disk = vec![0; self.before.len()];
        self.image.read_exact_at(&mut disk, 0)?;
        if disk != self.before {
            self.image.write_all_at(&self.before, 0)?;
        }
        Ok(((data[2048], used?, data, disk), seen))
    }
}

fn walk(read_only: bool) -> TestResult {
    let mut scene = Scene::start(read_only)?;
    // In one piece, and with its fields in descriptors of their own.
    for piece_bytes in [16, 8] {
        for case in Case::all() {
            let changes = case.changes();
            let walked = watch::walk(changes.len(), |number, moment| {
                scene.run(&case, piece_bytes, &changes[number], moment)
            });
            let kind = case.bytes[0];
            let walked = walked.map_err(|error| format!("type {kind}, {changes:?}: {error}"))?;
            assert!(walked.telling > 0, "type {kind}: no change of it tells");
        }
    }
    let Scene {
        mut served,
        session,
        vring,
        ..
    } = scene;
    drop((session, vring));
    served.wait_end()?;
    Ok(())
}

/// Other bytes in each of so many descriptors. Of an address the lowest leads to the same buffer and
/// the upper ones to no memory: others would have the device write over the ring.
fn described(descriptors: usize) -> Vec<Change> {
    let bytes = (0..16).filter(|at| !(1..4).contains(at));
    let all = (0..descriptors).flat_map(|index| bytes.clone().map(move |at| 16 * index + at));
    all.flat_map(|at| [0, 1, 2, 3, 4, 0x80, 0xff].map(|value| Change::byte(at, value)))
        .collect()
}

#[test]
fn f5_15_chain_that_changes_between_any_two_reads_is_one_of_the_two() -> TestResult {
    if !watch::SUPPORTED {
        skip!("single steps of this processor are not known");
    }
    let mut scene = Scene::start(false)?;
    for case in Case::all() {
        let changes = described(2 + usize::from(case.data.is_some()));
        let walked = watch::walk(changes.len(), |number, moment| {
            scene.run_described(&case, &changes[number], moment)
        });
        let kind = case.bytes[0];
        let walked = walked.map_err(|error| format!("type {kind}, {changes:?}: {error}"))?;
        assert!(walked.telling > 0, "type {kind}: no change of it tells");
    }
    Ok(())
}

#[test]
fn f5_15_request_of_a_disk_that_changes_between_any_two_reads_is_one_of_the_two() -> TestResult {
    if !watch::SUPPORTED {
        skip!("single steps of this processor are not known");
    }
    walk(false)?;
    walk(true)
}
