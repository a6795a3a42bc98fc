// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Verified I/O on a queue that nothing is done to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::{Result, TestResult, wait_until};
use ringside_frontend::blk::BlkDriver;
use ringside_frontend::load::{Verify, check_content, write_pattern};

/// A thread that writes and reads back, over and over.
#[derive(Debug)]
pub struct Bystander {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<std::result::Result<BlkDriver, String>>,
}

impl Bystander {
    /// Starts; the last 64 KiB of the disk are its own. A hostile driver that writes at random
    /// writes to sectors made of small bytes, and the number of that one is not.
    ///
    /// # Errors
    ///
    /// When it does not get through its first round.
    pub fn start(mut driver: BlkDriver) -> Result<Self> {
        let (stop, rounds) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (told, count) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let plan = Verify {
                    depth: 4,
                    block_bytes: 4096,
                    first_sector: super::DISK_BYTES / 512 - 128,
                    blocks: 16,
                    seed: count.load(Ordering::Relaxed),
                };
                write_pattern(&mut driver, &plan)
                    .and_then(|()| check_content(&mut driver, &plan))
                    .map_err(|e| format!("bystander, round {}: {e}", plan.seed))?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(driver)
        });
        let bystander = Self {
            stop,
            rounds,
            thread,
        };
        bystander.goes_on()?;
        Ok(bystander)
    }

    /// Waits until two more rounds are through, one of which began after this call.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn goes_on(&self) -> TestResult {
        let target = self.rounds.load(Ordering::Relaxed) + 2;
        wait_until("I/O of the bystander", || {
            Ok(self.thread.is_finished() || self.rounds.load(Ordering::Relaxed) >= target)
        })?;
        if self.thread.is_finished() {
            return Err("the bystander has failed".into());
        }
        Ok(())
    }

    /// Rounds so far.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Goes on for a little, stops, and gives the driver back.
    ///
    /// # Errors
    ///
    /// When any request failed or brought other content.
    pub fn finish(self) -> Result<BlkDriver> {
        let went_on = self.goes_on();
        self.stop.store(true, Ordering::Relaxed);
        let driver = self.thread.join();
        let driver = driver.map_err(|_panic| "the bystander has panicked")??;
        went_on?;
        Ok(driver)
    }
}
