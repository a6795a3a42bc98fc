// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running `ringside-blk`, and a ring whose every descriptor a test lays by hand.
//!
//! [`Disk`] is the process with its image. [`Bench`] connects to it and knows, for each exchange,
//! what *all* of guest memory and the whole image have to look like afterwards: a test says which
//! bytes the device writes and with what, and every other byte has to be as it was.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::{Launch, Process, back_end_binary};
use ringside_frontend::blk::{BlkConfig, BlkDriver, SECTOR_BYTES, blk_feature, kind, status};
use ringside_frontend::load::fill_pattern;
use ringside_frontend::memory::{GuestMemory, MemoryLayout, RegionSpec};
use ringside_frontend::ring::{CallMode, Descriptor, RingLayout, Segment, desc_flag, write_table};
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_frontend::vring::Vring;

/// What helpers return.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Size of a disk unless a test wants another.
pub const DISK_BYTES: u64 = 1 << 20;
/// The same in sectors.
pub const DISK_SECTORS: u64 = DISK_BYTES / SECTOR_BYTES as u64;
/// Pattern seed of a new image.
pub const IMAGE_SEED: u64 = 77;
/// A length of one sector, as descriptors count it.
pub const SECTOR: u32 = 512;

/// The package under test, and its binary.
pub const PACKAGE: &str = "ringside-blk";
/// What `strace` writes, in the directory of the process.
pub const TRACE: &str = "trace.log";
/// More than a back-end has blocking threads. `strace` counts calls by thread, so that each of them
/// has a first and a second one.
pub const MOST_THREADS: usize = 64;
/// The image in the directory of the process.
const IMAGE: &str = "disk.img";
/// The control socket in the same place.
const CONTROL: &str = "control.sock";

/// `ringside-blk` about to be started on a socket in its own directory, with a control socket.
///
/// # Errors
///
/// When it does not build.
pub fn launch() -> Outcome<Launch> {
    Ok(with_sockets(Launch::back_end(PACKAGE)?))
}

/// The same under `strace` with these arguments, to have system calls fail or take long; `None`
/// where that is not installed or may not trace.
///
/// # Errors
///
/// When the back-end does not build.
pub fn launch_traced(arguments: &[&str]) -> Outcome<Option<Launch>> {
    let works = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !works.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let launch = Launch::program("strace")?;
    let log = launch.path(TRACE);
    let launch = launch.args(["-f", "-qq", "-o"]).arg(log).args(arguments);
    Ok(Some(with_sockets(launch.arg(back_end_binary(PACKAGE)?))))
}

fn with_sockets(launch: Launch) -> Launch {
    let (socket, control) = (launch.socket(), launch.path(CONTROL));
    let launch = launch.arg("--socket-path").arg(socket);
    launch.arg("--control-socket").arg(control)
}

/// The content of a new image.
#[must_use]
pub fn image_pattern(bytes: usize) -> Vec<u8> {
    let mut image = vec![0; bytes];
    for (sector, data) in (0..).zip(image.chunks_mut(SECTOR_BYTES)) {
        fill_pattern(IMAGE_SEED, sector, data);
    }
    image
}

/// A running `ringside-blk` and its image.
#[derive(Debug)]
pub struct Disk {
    /// The process.
    pub process: Process,
    image: PathBuf,
}

impl Disk {
    /// Starts the back-end on an image of [`DISK_BYTES`] filled with a pattern.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(args: &[&str]) -> Outcome<Self> {
        Self::start_with(&image_pattern(usize::try_from(DISK_BYTES)?), args)
    }

    /// Starts the back-end on an image with this content.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_with(content: &[u8], args: &[&str]) -> Outcome<Self> {
        Self::launched(launch()?, content, args)
    }

    /// The same with a launch that was prepared already.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn launched(launch: Launch, content: &[u8], args: &[&str]) -> Outcome<Self> {
        let image = launch.path(IMAGE);
        std::fs::write(&image, content)?;
        let launch = launch.arg("--blk-file").arg(&image).args(args);
        Self::of(launch, image)
    }

    /// Starts what was described, and waits until it listens.
    ///
    /// # Errors
    ///
    /// When it ends instead.
    pub fn of(launch: Launch, image: PathBuf) -> Outcome<Self> {
        let mut process = launch.spawn()?;
        process.wait_listening(PATIENCE)?;
        Ok(Self { process, image })
    }

    /// The image file.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// What the image file holds now.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn content(&self) -> Outcome<Vec<u8>> {
        Ok(std::fs::read(&self.image)?)
    }

    /// Overwrites part of the image behind the back-end's back.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) -> Outcome {
        let file = std::fs::OpenOptions::new().write(true).open(&self.image)?;
        Ok(file.write_all_at(bytes, offset)?)
    }

    /// Connects as `builder` says.
    ///
    /// # Errors
    ///
    /// When the handshake fails.
    pub fn session(&mut self, builder: SessionBuilder) -> Outcome<Session> {
        Ok(builder.from_stream(self.process.connect(PATIENCE)?)?)
    }

    /// Connects, starts the queues and puts a driver on the first.
    ///
    /// # Errors
    ///
    /// When the handshake fails.
    pub fn driver(
        &mut self,
        builder: SessionBuilder,
        config: BlkConfig,
    ) -> Outcome<(Session, BlkDriver)> {
        let mut session = self.session(builder)?;
        let vring = session.start_all()?.remove(0);
        Ok((session, BlkDriver::new(vring, config)?))
    }

    /// Calls a method on the control socket and returns its result.
    ///
    /// # Errors
    ///
    /// When it answers with an error, or not at all.
    pub fn control(&self, method: &str, params: &Value) -> Outcome<Value> {
        control(&self.process.path(CONTROL), method, params)
    }

    /// What the `info` method says under `field`.
    ///
    /// # Errors
    ///
    /// As [`Disk::control`].
    pub fn info(&self, field: &str) -> Outcome<Value> {
        Ok(self.control("info", &Value::Null)?[field].clone())
    }

    /// Waits until `info` says `wanted` under `field`.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub fn wait_info(&self, field: &str, wanted: &Value) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.info(field)?;
            if found == *wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{field} is {found}, not {wanted}").into());
            }
            std::thread::yield_now();
        }
    }
}

/// Calls a method on a control socket and returns its result.
///
/// # Errors
///
/// When it answers with an error, or not at all.
pub fn control(socket: &Path, method: &str, params: &Value) -> Outcome<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = json!({ "id": 1, "method": method, "params": params }).to_string();
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    let reply: Value = serde_json::from_str(&reply)?;
    match reply.get("result") {
        Some(result) => Ok(result.clone()),
        None => Err(format!("{method}: {reply}").into()),
    }
}

/// Where a chain is laid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// In the ring, from descriptor 0 on.
    Direct,
    /// In an indirect table that descriptor 7 of the ring refers to.
    Indirect,
}

/// Both places, for tests that try one chain in each.
pub const TABLES: [Table; 2] = [Table::Direct, Table::Indirect];

/// The head of a chain in an indirect table.
pub const INDIRECT_HEAD: u16 = 7;

/// What the device answers to one chain, to the byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Length in the used element.
    pub used_len: u32,
    /// Where the status byte goes, and its value.
    pub status: Option<(u64, u8)>,
    /// Data the device writes, and where.
    pub data: Vec<(u64, Vec<u8>)>,
}

impl Answer {
    /// A used element of length 0, and nothing written.
    #[must_use]
    pub fn dropped() -> Self {
        Self::default()
    }

    /// Only this status, at `gpa`.
    #[must_use]
    pub fn status(gpa: u64, status: u8) -> Self {
        Self {
            used_len: 1,
            status: Some((gpa, status)),
            data: Vec::new(),
        }
    }

    /// `S_IOERR` at `gpa`.
    #[must_use]
    pub fn refused(gpa: u64) -> Self {
        Self::status(gpa, status::IOERR)
    }

    /// `S_OK` at `gpa`, after `data` was written to where it is paired with.
    #[must_use]
    pub fn read(gpa: u64, data: Vec<(u64, Vec<u8>)>) -> Self {
        let bytes: usize = data.iter().map(|(_, bytes)| bytes.len()).sum();
        Self {
            used_len: u32::try_from(bytes + 1).unwrap_or(u32::MAX),
            status: Some((gpa, status::OK)),
            data,
        }
    }
}

/// A device-readable descriptor.
#[must_use]
pub fn readable(gpa: u64, len: u32) -> Descriptor {
    Segment::readable(gpa, len).into()
}

/// A device-writable descriptor.
#[must_use]
pub fn writable(gpa: u64, len: u32) -> Descriptor {
    Segment::writable(gpa, len).into()
}

/// A descriptor that refers to an indirect table.
#[must_use]
pub fn table(gpa: u64, len: u32) -> Descriptor {
    Descriptor {
        addr: gpa,
        len,
        flags: desc_flag::INDIRECT,
        next: 0,
    }
}

/// The descriptors linked one to the next, in a table that starts with them.
#[must_use]
pub fn linked(descriptors: &[Descriptor]) -> Vec<Descriptor> {
    let mut chain = descriptors.to_vec();
    let last = chain.len().saturating_sub(1);
    for (next, descriptor) in (1..=u16::MAX).zip(chain.iter_mut().take(last)) {
        descriptor.flags |= desc_flag::NEXT;
        descriptor.next = next;
    }
    chain
}

/// The chain with its entry `index` linked to `next`, wherever that is.
#[must_use]
pub fn relinked(chain: &[Descriptor], index: usize, next: u16) -> Vec<Descriptor> {
    let mut chain = chain.to_vec();
    if let Some(descriptor) = chain.get_mut(index) {
        descriptor.flags |= desc_flag::NEXT;
        descriptor.next = next;
    }
    chain
}

/// The guest addresses requests are made of.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Room for a header, in the first region.
    pub header: u64,
    /// Room for 64 KiB of data.
    pub data: u64,
    /// Room for a status byte.
    pub status: u64,
    /// Room for an indirect table of [`MAX_TABLE`] entries and one more.
    pub table: u64,
    /// The border between two adjacent regions, 64 KiB on both sides being free.
    pub border: u64,
    /// The last mapped byte but one: from here on there is nothing.
    pub end: u64,
    /// An address in no region.
    pub hole: u64,
}

/// Entries of the longest indirect table the device takes.
pub const MAX_TABLE: u16 = 1024;

/// Descriptors of a bench's ring.
pub const RING: u16 = 256;

/// Bytes of each of the three regions of a bench.
const REGION_BYTES: usize = 256 << 10;

/// A ring laid by hand on a running back-end, with a model of memory and image.
#[derive(Debug)]
pub struct Bench {
    /// The back-end.
    pub disk: Disk,
    /// The connection.
    pub session: Session,
    /// The vring.
    pub vring: Vring,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Where requests are laid.
    pub at: Places,
    /// What the image has to hold.
    pub image: Vec<u8>,
    /// Header, data and status of the good requests in between.
    good: (u64, u64, u64),
    rounds: u64,
    read_only: bool,
}

impl Bench {
    /// A bench on a new disk, with three regions: two that touch, and one after a gap.
    ///
    /// # Errors
    ///
    /// When anything does not start.
    pub fn start() -> Outcome<Self> {
        Self::with(&[], Session::builder())
    }

    /// A bench whose back-end has more arguments and whose session is described by `builder`.
    ///
    /// # Errors
    ///
    /// When anything does not start.
    pub fn with(args: &[&str], builder: SessionBuilder) -> Outcome<Self> {
        Self::on(Disk::start(args)?, builder, REGION_BYTES)
    }

    /// A bench on a running disk, with regions of this size.
    ///
    /// # Errors
    ///
    /// When the handshake fails.
    pub fn on(mut disk: Disk, builder: SessionBuilder, region_bytes: usize) -> Outcome<Self> {
        const FIRST: u64 = 0x4000_0000;
        let each = region_bytes as u64;
        let layout = MemoryLayout::of(vec![
            RegionSpec::new(FIRST, region_bytes),
            RegionSpec::new(FIRST + each, region_bytes),
            RegionSpec::new(FIRST + 4 * each, region_bytes),
        ]);
        let builder = builder.memory(layout).queue_size(RING).indirect_len(0);
        let mut session = disk.session(builder.calls(CallMode::Never))?;
        let vring = session.start_all()?.remove(0);
        let memory = Arc::clone(session.memory());
        let table_bytes = (usize::from(MAX_TABLE) + 2) * Descriptor::BYTES;
        let at = Places {
            header: memory.alloc(4096, 4096)?,
            data: memory.alloc(64 << 10, 4096)?,
            status: memory.alloc(4096, 4096)? + 5,
            table: memory.alloc(table_bytes, 4096)?,
            border: FIRST + each,
            end: FIRST + 5 * each,
            hole: FIRST + 3 * each,
        };
        let good = (
            memory.alloc(64, 64)?,
            memory.alloc(SECTOR_BYTES, 512)?,
            memory.alloc(64, 64)?,
        );
        let image = disk.content()?;
        let read_only = session.negotiated().offered & blk_feature::RO != 0;
        Ok(Self {
            disk,
            session,
            vring,
            memory,
            at,
            image,
            good,
            rounds: 0,
            read_only,
        })
    }

    /// Writes a request header to its place.
    ///
    /// # Errors
    ///
    /// Never; the place is mapped.
    pub fn header(&self, kind: u32, sector: u64) -> Outcome {
        self.header_at(self.at.header, kind, sector)
    }

    /// Writes a request header anywhere.
    ///
    /// # Errors
    ///
    /// When it is not mapped there.
    pub fn header_at(&self, gpa: u64, kind: u32, sector: u64) -> Outcome {
        Ok(self.memory.write(gpa, &header_bytes(kind, sector))?)
    }

    /// Fills `bytes` from the data's place on with a pattern that no sector has, and returns it.
    ///
    /// # Errors
    ///
    /// Never; the place is mapped.
    pub fn fresh_data(&mut self, bytes: usize) -> Outcome<Vec<u8>> {
        self.fresh_data_at(self.at.data, bytes)
    }

    /// The same anywhere.
    ///
    /// # Errors
    ///
    /// When it is not mapped there.
    pub fn fresh_data_at(&mut self, gpa: u64, bytes: usize) -> Outcome<Vec<u8>> {
        self.rounds += 1;
        let mut data = vec![0; bytes];
        fill_pattern(self.rounds << 20, 0, &mut data);
        self.memory.write(gpa, &data)?;
        Ok(data)
    }

    /// The image's bytes from `sector` on.
    #[must_use]
    pub fn sectors(&self, sector: u64, bytes: usize) -> Vec<u8> {
        let start = usize::try_from(sector).unwrap_or(usize::MAX / SECTOR_BYTES) * SECTOR_BYTES;
        self.image
            .get(start..start + bytes)
            .unwrap_or_default()
            .to_vec()
    }

    /// Notes that the image has to hold `data` from `sector` on.
    pub fn note_written(&mut self, sector: u64, data: &[u8]) {
        let start = usize::try_from(sector).unwrap_or(usize::MAX / SECTOR_BYTES) * SECTOR_BYTES;
        if let Some(part) = self.image.get_mut(start..start + data.len()) {
            part.copy_from_slice(data);
        }
    }

    /// Clears the descriptor table, lays a chain and returns its head.
    ///
    /// # Errors
    ///
    /// When the chain is longer than its table.
    pub fn lay(&self, place: Table, chain: &[Descriptor]) -> Outcome<u16> {
        for index in 0..RING {
            self.vring.ring.set_desc(index, Descriptor::default());
        }
        match place {
            Table::Direct => {
                for (index, descriptor) in (0..RING).zip(chain) {
                    self.vring.ring.set_desc(index, *descriptor);
                }
                Ok(0)
            }
            Table::Indirect => {
                write_table(&self.memory, self.at.table, chain)?;
                let len = u32::try_from(chain.len())? * Descriptor::LEN;
                let entry = table(self.at.table, len);
                self.vring.ring.set_desc(INDIRECT_HEAD, entry);
                Ok(INDIRECT_HEAD)
            }
        }
    }

    /// Lays a chain, has it answered, checks all of memory and the image, and has its head and
    /// the ring serve good requests afterwards.
    ///
    /// # Errors
    ///
    /// When any of it is not as said.
    pub fn try_chain(&mut self, place: Table, chain: &[Descriptor], answer: &Answer) -> Outcome {
        let head = self.lay(place, chain)?;
        self.try_head(head, answer)
            .map_err(|error| format!("{place:?} {chain:x?}: {error}").into())
    }

    /// The same for a chain that lies already.
    ///
    /// # Errors
    ///
    /// When any of it is not as said.
    pub fn try_head(&mut self, head: u16, answer: &Answer) -> Outcome {
        self.exchange(&[(head, answer.clone())])?;
        self.check_image()?;
        self.prove_alive(head)
    }

    /// Makes these heads available at once, and checks their used elements and all of memory.
    ///
    /// # Errors
    ///
    /// When an answer is missing or another than said, or any other byte of memory changed.
    pub fn exchange(&mut self, wanted: &[(u16, Answer)]) -> Outcome {
        for (gpa, _) in wanted.iter().filter_map(|(_, answer)| answer.status) {
            self.memory.write(gpa, &[status::UNTOUCHED])?;
        }
        for (head, _) in wanted {
            self.vring.ring.push_head(*head);
        }
        let mut expected = self.snapshot()?;
        for (_, answer) in wanted {
            for (gpa, bytes) in &answer.data {
                expected.write(*gpa, bytes);
            }
            if let Some((gpa, status)) = answer.status {
                expected.write(gpa, &[status]);
            }
        }
        let first_used = self.vring.ring.next_used();
        self.vring.ring.publish();
        self.vring.kick()?;
        let mut left: Vec<_> = wanted
            .iter()
            .map(|(head, answer)| (u32::from(*head), answer.used_len))
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while !left.is_empty() {
            let Some(elem) = self.vring.ring.peek_used()? else {
                if Instant::now() > deadline {
                    return Err(format!("not answered: (head, used length) {left:?}").into());
                }
                std::thread::yield_now();
                continue;
            };
            let found = left.iter().position(|want| *want == (elem.id, elem.len));
            let Some(found) = found else {
                return Err(format!("{elem:?}, where one of {left:?} was due").into());
            };
            left.swap_remove(found);
            self.vring.ring.advance_used();
        }
        if self.vring.ring.used_idx() != self.vring.ring.next_used() {
            return Err("more used elements than requests".into());
        }
        self.check_memory(expected, first_used, wanted.len())
    }

    /// Writes a sector with the chain at `head`, unless the disk is read-only, and reads it back.
    ///
    /// # Errors
    ///
    /// When either is not served to the byte.
    pub fn prove_alive(&mut self, head: u16) -> Outcome {
        let (header, data, status) = self.good;
        self.rounds += 1;
        // The last quarter of the disk is for these.
        let sector = DISK_SECTORS - 1 - self.rounds % (DISK_SECTORS / 4);
        let others = if head < 250 { (252, 253) } else { (2, 3) };
        let steps = [(kind::OUT, 0), (kind::IN, desc_flag::WRITE)];
        for (kind, flags) in steps.into_iter().skip(usize::from(self.read_only)) {
            self.header_at(header, kind, sector)?;
            let mut chain = linked(&[
                readable(header, 16),
                Descriptor {
                    flags,
                    ..readable(data, SECTOR)
                },
                writable(status, 1),
            ]);
            for (descriptor, next) in chain.iter_mut().zip([others.0, others.1]) {
                descriptor.next = next;
            }
            for (index, descriptor) in [head, others.0, others.1].into_iter().zip(chain) {
                self.vring.ring.set_desc(index, descriptor);
            }
            let answer = if kind == kind::OUT {
                let written = self.fresh_data_at(data, SECTOR_BYTES)?;
                self.note_written(sector, &written);
                Answer::status(status, status::OK)
            } else {
                self.memory.write(data, &[0; SECTOR_BYTES])?;
                Answer::read(status, vec![(data, self.sectors(sector, SECTOR_BYTES))])
            };
            let good = self.exchange(&[(head, answer)]);
            good.map_err(|error| format!("the good request afterwards, type {kind}: {error}"))?;
        }
        Ok(())
    }

    /// Whether the image is what it has to be.
    ///
    /// # Errors
    ///
    /// Where it is not.
    pub fn check_image(&self) -> Outcome {
        let found = self.disk.content()?;
        first_difference(&self.image, &found)
            .map_or(Ok(()), |what| Err(format!("image: {what}").into()))
    }

    /// Chains the back-end has counted as malformed.
    ///
    /// # Errors
    ///
    /// When the control socket does not answer.
    pub fn malformed_chains(&self) -> Outcome<u64> {
        let stats = self.disk.control("stats", &Value::Null)?;
        stats["queues"][0]["malformed_chains"]
            .as_u64()
            .ok_or_else(|| format!("no malformed_chains in {stats}").into())
    }

    fn snapshot(&self) -> Outcome<Snapshot> {
        let regions = self.memory.regions().iter();
        let read = |gpa, bytes| self.memory.read_vec(gpa, bytes).map(|bytes| (gpa, bytes));
        let regions = regions.map(|region| read(region.gpa(), region.len_bytes()));
        Ok(Snapshot(regions.collect::<Result<_, _>>()?))
    }

    /// Compares memory with `expected` but for the ring's own fields, which were checked.
    fn check_memory(&self, mut expected: Snapshot, first_used: u16, count: usize) -> Outcome {
        let found = self.snapshot()?;
        let RingLayout {
            avail_gpa,
            used_gpa,
            ..
        } = self.vring.ring.layout();
        let size = u64::from(RING);
        // The driver's index and event, the device's flags, index and event.
        for (gpa, bytes) in [
            (avail_gpa + 2, 2),
            (avail_gpa + 4 + 2 * size, 2),
            (used_gpa, 4),
            (used_gpa + 4 + 8 * size, 2),
        ] {
            expected.copy_from(&found, gpa, bytes);
        }
        for index in (0..count).scan(first_used, |slot, _| {
            let this = *slot;
            *slot = slot.wrapping_add(1);
            Some(this)
        }) {
            let place = u64::from(index % RING);
            expected.copy_from(&found, used_gpa + 4 + 8 * place, 8);
        }
        for ((gpa, expected), (_, found)) in expected.0.iter().zip(&found.0) {
            if let Some(what) = first_difference(expected, found) {
                return Err(format!("memory at {gpa:#x}: {what}").into());
            }
        }
        Ok(())
    }
}

/// The bytes of a request header.
#[must_use]
pub fn header_bytes(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// All of guest memory: address and content of each region.
struct Snapshot(Vec<(u64, Vec<u8>)>);

impl Snapshot {
    /// Writes byte by byte, so that a piece may cross from region to region.
    fn write(&mut self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            if let Some(place) = self.byte(at) {
                *place = *byte;
            }
        }
    }

    fn copy_from(&mut self, other: &Self, gpa: u64, bytes: u64) {
        for at in gpa..gpa + bytes {
            let value = other.0.iter().find_map(|(start, region)| {
                let offset = usize::try_from(at.checked_sub(*start)?).ok()?;
                region.get(offset).copied()
            });
            if let (Some(place), Some(value)) = (self.byte(at), value) {
                *place = value;
            }
        }
    }

    fn byte(&mut self, gpa: u64) -> Option<&mut u8> {
        self.0.iter_mut().find_map(|(start, region)| {
            let offset = usize::try_from(gpa.checked_sub(*start)?).ok()?;
            region.get_mut(offset)
        })
    }
}

/// Where two things of one length differ first.
fn first_difference(expected: &[u8], found: &[u8]) -> Option<String> {
    if expected == found {
        return None;
    }
    let mut what = String::new();
    if expected.len() != found.len() {
        // Writing to a string does not fail.
        let _ = write!(what, "{} bytes, not {}; ", found.len(), expected.len());
    }
    let mut differing = (0..)
        .zip(expected.iter().zip(found))
        .filter(|(_, (a, b))| a != b);
    if let Some((at, (expected, found))) = differing.next() {
        let more = differing.count();
        let _ = write!(
            what,
            "byte {at:#x} is {found:#04x}, not {expected:#04x}, and {more} more differ"
        );
    }
    Some(what)
}
