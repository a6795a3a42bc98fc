// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One region of guest memory: a part of a file, mapped.
//!
//! # Huge pages
//! A file of `hugetlbfs` has pages of its own size. The kernel takes lengths of mappings there in
//! whole pages only, so the mapping is rounded up to them, as is its end when it is unmapped. The
//! pages are reserved when the region is mapped: a lack of them is a refused region, and not a
//! SIGBUS at a touch later.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{FileType, fstat, fstatfs};
use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use super::sigbus;
use crate::error::{FrontEndError, RegionFault};
use crate::limited;
use crate::num::{unsigned, usize_of};

/// linux/magic.h: `HUGETLBFS_MAGIC`.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// What a front-end says of one region (vhost-user.rst "Memory region description").
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RegionSpec {
    /// Guest-physical address.
    pub guest_address: u64,
    /// Length in bytes.
    pub size_bytes: u64,
    /// The front-end's own address of the region, in which vring addresses are given.
    pub user_address: u64,
    /// Where the region starts in its file.
    pub file_offset_bytes: u64,
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    pub(super) spec: RegionSpec,
    pub(super) host: *mut u8,
    /// Device and inode number of its file.
    file: (u64, u64),
    /// Before `mapping`: the range must leave the table of the SIGBUS handler before it is
    /// unmapped and another mapping can take its place.
    guard: sigbus::Guard,
    pub(super) mapping: Arc<GuestRegionMmap<()>>,
}

// SAFETY: `host` points into a shared mapping that `mapping` keeps alive; it is only read and
// written through volatile, atomic or kernel accesses, for which no thread is special.
#[expect(unsafe_code, reason = "a raw pointer is not Send by itself")]
unsafe impl Send for Region {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a raw pointer is not Sync by itself")]
unsafe impl Sync for Region {}

impl Region {
    /// Checks `spec` against `file` and maps it.
    ///
    /// # Errors
    /// [`FrontEndError::MemoryRegion`] with the reason.
    pub fn map(spec: RegionSpec, file: File) -> Result<Arc<Self>, FrontEndError> {
        Self::try_map(spec, file)
            .map(Arc::new)
            .map_err(|reason| refuse(&spec, reason))
    }

    fn try_map(spec: RegionSpec, file: File) -> Result<Self, RegionFault> {
        let stat = fstat(&file).map_err(map_fault)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(RegionFault::NotAFile);
        }
        let pages = Pages::of(&file)?;
        spec.check(pages.bytes)?;
        let file_bytes = unsigned(stat.st_size);
        if spec
            .file_offset_bytes
            .checked_add(spec.size_bytes)
            .is_none_or(|end| end > file_bytes)
        {
            return Err(RegionFault::BeyondFile { file_bytes });
        }
        let mapped_bytes = usize_of(spec.size_bytes)
            .checked_next_multiple_of(pages.granule_bytes())
            .ok_or(RegionFault::Overflow)?;
        let fd = file.as_raw_fd();
        limited!(trace, "mapping {spec:x?} from descriptor {fd}");
        let region: MmapRegion<()> = MmapRegionBuilder::new(mapped_bytes)
            .with_file_offset(FileOffset::new(file, spec.file_offset_bytes))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(pages.mmap_flags())
            .build()
            .map_err(|e| RegionFault::Map {
                errno: mmap_errno(&e),
            })?;
        let host = region.as_ptr();
        let guard = sigbus::Guard::new(host.addr(), mapped_bytes, pages.bytes);
        let mapping = GuestRegionMmap::new(region, GuestAddress(spec.guest_address))
            .ok_or(RegionFault::Overflow)?;
        Ok(Self {
            spec,
            host,
            file: (stat.st_dev, stat.st_ino),
            mapping: Arc::new(mapping),
            guard,
        })
    }

    /// Whether it is the same part of the same file at the same addresses.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.spec, self.file) == (other.spec, other.file)
    }

    /// What the front-end said of it.
    #[must_use]
    pub fn spec(&self) -> &RegionSpec {
        &self.spec
    }

    /// Whether an access has found the file truncated.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.guard.is_torn()
    }
}

impl RegionSpec {
    fn check(&self, page_bytes: usize) -> Result<(), RegionFault> {
        let page_bytes = page_bytes as u64;
        let unaligned = |value: u64| !value.is_multiple_of(page_bytes);
        // The size may end within a page: libblkio shares its rings in a file of just their length.
        if self.size_bytes == 0 || unaligned(self.file_offset_bytes) {
            return Err(RegionFault::Unaligned { page_bytes });
        }
        let starts = [
            self.guest_address,
            self.user_address,
            self.file_offset_bytes,
        ];
        if starts
            .iter()
            .any(|start| start.checked_add(self.size_bytes).is_none())
        {
            return Err(RegionFault::Overflow);
        }
        Ok(())
    }
}

/// The pages that a file is mapped in.
#[derive(Clone, Copy, Debug)]
struct Pages {
    bytes: usize,
    huge: bool,
}

impl Pages {
    fn of(file: &File) -> Result<Self, RegionFault> {
        let file_system = fstatfs(file).map_err(map_fault)?;
        // The field has another type on each architecture.
        let huge = u64::try_from(file_system.f_type).is_ok_and(|magic| magic == HUGETLBFS_MAGIC);
        let bytes = if huge {
            usize::try_from(file_system.f_bsize).map_err(|_e| RegionFault::Overflow)?
        } else {
            rustix::param::page_size()
        };
        Ok(Self { bytes, huge })
    }

    /// What the length of a mapping is a multiple of, as far as we have to see to it.
    fn granule_bytes(self) -> usize {
        if self.huge { self.bytes } else { 1 }
    }

    fn mmap_flags(self) -> i32 {
        if self.huge {
            libc::MAP_SHARED
        } else {
            libc::MAP_SHARED | libc::MAP_NORESERVE
        }
    }
}

fn map_fault(error: rustix::io::Errno) -> RegionFault {
    RegionFault::Map {
        errno: error.raw_os_error(),
    }
}

pub(super) fn refuse(spec: &RegionSpec, reason: RegionFault) -> FrontEndError {
    FrontEndError::MemoryRegion {
        guest_address: spec.guest_address,
        size_bytes: spec.size_bytes,
        reason,
    }
}

fn mmap_errno(error: &vm_memory::mmap::MmapRegionError) -> i32 {
    match error {
        vm_memory::mmap::MmapRegionError::Mmap(e) => e.raw_os_error().unwrap_or(libc::EINVAL),
        _ => libc::EINVAL,
    }
}

impl Region {
    /// The offset of `address` when `len_bytes` from there lie in the region that starts at `base`.
    pub(super) fn contains(&self, address: u64, base: u64, len_bytes: u64) -> Option<u64> {
        let offset = address.checked_sub(base)?;
        (offset.checked_add(len_bytes)? <= self.spec.size_bytes).then_some(offset)
    }

    #[inline]
    pub(super) fn run(&self, guest: u64, len_bytes: u64) -> Option<super::Run> {
        let offset = guest.wrapping_sub(self.spec.guest_address);
        if offset >= self.spec.size_bytes {
            return None;
        }
        Some(super::Run {
            start: self.at(offset),
            len_bytes: usize_of(len_bytes.min(self.spec.size_bytes - offset)),
        })
    }

    #[inline]
    pub(super) fn at(&self, offset: u64) -> *mut u8 {
        self.host.wrapping_add(usize_of(offset))
    }
}
