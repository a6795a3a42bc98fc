// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver on one to four queues that writes, reads, flushes, zeroes and discards at random,
//! while the disk below ends its operations in random order and its power is cut again and again.

use std::time::Instant;

use ringside_blk::storage::CacheMode;
use ringside_frontend::blk::{
    BlkConfig, BlkDriver, BlkRequest, Completion, Range, SECTOR_BYTES, Slot, blk_feature, kind,
    status,
};
use ringside_frontend::load::Rng;
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_tests::block_engine::{CacheDisk, Pace, Sector};
use ringside_tests::in_process::Served;

use crate::oracle::{Effect, Oracle, ZERO, bytes_of};
use crate::{PATIENCE, WCE_OFFSET, builder};

/// Few enough that writes meet.
const DISK_SECTORS: u64 = 48;
const MAX_SECTORS: u64 = 8;
/// In flight per queue: below the number of blocking threads, or a held operation could keep
/// another from being started.
const DEPTH: u16 = 6;

/// What the driver acknowledges, and how the host caches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    pub(crate) features: u64,
    pub(crate) cache: CacheMode,
}

impl Mode {
    fn has(self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// Every way to agree on a write cache (virtio 1.3 §5.2.5.2, §5.2.6.2).
pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "FLUSH and CONFIG_WCE",
        features: blk_feature::FLUSH | blk_feature::CONFIG_WCE,
        cache: CacheMode::Writeback,
    },
    Mode {
        name: "FLUSH",
        features: blk_feature::FLUSH,
        cache: CacheMode::Writeback,
    },
    Mode {
        name: "neither",
        features: 0,
        cache: CacheMode::Writeback,
    },
    Mode {
        name: "CONFIG_WCE",
        features: blk_feature::CONFIG_WCE,
        cache: CacheMode::Writeback,
    },
    Mode {
        name: "FLUSH on cache=writethrough",
        features: blk_feature::FLUSH,
        cache: CacheMode::Writethrough,
    },
    Mode {
        name: "FLUSH and CONFIG_WCE on cache=writethrough",
        features: blk_feature::FLUSH | blk_feature::CONFIG_WCE,
        cache: CacheMode::Writethrough,
    },
    Mode {
        name: "FLUSH on cache=none",
        features: blk_feature::FLUSH,
        cache: CacheMode::None,
    },
];

/// What a request in flight is to the oracle.
#[derive(Clone, Debug)]
enum Pending {
    Write(usize),
    Flush(u64),
    Read { first: u64, submitted: u64 },
}

/// One session and its random numbers.
#[derive(Debug)]
pub(crate) struct Run {
    disk: std::sync::Arc<CacheDisk>,
    served: Served,
    session: Session,
    drivers: Vec<BlkDriver>,
    /// Per queue and slot.
    pending: Vec<Vec<Option<Pending>>>,
    oracle: Oracle,
    rng: Rng,
    mode: Mode,
    /// Write cache on, as the driver knows it.
    writeback: bool,
    /// Wait after each step until all has come to rest: the run then depends on the seed alone.
    lockstep: bool,
    next_content: u64,
    pub(crate) counts: Counts,
}

/// What a run has done, so that it is seen to have done something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) cuts: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) reads: u64,
    pub(crate) switches: u64,
    /// Cuts with operations under way.
    pub(crate) busy_cuts: u64,
}

impl Run {
    pub(crate) fn new(mode: Mode, seed: u64) -> Result<Self, Box<dyn std::error::Error>> {
        let mut rng = Rng::new(seed);
        let disk = CacheDisk::new(DISK_SECTORS, rng.next_u64());
        let mut served = Served::new(disk.clone(), mode.cache)?;
        let queues = 1 + rng.below(4) as usize;
        let unwanted = (blk_feature::FLUSH | blk_feature::CONFIG_WCE) & !mode.features;
        let builder = builder(queues)
            .calls(CallMode::Never)
            .without_features(unwanted)
            .require(mode.features);
        let mut session = served.connect(builder)?;
        let config = BlkConfig {
            depth: DEPTH,
            slot_bytes: MAX_SECTORS as usize * SECTOR_BYTES,
            timeout: PATIENCE,
            ..BlkConfig::default()
        };
        let drivers = session
            .start_all()?
            .into_iter()
            .map(|vring| BlkDriver::new(vring, config))
            .collect::<Result<Vec<_>, _>>()?;
        disk.set_short_odds(8);
        disk.set_pace(Pace::Held);
        let writeback = if mode.has(blk_feature::CONFIG_WCE) {
            let wce = session.config(WCE_OFFSET, 1)?[0] == 1;
            let wanted = mode.has(blk_feature::FLUSH) && mode.cache != CacheMode::Writethrough;
            assert_eq!(wce, wanted, "initial writeback with {}", mode.name);
            wce
        } else {
            mode.has(blk_feature::FLUSH) && mode.cache != CacheMode::Writethrough
        };
        Ok(Self {
            disk,
            served,
            session,
            pending: drivers
                .iter()
                .map(|_| vec![None; usize::from(DEPTH)])
                .collect(),
            drivers,
            oracle: Oracle::new(DISK_SECTORS),
            lockstep: rng.below(2) == 0,
            rng,
            mode,
            writeback,
            next_content: 1,
            counts: Counts::default(),
        })
    }

    /// Works on until the power has been cut `cuts` times.
    pub(crate) fn cut_often(&mut self, cuts: u64) -> Result<(), Box<dyn std::error::Error>> {
        let result = self.steps(cuts);
        // The session cannot be drained while operations are held, whatever has happened.
        self.disk.set_pace(Pace::Free);
        result
    }

    /// Lets all operations end, checks the disk a last time and takes the session down.
    pub(crate) fn finish(mut self) -> Result<Counts, Box<dyn std::error::Error>> {
        let deadline = Instant::now() + PATIENCE;
        while self.in_flight() > 0 {
            self.poll()?;
            assert!(Instant::now() < deadline, "{} in flight", self.in_flight());
            std::thread::yield_now();
        }
        let left = self.disk.cut(&mut self.rng);
        self.oracle.check_cut(&left)?;
        drop((self.session, self.drivers));
        self.served.wait_end()?;
        Ok(self.counts)
    }

    fn steps(&mut self, cuts: u64) -> Result<(), Box<dyn std::error::Error>> {
        while self.counts.cuts < cuts {
            match self.rng.below(100) {
                0..45 => self.submit()?,
                45..80 => {
                    self.disk.release_one(&mut self.rng);
                }
                80..83 => self.switch_cache()?,
                _ => self.cut()?,
            }
            if self.lockstep {
                self.settle()?;
            }
            self.poll()?;
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.drivers.iter().map(BlkDriver::in_flight).sum()
    }

    /// Until every request is an operation under way, a sync that waits for another, or completed.
    fn settle(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.poll()?;
            if self.in_flight() == self.disk.running() + self.served.device().waiting_syncs() {
                return Ok(());
            }
            assert!(
                Instant::now() < deadline,
                "{} requests in flight, but {} operations under way",
                self.in_flight(),
                self.disk.running()
            );
            std::thread::yield_now();
        }
    }

    fn cut(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        // What was told before the cut counts, and nothing can be told after it.
        self.poll()?;
        let left: Vec<Sector> = self.disk.cut(&mut self.rng);
        self.counts.cuts += 1;
        self.counts.busy_cuts += u64::from(self.disk.running() > 0);
        Ok(self.oracle.check_cut(&left)?)
    }

    fn switch_cache(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        if !self.mode.has(blk_feature::CONFIG_WCE) {
            return Ok(());
        }
        self.oracle.cache_switched();
        self.writeback = !self.writeback;
        self.counts.switches += 1;
        let wce = u8::from(self.writeback);
        self.session.set_config(WCE_OFFSET, &[wce])?;
        assert_eq!(self.session.config(WCE_OFFSET, 1)?, [wce]);
        Ok(())
    }

    fn submit(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let queue = self.rng.below(self.drivers.len() as u64) as usize;
        let Ok(slot) = self.drivers[queue].acquire() else {
            return Ok(());
        };
        let sectors = 1 + self.rng.below(MAX_SECTORS);
        let first = self.rng.below(DISK_SECTORS - sectors + 1);
        let (request, pending) = match self.rng.below(100) {
            0..60 => self.plan_write(queue, slot, first, sectors),
            60..68 => self.plan_clear(queue, slot, Effect::Certain),
            68..72 => self.plan_clear(queue, slot, Effect::Possible),
            72..84 => {
                let submitted = self.oracle.tick();
                let request = BlkRequest::read(first, (sectors as u32) * 512);
                (request, Pending::Read { first, submitted })
            }
            _ if self.mode.features != 0 => {
                (BlkRequest::flush(), Pending::Flush(self.oracle.tick()))
            }
            _ => self.plan_write(queue, slot, first, sectors),
        };
        self.pending[queue][slot.index()] = Some(pending);
        self.drivers[queue].submit(slot, &request)?;
        self.drivers[queue].publish()?;
        Ok(())
    }

    fn plan_write(
        &mut self,
        queue: usize,
        slot: Slot,
        first: u64,
        sectors: u64,
    ) -> (BlkRequest, Pending) {
        let content = self.next_content;
        self.next_content += 1;
        let data = bytes_of(content, first, sectors);
        self.drivers[queue].data(slot).write(0, &data);
        let places = (first..first + sectors).collect();
        let through = !self.writeback;
        let write = self
            .oracle
            .submitted(content, Effect::Certain, places, through);
        let request = BlkRequest::write(first, data.len() as u32);
        (request, Pending::Write(write))
    }

    /// `WRITE_ZEROES`, or DISCARD, of up to three ranges.
    fn plan_clear(&mut self, queue: usize, slot: Slot, effect: Effect) -> (BlkRequest, Pending) {
        let mut ranges = Vec::new();
        let mut places = Vec::new();
        for _ in 0..=self.rng.below(3) {
            let sectors = 1 + self.rng.below(MAX_SECTORS);
            let sector = self.rng.below(DISK_SECTORS - sectors + 1);
            ranges.push(Range {
                sector,
                sectors: sectors as u32,
                flags: 0,
            });
            places.extend(sector..sector + sectors);
        }
        places.sort_unstable();
        places.dedup();
        self.drivers[queue].fill_ranges(slot, &ranges);
        let kind = match effect {
            Effect::Certain => kind::WRITE_ZEROES,
            Effect::Possible => kind::DISCARD,
        };
        let through = !self.writeback;
        let write = self.oracle.submitted(ZERO, effect, places, through);
        let request = BlkRequest::ranges(kind, ranges.len() as u32);
        (request, Pending::Write(write))
    }

    fn poll(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        for queue in 0..self.drivers.len() {
            while let Some(completion) = self.drivers[queue].poll()? {
                self.note(queue, completion)?;
                self.drivers[queue].release(completion.slot);
            }
        }
        Ok(())
    }

    fn note(&mut self, queue: usize, done: Completion) -> Result<(), Box<dyn std::error::Error>> {
        assert_eq!(done.status, status::OK, "{:?}", done.request);
        match self.pending[queue][done.slot.index()].take() {
            Some(Pending::Write(write)) => {
                self.counts.writes += 1;
                self.oracle.completed(write);
            }
            Some(Pending::Flush(submitted)) => {
                self.counts.flushes += 1;
                self.oracle.flushed(submitted);
            }
            Some(Pending::Read { first, submitted }) => {
                self.counts.reads += 1;
                let mut data = vec![0; done.request.data_bytes as usize];
                self.drivers[queue].data(done.slot).read(0, &mut data);
                self.oracle.check_read(first, &data, submitted)?;
            }
            None => return Err("a completion of nothing".into()),
        }
        Ok(())
    }
}
