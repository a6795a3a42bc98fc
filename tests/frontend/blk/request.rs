// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a virtio-blk request asks for (virtio 1.3 §5.2.6) and how it came back.

use crate::error::{FrontendError, Result};

/// Length of a sector, the unit of all addresses of virtio-blk.
pub const SECTOR_BYTES: usize = 512;

/// Length of the request header.
pub const HEADER_BYTES: u32 = 16;

/// Length of the serial number `GET_ID` returns.
pub const ID_BYTES: u32 = 20;

/// Request types.
#[expect(
    missing_docs,
    reason = "the names are the specification's and explained there"
)]
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const GET_LIFETIME: u32 = 10;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
    pub const SECURE_ERASE: u32 = 14;
}

/// Values of the status byte.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed.
    pub const IOERR: u8 = 1;
    /// Request type not supported.
    pub const UNSUPP: u8 = 2;
    /// What the driver writes before: the device did not touch the byte.
    pub const UNTOUCHED: u8 = 0xff;
}

/// virtio-blk feature bits, as masks.
#[expect(
    missing_docs,
    reason = "the names are the specification's and explained there"
)]
pub mod blk_feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const SECURE_ERASE: u64 = 1 << 16;
}

/// Which way the data of a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Device-readable.
    ToDevice,
    /// Device-writable.
    FromDevice,
}

/// Where the data of a request lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the buffer of the request's slot.
    Slot,
    /// Anywhere in guest-physical memory, mapped or not.
    At(u64),
}

/// A request, sound or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkRequest {
    /// Request type, see [`kind`].
    pub kind: u32,
    /// The reserved field of the header (priority in old drivers).
    pub reserved: u32,
    /// First sector.
    pub sector: u64,
    /// Length of the data.
    pub data_bytes: u32,
    /// Where the data lies.
    pub place: Place,
    /// Which way it goes.
    pub direction: Direction,
}

impl BlkRequest {
    /// Any request type, with data in the slot's buffer.
    #[must_use]
    pub fn raw(kind: u32, sector: u64, data_bytes: u32, direction: Direction) -> Self {
        Self {
            kind,
            reserved: 0,
            sector,
            data_bytes,
            place: Place::Slot,
            direction,
        }
    }

    /// `IN`: reads.
    #[must_use]
    pub fn read(sector: u64, data_bytes: u32) -> Self {
        Self::raw(kind::IN, sector, data_bytes, Direction::FromDevice)
    }

    /// `OUT`: writes.
    #[must_use]
    pub fn write(sector: u64, data_bytes: u32) -> Self {
        Self::raw(kind::OUT, sector, data_bytes, Direction::ToDevice)
    }

    /// `FLUSH`.
    #[must_use]
    pub fn flush() -> Self {
        Self::raw(kind::FLUSH, 0, 0, Direction::ToDevice)
    }

    /// `GET_ID`, with room for the whole serial number.
    #[must_use]
    pub fn get_id() -> Self {
        Self::raw(kind::GET_ID, 0, ID_BYTES, Direction::FromDevice)
    }

    /// `DISCARD`, `WRITE_ZEROES` or `SECURE_ERASE` of `ranges` ranges, which are put into the slot
    /// with [`super::BlkDriver::fill_ranges`].
    #[must_use]
    pub fn ranges(kind: u32, ranges: u32) -> Self {
        Self::raw(kind, 0, ranges * Range::LEN, Direction::ToDevice)
    }

    /// The same request with its data at this guest-physical address.
    #[must_use]
    pub fn at(mut self, gpa: u64) -> Self {
        self.place = Place::At(gpa);
        self
    }
}

/// One range of `DISCARD`, `WRITE_ZEROES` or `SECURE_ERASE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u32,
    /// Bit 0: unmap (`WRITE_ZEROES` only).
    pub flags: u32,
}

impl Range {
    /// Length of a range in the request.
    pub const LEN: u32 = 16;

    /// The bytes of the range.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// A request slot of the driver: header, status byte and data buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub(super) u16);

impl Slot {
    /// Number of the slot, from 0 to the driver's depth.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// A request that has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot, whose data stays until it is released or submitted again.
    pub slot: Slot,
    /// The request as submitted.
    pub request: BlkRequest,
    /// The status byte; [`status::UNTOUCHED`] when the device did not write it.
    pub status: u8,
    /// Length in the used element.
    pub used_len: u32,
}

impl Completion {
    /// The completion itself if the status is OK.
    ///
    /// # Errors
    ///
    /// [`FrontendError::Status`] otherwise.
    pub fn ok(self) -> Result<Self> {
        if self.status == status::OK {
            return Ok(self);
        }
        Err(FrontendError::Status {
            kind: self.request.kind,
            sector: self.request.sector,
            status: self.status,
            used_len: self.used_len,
        })
    }

    /// The used length a device must report for this status: everything it wrote up to the status
    /// byte.
    #[must_use]
    pub fn expected_used_len(&self) -> u32 {
        match (self.status, self.request.direction) {
            (status::OK, Direction::FromDevice) => self.request.data_bytes + 1,
            _ => 1,
        }
    }
}
