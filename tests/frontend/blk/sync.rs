// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request at a time. Only sound while nothing else is in flight on the driver.

use super::request::{BlkRequest, Completion, ID_BYTES, Range, Slot};
use super::{BlkDriver, SECTOR_BYTES};
use crate::error::{FrontendError, Result};

impl BlkDriver {
    /// Submits one request from a slot, waits for it and leaves the slot taken.
    ///
    /// # Errors
    ///
    /// When it does not come back in time, or the back-end has broken the used ring. A status
    /// other than OK is no error here.
    pub fn run(&mut self, slot: Slot, request: &BlkRequest) -> Result<Completion> {
        self.submit(slot, request)?;
        self.publish()?;
        self.wait()
    }

    /// Runs a request that needs no data of the caller, and releases its slot.
    ///
    /// # Errors
    ///
    /// As [`BlkDriver::run`].
    pub fn execute(&mut self, request: &BlkRequest) -> Result<Completion> {
        let slot = self.acquire()?;
        let completion = self.run(slot, request)?;
        self.release(slot);
        Ok(completion)
    }

    /// Reads from `sector` on into `into`.
    ///
    /// # Errors
    ///
    /// As [`BlkDriver::run`].
    pub fn read(&mut self, sector: u64, into: &mut [u8]) -> Result<Completion> {
        let slot = self.acquire()?;
        let completion = self.run(slot, &BlkRequest::read(sector, length(into)?))?;
        self.data(slot).read(0, into);
        self.release(slot);
        Ok(completion)
    }

    /// Writes `from` from `sector` on.
    ///
    /// # Errors
    ///
    /// As [`BlkDriver::run`].
    pub fn write(&mut self, sector: u64, from: &[u8]) -> Result<Completion> {
        if from.len() > self.config().slot_bytes {
            return Err(FrontendError::OutOfGuestMemory { bytes: from.len() });
        }
        let slot = self.acquire()?;
        self.data(slot).write(0, from);
        let completion = self.run(slot, &BlkRequest::write(sector, length(from)?))?;
        self.release(slot);
        Ok(completion)
    }

    /// Flushes.
    ///
    /// # Errors
    ///
    /// As [`BlkDriver::run`].
    pub fn flush(&mut self) -> Result<Completion> {
        self.execute(&BlkRequest::flush())
    }

    /// The serial number, padding included.
    ///
    /// # Errors
    ///
    /// As [`BlkDriver::run`], and when the status is not OK.
    pub fn get_id(&mut self) -> Result<[u8; ID_BYTES as usize]> {
        let slot = self.acquire()?;
        self.run(slot, &BlkRequest::get_id())?.ok()?;
        let mut id = [0; ID_BYTES as usize];
        self.data(slot).read(0, &mut id);
        self.release(slot);
        Ok(id)
    }

    /// Runs `DISCARD`, `WRITE_ZEROES` or `SECURE_ERASE` over ranges.
    ///
    /// # Errors
    ///
    /// As [`BlkDriver::run`].
    pub fn run_ranges(&mut self, kind: u32, ranges: &[Range]) -> Result<Completion> {
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX / Range::LEN);
        let slot = self.acquire()?;
        self.fill_ranges(slot, ranges);
        let completion = self.run(slot, &BlkRequest::ranges(kind, count))?;
        self.release(slot);
        Ok(completion)
    }

    /// Sectors of a device, from the `capacity` field of its configuration space.
    #[must_use]
    pub fn capacity(config: &[u8]) -> Option<u64> {
        config.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Sectors the largest request of this driver spans.
    #[must_use]
    pub fn slot_sectors(&self) -> u64 {
        (self.config().slot_bytes / SECTOR_BYTES) as u64
    }
}

fn length(data: &[u8]) -> Result<u32> {
    u32::try_from(data.len())
        .ok()
        .ok_or(FrontendError::OutOfGuestMemory { bytes: data.len() })
}
