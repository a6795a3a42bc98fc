// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk with a volatile cache holds, and what is under way on it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::mpsc::SyncSender;

use ringside_blk::engine::Ranges;

use ringside_frontend::load::Rng;

pub(super) const SECTOR_BYTES: usize = 512;

/// Content of a sector, which a power cut never tears.
pub type Sector = [u8; SECTOR_BYTES];

/// Kinds of operation of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// A read.
    Read,
    /// A write that may stay volatile.
    Write,
    /// A write that is stable when it is done.
    StableWrite,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// A write of zeroes.
    WriteZeroes,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::StableWrite,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
    ];
}

/// When operations end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// By themselves: at once, or a little later on another thread.
    Free,
    /// When the test says so.
    Held,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Errno(i32),
    Short,
    Stall,
    StallAndFail(i32),
}

/// What an operation does when it ends.
#[derive(Debug)]
pub(super) enum Effect {
    Read {
        first: u64,
        sectors: u64,
    },
    Write {
        first: u64,
        data: Vec<u8>,
        stable: bool,
    },
    Flush,
    Zero(Ranges),
}

/// How an operation ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) result: i32,
    /// What was read.
    pub(super) data: Vec<u8>,
}

/// An operation under way.
#[derive(Debug)]
struct Running {
    effect: Effect,
    errno: Option<i32>,
    stalled: bool,
    /// Counts operations in the order they began.
    number: u64,
    /// The clock when it began.
    began: u64,
    reply: SyncSender<Outcome>,
}

/// What a sector got, and when.
#[derive(Clone, Debug)]
struct Version {
    at: u64,
    content: Sector,
}

#[derive(Debug)]
pub(super) struct State {
    rng: Rng,
    pace: Pace,
    /// Counts ends of operations.
    clock: u64,
    stable: Vec<Version>,
    /// Per sector, in order of age: what a flush will save.
    volatile: Vec<Vec<Version>>,
    running: Vec<Running>,
    faults: BTreeMap<Op, VecDeque<Fault>>,
    started: BTreeMap<Op, u64>,
    short_odds: u64,
}

fn index(sector: u64) -> usize {
    usize::try_from(sector).unwrap_or(usize::MAX)
}

impl State {
    pub(super) fn new(capacity_sectors: u64, seed: u64) -> Self {
        let blank = Version {
            at: 0,
            content: [0; SECTOR_BYTES],
        };
        let sectors = index(capacity_sectors);
        Self {
            rng: Rng::new(seed),
            pace: Pace::Free,
            clock: 0,
            stable: vec![blank; sectors],
            volatile: vec![Vec::new(); sectors],
            running: Vec::new(),
            faults: BTreeMap::new(),
            started: BTreeMap::new(),
            short_odds: 0,
        }
    }

    pub(super) fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
        if pace == Pace::Free {
            while let Some(at) = self.running.iter().position(|op| !op.stalled) {
                self.end_at(at);
            }
        }
    }

    pub(super) fn set_short_odds(&mut self, odds: u64) {
        self.short_odds = odds;
    }

    pub(super) fn add_fault(&mut self, op: Op, fault: Fault) {
        self.faults.entry(op).or_default().push_back(fault);
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn started(&self, op: Op) -> u64 {
        self.started.get(&op).copied().unwrap_or(0)
    }

    /// Starts an operation; one that has ended already is not replied to but returned.
    pub(super) fn start(
        &mut self,
        op: Op,
        mut effect: Effect,
        reply: SyncSender<Outcome>,
    ) -> Option<Outcome> {
        *self.started.entry(op).or_default() += 1;
        let fault = self.faults.get_mut(&op).and_then(VecDeque::pop_front);
        let by_chance = self.short_odds > 0 && self.rng.below(self.short_odds) == 0;
        if fault == Some(Fault::Short) || (fault.is_none() && by_chance) {
            effect.shorten();
        }
        let running = Running {
            effect,
            errno: match fault {
                Some(Fault::Errno(errno) | Fault::StallAndFail(errno)) => Some(errno),
                _ => None,
            },
            stalled: matches!(fault, Some(Fault::Stall | Fault::StallAndFail(_))),
            number: self.started.values().sum(),
            began: self.clock,
            reply,
        };
        if self.pace == Pace::Held || running.stalled {
            self.running.push(running);
            return None;
        }
        let outcome = self.end(&running);
        if self.rng.below(2) == 0 {
            return Some(outcome);
        }
        // The job takes it from there; the other end is the caller's.
        let _ = running.reply.send(outcome);
        None
    }

    /// Ends the operation at this place of the list.
    pub(super) fn end_at(&mut self, at: usize) {
        if at < self.running.len() {
            let running = self.running.swap_remove(at);
            let outcome = self.end(&running);
            let _ = running.reply.send(outcome);
        }
    }

    /// Ends the operation that began first.
    pub(super) fn end_oldest(&mut self) {
        let running = self.running.iter().enumerate();
        if let Some((at, _)) = running.min_by_key(|(_, op)| op.number) {
            self.end_at(at);
        }
    }

    pub(super) fn flush_now(&mut self) -> io::Result<()> {
        *self.started.entry(Op::Flush).or_default() += 1;
        let fault = self
            .faults
            .get_mut(&Op::Flush)
            .and_then(VecDeque::pop_front);
        if let Some(Fault::Errno(errno)) = fault {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.save(self.clock);
        Ok(())
    }

    pub(super) fn cut(&self, rng: &mut Rng) -> Vec<Sector> {
        // Losing all that may be lost, and then anything in between.
        let loses_all = rng.below(3) == 0;
        let mut left: Vec<Sector> = self.stable.iter().map(|v| v.content).collect();
        if loses_all {
            return left;
        }
        for (sector, content) in left.iter_mut().enumerate() {
            let volatile = self.volatile.get(sector).into_iter().flatten();
            let running = self
                .running
                .iter()
                .filter_map(|op| op.effect.content_of(sector));
            for candidate in volatile.map(|v| v.content).chain(running) {
                if rng.below(2) == 0 {
                    *content = candidate;
                }
            }
        }
        left
    }

    fn end(&mut self, running: &Running) -> Outcome {
        let mut data = Vec::new();
        if let Some(errno) = running.errno {
            return Outcome {
                result: -errno,
                data,
            };
        }
        self.clock += 1;
        let result = match &running.effect {
            Effect::Read { first, sectors } => {
                for sector in *first..first + sectors {
                    data.extend_from_slice(&self.visible(index(sector)));
                }
                data.len()
            }
            Effect::Write {
                first,
                data,
                stable,
            } => {
                for (sector, content) in (*first..).zip(data.chunks_exact(SECTOR_BYTES)) {
                    let mut whole = [0; SECTOR_BYTES];
                    whole.copy_from_slice(content);
                    self.put(index(sector), whole, *stable);
                }
                data.len()
            }
            Effect::Flush => {
                self.save(running.began);
                0
            }
            Effect::Zero(ranges) => {
                for segment in &ranges.segments {
                    // A discard may do nothing to any of its sectors.
                    for sector in segment.sector..segment.sector + u64::from(segment.num_sectors) {
                        if ranges.zero || self.rng.below(2) == 0 {
                            self.put(index(sector), [0; SECTOR_BYTES], ranges.stable);
                        }
                    }
                }
                0
            }
        };
        Outcome {
            result: i32::try_from(result).unwrap_or(i32::MAX),
            data,
        }
    }

    fn put(&mut self, sector: usize, content: Sector, stable: bool) {
        let version = Version {
            at: self.clock,
            content,
        };
        if let (Some(saved), Some(volatile)) =
            (self.stable.get_mut(sector), self.volatile.get_mut(sector))
        {
            if stable {
                *saved = version;
                volatile.clear();
            } else {
                volatile.push(version);
            }
        }
    }

    /// Makes stable what had ended at `until`.
    fn save(&mut self, until: u64) {
        for (saved, volatile) in self.stable.iter_mut().zip(&mut self.volatile) {
            let covered = volatile.partition_point(|version| version.at <= until);
            if let Some(newest) = volatile.drain(..covered).next_back() {
                *saved = newest;
            }
        }
    }

    fn visible(&self, sector: usize) -> Sector {
        let newest = self.volatile.get(sector).and_then(|list| list.last());
        let newest = newest.or_else(|| self.stable.get(sector));
        newest.map_or([0; SECTOR_BYTES], |version| version.content)
    }
}

impl Effect {
    /// Cuts a transfer of more than a sector short.
    fn shorten(&mut self) {
        match self {
            Self::Read { sectors, .. } => *sectors -= *sectors / 2,
            Self::Write { data, .. } => {
                let sectors = data.len() / SECTOR_BYTES;
                data.truncate((sectors - sectors / 2) * SECTOR_BYTES);
            }
            Self::Flush | Self::Zero(_) => {}
        }
    }

    /// What the operation would leave in a sector.
    fn content_of(&self, sector: usize) -> Option<Sector> {
        match self {
            Self::Write { first, data, .. } => {
                let at = sector.checked_sub(index(*first))? * SECTOR_BYTES;
                data.get(at..at + SECTOR_BYTES)?.try_into().ok()
            }
            Self::Zero(ranges) => ranges
                .segments
                .iter()
                .any(|s| (s.sector..s.sector + u64::from(s.num_sectors)).contains(&(sector as u64)))
                .then_some([0; SECTOR_BYTES]),
            Self::Read { .. } | Self::Flush => None,
        }
    }
}
