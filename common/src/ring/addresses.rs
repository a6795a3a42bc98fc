// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the three parts of a split ring are, as the front-end says and in guest memory.

use serde::{Deserialize, Serialize};

use crate::chain::DESCRIPTOR_BYTES;
use crate::error::{FrontEndError, RingPart};
use crate::memory::Memory;

/// Addresses of a ring in the front-end's address space, and its size.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RingAddresses {
    /// Entries; a power of two.
    pub size: u16,
    /// Descriptor table.
    pub descriptor: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// Guest-physical addresses of a ring that passed [`RingAddresses::check`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestRing {
    /// Descriptor table.
    pub descriptor: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// Host pointers of a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) descriptor: *mut u8,
    pub(super) available: *mut u8,
    pub(super) used: *mut u8,
}

impl RingAddresses {
    /// Checks extent, alignment and overlap; a front-end learns of a bad ring here, not from a
    /// request that never comes back.
    ///
    /// # Errors
    /// [`FrontEndError`] that names the part.
    pub fn check(&self, index: u32, memory: &Memory) -> Result<GuestRing, FrontEndError> {
        self.resolve(memory)
            .map(|(_parts, guest)| guest)
            .map_err(|e| e.of_vring(index))
    }

    fn extents(&self) -> [(RingPart, u64, u64, u64); 3] {
        let size = u64::from(self.size);
        let table_bytes = size * u64::from(DESCRIPTOR_BYTES);
        // flags, idx, ring, used_event; flags, idx, ring of (id, len), avail_event.
        [
            (RingPart::DescriptorTable, self.descriptor, table_bytes, 16),
            (RingPart::AvailableRing, self.available, 6 + 2 * size, 2),
            (RingPart::UsedRing, self.used, 6 + 8 * size, 4),
        ]
    }

    pub(super) fn resolve(&self, memory: &Memory) -> Result<(Parts, GuestRing), Misplaced> {
        let mut found = [(std::ptr::null_mut(), 0); 3];
        let extents = self.extents();
        for (slot, (part, address, bytes, align)) in found.iter_mut().zip(extents) {
            let run = memory.user_run(address, bytes).filter(|(host, guest)| {
                guest.is_multiple_of(align) && (host.addr() as u64).is_multiple_of(align)
            });
            *slot = run.ok_or(Misplaced::Part(part, address))?;
        }
        for (i, (_, a, a_bytes, _)) in extents.iter().enumerate() {
            for (_, b, b_bytes, _) in extents.iter().skip(i + 1) {
                // `user_run` has ruled out the overflow.
                if a.wrapping_add(*a_bytes) > *b && b.wrapping_add(*b_bytes) > *a {
                    return Err(Misplaced::Overlap);
                }
            }
        }
        let [(descriptor, d), (available, a), (used, u)] = found;
        let guest = GuestRing {
            descriptor: d,
            available: a,
            used: u,
        };
        Ok((
            Parts {
                descriptor,
                available,
                used,
            },
            guest,
        ))
    }
}

/// A part of a ring that is not where it can be.
pub(super) enum Misplaced {
    Part(RingPart, u64),
    Overlap,
}

impl Misplaced {
    pub(super) fn of_vring(self, index: u32) -> FrontEndError {
        match self {
            Self::Part(part, address) => FrontEndError::VringAddress {
                index,
                part,
                address,
            },
            Self::Overlap => FrontEndError::VringOverlap { index },
        }
    }
}
