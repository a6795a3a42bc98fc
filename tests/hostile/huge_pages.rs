// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The huge pages of this machine, which are all tests' together.

use std::fs::{self, File};
use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, MemfdFlags, flock};

use super::Result;

/// Pages that are kept, and those that may be made beyond.
const NUMBERS: [&str; 2] = [
    "/proc/sys/vm/nr_hugepages",
    "/proc/sys/vm/nr_overcommit_hugepages",
];

/// The machine has as many free huge pages as was asked for, and no other test changes that. On drop
/// the numbers are what they were.
#[derive(Debug)]
pub struct HugePages {
    before: [String; 2],
    page_bytes: u64,
    /// Locked.
    _one: File,
}

impl HugePages {
    /// Sees to `count` pages that are free and nobody's.
    ///
    /// # Errors
    ///
    /// Why there cannot be so many here: a reason to skip.
    pub fn with_free(count: u64) -> std::result::Result<Self, String> {
        Self::try_with_free(count).map_err(|error| format!("no {count} free huge pages: {error}"))
    }

    fn try_with_free(count: u64) -> Result<Self> {
        let one = File::open(NUMBERS[0])?;
        flock(&one, FlockOperation::LockExclusive)?;
        let [kept, beyond] = NUMBERS.map(fs::read_to_string);
        let pages = Self {
            before: [kept?, beyond?],
            page_bytes: number("Hugepagesize:")? << 10,
            _one: one,
        };
        if pages.before[1].trim() != "0" {
            fs::write(NUMBERS[1], "0")?;
        }
        pages.set_free(count)?;
        Ok(pages)
    }

    /// From now on so many are free.
    ///
    /// # Errors
    ///
    /// When the kernel has not so many, or does not let us change that.
    pub fn set_free(&self, count: u64) -> Result<()> {
        let free = free()?;
        if free != count {
            let kept = number("HugePages_Total:")? - free + count;
            fs::write(NUMBERS[0], kept.to_string())?;
        }
        match self::free()? {
            free if free == count => Ok(()),
            free => Err(format!("the kernel has {free}").into()),
        }
    }

    /// Bytes of one.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// A file of so many pages, of which none is taken yet.
    ///
    /// # Errors
    ///
    /// When the kernel makes none.
    pub fn memfd(&self, pages: u64) -> Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
        let file = rustix::fs::memfd_create("ringside-huge", flags)?;
        rustix::fs::ftruncate(&file, pages * self.page_bytes)?;
        Ok(file)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        for (path, before) in NUMBERS.iter().zip(&self.before) {
            // Who could not change it need not put it back.
            let _ = fs::write(path, before);
        }
    }
}

/// Pages that are free and not promised to anybody.
fn free() -> Result<u64> {
    Ok(number("HugePages_Free:")?.saturating_sub(number("HugePages_Rsvd:")?))
}

/// A line of `/proc/meminfo`.
fn number(label: &str) -> Result<u64> {
    let lines = fs::read_to_string("/proc/meminfo")?;
    let line = lines.lines().find_map(|line| line.strip_prefix(label));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.ok_or("a kernel without huge pages")?.parse()?)
}
