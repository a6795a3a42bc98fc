// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fields out of bytes and into them. All numbers are little-endian, as the guests served are.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use std::ffi::CStr;

use super::error::ParseError;

/// What of a request has not been read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Reads `args`, which must be exactly `N` bytes, with `read`.
    #[inline]
    pub(super) fn exact<const N: usize, T>(
        args: &'a [u8],
        read: impl FnOnce(&mut Self) -> Result<T, ParseError>,
    ) -> Result<T, ParseError> {
        let Ok(fields) = <&[u8; N]>::try_from(args) else {
            return Err(ParseError::Length {
                len_bytes: args.len(),
            });
        };
        read(&mut Self(fields))
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(ParseError::Length {
            len_bytes: self.0.len(),
        })?;
        self.0 = rest;
        Ok(*field)
    }

    #[cfg(test)]
    pub(super) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `len_bytes`, if they are there.
    pub(super) fn bytes(&mut self, len_bytes: usize) -> Result<&'a [u8], ParseError> {
        let (bytes, rest) = self
            .0
            .split_at_checked(len_bytes)
            .ok_or(ParseError::Length {
                len_bytes: self.0.len(),
            })?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A string of at most `max_bytes` and its NUL; `too_long` if it has more.
    #[inline]
    pub(super) fn string(
        &mut self,
        max_bytes: usize,
        too_long: ParseError,
    ) -> Result<&'a CStr, ParseError> {
        let head = self.0.get(..=max_bytes);
        match CStr::from_bytes_until_nul(head.unwrap_or(self.0)) {
            Ok(string) => {
                self.bytes(string.count_bytes().saturating_add(1))?;
                Ok(string)
            }
            Err(_) if head.is_some() => Err(too_long),
            Err(_) => Err(ParseError::NoNul),
        }
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Refuses bytes that nothing has read.
    #[inline]
    pub(super) fn end(&self) -> Result<(), ParseError> {
        match self.0 {
            [] => Ok(()),
            rest => Err(ParseError::Trailing {
                len_bytes: rest.len(),
            }),
        }
    }
}

/// Something that fields are appended to.
pub(super) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// What of an array has not been written yet; bytes that do not fit are lost.
#[derive(Debug)]
pub(super) struct Room<'a>(&'a mut [u8]);

impl Put for Room<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if let Some((room, rest)) = std::mem::take(&mut self.0).split_at_mut_checked(bytes.len()) {
            room.copy_from_slice(bytes);
            self.0 = rest;
        }
    }
}

/// An array that `write` fills; what it does not write is zero.
#[inline]
pub(super) fn pack<const N: usize>(write: impl FnOnce(&mut Room<'_>)) -> [u8; N] {
    let mut bytes = [0; N];
    write(&mut Room(&mut bytes));
    bytes
}
