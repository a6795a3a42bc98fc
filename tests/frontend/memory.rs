// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: memfd regions at chosen guest-physical addresses, mapped here and shared with the
//! back-end.
//!
//! [`GuestMemory`] is addressed by gpa and splits accesses at borders between adjacent regions;
//! [`GuestSlice`] is the fast, contiguous window that rings and request slots use.

mod layout;
mod mapping;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};
use vhost::VhostUserMemoryRegionInfo;

pub use layout::{FIRST_GPA, MemoryLayout, RegionSpec, Sealing, Uva};
pub use mapping::GuestSlice;

use super::error::{FrontendError, Result};

/// One region of guest memory, mapped in this process.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    uva: u64,
    mmap_offset: u64,
    file: OwnedFd,
    window: GuestSlice,
}

impl Region {
    fn new(spec: &RegionSpec, layout: &MemoryLayout) -> Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("ringside-guest", flags)
            .map_err(FrontendError::io("memfd_create"))?;
        rustix::fs::ftruncate(&file, spec.mmap_offset + spec.bytes as u64)
            .map_err(FrontendError::io("ftruncate of a memfd"))?;
        if layout.sealing == Sealing::Sealed {
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&file, seals)
                .map_err(FrontendError::io("sealing a memfd"))?;
        }
        Self::on(file, spec, layout)
    }

    fn on(file: OwnedFd, spec: &RegionSpec, layout: &MemoryLayout) -> Result<Self> {
        let window = GuestSlice::map(file.as_fd(), spec.mmap_offset, spec.bytes, layout.populate)
            .map_err(FrontendError::io("mmap of guest memory"))?;
        let uva = match spec.uva {
            Uva::Mapped => window.hva(),
            Uva::At(uva) => uva,
        };
        Ok(Self {
            gpa: spec.gpa,
            uva,
            mmap_offset: spec.mmap_offset,
            file,
            window,
        })
    }

    /// Guest-physical address of the first byte.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// The front-end's address of the first byte.
    #[must_use]
    pub fn uva(&self) -> u64 {
        self.uva
    }

    /// Length of the region.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.window.len_bytes()
    }

    /// The whole region as one window.
    #[must_use]
    pub fn window(&self) -> &GuestSlice {
        &self.window
    }

    /// The memfd behind the region.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The region as the vhost crate's messages take it. Valid as long as `self` lives.
    #[must_use]
    pub fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.gpa,
            memory_size: self.len_bytes() as u64,
            userspace_addr: self.uva,
            mmap_offset: self.mmap_offset,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn end(&self) -> u64 {
        self.gpa + self.len_bytes() as u64
    }
}

/// What the bump allocator has left.
#[derive(Debug)]
struct Free {
    /// Per region: the free byte range.
    ranges: Vec<(usize, usize)>,
    /// Borders between adjacent regions nobody straddles yet.
    borders: Vec<u64>,
}

/// Guest memory with a bump allocator. Nothing is ever given back.
#[derive(Debug)]
pub struct GuestMemory {
    /// In the order of the memory table.
    regions: Vec<Region>,
    border_reserve: usize,
    free: Mutex<Free>,
}

impl GuestMemory {
    /// Creates and maps the regions.
    ///
    /// # Errors
    ///
    /// When the layout overlaps itself or the kernel refuses a file or mapping.
    pub fn new(layout: &MemoryLayout) -> Result<Arc<Self>> {
        let regions = layout.regions.iter();
        Self::of(layout, regions.map(|spec| Region::new(spec, layout)))
    }

    /// Maps the regions in these files, as they are: one for each, and long enough. Where there are
    /// fewer files, the rest of the regions is created.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::new`].
    pub fn on_files(
        layout: &MemoryLayout,
        files: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<Arc<Self>> {
        let mut files = files.into_iter();
        let regions = layout.regions.iter().map(|spec| match files.next() {
            Some(file) => Region::on(file, spec, layout),
            None => Region::new(spec, layout),
        });
        Self::of(layout, regions)
    }

    fn of(
        layout: &MemoryLayout,
        regions: impl Iterator<Item = Result<Region>>,
    ) -> Result<Arc<Self>> {
        let regions = regions.collect::<Result<Vec<_>>>()?;
        let mut free = Free {
            ranges: regions.iter().map(|r| (0, r.len_bytes())).collect(),
            borders: Vec::new(),
        };
        for (i, low) in regions.iter().enumerate() {
            for (j, high) in regions.iter().enumerate() {
                if i != j && low.gpa < high.end() && high.gpa < low.end() {
                    return Err(FrontendError::Unusable {
                        what: "layout: overlap at gpa",
                        value: low.gpa.max(high.gpa),
                    });
                }
                if i != j && low.end() == high.gpa {
                    free.ranges[i].1 = low.len_bytes().saturating_sub(layout.border_reserve);
                    free.ranges[j].0 = layout.border_reserve;
                    free.borders.push(high.gpa);
                }
            }
        }
        Ok(Arc::new(Self {
            regions,
            border_reserve: layout.border_reserve,
            free: Mutex::new(free),
        }))
    }

    /// The regions in the order of the memory table.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Reserves `bytes` contiguous bytes inside any one region and returns their gpa.
    ///
    /// # Errors
    ///
    /// When no region has the room.
    pub fn alloc(&self, bytes: usize, align: usize) -> Result<u64> {
        (0..self.regions.len())
            .find_map(|region| self.alloc_in(region, bytes, align).ok())
            .ok_or(FrontendError::OutOfGuestMemory { bytes })
    }

    /// Reserves `bytes` inside the region with this index.
    ///
    /// # Errors
    ///
    /// When that region has not the room.
    pub fn alloc_in(&self, region: usize, bytes: usize, align: usize) -> Result<u64> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let full = || FrontendError::OutOfGuestMemory { bytes };
        let (next, end) = free.ranges.get_mut(region).ok_or_else(full)?;
        let start = next.next_multiple_of(align);
        if start.checked_add(bytes).is_none_or(|after| after > *end) {
            return Err(full());
        }
        *next = start + bytes;
        Ok(self.regions[region].gpa + start as u64)
    }

    /// Reserves a buffer with `before` bytes in one region and `after` in the adjacent next one.
    ///
    /// A border takes one such buffer, so as many are to be had as there are borders.
    ///
    /// # Errors
    ///
    /// When no border is left or its reserve is too small.
    pub fn alloc_straddling(&self, before: usize, after: usize) -> Result<u64> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if before.max(after) > self.border_reserve {
            return Err(FrontendError::NoBorder { before, after });
        }
        let border = free.borders.pop();
        border
            .map(|border| border - before as u64)
            .ok_or(FrontendError::NoBorder { before, after })
    }

    /// The contiguous window at `gpa`, which must lie in one region.
    ///
    /// # Errors
    ///
    /// When no single region covers the range.
    pub fn slice(&self, gpa: u64, bytes: usize) -> Result<GuestSlice> {
        let (region, offset) = self.find(gpa, bytes as u64)?;
        if bytes > region.len_bytes() - offset {
            return Err(FrontendError::NotMapped {
                gpa,
                bytes: bytes as u64,
            });
        }
        Ok(region.window.sub(offset, bytes))
    }

    /// The front-end address of `gpa`, which ring addresses are given in.
    ///
    /// # Errors
    ///
    /// When no region covers `gpa`.
    pub fn uva(&self, gpa: u64) -> Result<u64> {
        let (region, offset) = self.find(gpa, 1)?;
        Ok(region.uva.wrapping_add(offset as u64))
    }

    /// Copies out guest bytes, across adjacent regions if need be.
    ///
    /// # Errors
    ///
    /// When part of the range is not mapped.
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> Result<()> {
        let (mut at, mut rest) = (gpa, into);
        while !rest.is_empty() {
            let (region, offset) = self.find(at, rest.len() as u64)?;
            let here = rest.len().min(region.len_bytes() - offset);
            let (part, later) = rest.split_at_mut(here);
            region.window.read(offset, part);
            at += here as u64;
            rest = later;
        }
        Ok(())
    }

    /// Copies bytes into the guest, across adjacent regions if need be.
    ///
    /// # Errors
    ///
    /// When part of the range is not mapped.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (gpa, from);
        while !rest.is_empty() {
            let (region, offset) = self.find(at, rest.len() as u64)?;
            let here = rest.len().min(region.len_bytes() - offset);
            let (part, later) = rest.split_at(here);
            region.window.write(offset, part);
            at += here as u64;
            rest = later;
        }
        Ok(())
    }

    /// `bytes` guest bytes as a vector.
    ///
    /// # Errors
    ///
    /// When part of the range is not mapped.
    pub fn read_vec(&self, gpa: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; bytes];
        self.read(gpa, &mut data)?;
        Ok(data)
    }

    /// The region that holds `gpa` and the offset in it; `bytes` is only for the error.
    fn find(&self, gpa: u64, bytes: u64) -> Result<(&Region, usize)> {
        self.regions
            .iter()
            .find_map(|region| {
                let offset = usize::try_from(gpa.checked_sub(region.gpa)?).ok()?;
                (offset < region.len_bytes()).then_some((region, offset))
            })
            .ok_or(FrontendError::NotMapped { gpa, bytes })
    }
}

#[cfg(test)]
mod tests;
