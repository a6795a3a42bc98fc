// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decides what a virtio-blk request asks for, from its bytes alone (virtio 1.3 §5.2.6).
//!
//! A request is one stream of device-readable bytes (a 16-byte header, then data) and one stream
//! of device-writable bytes (data, then the status byte), however the driver cut them into
//! descriptors. The caller copies the header, and later each discard segment, *once* into private
//! memory and passes the copy: what was checked is then what is used.
//!
//! Nothing here does I/O. A [`Request`] that parsed lies wholly inside the device and may be
//! carried out as it stands; everything else is an `Err` with the status to answer.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

/// Bytes in a sector, the unit of every address on the wire, whatever the block size.
pub use crate::storage::SECTOR_BYTES;

/// Bytes in the header of a request.
pub const HEADER_BYTES: usize = 16;
/// Bytes in one segment of a discard or write-zeroes request.
pub const SEGMENT_BYTES: usize = 16;
/// Bytes the answer to a `GET_ID` holds, padded with NUL.
pub const ID_BYTES: usize = 20;
/// [`ID_BYTES`], for a used length.
const ID_USED_BYTES: u32 = 20;
const _: () = assert!(ID_BYTES == 20 && ID_USED_BYTES == 20);
/// The used length of a request of which only the status byte was written.
pub const USED_LEN_STATUS_ONLY: u32 = 1;

/// Names of the counters of requests, in the order of [`Request::kind`]; the last one counts those
/// that were not understood.
pub const KINDS: &[&str] = &[
    "read",
    "write",
    "flush",
    "discard",
    "write_zeroes",
    "get_id",
    "invalid",
];
/// The counter of requests that were not understood.
pub const KIND_INVALID: usize = 6;

/// `VIRTIO_BLK_T_*`.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    /// The legacy name of a flush that carries data; old firmware sends it.
    pub(super) const FLUSH_OUT: u32 = 5;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
    /// Legacy flag, or-ed into the type; this device has no barriers and ignores it.
    pub(super) const BARRIER: u32 = 0x8000_0000;
}

/// The only flag a segment may carry, and only for write zeroes.
const SEGMENT_FLAG_UNMAP: u32 = 1;

/// The status byte that ends every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`
    IoErr = 1,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupp = 2,
}

impl Status {
    /// The byte on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoErr => 1,
            Self::Unsupp => 2,
        }
    }
}

/// What this device takes at this moment: its size, and the features the driver acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the device, in sectors.
    pub capacity_sectors: u64,
    /// Refuse everything that would change the image.
    pub read_only: bool,
    /// `FLUSH` is in force: `VIRTIO_BLK_F_FLUSH` or `VIRTIO_BLK_F_CONFIG_WCE` was acknowledged.
    pub flush: bool,
    /// Bounds of a discard; `None` unless `VIRTIO_BLK_F_DISCARD` was acknowledged.
    pub discard: Option<SegmentLimits>,
    /// Bounds of a write zeroes; `None` unless `VIRTIO_BLK_F_WRITE_ZEROES` was acknowledged.
    pub write_zeroes: Option<SegmentLimits>,
    /// A write zeroes may deallocate when its segment asks for it.
    pub write_zeroes_may_unmap: bool,
}

impl Limits {
    const fn of(&self, kind: SegmentKind) -> Option<SegmentLimits> {
        match kind {
            SegmentKind::Discard => self.discard,
            SegmentKind::WriteZeroes => self.write_zeroes,
        }
    }

    fn holds(&self, sector: u64, num_sectors: u64) -> bool {
        sector
            .checked_add(num_sectors)
            .filter(|end| *end <= self.capacity_sectors)
            .is_some_and(|end| end.checked_mul(SECTOR_BYTES).is_some())
    }
}

/// Bounds of a discard or a write zeroes, as the configuration space announces them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLimits {
    /// The most sectors in one segment.
    pub max_sectors: u32,
    /// The most segments in one request.
    pub max_segments: u32,
}

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read into all of the writable bytes.
    In {
        /// First sector.
        sector: u64,
        /// Bytes to read, a multiple of [`SECTOR_BYTES`] and not 0.
        len_bytes: u64,
    },
    /// Write all of the readable bytes.
    Out {
        /// First sector.
        sector: u64,
        /// Bytes to write, a multiple of [`SECTOR_BYTES`] and not 0.
        len_bytes: u64,
    },
    /// Make every write completed so far stable.
    Flush,
    /// Write the [`ID_BYTES`] of the device's serial.
    GetId,
    /// Forget the contents of segments that are still to be parsed.
    Discard {
        /// Segments in the readable bytes, at least 1.
        num_segments: u32,
    },
    /// Zero the segments that are still to be parsed.
    WriteZeroes {
        /// Segments in the readable bytes, at least 1.
        num_segments: u32,
    },
}

impl Request {
    /// Whether it changes what the disk holds.
    #[inline]
    #[must_use]
    pub const fn writes(self) -> bool {
        match self {
            Self::Out { .. } | Self::Discard { .. } | Self::WriteZeroes { .. } => true,
            Self::In { .. } | Self::Flush | Self::GetId => false,
        }
    }

    /// Its place in [`KINDS`].
    #[inline]
    #[must_use]
    pub const fn kind(self) -> usize {
        match self {
            Self::In { .. } => 0,
            Self::Out { .. } => 1,
            Self::Flush => 2,
            Self::Discard { .. } => 3,
            Self::WriteZeroes { .. } => 4,
            Self::GetId => 5,
        }
    }

    /// Parses a request from its header and the sizes of its two data parts.
    ///
    /// `readable_bytes` counts what follows the header, `writable_bytes` what precedes the status
    /// byte.
    ///
    /// # Errors
    ///
    /// The status to answer: [`Status::Unsupp`] for what this device does not do,
    /// [`Status::IoErr`] for what no device could do.
    pub fn parse(
        header: &[u8; HEADER_BYTES],
        readable_bytes: u64,
        writable_bytes: u64,
        limits: &Limits,
    ) -> Result<Self, Status> {
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = *header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) & !kind::BARRIER {
            kind::IN => {
                check(readable_bytes == 0)?;
                let len_bytes = checked_extent(sector, writable_bytes, limits)?;
                Ok(Self::In { sector, len_bytes })
            }
            kind::OUT => {
                check(!limits.read_only && writable_bytes == 0)?;
                let len_bytes = checked_extent(sector, readable_bytes, limits)?;
                Ok(Self::Out { sector, len_bytes })
            }
            // The sector must be 0 and there must be no data, but a driver that errs here still
            // wants its writes stable.
            kind::FLUSH | kind::FLUSH_OUT if limits.flush => Ok(Self::Flush),
            kind::GET_ID => {
                let id_bytes = u64::try_from(ID_BYTES).or(Err(Status::IoErr))?;
                check(readable_bytes == 0 && writable_bytes >= id_bytes)?;
                Ok(Self::GetId)
            }
            kind::DISCARD => {
                check_direction(limits, SegmentKind::Discard, writable_bytes)?;
                let num_segments = count_segments(limits, SegmentKind::Discard, readable_bytes)?;
                Ok(Self::Discard { num_segments })
            }
            kind::WRITE_ZEROES => {
                check_direction(limits, SegmentKind::WriteZeroes, writable_bytes)?;
                let num_segments =
                    count_segments(limits, SegmentKind::WriteZeroes, readable_bytes)?;
                Ok(Self::WriteZeroes { num_segments })
            }
            _ => Err(Status::Unsupp),
        }
    }

    /// The length of the used element: the bytes this device wrote, the status byte included.
    ///
    /// A read that failed promises nothing about its data, so only its status counts. A length
    /// beyond `u32` saturates.
    #[must_use]
    pub fn used_len(&self, status: Status) -> u32 {
        let data_bytes = match (self, status) {
            (Self::In { len_bytes, .. }, Status::Ok) => {
                // A longer read is legal, if its driver does not mind the used length.
                u32::try_from(*len_bytes).unwrap_or(u32::MAX)
            }
            (Self::GetId, Status::Ok) => ID_USED_BYTES,
            _ => 0,
        };
        data_bytes.saturating_add(USED_LEN_STATUS_ONLY)
    }
}

fn check(holds: bool) -> Result<(), Status> {
    if holds { Ok(()) } else { Err(Status::IoErr) }
}

fn checked_extent(sector: u64, len_bytes: u64, limits: &Limits) -> Result<u64, Status> {
    check(len_bytes != 0 && len_bytes.is_multiple_of(SECTOR_BYTES))?;
    let num_sectors = len_bytes.checked_div(SECTOR_BYTES).ok_or(Status::IoErr)?;
    check(limits.holds(sector, num_sectors))?;
    Ok(len_bytes)
}

fn check_direction(limits: &Limits, kind: SegmentKind, writable_bytes: u64) -> Result<(), Status> {
    limits.of(kind).ok_or(Status::Unsupp)?;
    check(!limits.read_only && writable_bytes == 0)
}

fn count_segments(limits: &Limits, kind: SegmentKind, readable_bytes: u64) -> Result<u32, Status> {
    let max_segments = limits.of(kind).ok_or(Status::Unsupp)?.max_segments;
    let segment_bytes = u64::try_from(SEGMENT_BYTES).or(Err(Status::IoErr))?;
    check(readable_bytes != 0 && readable_bytes.is_multiple_of(segment_bytes))?;
    let num_segments = readable_bytes
        .checked_div(segment_bytes)
        .ok_or(Status::IoErr)?;
    let num_segments = u32::try_from(num_segments).or(Err(Status::Unsupp))?;
    if num_segments > max_segments {
        Err(Status::Unsupp)
    } else {
        Ok(num_segments)
    }
}

/// Which request a segment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Of a [`Request::Discard`].
    Discard,
    /// Of a [`Request::WriteZeroes`].
    WriteZeroes,
}

/// One range of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First sector.
    pub sector: u64,
    /// Sectors in the range, not 0.
    pub num_sectors: u32,
    /// Deallocate if that leaves zeroes behind (write zeroes only).
    pub unmap: bool,
}

impl Segment {
    /// Parses a segment: `sector` le64, `num_sectors` le32, `flags` le32.
    ///
    /// # Errors
    ///
    /// The status to answer to the whole request, of which nothing must have been done yet: parse
    /// all segments before carrying out the first.
    pub fn parse(
        bytes: &[u8; SEGMENT_BYTES],
        kind: SegmentKind,
        limits: &Limits,
    ) -> Result<Self, Status> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let num_sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let unmap = match (kind, u32::from_le_bytes(flags)) {
            (_, 0) => false,
            (SegmentKind::WriteZeroes, SEGMENT_FLAG_UNMAP) => limits.write_zeroes_may_unmap,
            _ => return Err(Status::Unsupp),
        };
        let max_sectors = limits.of(kind).ok_or(Status::Unsupp)?.max_sectors;
        check(num_sectors != 0 && num_sectors <= max_sectors)?;
        check(limits.holds(sector, num_sectors.into()))?;
        Ok(Self {
            sector,
            num_sectors,
            unmap,
        })
    }
}

/// The answer to a `GET_ID`: the serial cut or padded with NUL to [`ID_BYTES`].
#[must_use]
pub fn device_id(serial: &str) -> [u8; ID_BYTES] {
    let mut id = [0; ID_BYTES];
    for (to, from) in id.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    id
}

#[cfg(test)]
mod tests;
