// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The body of a message, as numbers; what does not have the length or the values that the message
//! has is an error of the front-end.

use super::received::Received;
use crate::error::{FrontEndError, MessageName};
use crate::memory::RegionSpec;

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
pub(super) struct Body<'a> {
    message: MessageName,
    bytes: &'a [u8],
}

/// `GET_CONFIG` and `SET_CONFIG`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config<'a> {
    pub(super) offset: u32,
    pub(super) size: u32,
    flags: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Body<'a> {
    pub(super) fn new(message: MessageName, bytes: &'a [u8]) -> Self {
        Self { message, bytes }
    }

    pub(super) fn message(self) -> MessageName {
        self.message
    }

    /// A value that the message cannot have.
    pub(super) fn bad(self, value: u64) -> FrontEndError {
        let message = self.message;
        FrontEndError::Payload { message, value }
    }

    pub(super) fn wrong_descriptors(self) -> FrontEndError {
        let message = self.message;
        FrontEndError::Descriptors { message }
    }

    fn length(self) -> FrontEndError {
        FrontEndError::Length {
            message: self.message,
            size_bytes: self.bytes.len(),
        }
    }

    pub(super) fn empty(self) -> Result<(), FrontEndError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(self.length())
    }

    /// `N` numbers of 64 bits, and nothing else.
    pub(super) fn numbers<const N: usize>(self) -> Result<[u64; N], FrontEndError> {
        let (numbers, rest) = self.bytes.as_chunks::<8>();
        let numbers: &[[u8; 8]; N] = numbers.try_into().map_err(|_e| self.length())?;
        if !rest.is_empty() {
            return Err(self.length());
        }
        Ok(numbers.map(u64::from_le_bytes))
    }

    /// Two numbers of 32 bits, and nothing else.
    pub(super) fn pair(self) -> Result<(u32, u32), FrontEndError> {
        let [both] = self.numbers()?;
        let [a0, a1, a2, a3, b0, b1, b2, b3] = both.to_le_bytes();
        Ok((
            u32::from_le_bytes([a0, a1, a2, a3]),
            u32::from_le_bytes([b0, b1, b2, b3]),
        ))
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
            let body = Body::new(self.message, region);
            body.numbers().map(spec_of)
        };
        regions.iter().map(spec).collect()
    }

    /// The region of `ADD_MEM_REG` and `REM_MEM_REG`.
    pub(super) fn single_region(self) -> Result<RegionSpec, FrontEndError> {
        let [_padding, guest, size, user, offset] = self.numbers()?;
        Ok(spec_of([guest, size, user, offset]))
    }

    /// The vring that is to use `fds`; they are one, or none where it says so.
    pub(super) fn vring_index(self, fds: &[Received]) -> Result<u32, FrontEndError> {
        let [value] = self.numbers()?;
        if value & !VRING_FD_BITS != 0 {
            return Err(self.bad(value));
        }
        if fds.len() != usize::from(value & VRING_NO_FD == 0) {
            return Err(self.wrong_descriptors());
        }
        let [index, ..] = value.to_le_bytes();
        Ok(u32::from(index))
    }

    /// A part of the configuration space.
    pub(super) fn config(self) -> Result<Config<'a>, FrontEndError> {
        let (header, payload) = self
            .bytes
            .split_first_chunk::<CONFIG_HEADER_BYTES>()
            .ok_or_else(|| self.length())?;
        let [o0, o1, o2, o3, s0, s1, s2, s3, f0, f1, f2, f3] = *header;
        let config = Config {
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            payload,
        };
        if config.flags & !CONFIG_FLAGS != 0 {
            return Err(self.bad(u64::from(config.flags)));
        }
        let end = config.offset.checked_add(config.size);
        if config.size == 0 || end.is_none_or(|end| end > CONFIG_SPACE_BYTES) {
            return Err(self.bad(u64::from(config.size)));
        }
        if u32::try_from(payload.len()).ok() != Some(config.size) {
            return Err(self.length());
        }
        Ok(config)
    }
}

impl Config<'_> {
    /// The answer to `GET_CONFIG`: without `space` it has no size, which says that there is none.
    pub(super) fn answer(self, space: Option<&Vec<u8>>) -> Vec<u8> {
        let size = if space.is_some() { self.size } else { 0 };
        let mut bytes = [self.offset, size, self.flags]
            .map(u32::to_le_bytes)
            .concat();
        bytes.extend(space.into_iter().flatten());
        bytes
    }
}

fn spec_of([guest_address, size_bytes, user_address, file_offset_bytes]: [u64; 4]) -> RegionSpec {
    RegionSpec {
        guest_address,
        size_bytes,
        user_address,
        file_offset_bytes,
    }
}
