// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk may hold after a power cut, from what its driver was told alone.
//!
//! For each sector the oracle keeps the writes whose content may be found there. A write leaves
//! that set when a later one, submitted after the end of the former, is stable (virtio 1.3
//! §5.2.6.2): completed by a device that had its cache off all the time, or completed before a
//! flush was submitted that has completed. Writes that overlap in time may end in any order.

use ringside_frontend::blk::SECTOR_BYTES;
use ringside_frontend::load::{check_pattern, fill_pattern};
use ringside_tests::block_engine::Sector;

/// Content of a write. [`ZERO`] is that of a fresh disk and of zeroed sectors.
pub(crate) const ZERO: u64 = 0;

/// What a write does to its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It leaves its content there.
    Certain,
    /// It may leave zeroes there, or not: a discard.
    Possible,
}

/// A write, in the driver's time.
#[derive(Clone, Debug)]
struct Write {
    content: u64,
    effect: Effect,
    sectors: Vec<u64>,
    submitted: u64,
    completed: Option<u64>,
    /// The cache has been off since it was submitted.
    through: bool,
    stable: bool,
}

/// The set of allowed contents, per sector.
#[derive(Debug)]
pub(crate) struct Oracle {
    now: u64,
    writes: Vec<Write>,
    /// Per sector: writes whose content a cut may leave.
    candidates: Vec<Vec<usize>>,
    /// Per sector: all writes, for reads that began long ago.
    history: Vec<Vec<usize>>,
}

impl Oracle {
    pub(crate) fn new(sectors: u64) -> Self {
        let fresh = Write {
            content: ZERO,
            effect: Effect::Certain,
            sectors: (0..sectors).collect(),
            submitted: 0,
            completed: Some(0),
            through: true,
            stable: true,
        };
        Self {
            now: 0,
            candidates: fresh.sectors.iter().map(|_| vec![0]).collect(),
            history: fresh.sectors.iter().map(|_| vec![0]).collect(),
            writes: vec![fresh],
        }
    }

    /// A moment later than all before.
    pub(crate) fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A write was submitted; returns its number. `through`: the cache is off.
    pub(crate) fn submitted(
        &mut self,
        content: u64,
        effect: Effect,
        sectors: Vec<u64>,
        through: bool,
    ) -> usize {
        let number = self.writes.len();
        for sector in &sectors {
            self.candidates[*sector as usize].push(number);
            self.history[*sector as usize].push(number);
        }
        let submitted = self.tick();
        self.writes.push(Write {
            content,
            effect,
            sectors,
            submitted,
            completed: None,
            through,
            stable: false,
        });
        number
    }

    /// A write was answered with OK.
    pub(crate) fn completed(&mut self, write: usize) {
        let now = self.tick();
        self.writes[write].completed = Some(now);
        if self.writes[write].through {
            self.stabilise(write);
        }
    }

    /// A flush submitted at `submitted` was answered with OK.
    pub(crate) fn flushed(&mut self, submitted: u64) {
        self.tick();
        let covered: Vec<usize> = (0..self.writes.len())
            .filter(|number| {
                let write = &self.writes[*number];
                !write.stable && write.completed.is_some_and(|at| at < submitted)
            })
            .collect();
        for number in covered {
            self.stabilise(number);
        }
    }

    /// The cache is being switched: nothing under way had it off all the time.
    pub(crate) fn cache_switched(&mut self) {
        for write in self.writes.iter_mut().filter(|w| w.completed.is_none()) {
            write.through = false;
        }
    }

    /// Checks what a cut has left.
    pub(crate) fn check_cut(&self, left: &[Sector]) -> Result<(), String> {
        for (sector, content) in (0..).zip(left) {
            if !self.candidates[sector as usize]
                .iter()
                .any(|number| is_content(self.writes[*number].content, sector, content))
            {
                return Err(self.complaint("after the cut", sector, content));
            }
        }
        Ok(())
    }

    /// Checks what was read by a request submitted at `submitted`.
    pub(crate) fn check_read(&self, first: u64, data: &[u8], submitted: u64) -> Result<(), String> {
        for (sector, content) in (first..).zip(data.chunks_exact(SECTOR_BYTES)) {
            let history = &self.history[sector as usize];
            let hidden = |number: usize| {
                history.iter().any(|other| {
                    let (this, other) = (&self.writes[number], &self.writes[*other]);
                    other.effect == Effect::Certain
                        && this.completed.is_some_and(|end| end < other.submitted)
                        && other.completed.is_some_and(|end| end < submitted)
                })
            };
            if !history.iter().any(|number| {
                is_content(self.writes[*number].content, sector, content) && !hidden(*number)
            }) {
                return Err(self.complaint("in a read", sector, content));
            }
        }
        Ok(())
    }

    /// What was written before a stable write began can be found no longer.
    fn stabilise(&mut self, number: usize) {
        self.writes[number].stable = true;
        let (submitted, effect) = (self.writes[number].submitted, self.writes[number].effect);
        if effect == Effect::Possible {
            return;
        }
        for sector in self.writes[number].sectors.clone() {
            let writes = &self.writes;
            self.candidates[sector as usize]
                .retain(|other| writes[*other].completed.is_none_or(|end| end >= submitted));
        }
    }

    fn complaint(&self, place: &str, sector: u64, content: &[u8]) -> String {
        let found = self
            .writes
            .iter()
            .rposition(|write| {
                write.sectors.contains(&sector) && is_content(write.content, sector, content)
            })
            .map_or_else(
                || "what nobody wrote".to_owned(),
                |number| format!("write {number}: {:?}", self.writes[number]),
            );
        let allowed: Vec<_> = self.candidates[sector as usize]
            .iter()
            .map(|number| format!("\n  {number}: {:?}", self.writes[*number]))
            .collect();
        format!(
            "sector {sector} {place} holds {found}; allowed were{}",
            allowed.concat()
        )
    }
}

/// The bytes of `content` in `sectors` from `first` on.
pub(crate) fn bytes_of(content: u64, first: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; sectors as usize * SECTOR_BYTES];
    if content != ZERO {
        fill_pattern(content, first, &mut bytes);
    }
    bytes
}

fn is_content(content: u64, sector: u64, bytes: &[u8]) -> bool {
    if content == ZERO {
        bytes.iter().all(|byte| *byte == 0)
    } else {
        check_pattern(content, sector, bytes).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(content: u64, at: u64) -> Sector {
        bytes_of(content, at, 1).try_into().unwrap()
    }

    #[test]
    fn volatile_write_may_be_lost_and_flushed_one_may_not() {
        let mut oracle = Oracle::new(1);
        let write = oracle.submitted(7, Effect::Certain, vec![0], false);
        oracle.completed(write);
        oracle.check_cut(&[sector(ZERO, 0)]).unwrap();
        oracle.check_cut(&[sector(7, 0)]).unwrap();
        let flush = oracle.tick();
        oracle.flushed(flush);
        oracle.check_cut(&[sector(7, 0)]).unwrap();
        oracle.check_cut(&[sector(ZERO, 0)]).unwrap_err();
    }

    #[test]
    fn flush_covers_only_what_was_complete_before_it() {
        let mut oracle = Oracle::new(1);
        let write = oracle.submitted(7, Effect::Certain, vec![0], false);
        let flush = oracle.tick();
        oracle.completed(write);
        oracle.flushed(flush);
        oracle.check_cut(&[sector(ZERO, 0)]).unwrap();
    }

    #[test]
    fn content_nobody_wrote_there_is_found() {
        let oracle = Oracle::new(2);
        oracle
            .check_cut(&[sector(ZERO, 0), sector(9, 1)])
            .unwrap_err();
        // Another sector's content is as wrong as anything.
        let mut oracle = Oracle::new(2);
        let write = oracle.submitted(7, Effect::Certain, vec![0, 1], true);
        oracle.completed(write);
        oracle.check_cut(&[sector(7, 0), sector(7, 0)]).unwrap_err();
    }

    #[test]
    fn write_through_that_saw_the_cache_on_is_not_stable() {
        let mut oracle = Oracle::new(1);
        let write = oracle.submitted(7, Effect::Certain, vec![0], true);
        oracle.cache_switched();
        oracle.completed(write);
        oracle.check_cut(&[sector(ZERO, 0)]).unwrap();
    }

    #[test]
    fn read_of_what_was_overwritten_before_is_found() {
        let mut oracle = Oracle::new(1);
        let write = oracle.submitted(7, Effect::Certain, vec![0], false);
        oracle.completed(write);
        let read = oracle.tick();
        oracle.check_read(0, &sector(7, 0), read).unwrap();
        oracle.check_read(0, &sector(ZERO, 0), read).unwrap_err();
    }
}
