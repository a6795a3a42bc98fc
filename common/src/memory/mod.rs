// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: the only place that maps it.
//!
//! A region arrives with a file descriptor and numbers that an untrusted front-end chose. It is
//! checked against its file, against overflow and against the other regions *before* it is
//! mapped. The control thread builds an immutable [`Memory`] snapshot for every change of the
//! table; data threads hold the snapshot they use, and every request in flight holds the one its
//! buffers were translated with, so a mapping goes away only after the last request that could
//! touch it.
//!
//! A front-end can still truncate the file under us. What then happens is in [`sigbus`]. Which
//! files are taken for memory, so that no access waits for the front-end, is in `region`.

mod buffers;
mod copy;
mod payload;
mod region;
pub mod sigbus;
mod vectors;

pub use buffers::Buffers;
pub use payload::{Lent, Payload};
pub use region::{Region, RegionSpec};
pub use vectors::{Gather, IoScratch, Scatter};

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::error::{FrontEndError, RegionFault};
use region::refuse;

/// Memory slots offered to the front-end. 509 is what the other back-ends of the field offer, and
/// QEMU uses the smallest number among all the back-ends of a guest.
pub const MAX_SLOTS: usize = 509;

/// An immutable snapshot of the memory table, sorted by guest address.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    regions: Vec<Arc<Region>>,
}

/// A run of guest memory that is contiguous in our address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) start: *mut u8,
    pub(crate) len_bytes: usize,
}

impl Memory {
    /// A table of `regions`, in any order.
    ///
    /// # Errors
    /// When two of them overlap by guest or by front-end address, or there are too many.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self, FrontEndError> {
        if regions.len() > MAX_SLOTS {
            return Err(FrontEndError::TooManyRegions { max: MAX_SLOTS });
        }
        check_overlap(
            &mut regions,
            |spec| spec.user_address,
            RegionFault::FrontEndOverlap,
        )?;
        check_overlap(
            &mut regions,
            |spec| spec.guest_address,
            RegionFault::GuestOverlap,
        )?;
        Ok(Self { regions })
    }

    /// This table and one region more. One that is there already changes nothing: QEMU before 8.0
    /// sends each region once for every pair of queues of a network device.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub fn with(&self, region: Arc<Region>) -> Result<Self, FrontEndError> {
        if self.regions.iter().any(|have| have.is_same(&region)) {
            return Ok(self.clone());
        }
        let mut regions = self.regions.clone();
        regions.push(region);
        Self::new(regions)
    }

    /// This table without the region that `spec` names (vhost-user.rst "`REM_MEM_REG"`: matched by
    /// guest address, front-end address and size). Where there is none, nothing changes: QEMU
    /// before 8.0 removes each region as often as it has added it.
    #[must_use]
    pub fn without(&self, spec: &RegionSpec) -> Self {
        let key = |s: &RegionSpec| (s.guest_address, s.user_address, s.size_bytes);
        let mut regions = self.regions.clone();
        regions.retain(|region| key(&region.spec) != key(spec));
        Self { regions }
    }

    /// The same table as a `vm-memory` object, for devices that want one.
    #[must_use]
    pub fn to_guest_memory(&self) -> GuestMemoryMmap<()> {
        let regions = self
            .regions
            .iter()
            .map(|region| Arc::clone(&region.mapping))
            .collect();
        // An empty table is refused by the crate; it has its own constructor.
        GuestMemoryMmap::from_arc_regions(regions).unwrap_or_else(|_e| GuestMemoryMmap::new())
    }

    /// The regions, sorted by guest address.
    #[must_use]
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Whether a file behind any region was found truncated.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.regions.iter().any(|region| region.is_torn())
    }

    /// The host address and guest address of `len_bytes` at the front-end's address `user`, which
    /// must lie within one region.
    #[must_use]
    pub(crate) fn user_run(&self, user: u64, len_bytes: u64) -> Option<(*mut u8, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = region.contains(user, region.spec.user_address, len_bytes)?;
            let guest = region.spec.guest_address.checked_add(offset)?;
            Some((region.at(offset), guest))
        })
    }

    /// The longest run, of at most `len_bytes`, that starts at the guest address `guest`.
    ///
    /// `hint` is the region that was hit last; most requests stay within one region, so that the
    /// search is the exception.
    #[inline]
    pub(crate) fn guest_run(&self, guest: u64, len_bytes: u64, hint: &mut usize) -> Option<Run> {
        if let Some(region) = self.regions.get(*hint)
            && let Some(run) = region.run(guest, len_bytes)
        {
            return Some(run);
        }
        let after = self
            .regions
            .partition_point(|region| region.spec.guest_address <= guest);
        let index = after.checked_sub(1)?;
        let run = self.regions.get(index)?.run(guest, len_bytes)?;
        *hint = index;
        Some(run)
    }
}

fn check_overlap(
    regions: &mut [Arc<Region>],
    base: fn(&RegionSpec) -> u64,
    fault: RegionFault,
) -> Result<(), FrontEndError> {
    regions.sort_by_key(|region| base(&region.spec));
    for pair in regions.windows(2) {
        let [low, high] = pair else { continue };
        // `RegionSpec::check` has ruled out the overflow.
        if base(&low.spec).saturating_add(low.spec.size_bytes) > base(&high.spec) {
            return Err(refuse(&high.spec, fault));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn memfd(bytes: u64) -> File {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, bytes).unwrap();
        File::from(fd)
    }

    fn spec(guest_address: u64, size_bytes: u64, user_address: u64) -> RegionSpec {
        RegionSpec {
            guest_address,
            size_bytes,
            user_address,
            file_offset_bytes: 0,
        }
    }

    fn fault(result: Result<Arc<Region>, FrontEndError>) -> RegionFault {
        match result {
            Err(FrontEndError::MemoryRegion { reason, .. }) => reason,
            other => panic!("not a region fault: {other:?}"),
        }
    }

    #[test]
    fn map_beyond_the_file_is_refused() {
        let got = fault(Region::map(spec(0, 1 << 40, 0), memfd(4096)));
        assert_eq!(got, RegionFault::BeyondFile { file_bytes: 4096 });
    }

    #[test]
    fn map_of_unaligned_or_empty_is_refused() {
        for (size, offset) in [(0, 0), (4096, 100)] {
            let spec = RegionSpec {
                file_offset_bytes: offset,
                ..spec(0, size, 0)
            };
            let got = fault(Region::map(spec, memfd(8192)));
            assert_eq!(got, RegionFault::Unaligned { page_bytes: 4096 });
        }
    }

    #[test]
    fn map_that_ends_within_a_page_is_that_long_and_no_longer() {
        let region = Region::map(spec(0x1000, 100, 0x9000), memfd(100)).unwrap();
        let memory = Memory::new(vec![region]).unwrap();
        let run = memory.guest_run(0x1000, 4096, &mut 0).unwrap();
        assert_eq!(run.len_bytes, 100);
        assert!(memory.guest_run(0x1064, 1, &mut 0).is_none());
        assert_eq!(memory.user_run(0x9000, 101), None);
        assert_eq!(
            fault(Region::map(spec(0x1000, 100, 0x9000), memfd(99))),
            RegionFault::BeyondFile { file_bytes: 99 }
        );
    }

    #[test]
    fn map_with_overflowing_addresses_is_refused() {
        let top = u64::MAX - 4095;
        assert_eq!(
            fault(Region::map(spec(top, 8192, 0), memfd(8192))),
            RegionFault::Overflow
        );
        assert_eq!(
            fault(Region::map(spec(0, 8192, top), memfd(8192))),
            RegionFault::Overflow
        );
    }

    #[test]
    fn map_of_dev_null_is_refused() {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        assert_eq!(
            fault(Region::map(spec(0, 4096, 0), null)),
            RegionFault::NotAFile
        );
    }

    #[test]
    fn table_is_sorted_and_translates_across_the_hint() {
        let low = Region::map(spec(0x1000, 0x1000, 0x9000), memfd(4096)).unwrap();
        let high = Region::map(spec(0x5000, 0x2000, 0x20000), memfd(8192)).unwrap();
        let memory = Memory::new(vec![Arc::clone(&high), Arc::clone(&low)]).unwrap();
        let mut hint = 0;
        assert_eq!(
            memory
                .guest_run(0x1800, 0x1000, &mut hint)
                .unwrap()
                .len_bytes,
            0x800
        );
        assert_eq!(
            memory.guest_run(0x5000, 0x10, &mut hint).unwrap().start,
            high.host
        );
        assert_eq!(hint, 1);
        assert_eq!(memory.guest_run(0x1fff, 1, &mut hint).unwrap().len_bytes, 1);
        assert!(memory.guest_run(0x2000, 1, &mut hint).is_none());
        assert!(memory.guest_run(0xfff, 1, &mut hint).is_none());
        assert_eq!(
            memory.user_run(0x20010, 0x20),
            Some((high.host.wrapping_add(0x10), 0x5010))
        );
        assert_eq!(memory.user_run(0x21ff0, 0x20), None);
    }

    #[test]
    fn table_with_overlap_is_refused() {
        let a = Region::map(spec(0x1000, 0x2000, 0x9000), memfd(8192)).unwrap();
        let guest = Region::map(spec(0x2000, 0x1000, 0x20000), memfd(4096)).unwrap();
        let user = Region::map(spec(0x8000, 0x1000, 0xa000), memfd(4096)).unwrap();
        assert!(matches!(
            Memory::new(vec![Arc::clone(&a), guest]),
            Err(FrontEndError::MemoryRegion {
                reason: RegionFault::GuestOverlap,
                ..
            })
        ));
        assert!(matches!(
            Memory::new(vec![a, user]),
            Err(FrontEndError::MemoryRegion {
                reason: RegionFault::FrontEndOverlap,
                ..
            })
        ));
    }

    #[test]
    fn remove_names_the_region_exactly() {
        let a = Region::map(spec(0x1000, 0x1000, 0x9000), memfd(4096)).unwrap();
        let memory = Memory::new(vec![a]).unwrap();
        let left = |spec| memory.without(&spec).regions().len();
        assert_eq!(left(spec(0x1000, 0x2000, 0x9000)), 1);
        assert_eq!(left(spec(0x1000, 0x1000, 0x9000)), 0);
    }
}
