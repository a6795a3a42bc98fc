// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A million requests from a front-end and driver nobody here wrote: the crate `virtio-driver`,
//! which is also what libblkio (and with it fio's libblkio engine) is made of.
//!
//! Reads, writes, flushes, discards and zeroes are mixed at random over one queue, and over four
//! with a thread each. [`content::Content`] knows what every sector holds, and every read is
//! compared with it.

#[path = "virtio_driver/content.rs"]
mod content;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use ringside_frontend::load::Rng;
use ringside_frontend::memory::{GuestMemory, GuestSlice, MemoryLayout};
use ringside_tests::process::Launch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags, iovec,
};

use content::{Content, SECTOR_BYTES};

type TestResult<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Requests of all queues together; a tenth without optimization.
const REQUESTS: usize = if cfg!(debug_assertions) {
    100_000
} else {
    1_000_000
};
const DEPTH: usize = 32;
/// No larger request, and the unit in which requests in flight are kept apart.
const CELL_BYTES: usize = 64 << 10;
const CELL_SECTORS: u64 = (CELL_BYTES / SECTOR_BYTES) as u64;
const CELLS_PER_QUEUE: u64 = 256;
const QUEUE_SIZE: u16 = 256;
/// How long a completion may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a request asked for, as the driver's context.
#[derive(Clone, Copy, Debug)]
struct Context {
    slot: usize,
    kind: Kind,
    sector: u64,
    sectors: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    Zero { unmap: bool },
}

impl Kind {
    /// Mostly data; what works on blocking threads or waits for the disk now and then.
    fn pick(rng: &mut Rng) -> Self {
        match rng.below(1000) {
            0 => Self::Flush,
            1..=3 => Self::Discard,
            4..=6 => Self::Zero { unmap: false },
            7..=9 => Self::Zero { unmap: true },
            10..=549 => Self::Read,
            _ => Self::Write,
        }
    }
}

/// The queue of one thread, and what it knows of its part of the disk.
struct Load<'a> {
    queue: VirtioBlkQueue<'a, Context>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffers: Vec<GuestSlice>,
    content: Content,
    busy: Vec<bool>,
    free: Vec<usize>,
    rng: Rng,
}

impl Load<'_> {
    fn run(&mut self, requests: usize) -> TestResult {
        self.queue.set_used_notif_enabled(true);
        let (mut submitted, mut completed) = (0, 0);
        while completed < requests {
            while submitted < requests && self.submit_one()? {
                submitted += 1;
            }
            // Without EVENT_IDX the crate reads the flags with no fence behind its store.
            fence(Ordering::SeqCst);
            if self.queue.avail_notif_needed() {
                self.kick.notify()?;
            }
            completed += self.reap()?;
        }
        Ok(())
    }

    /// Starts a random request on a cell that no other is on; false when all slots are taken.
    fn submit_one(&mut self) -> TestResult<bool> {
        let Some(slot) = self.free.pop() else {
            return Ok(false);
        };
        let cell = self.free_cell();
        let kind = Kind::pick(&mut self.rng);
        // All lengths from 512 bytes to 64 KiB, the powers of two as likely as one another.
        let most = 1 << self.rng.below(8);
        let sectors = 1 + self.rng.below(most);
        let sector = cell * CELL_SECTORS + self.rng.below(CELL_SECTORS - sectors + 1);
        let context = Context {
            slot,
            kind,
            sector,
            sectors,
        };
        self.set_busy(sector, true);
        let disk_offset = self.content.first_sector() * SECTOR_BYTES as u64;
        let offset = disk_offset + sector * SECTOR_BYTES as u64;
        let bytes = sectors * SECTOR_BYTES as u64;
        match kind {
            Kind::Read | Kind::Write => self.transfer(offset, context)?,
            Kind::Flush => self.queue.flush(context)?,
            Kind::Discard => self.queue.discard(offset, bytes, context)?,
            Kind::Zero { unmap } => self.queue.write_zeroes(offset, bytes, unmap, context)?,
        }
        Ok(true)
    }

    /// A read or write in one to four segments.
    fn transfer(&mut self, offset: u64, context: Context) -> TestResult {
        let bytes = usize::try_from(context.sectors)? * SECTOR_BYTES;
        let buffer = &self.buffers[context.slot];
        if context.kind == Kind::Write {
            let data = self.content.write(context.sector, context.sectors);
            buffer.write(0, data);
        }
        let mut segments = Vec::with_capacity(4);
        let mut start = 0;
        while start < bytes {
            let cut = usize::try_from(self.rng.below(bytes as u64))?;
            let len = if segments.len() == 3 || cut < bytes / 2 {
                bytes - start
            } else {
                cut.min(bytes - start)
            };
            segments.push(iovec {
                iov_base: std::ptr::with_exposed_provenance_mut(
                    usize::try_from(buffer.hva())? + start,
                ),
                iov_len: len,
            });
            start += len;
        }
        let (table, count) = (segments.as_ptr(), segments.len());
        if context.kind == Kind::Write {
            // SAFETY: the table is alive during the call, and the segments lie in the slot's part
            // of guest memory, which outlives the queue and is this request's alone.
            #[expect(unsafe_code, reason = "the driver's only call for several segments")]
            unsafe { self.queue.writev(offset, table, count, context) }?;
        } else {
            // SAFETY: as above.
            #[expect(unsafe_code, reason = "the driver's only call for several segments")]
            unsafe { self.queue.readv(offset, table, count, context) }?;
        }
        Ok(())
    }

    /// Takes all completions, after waiting for the first.
    fn reap(&mut self) -> TestResult<usize> {
        loop {
            let done: Vec<_> = self.queue.completions().collect();
            for completion in &done {
                let context = completion.context;
                if completion.ret != 0 {
                    return Err(format!("{context:?}: errno {}", -completion.ret).into());
                }
                self.verify(&context)?;
                self.set_busy(context.sector, false);
                self.free.push(context.slot);
            }
            if !done.is_empty() {
                return Ok(done.len());
            }
            self.wait_call()?;
        }
    }

    fn verify(&mut self, context: &Context) -> TestResult {
        let (sector, sectors) = (context.sector, context.sectors);
        match context.kind {
            Kind::Read => {
                let mut data = vec![0; usize::try_from(sectors)? * SECTOR_BYTES];
                self.buffers[context.slot].read(0, &mut data);
                self.content.check(sector, &data)?;
            }
            Kind::Zero { .. } => self.content.set_zero(sector, sectors),
            Kind::Discard => self.content.forget(sector, sectors),
            Kind::Write | Kind::Flush => {}
        }
        Ok(())
    }

    fn wait_call(&self) -> TestResult {
        let mut fds = [PollFd::new(&*self.call, PollFlags::IN)];
        let timeout = Timespec::try_from(PATIENCE)?;
        if poll(&mut fds, Some(&timeout))? == 0 {
            return Err("no call for a completion".into());
        }
        self.call.read()?;
        Ok(())
    }

    fn free_cell(&mut self) -> u64 {
        loop {
            let cell = self.rng.below(CELLS_PER_QUEUE);
            if !self.busy[usize::try_from(cell).unwrap_or(0)] {
                return cell;
            }
        }
    }

    fn set_busy(&mut self, sector: u64, busy: bool) {
        let cell = usize::try_from(sector / CELL_SECTORS).unwrap_or(0);
        self.busy[cell] = busy;
    }
}

/// Runs the whole load over `queues` queues of a fresh back-end.
fn run(queues: usize, ring_features: VirtioFeatureFlags) -> TestResult {
    let launch = Launch::back_end("ringside-blk")?;
    let disk_bytes = queues as u64 * CELLS_PER_QUEUE * CELL_BYTES as u64;
    let image = launch.file("disk.img", disk_bytes)?;
    let socket = launch.socket();
    let mut process = launch
        .arg("--socket-path")
        .arg(&socket)
        .arg("--blk-file")
        .arg(image)
        .spawn()?;
    process.wait_listening(PATIENCE)?;

    let blk_features = VirtioBlkFeatureFlags::FLUSH
        | VirtioBlkFeatureFlags::MQ
        | VirtioBlkFeatureFlags::DISCARD
        | VirtioBlkFeatureFlags::WRITE_ZEROES;
    let wanted = ring_features | VirtioFeatureFlags::VERSION_1;
    let path = socket.to_str().ok_or("socket path")?;
    let mut transport =
        VhostUser::<_, VirtioBlkReqBuf>::new(path, wanted.bits() | blk_features.bits())?;
    let transport: &mut VirtioBlkTransport = &mut transport;
    assert_eq!(
        transport.get_features() & (wanted.bits() | blk_features.bits()),
        wanted.bits() | blk_features.bits()
    );
    assert_eq!(
        transport.get_config()?.capacity.to_native(),
        disk_bytes / SECTOR_BYTES as u64
    );
    let memory = GuestMemory::new(&MemoryLayout::single(queues * DEPTH * CELL_BYTES))?;
    share(transport, &memory)?;
    let made = VirtioBlkQueue::setup_queues(transport, queues, QUEUE_SIZE)?;
    let mut loads = Vec::with_capacity(queues);
    for (index, queue) in made.into_iter().enumerate() {
        let buffers = (0..DEPTH).map(|slot| {
            let offset = (index * DEPTH + slot) * CELL_BYTES;
            memory.regions()[0].window().sub(offset, CELL_BYTES)
        });
        let sectors = CELLS_PER_QUEUE * CELL_SECTORS;
        loads.push(Load {
            queue,
            kick: transport.get_submission_notifier(index),
            call: transport.get_completion_fd(index),
            buffers: buffers.collect(),
            content: Content::new(index as u64 * sectors, sectors),
            busy: vec![false; usize::try_from(CELLS_PER_QUEUE)?],
            free: (0..DEPTH).collect(),
            rng: Rng::new(index as u64),
        });
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = loads
            .iter_mut()
            .map(|load| scope.spawn(|| load.run(REQUESTS / queues)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or(Err("a driver panicked".into())))
    })
}

/// Makes the data buffers known to the back-end, at their own address.
fn share(transport: &mut VirtioBlkTransport, memory: &GuestMemory) -> TestResult {
    use std::os::fd::AsRawFd as _;

    for region in memory.regions() {
        let address = usize::try_from(region.uva())?;
        let file = region.file().as_raw_fd();
        transport.map_mem_region(address, region.len_bytes(), file, 0)?;
    }
    Ok(())
}

#[test]
fn a_million_requests_over_one_queue_keep_all_content() -> TestResult {
    run(1, VirtioFeatureFlags::RING_EVENT_IDX)
}

#[test]
fn a_million_requests_over_four_queues_keep_all_content() -> TestResult {
    run(4, VirtioFeatureFlags::RING_EVENT_IDX)
}

#[test]
fn a_million_requests_without_event_idx_keep_all_content() -> TestResult {
    run(1, VirtioFeatureFlags::empty())
}
