// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Load for a virtio-blk device: N requests in flight, random reads for figures, and writes whose
//! content is verified.
//!
//! The loops allocate nothing per request.

use std::time::{Duration, Instant};

use super::blk::{BlkDriver, BlkRequest, Completion, SECTOR_BYTES, Slot};
use super::error::{FrontendError, Result};

/// A small, seeded random number generator (`SplitMix64`), so that a failure can be repeated.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts the sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which must not be 0.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias for bounds far below 2^64 is of no account here.
        self.next_u64() % bound
    }
}

/// The finalizer of `SplitMix64`.
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `data` with what belongs at `sector` in the generation `seed`: every 8 bytes tell their
/// place, so misplaced data is told from stale data.
pub fn fill_pattern(seed: u64, sector: u64, data: &mut [u8]) {
    let first = sector.wrapping_mul(SECTOR_BYTES as u64 / 8);
    for (word, at) in data.chunks_mut(8).zip(first..) {
        let bytes = mix(seed.rotate_left(32) ^ at).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// Compares data with what [`fill_pattern`] makes.
///
/// # Errors
///
/// [`FrontendError::Mismatch`] at the first differing byte.
pub fn check_pattern(seed: u64, sector: u64, data: &[u8]) -> Result<()> {
    let mut expected = [0; SECTOR_BYTES];
    for (part, at) in data.chunks(SECTOR_BYTES).zip(sector..) {
        fill_pattern(seed, at, &mut expected);
        let differing = part.iter().zip(&expected).position(|(a, b)| a != b);
        if let Some(offset) = differing {
            return Err(FrontendError::Mismatch {
                sector: at,
                offset,
                found: part[offset],
                expected: expected[offset],
            });
        }
    }
    Ok(())
}

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After this many requests.
    Requests(u64),
    /// After this time.
    Elapsed(Duration),
}

/// Random reads, as `fio --rw=randread` does them.
#[derive(Clone, Copy, Debug)]
pub struct RandomRead {
    /// Requests in flight: at most the driver's depth.
    pub depth: usize,
    /// Length of each read, a multiple of the sector and at most the driver's slot.
    pub block_bytes: u32,
    /// The reads lie in this many bytes from the start of the device.
    pub span_bytes: u64,
    /// When to end.
    pub stop: Stop,
    /// Of the sequence of blocks.
    pub seed: u64,
}

impl RandomRead {
    fn blocks(&self) -> Result<u64> {
        let block_bytes = u64::from(self.block_bytes);
        let blocks = self.span_bytes.checked_div(block_bytes).unwrap_or(0);
        if blocks == 0 || block_bytes < SECTOR_BYTES as u64 {
            return Err(FrontendError::Unusable {
                what: "block length",
                value: block_bytes,
            });
        }
        Ok(blocks)
    }
}

/// What a load did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests completed with status OK.
    pub completed: u64,
    /// From the first submission to the last completion.
    pub elapsed: Duration,
    /// Kicks sent.
    pub kicks: u64,
}

impl LoadReport {
    /// Requests per second.
    #[must_use]
    pub fn iops(&self) -> f64 {
        // Exact for any count a test can reach (2^53).
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
        let completed = self.completed as f64;
        completed / self.elapsed.as_secs_f64()
    }
}

/// Keeps random reads in flight until told to stop.
///
/// # Errors
///
/// When a read fails or does not come back.
pub fn random_read(driver: &mut BlkDriver, plan: &RandomRead) -> Result<LoadReport> {
    let mut rng = Rng::new(plan.seed);
    let blocks = plan.blocks()?;
    keep_reading(driver, plan, || rng.below(blocks))
}

/// As [`random_read`], with the blocks in their order, again and again.
///
/// # Errors
///
/// As [`random_read`].
pub fn sequential_read(driver: &mut BlkDriver, plan: &RandomRead) -> Result<LoadReport> {
    let blocks = plan.blocks()?;
    let mut at = plan.seed % blocks;
    keep_reading(driver, plan, || {
        at = (at + 1) % blocks;
        at
    })
}

fn keep_reading(
    driver: &mut BlkDriver,
    plan: &RandomRead,
    mut next_block: impl FnMut() -> u64,
) -> Result<LoadReport> {
    let block_sectors = u64::from(plan.block_bytes) / SECTOR_BYTES as u64;
    let mut next = || BlkRequest::read(next_block() * block_sectors, plan.block_bytes);
    let limit = match plan.stop {
        Stop::Requests(requests) => requests,
        Stop::Elapsed(_) => u64::MAX,
    };
    let kicks_before = driver.vring().kicks;
    let start = Instant::now();
    let (mut submitted, mut completed) = (0_u64, 0_u64);
    let mut open = true;
    let mut outcome = Ok(());
    while submitted < limit && driver.in_flight() < plan.depth {
        let slot = driver.acquire()?;
        driver.submit(slot, &next())?;
        submitted += 1;
    }
    while driver.in_flight() > 0 {
        driver.publish()?;
        let mut arrived = Some(driver.wait()?);
        while let Some(completion) = arrived {
            match completion.ok() {
                Ok(_) => completed += 1,
                Err(error) => keep_first(&mut outcome, error),
            }
            if open && submitted < limit && outcome.is_ok() {
                driver.submit(completion.slot, &next())?;
                submitted += 1;
            } else {
                driver.release(completion.slot);
            }
            arrived = driver.poll()?;
        }
        // Once per batch: reading the clock per request would be part of the figure.
        if let Stop::Elapsed(time) = plan.stop {
            open = open && start.elapsed() < time;
        }
    }
    outcome.map(|()| LoadReport {
        completed,
        elapsed: start.elapsed(),
        kicks: driver.vring().kicks - kicks_before,
    })
}

/// A load that finds a failure still drains what is in flight, so that the driver stays usable;
/// the first failure is the one reported.
fn keep_first(outcome: &mut Result<()>, error: FrontendError) {
    if outcome.is_ok() {
        *outcome = Err(error);
    }
}

/// Writes whose content is read back and compared.
#[derive(Clone, Copy, Debug)]
pub struct Verify {
    /// Requests in flight: at most the driver's depth.
    pub depth: usize,
    /// Length of each request, a multiple of the sector and at most the driver's slot.
    pub block_bytes: u32,
    /// First sector of the area.
    pub first_sector: u64,
    /// Number of blocks in the area.
    pub blocks: u64,
    /// Generation of the content.
    pub seed: u64,
}

impl Verify {
    fn sector(&self, block: u64) -> u64 {
        self.first_sector + block * (u64::from(self.block_bytes) / SECTOR_BYTES as u64)
    }
}

/// Writes the whole area with [`fill_pattern`].
///
/// # Errors
///
/// When a write fails or does not come back.
pub fn write_pattern(driver: &mut BlkDriver, plan: &Verify) -> Result<()> {
    let mut scratch = vec![0; plan.block_bytes as usize];
    let submit = |driver: &mut BlkDriver, slot: Slot, block: u64| {
        let sector = plan.sector(block);
        fill_pattern(plan.seed, sector, &mut scratch);
        driver.data(slot).write(0, &scratch);
        driver.submit(slot, &BlkRequest::write(sector, plan.block_bytes))
    };
    each_block(driver, plan, submit, |_, completion| {
        completion.ok().map(|_| ())
    })
}

/// Reads the whole area and compares it with [`fill_pattern`].
///
/// # Errors
///
/// When a read fails, does not come back or brings other content.
pub fn check_content(driver: &mut BlkDriver, plan: &Verify) -> Result<()> {
    let mut scratch = vec![0; plan.block_bytes as usize];
    let submit = |driver: &mut BlkDriver, slot: Slot, block: u64| {
        // Not what is expected, or a read that is never done could pass.
        driver.data(slot).fill(0, plan.block_bytes as usize, 0xa5);
        let request = BlkRequest::read(plan.sector(block), plan.block_bytes);
        driver.submit(slot, &request)
    };
    each_block(driver, plan, submit, |driver, completion| {
        let completion = completion.ok()?;
        driver.data(completion.slot).read(0, &mut scratch);
        check_pattern(plan.seed, completion.request.sector, &scratch)
    })
}

/// Runs one request per block, keeping `depth` in flight, up to the first failure.
fn each_block(
    driver: &mut BlkDriver,
    plan: &Verify,
    mut submit: impl FnMut(&mut BlkDriver, Slot, u64) -> Result<()>,
    mut complete: impl FnMut(&BlkDriver, Completion) -> Result<()>,
) -> Result<()> {
    let mut block = 0;
    let mut outcome = Ok(());
    loop {
        while block < plan.blocks && outcome.is_ok() && driver.in_flight() < plan.depth {
            let slot = driver.acquire()?;
            submit(driver, slot, block)?;
            block += 1;
        }
        if driver.in_flight() == 0 {
            return outcome;
        }
        driver.publish()?;
        let mut arrived = Some(driver.wait()?);
        while let Some(completion) = arrived {
            if let Err(error) = complete(driver, completion) {
                keep_first(&mut outcome, error);
            }
            driver.release(completion.slot);
            arrived = driver.poll()?;
        }
    }
}
