// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory whose pages are not there: huge ones that the host has not, and files that are cut off or
//! have holes punched into them, wherever a device looks next.

use std::os::fd::AsFd as _;

use ringside_frontend::fuse::flags::{ROOT_NODE, opcode};
use ringside_frontend::fuse::{Caller, Request};
use ringside_frontend::memory::{FIRST_GPA, GuestMemory, MemoryLayout, RegionSpec, Sealing};
use ringside_frontend::net::{Flow, NetHeader};
use ringside_frontend::raw::RawClient;
use ringside_frontend::ring::{RingLayout, Segment, SplitRing};
use ringside_frontend::session::Session;
use ringside_frontend::vring::Vring;
use ringside_tests::hostile::wire::RegionBody;
use ringside_tests::hostile::{HugePages, PATIENCE, Result, TestResult, wait_until};
use ringside_tests::skip;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};

use super::guest::{Guest, OTHER, OWN};
use super::{Device, REGION, Target};

/// Where the memory begins that something happens to.
const SECOND_GPA: u64 = FIRST_GPA + (1 << 30);
/// Enough for the queues of any device.
const PLAIN_BYTES: usize = 64 << 20;

#[test]
fn f1_1_memory_on_huge_pages_that_the_host_has_not_is_refused() -> TestResult {
    let pages = match HugePages::with_free(0) {
        Ok(pages) => pages,
        Err(reason) => skip!("{reason}"),
    };
    for mut target in Target::all()? {
        let file = pages.memfd(2)?;
        for bytes in [4096, pages.page_bytes(), 2 * pages.page_bytes()] {
            target.refuses(RegionBody { bytes, ..REGION }, file.as_fd())?;
        }
        let log = target.process.stderr();
        assert!(log.contains("cannot be mapped (errno 12)"), "{log}");
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}

/// A part of a chain.
#[derive(Clone)]
enum Piece {
    /// To be read by the device.
    Out(Vec<u8>),
    /// To be written by it: so many bytes.
    In(u32),
}
use Piece::{In, Out};

/// How an answer says that the request has failed.
type Says = fn(&[u8]) -> bool;

/// A chain, and what of it lies on the page that goes.
struct Case {
    what: &'static str,
    vring: usize,
    chain: Vec<Piece>,
    /// The ring, or a piece.
    lost: Option<usize>,
    /// For what the kernel moves: the piece with the answer. Who touches a page that is gone himself
    /// ends the session.
    answer: Option<(usize, Says)>,
}

/// How a page goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// With all of the file.
    All,
    /// With what is behind it.
    Rest,
    /// Out of the middle of the file, and into other hands.
    Hole,
}

fn disk_request(kind: u32) -> Vec<u8> {
    let mut header = vec![0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header
}

fn disk_cases() -> Vec<Case> {
    const FAILED: Option<(usize, Says)> = Some((2, |status| status == [1]));
    let read = vec![Out(disk_request(0)), In(4096), In(1)];
    let write = vec![Out(disk_request(1)), Out(vec![7; 4096]), In(1)];
    [
        ("ring", &read, None, None),
        ("header", &read, Some(0), None),
        ("status", &read, Some(2), None),
        ("data to read", &read, Some(1), FAILED),
        ("data to write", &write, Some(1), FAILED),
    ]
    .map(|(what, chain, lost, answer)| Case {
        what,
        vring: 1,
        chain: chain.clone(),
        lost,
        answer,
    })
    .into()
}

fn port_cases() -> Vec<Case> {
    let (header, mut frame) = (NetHeader::default().to_bytes().to_vec(), Vec::new());
    Flow::new(OWN, OTHER, 1).make(0, 700, &mut frame);
    // What is looked at of a frame is read apart from the rest.
    let (head, rest) = (frame[..100].to_vec(), frame[100..].to_vec());
    let whole = vec![Out(header.clone()), Out(frame)];
    let cut = vec![Out(header), Out(head), Out(rest)];
    let buffer = vec![In(2048)];
    [
        ("ring to send", 3, &whole, None),
        ("ring to receive", 0, &buffer, None),
        ("header", 3, &whole, Some(0)),
        ("frame", 3, &whole, Some(1)),
        ("rest of a frame", 3, &cut, Some(2)),
        ("buffer to receive", 0, &buffer, Some(0)),
    ]
    .map(|(what, vring, chain, lost)| Case {
        what,
        vring,
        chain: chain.clone(),
        lost,
        answer: None,
    })
    .into()
}

/// The header of a request.
fn fuse_header(request: &Request) -> Vec<u8> {
    let bytes = 40 + request.args.len() + request.data_bytes as usize;
    let len_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    request.header(len_bytes, 2, Caller::default()).to_vec()
}

/// What a request has in front of its data.
fn fuse_request(request: &Request) -> [Piece; 2] {
    [Out(fuse_header(request)), Out(request.args.clone())]
}

fn folder_cases(node: u64, handle: u64) -> Vec<Case> {
    fn failed(reply: &[u8]) -> bool {
        reply[4..8] == (-libc::EFAULT).to_le_bytes()
    }
    let [header, args] = fuse_request(&Request::getattr(ROOT_NODE, None));
    let getattr = vec![header, args, In(16 + 104)];
    let [header, args] = fuse_request(&Request::read(node, handle, 0, 4096));
    let read = vec![header, args, In(16), In(4096)];
    let [header, args] = fuse_request(&Request::write(node, handle, 0, 4096));
    let write = vec![header, args, Out(vec![7; 4096]), In(16 + 8)];
    [
        ("ring", &getattr, None, None),
        ("header", &getattr, Some(0), None),
        ("arguments", &getattr, Some(1), None),
        ("reply", &getattr, Some(2), None),
        ("data to read", &read, Some(3), Some((2, failed as Says))),
        ("data to write", &write, Some(2), Some((3, failed as Says))),
    ]
    .map(|(what, chain, lost, answer)| Case {
        what,
        vring: 2,
        chain: chain.clone(),
        lost,
        answer,
    })
    .into()
}

impl Guest {
    fn cases(&mut self) -> Result<Vec<Case>> {
        Ok(match self {
            Self::Disk(..) => disk_cases(),
            Self::Port(_) => port_cases(),
            Self::Folder(client) => {
                let queue = client.queue();
                let flags = libc::O_RDWR.cast_unsigned();
                let (entry, opened) = queue.create(ROOT_NODE, "file", flags, 0o600)?;
                queue.write(entry.node, opened.handle, 0, &[1; 4096])?;
                queue.unlink(ROOT_NODE, "file")?;
                folder_cases(entry.node, opened.handle)
            }
        })
    }
}

/// A vring of 64 descriptors that is to be started, at `gpa` if that is said.
fn vring(session: &mut Session, index: usize, gpa: Option<u64>) -> Result<Vring> {
    let mut config = session.ring_config();
    config.size = 64;
    *session.ring_config_mut() = config;
    let mut vring = session.create_vring(index)?;
    if let Some(gpa) = gpa {
        config.indirect_len = 0;
        let layout = RingLayout {
            desc_gpa: gpa,
            avail_gpa: gpa + 0x1000,
            used_gpa: gpa + 0x2000,
        };
        vring.ring = SplitRing::at(session.memory(), config, layout)?;
    }
    Ok(vring)
}

/// What of a session the case is about.
struct Scene {
    guest: Guest,
    raw: RawClient,
    vring: Vring,
    /// Where the pieces are.
    places: Vec<(u64, usize)>,
}

impl Scene {
    /// All is as it should be, and the last of the huge pages has what is to be lost.
    fn new(target: &mut Target, pages: &HugePages, number: usize) -> Result<Option<(Self, Case)>> {
        let page_bytes = pages.page_bytes();
        let layout = MemoryLayout::of(vec![
            RegionSpec::new(SECOND_GPA, usize::try_from(2 * page_bytes)?),
            RegionSpec::new(FIRST_GPA, PLAIN_BYTES),
        ]);
        let memory = GuestMemory::on_files(&layout, [pages.memfd(2)?])?;
        // No more is made there by itself.
        memory.alloc_in(0, usize::try_from(2 * page_bytes)?, 1)?;
        let (mut guest, raw) = target.guest(Session::builder().existing_memory(memory.clone()))?;
        let Some(case) = guest.cases()?.into_iter().nth(number) else {
            return Ok(None);
        };
        let last = SECOND_GPA + page_bytes;
        let places = case.chain.iter().enumerate().map(|(at, piece)| {
            let bytes = match piece {
                Out(bytes) => bytes.len(),
                In(bytes) => *bytes as usize,
            };
            let gpa = if case.lost == Some(at) {
                last
            } else {
                memory.alloc_in(1, bytes, 64)?
            };
            // Also what is to be written: the page is there before it goes.
            match piece {
                Out(bytes) => memory.write(gpa, bytes)?,
                In(_) => memory.write(gpa, &vec![0; bytes])?,
            }
            Ok((gpa, bytes))
        });
        let places = places.collect::<Result<Vec<_>>>()?;
        let session = guest.session();
        if case.vring == 0 {
            session.stop(0)?;
        }
        let ring = case.lost.is_none().then_some(last);
        let vring = vring(session, case.vring, ring)?;
        session.start(&vring, 0)?;
        let scene = Self {
            guest,
            raw,
            vring,
            places,
        };
        Ok(Some((scene, case)))
    }

    fn lose(&mut self, way: Way, pages: &HugePages) -> TestResult {
        let file = self.guest.session().memory().regions()[0].file();
        let page_bytes = pages.page_bytes();
        match way {
            Way::All => ftruncate(file, 0)?,
            Way::Rest => ftruncate(file, page_bytes)?,
            Way::Hole => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, page_bytes, page_bytes)?;
                pages.set_free(0)?;
            }
        }
        Ok(())
    }

    /// The chain is there, or where the ring is gone, a kick.
    fn offer(&mut self, case: &Case) -> TestResult {
        if case.lost.is_some() {
            let chain = case.chain.iter().zip(&self.places);
            let chain: Vec<_> = chain
                .map(|(piece, (gpa, bytes))| {
                    let segment = match piece {
                        Out(_) => Segment::readable,
                        In(_) => Segment::writable,
                    };
                    Ok(segment(*gpa, u32::try_from(*bytes)?))
                })
                .collect::<Result<_>>()?;
            self.vring.ring.add(&chain, &[])?;
            self.vring.ring.publish();
        }
        self.vring.kick()?;
        Ok(())
    }

    /// The request has failed, and its session goes on.
    fn failed(&mut self, (piece, says): (usize, Says)) -> TestResult {
        wait_until("the answer", || Ok(self.vring.ring.used_idx() == 1))?;
        let (gpa, bytes) = self.places[piece];
        let memory = self.guest.session().memory();
        let answer = memory.read_vec(gpa, bytes)?;
        assert!(says(&answer), "{:02x?}", &answer[..bytes.min(24)]);
        Ok(())
    }
}

#[test]
fn f1_1_truncated_huge_page_closes_its_session_only() -> TestResult {
    let pages = match HugePages::with_free(8) {
        Ok(pages) => pages,
        Err(reason) => skip!("{reason}"),
    };
    for mut target in Target::all()? {
        let device = target.device;
        let mut number = 0;
        'all: loop {
            for way in [Way::All, Way::Rest, Way::Hole] {
                let Some((mut scene, case)) = Scene::new(&mut target, &pages, number)? else {
                    break 'all;
                };
                let named = |e| format!("{device:?}: {} lost, {way:?}: {e}", case.what);
                let lost = |scene: &mut Scene, target: &mut Target| -> TestResult {
                    if let Some(other) = &mut target.other {
                        other.pairs[0].rx.post_all()?;
                    }
                    scene.lose(way, &pages)?;
                    scene.offer(&case)?;
                    // Frames for the port, too.
                    target.others_go_on()?;
                    match case.answer {
                        None => scene.raw.expect_closed(PATIENCE).map(drop)?,
                        Some(answer) => {
                            scene.failed(answer)?;
                            target.works(&mut scene.guest)?;
                        }
                    }
                    target.others_go_on()
                };
                lost(&mut scene, &mut target).map_err(named)?;
                drop(scene);
                wait_until("the pages are given back", || Ok(pages.set_free(8).is_ok()))?;
            }
            number += 1;
        }
        assert!(number > 4, "{device:?}: {number} cases");
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}

/// Pieces of a byte each that a long chain has.
const PER_CHAIN: u64 = 1000;
/// From one to the next: two pages.
const STEP: u64 = 8192;

impl Guest {
    /// What is in front of them, for the device to read them all, and bytes of the answer behind.
    fn long_request(&self) -> Result<(Vec<u8>, u32)> {
        Ok(match self {
            // Its data are the kernel's to move: all that is touched is the header.
            Self::Disk(..) => (Vec::new(), 1),
            Self::Port(_) => {
                let mut frame = Vec::new();
                Flow::new(OWN, [0xff; 6], 1).make(0, 100, &mut frame);
                let header = NetHeader::default().to_bytes();
                ([&header[..], &frame].concat(), 0)
            }
            Self::Folder(_) => {
                let value = vec![0; usize::try_from(PER_CHAIN)?];
                let request = Request::new(opcode::SETXATTR, ROOT_NODE, value, 0);
                (fuse_header(&request), 16)
            }
        })
    }
}

/// Leads the device to every other page of the second region, by chains on all of `vrings`.
fn lead(guest: &Guest, memory: &GuestMemory, vrings: &mut [Vring], chains: u64) -> TestResult {
    let (first, answer_bytes) = guest.long_request()?;
    let (front, back) = (memory.alloc(256, 64)?, memory.alloc(16, 64)?);
    memory.write(front, &first)?;
    let mut touched = (0..).map(|n| Segment::readable(SECOND_GPA + n * STEP, 1));
    for vring in &mut *vrings {
        for _ in 0..chains {
            let mut chain = Vec::new();
            if !first.is_empty() {
                chain.push(Segment::readable(front, u32::try_from(first.len())?));
            }
            chain.extend(touched.by_ref().take(usize::try_from(PER_CHAIN)?));
            if answer_bytes > 0 {
                chain.push(Segment::writable(back, answer_bytes));
            }
            vring.ring.add(&[], &chain)?;
        }
        vring.ring.publish();
    }
    for vring in vrings {
        vring.kick()?;
    }
    Ok(())
}

/// A process has some 65 000 mappings at most, and a page in the middle of one makes three of it:
/// each data thread touches thousands before it looks up.
#[test]
fn f1_3_truncated_memory_that_is_touched_at_every_other_page_closes_its_session_only() -> TestResult
{
    const CHAINS: u64 = 6;
    for mut target in Target::all_with(&["--threads", "12"])? {
        let vrings: Vec<usize> = match target.device {
            Device::Disk => (1..=12).collect(),
            // Those that the guest sends on.
            Device::Switch => (3..16).step_by(2).collect(),
            Device::Folder => (2..=13).collect(),
        };
        let pages = CHAINS * PER_CHAIN * vrings.len() as u64;
        let layout = MemoryLayout::of(vec![
            RegionSpec::new(FIRST_GPA, 2 * PLAIN_BYTES),
            RegionSpec::new(SECOND_GPA, usize::try_from(pages * STEP)?),
        ]);
        let memory = GuestMemory::new(&layout.sealing(Sealing::Open))?;
        let builder = Session::builder().existing_memory(memory.clone());
        let (mut guest, raw) = target.guest(builder)?;
        if let Some(other) = &mut target.other {
            other.pairs[0].rx.post_all()?;
        }
        let session = guest.session();
        session.ring_config_mut().indirect_len = 1024;
        let mut started = Vec::new();
        for index in vrings {
            let vring = vring(session, index, None)?;
            session.start(&vring, 0)?;
            started.push(vring);
        }
        ftruncate(memory.regions()[1].file(), 0)?;
        lead(&guest, &memory, &mut started, CHAINS)?;
        raw.expect_closed(PATIENCE)
            .map_err(|e| format!("{:?}: {e}", target.device))?;
        target.others_go_on()?;
        drop((guest, raw, started));
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}
