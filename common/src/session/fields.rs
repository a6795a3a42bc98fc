// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fields in the body of a message. A body that does not have the length or the values that the
//! message has is an error of the front-end.
//!
//! Fields are numbers in the byte order of the machine (vhost-user.rst "Message Specification"),
//! which is little-endian.

use crate::error::{FrontEndError, MessageName};
use crate::memory::RegionSpec;
use crate::ring::RingAddresses;

/// A region in `SET_MEM_TABLE`: guest address, size, the front-end's address, offset in the file.
const REGION_BYTES: usize = 32;
/// The most regions in `SET_MEM_TABLE`.
const MAX_REGIONS: u64 = 32;
/// Largest configuration space.
const CONFIG_SPACE_BYTES: u32 = 0x1000;
/// Flags of the configuration messages: writable, live migration.
const CONFIG_FLAGS: u32 = 3;
/// Offset, size, flags.
const CONFIG_HEADER_BYTES: usize = 12;
/// Vring descriptors: the index in bits 0-7, "no descriptor" in bit 8 (vhost-user.rst).
const VRING_FD_BITS: u64 = 0x1ff;
const VRING_NO_FD: u64 = 0x100;

/// The body of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    message: MessageName,
    bytes: &'a [u8],
}

/// The part of the configuration space that `GET_CONFIG` or `SET_CONFIG` names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ConfigPart {
    pub(super) offset: u32,
    pub(super) size: u32,
    flags: u32,
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: MessageName, bytes: &'a [u8]) -> Self {
        Self { message, bytes }
    }

    /// A value that the message cannot have.
    pub(super) fn bad(self, value: u64) -> FrontEndError {
        let message = self.message;
        FrontEndError::Payload { message, value }
    }

    fn length(self) -> FrontEndError {
        FrontEndError::Length {
            message: self.message,
            size_bytes: self.bytes.len(),
        }
    }

    /// `message`, whose body is empty.
    pub(super) fn none<M>(self, message: M) -> Result<M, FrontEndError> {
        if self.bytes.is_empty() {
            return Ok(message);
        }
        Err(self.length())
    }

    /// One number of 64 bits, and nothing else.
    pub(super) fn number(self) -> Result<u64, FrontEndError> {
        let [number] = self.numbers()?;
        Ok(number)
    }

    /// `N` numbers of 64 bits, and nothing else.
    fn numbers<const N: usize>(self) -> Result<[u64; N], FrontEndError> {
        let (numbers, rest) = self.bytes.as_chunks::<8>();
        let numbers: &[[u8; 8]; N] = numbers.try_into().map_err(|_e| self.length())?;
        if !rest.is_empty() {
            return Err(self.length());
        }
        Ok(numbers.map(u64::from_le_bytes))
    }

    /// Two numbers of 32 bits, and nothing else.
    pub(super) fn pair(self) -> Result<(u32, u32), FrontEndError> {
        self.number().map(halves)
    }

    /// The body of `SET_VRING_ADDR`: index, flags, addresses without the size of the ring.
    pub(super) fn vring_addresses(self) -> Result<(u32, u32, RingAddresses), FrontEndError> {
        let [start, descriptor, used, available, _log] = self.numbers()?;
        let (index, flags) = halves(start);
        let addresses = RingAddresses {
            size: 0,
            descriptor,
            available,
            used,
        };
        Ok((index, flags, addresses))
    }

    /// The table of `SET_MEM_TABLE`.
    pub(super) fn regions(self) -> Result<Vec<RegionSpec>, FrontEndError> {
        let (count, table) = self
            .bytes
            .split_first_chunk()
            .ok_or_else(|| self.length())?;
        let count = u64::from_le_bytes(*count);
        if !(1..=MAX_REGIONS).contains(&count) {
            return Err(self.bad(count));
        }
        let (regions, rest) = table.as_chunks::<REGION_BYTES>();
        if regions.len() as u64 != count || !rest.is_empty() {
            return Err(self.length());
        }
        let spec = |region: &[u8; REGION_BYTES]| {
            let fields = Fields::new(self.message, region);
            fields.numbers().map(spec_of)
        };
        regions.iter().map(spec).collect()
    }

    /// The region of `ADD_MEM_REG` and `REM_MEM_REG`.
    pub(super) fn single_region(self) -> Result<RegionSpec, FrontEndError> {
        let [_padding, guest, size, user, offset] = self.numbers()?;
        Ok(spec_of([guest, size, user, offset]))
    }

    /// The vring that an eventfd is for, and whether there is one.
    pub(super) fn vring_fd(self) -> Result<(u32, bool), FrontEndError> {
        let value = self.number()?;
        if value & !VRING_FD_BITS != 0 {
            return Err(self.bad(value));
        }
        let [index, ..] = value.to_le_bytes();
        Ok((u32::from(index), value & VRING_NO_FD == 0))
    }

    /// A part of the configuration space, and its bytes.
    pub(super) fn config(self) -> Result<(ConfigPart, &'a [u8]), FrontEndError> {
        let (header, payload) = self
            .bytes
            .split_first_chunk::<CONFIG_HEADER_BYTES>()
            .ok_or_else(|| self.length())?;
        let [o0, o1, o2, o3, s0, s1, s2, s3, f0, f1, f2, f3] = *header;
        let part = ConfigPart {
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        };
        if part.flags & !CONFIG_FLAGS != 0 {
            return Err(self.bad(u64::from(part.flags)));
        }
        let end = part.offset.checked_add(part.size);
        if part.size == 0 || end.is_none_or(|end| end > CONFIG_SPACE_BYTES) {
            return Err(self.bad(u64::from(part.size)));
        }
        if u32::try_from(payload.len()).ok() != Some(part.size) {
            return Err(self.length());
        }
        Ok((part, payload))
    }
}

impl ConfigPart {
    /// The answer to `GET_CONFIG`, with the bytes of this part. Where they are not all there, it has
    /// no size: that says that there is no such part.
    pub(super) fn answer(self, bytes: &[u8]) -> Vec<u8> {
        let whole = u32::try_from(bytes.len()).ok() == Some(self.size);
        let (size, bytes) = if whole {
            (self.size, bytes)
        } else {
            (0, &[][..])
        };
        let header = [self.offset, size, self.flags].map(u32::to_le_bytes);
        [header.as_flattened(), bytes].concat()
    }
}

/// The low and the high half.
fn halves(number: u64) -> (u32, u32) {
    let [a0, a1, a2, a3, b0, b1, b2, b3] = number.to_le_bytes();
    (
        u32::from_le_bytes([a0, a1, a2, a3]),
        u32::from_le_bytes([b0, b1, b2, b3]),
    )
}

fn spec_of([guest_address, size_bytes, user_address, file_offset_bytes]: [u64; 4]) -> RegionSpec {
    RegionSpec {
        guest_address,
        size_bytes,
        user_address,
        file_offset_bytes,
    }
}
