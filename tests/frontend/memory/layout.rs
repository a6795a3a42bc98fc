// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which regions guest memory is made of.

/// Guest-physical address of the first region of the ready-made layouts: not 0, so that an offset
/// taken for an address is found out.
pub const FIRST_GPA: u64 = 0x4000_0000;

/// Bytes kept free on both sides of a border between adjacent regions.
const BORDER_RESERVE: usize = 64 << 10;

/// The front-end's own address of a region, which ring addresses are given in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uva {
    /// The address of the mapping in this process, as a VMM has it.
    #[default]
    Mapped,
    /// A chosen address: no back-end may care whether it exists.
    At(u64),
}

/// Whether the memfd is sealed before it is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sealing {
    /// Sealed against shrinking, growing and further seals, as cloud-hypervisor does.
    #[default]
    Sealed,
    /// Not sealed, as QEMU does by default: a test can truncate the file.
    Open,
}

/// One region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length, a multiple of the page size.
    pub bytes: usize,
    /// Where the region starts in its file, a multiple of the page size.
    pub mmap_offset: u64,
    /// The address the front-end claims to have it at.
    pub uva: Uva,
}

impl RegionSpec {
    /// A region at `gpa` that starts its own file.
    #[must_use]
    pub fn new(gpa: u64, bytes: usize) -> Self {
        Self {
            gpa,
            bytes,
            mmap_offset: 0,
            uva: Uva::Mapped,
        }
    }
}

/// The regions of guest memory, in the order the memory table lists them.
#[derive(Clone, Debug)]
pub struct MemoryLayout {
    pub(super) regions: Vec<RegionSpec>,
    pub(super) sealing: Sealing,
    pub(super) border_reserve: usize,
    pub(super) populate: bool,
}

impl MemoryLayout {
    /// Exactly these regions. They may be unsorted but must not overlap.
    #[must_use]
    pub fn of(regions: Vec<RegionSpec>) -> Self {
        Self {
            regions,
            sealing: Sealing::Sealed,
            border_reserve: BORDER_RESERVE,
            populate: false,
        }
    }

    /// One region.
    #[must_use]
    pub fn single(bytes: usize) -> Self {
        Self::of(vec![RegionSpec::new(FIRST_GPA, bytes)])
    }

    /// `count` regions without gaps between them.
    #[must_use]
    pub fn adjacent(count: usize, bytes_each: usize) -> Self {
        Self::spread(count, bytes_each, 0)
    }

    /// `count` regions with `gap_bytes` of unmapped guest-physical space between them.
    #[must_use]
    pub fn spread(count: usize, bytes_each: usize, gap_bytes: u64) -> Self {
        let mut gpa = FIRST_GPA;
        let mut regions = Vec::with_capacity(count);
        for _ in 0..count {
            regions.push(RegionSpec::new(gpa, bytes_each));
            gpa += bytes_each as u64 + gap_bytes;
        }
        Self::of(regions)
    }

    /// The regions, in the order of the memory table.
    pub fn regions(&self) -> impl Iterator<Item = &RegionSpec> {
        self.regions.iter()
    }

    /// Claims chosen front-end addresses: `base` plus the guest-physical address.
    #[must_use]
    pub fn uva_base(mut self, base: u64) -> Self {
        for region in &mut self.regions {
            region.uva = Uva::At(base + region.gpa);
        }
        self
    }

    /// Lists the regions in the opposite order in the memory table.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        self.regions.reverse();
        self
    }

    /// Whether the memfds are sealed.
    #[must_use]
    pub fn sealing(mut self, sealing: Sealing) -> Self {
        self.sealing = sealing;
        self
    }

    /// Bytes kept free on both sides of every border, for buffers that straddle it.
    #[must_use]
    pub fn border_reserve(mut self, bytes: usize) -> Self {
        self.border_reserve = bytes;
        self
    }

    /// Faults all pages in at once, so that a benchmark does not measure page faults.
    #[must_use]
    pub fn populate(mut self, populate: bool) -> Self {
        self.populate = populate;
        self
    }
}

impl Default for MemoryLayout {
    /// One region of 64 MiB: pages are only taken once touched.
    fn default() -> Self {
        Self::single(64 << 20)
    }
}
