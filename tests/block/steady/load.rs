// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads and writes of 4 KiB, 32 in flight on each queue.

use ringside_frontend::Result;
use ringside_frontend::blk::{BlkDriver, BlkRequest, Slot};
use ringside_frontend::load::Rng;

/// Length of each request.
pub(crate) const BLOCK_BYTES: u32 = 4096;
/// Blocks of the disk.
pub(crate) const BLOCKS: u64 = 4096;

/// What the requests are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mix {
    /// Reads.
    Reads,
    /// Writes.
    Writes,
    /// Either, at random.
    Both,
}

impl Mix {
    fn next(self, rng: &mut Rng) -> BlkRequest {
        let sector = rng.below(BLOCKS) * u64::from(BLOCK_BYTES / 512);
        let writes = match self {
            Self::Reads => false,
            Self::Writes => true,
            Self::Both => rng.below(2) == 0,
        };
        if writes {
            BlkRequest::write(sector, BLOCK_BYTES)
        } else {
            BlkRequest::read(sector, BLOCK_BYTES)
        }
    }
}

/// Completes `requests` requests on the drivers in turn, each kept at its depth. It allocates
/// nothing per request.
pub(crate) fn run(drivers: &mut [BlkDriver], mix: Mix, requests: u64) -> Result<()> {
    let mut rng = Rng::new(requests);
    let mut left = requests;
    for driver in &mut *drivers {
        while left > 0
            && let Ok(slot) = driver.acquire()
        {
            submit(driver, slot, mix, &mut rng, &mut left)?;
        }
        driver.publish()?;
    }
    while drivers.iter().any(|driver| driver.in_flight() > 0) {
        for driver in drivers.iter_mut().filter(|driver| driver.in_flight() > 0) {
            let mut arrived = Some(driver.wait()?);
            while let Some(completion) = arrived {
                let slot = completion.ok()?.slot;
                submit(driver, slot, mix, &mut rng, &mut left)?;
                arrived = driver.poll()?;
            }
            driver.publish()?;
        }
    }
    Ok(())
}

fn submit(
    driver: &mut BlkDriver,
    slot: Slot,
    mix: Mix,
    rng: &mut Rng,
    left: &mut u64,
) -> Result<()> {
    if *left == 0 {
        driver.release(slot);
        return Ok(());
    }
    *left -= 1;
    driver.submit(slot, &mix.next(rng))
}
