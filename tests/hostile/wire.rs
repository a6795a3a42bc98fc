// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bodies of messages, every number free to choose.

use ringside_frontend::memory::Region;
use ringside_frontend::raw::Header;

/// A region as the memory messages describe it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RegionBody {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length.
    pub bytes: u64,
    /// The front-end's address.
    pub uva: u64,
    /// Where it starts in its file.
    pub offset: u64,
}

impl RegionBody {
    /// What a sound front-end says of a region.
    #[must_use]
    pub fn of(region: &Region) -> Self {
        let info = region.info();
        Self {
            gpa: info.guest_phys_addr,
            bytes: info.memory_size,
            uva: info.userspace_addr,
            offset: info.mmap_offset,
        }
    }

    fn words(&self) -> [u64; 4] {
        [self.gpa, self.bytes, self.uva, self.offset]
    }
}

/// `SET_MEM_TABLE` with any count.
#[must_use]
pub fn mem_table(count: u32, regions: &[RegionBody]) -> Vec<u8> {
    let mut body = u64::from(count).to_ne_bytes().to_vec();
    for word in regions.iter().flat_map(RegionBody::words) {
        body.extend(word.to_ne_bytes());
    }
    body
}

/// `ADD_MEM_REG` and `REM_MEM_REG`.
#[must_use]
pub fn mem_region(region: &RegionBody) -> Vec<u8> {
    words(&[0, region.gpa, region.bytes, region.uva, region.offset])
}

/// Words one after the other.
#[must_use]
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The state of a vring: index and number.
#[must_use]
pub fn vring_state(index: u32, num: u32) -> Vec<u8> {
    [index, num].iter().flat_map(|n| n.to_ne_bytes()).collect()
}

/// `SET_VRING_ADDR` with flags 0 and no log.
#[must_use]
pub fn vring_addr(index: u32, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    words(&[u64::from(index), desc, used, avail, 0])
}

/// `GET_CONFIG` and `SET_CONFIG`.
#[must_use]
pub fn config(offset: u32, bytes: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = [offset, bytes, flags]
        .iter()
        .flat_map(|n| n.to_ne_bytes())
        .collect();
    body.extend_from_slice(payload);
    body
}

/// A sound header for a body.
#[must_use]
pub fn header(request: u32, body: &[u8]) -> Header {
    Header::new(request, u32::try_from(body.len()).unwrap_or(u32::MAX))
}
