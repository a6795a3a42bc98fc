// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk with a volatile cache, whose power can fail at any moment.
//!
//! [`CacheDisk`] is an engine of the block device. What a write has written is volatile until a
//! flush that began after its end has ended, or until its own end if it was to be stable.
//! [`CacheDisk::cut`] tells what a power cut at this instant might leave: for each sector, the
//! stable content, or that of any volatile or still running write. Nothing is lost by it, so that
//! one session can be cut thousands of times.
//!
//! A disk is as nasty as it may be: a flush saves nothing that ended after it began, operations
//! end in any order, transfers come back short. [`Pace::Held`] leaves it to the test when each of
//! them ends; faults are ordered with `fail_next`, `short_next` and `stall_next`.

mod state;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringside_blk::engine::{Engine, EngineQueue, LAST_STEP, Ranges, Step, Target};
use ringside_common::io::{Engine as IoEngine, FileId};
use ringside_common::worker::RequestCx;

use ringside_frontend::load::Rng;
use state::{Effect, Outcome, SECTOR_BYTES, State};
pub use state::{Op, Pace, Sector};

/// The disk.
#[derive(Debug)]
pub struct CacheDisk {
    capacity_sectors: u64,
    /// Its cache is the host's page cache.
    cached: bool,
    state: Mutex<State>,
}

impl CacheDisk {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(capacity_sectors: u64, seed: u64) -> Arc<Self> {
        Self::with_cache(capacity_sectors, seed, true)
    }

    /// A disk of zeroes behind no cache of the host, only its own.
    #[must_use]
    pub fn uncached(capacity_sectors: u64, seed: u64) -> Arc<Self> {
        Self::with_cache(capacity_sectors, seed, false)
    }

    fn with_cache(capacity_sectors: u64, seed: u64, cached: bool) -> Arc<Self> {
        Arc::new(Self {
            capacity_sectors,
            cached,
            state: Mutex::new(State::new(capacity_sectors, seed)),
        })
    }

    /// How operations end from now on. With [`Pace::Free`] those held end too, but for the
    /// stalled ones.
    pub fn set_pace(&self, pace: Pace) {
        self.state().set_pace(pace);
    }

    /// Ends one held operation, picked by `rng`; false if there is none.
    pub fn release_one(&self, rng: &mut Rng) -> bool {
        let mut state = self.state();
        let count = state.running();
        let Some(at) = (count > 0).then(|| rng.below(count as u64)) else {
            return false;
        };
        state.end_at(usize::try_from(at).unwrap_or(0));
        true
    }

    /// Ends the held or stalled operation that began first.
    pub fn release_oldest(&self) {
        self.state().end_oldest();
    }

    /// Ends all held and stalled operations.
    pub fn release_all(&self) {
        let mut state = self.state();
        while state.running() > 0 {
            state.end_at(0);
        }
    }

    /// Operations under way.
    #[must_use]
    pub fn running(&self) -> usize {
        self.state().running()
    }

    /// Operations of this kind started so far.
    #[must_use]
    pub fn started(&self, op: Op) -> u64 {
        self.state().started(op)
    }

    /// The next operation of this kind that has no fault yet fails.
    pub fn fail_next(&self, op: Op, errno: i32) {
        self.state().add_fault(op, state::Fault::Errno(errno));
    }

    /// The next transfer of this kind stops half-way.
    pub fn short_next(&self, op: Op) {
        self.state().add_fault(op, state::Fault::Short);
    }

    /// The next operation of this kind stays under way until [`release_all`](Self::release_all).
    pub fn stall_next(&self, op: Op) {
        self.state().add_fault(op, state::Fault::Stall);
    }

    /// The next operation of this kind stays under way likewise, and fails then.
    pub fn stall_and_fail_next(&self, op: Op, errno: i32) {
        self.state()
            .add_fault(op, state::Fault::StallAndFail(errno));
    }

    /// Every transfer of more than a sector comes back short once in so many times; 0 for never.
    pub fn set_short_odds(&self, odds: u64) {
        self.state().set_short_odds(odds);
    }

    /// What a power cut now might leave.
    #[must_use]
    pub fn cut(&self, rng: &mut Rng) -> Vec<Sector> {
        self.state().cut(rng)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an operation: `deliver` gives its result to the request, once there is one.
    fn start(
        &self,
        cx: &mut RequestCx<'_>,
        target: Target,
        op: Op,
        effect: Effect,
        deliver: impl FnOnce(Outcome) -> i32 + Send + 'static,
    ) -> Step {
        let (send, receive) = sync_channel(1);
        let ended = self.state().start(op, effect, send);
        if let Some(outcome) = ended {
            return Step::Done(deliver(outcome));
        }
        let job = move || receive.recv().map_or(-libc::EIO, deliver);
        cx.run(target.head, LAST_STEP, Box::new(job)).into()
    }
}

fn sector_of(target: Target) -> u64 {
    target.offset_bytes / SECTOR_BYTES as u64
}

impl Engine for CacheDisk {
    fn files(&self) -> Vec<Arc<OwnedFd>> {
        Vec::new()
    }

    fn io_engine(&self) -> IoEngine {
        IoEngine::Uring
    }

    fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn caches_writes(&self) -> bool {
        self.cached
    }

    fn start_queue(
        self: Arc<Self>,
        _size: u16,
        _file: &dyn Fn(u32) -> FileId,
    ) -> Box<dyn EngineQueue> {
        Box::new(CacheQueue { disk: self })
    }

    fn flush_now(&self) -> io::Result<()> {
        self.state().flush_now()
    }

    fn refresh(&self) -> io::Result<u64> {
        Ok(self.capacity_sectors)
    }
}

/// Operations on the disk for one vring.
#[derive(Debug)]
struct CacheQueue {
    disk: Arc<CacheDisk>,
}

impl EngineQueue for CacheQueue {
    fn read(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        let Some(buffers) = cx.buffers(target.head) else {
            return Step::Done(-libc::EIO);
        };
        let sectors = buffers.writable_bytes() / SECTOR_BYTES as u64;
        let Some(payload) = buffers.writable_payload() else {
            return Step::Done(-libc::EIO);
        };
        let effect = Effect::Read {
            first: sector_of(target),
            sectors,
        };
        self.disk
            .start(cx, target, Op::Read, effect, move |outcome| {
                payload.write_at(0, &outcome.data);
                outcome.result
            })
    }

    fn write(&mut self, cx: &mut RequestCx<'_>, target: Target, stable: bool) -> Step {
        let Some(buffers) = cx.buffers(target.head) else {
            return Step::Done(-libc::EIO);
        };
        let len_bytes = usize::try_from(buffers.readable_bytes()).unwrap_or(0);
        let mut data = vec![0; len_bytes];
        buffers.read_at(0, &mut data);
        let op = if stable { Op::StableWrite } else { Op::Write };
        let effect = Effect::Write {
            first: sector_of(target),
            data,
            stable,
        };
        self.disk
            .start(cx, target, op, effect, |outcome| outcome.result)
    }

    fn flush(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        self.disk
            .start(cx, target, Op::Flush, Effect::Flush, |outcome| {
                outcome.result
            })
    }

    fn clear(&mut self, cx: &mut RequestCx<'_>, target: Target, ranges: Ranges) -> Step {
        let op = if ranges.zero {
            Op::WriteZeroes
        } else {
            Op::Discard
        };
        self.disk
            .start(cx, target, op, Effect::Zero(ranges), |outcome| {
                outcome.result
            })
    }
}
