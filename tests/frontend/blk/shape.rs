// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a request is spread over descriptors.
//!
//! Virtio 1.3 §2.7.4: a device must not assume any arrangement of header, data and status over
//! descriptors. [`RequestShape`] is the arrangement a driver uses.

use super::request::{BlkRequest, Direction, HEADER_BYTES, Place};
use crate::error::{FrontendError, Result};
use crate::ring::Segment;

/// Arrangement of the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderShape {
    /// One descriptor of 16 bytes, as all common drivers.
    #[default]
    Whole,
    /// Two descriptors, cut after this byte (1 to 15).
    SplitAt(u32),
    /// Sixteen descriptors of one byte.
    Bytewise,
    /// In one descriptor with the first device-readable data, where there is any.
    WithData,
}

/// Arrangement of the status byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatusShape {
    /// A descriptor of its own, as all common drivers.
    #[default]
    Separate,
    /// The last byte of the last data descriptor, where the data is device-writable.
    WithData,
}

/// Where the descriptors themselves go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableShape {
    /// Into the ring.
    #[default]
    Direct,
    /// All into an indirect table.
    Indirect,
    /// The first into the ring, the others into an indirect table at the chain's end.
    FirstDirect,
}

/// Arrangement of a request over descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestShape {
    /// Of the header.
    pub header: HeaderShape,
    /// Of the status byte.
    pub status: StatusShape,
    /// Data descriptors hold at most this many bytes; 0 for one descriptor.
    pub data_segment_bytes: u32,
    /// Of the descriptors.
    pub table: TableShape,
}

impl RequestShape {
    /// Whether header or status must lie next to the data.
    pub(super) fn is_merged(&self) -> bool {
        self.header == HeaderShape::WithData || self.status == StatusShape::WithData
    }
}

/// Guest-physical addresses of a slot's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotPlaces {
    pub(super) header_gpa: u64,
    pub(super) status_gpa: u64,
    pub(super) data_gpa: u64,
    /// Bytes around the data that header or status may be put into.
    pub(super) margin: usize,
}

/// What a request becomes; the vector is reused from request to request.
#[derive(Debug, Default)]
pub(super) struct Arrangement {
    pub(super) segments: Vec<Segment>,
    /// How many of them go directly into the ring.
    pub(super) direct: usize,
    /// The header goes right before the data.
    pub(super) header_merged: bool,
    /// The status byte goes right after the data.
    pub(super) status_merged: bool,
}

impl Arrangement {
    /// Room for a chain as long as the ring, so that submitting does not allocate.
    pub(super) fn with_room(segments: usize) -> Self {
        Self {
            segments: Vec::with_capacity(segments),
            ..Self::default()
        }
    }

    /// Lays `request` out over descriptors.
    #[inline]
    pub(super) fn arrange(
        &mut self,
        request: &BlkRequest,
        shape: &RequestShape,
        places: SlotPlaces,
    ) -> Result<()> {
        self.segments.clear();
        let data_gpa = match request.place {
            Place::Slot => places.data_gpa,
            Place::At(gpa) => gpa,
        };
        let merged_towards = |direction| request.data_bytes > 0 && request.direction == direction;
        self.header_merged =
            shape.header == HeaderShape::WithData && merged_towards(Direction::ToDevice);
        self.status_merged =
            shape.status == StatusShape::WithData && merged_towards(Direction::FromDevice);
        let merged = self.header_merged || self.status_merged;
        if merged && (request.place != Place::Slot || places.margin == 0) {
            return Err(FrontendError::Unusable {
                what: "merged shape without room next to the data at gpa",
                value: data_gpa,
            });
        }
        let (mut data_start, mut data_bytes) = (data_gpa, request.data_bytes);
        if self.header_merged {
            data_start -= u64::from(HEADER_BYTES);
            data_bytes += HEADER_BYTES;
        } else {
            self.push_header(places.header_gpa, shape.header);
        }
        if self.status_merged {
            data_bytes += 1;
        }
        self.push_data(data_start, data_bytes, shape, request.direction);
        if !self.status_merged {
            self.segments.push(Segment::writable(places.status_gpa, 1));
        }
        self.direct = match shape.table {
            TableShape::Direct => self.segments.len(),
            TableShape::Indirect => 0,
            TableShape::FirstDirect => 1,
        };
        Ok(())
    }

    #[inline]
    fn push_header(&mut self, gpa: u64, shape: HeaderShape) {
        match shape {
            HeaderShape::Whole | HeaderShape::WithData => {
                self.segments.push(Segment::readable(gpa, HEADER_BYTES));
            }
            HeaderShape::SplitAt(cut) => {
                let cut = cut.min(HEADER_BYTES);
                self.segments.push(Segment::readable(gpa, cut));
                let rest = Segment::readable(gpa + u64::from(cut), HEADER_BYTES - cut);
                self.segments.push(rest);
            }
            HeaderShape::Bytewise => {
                let bytes = (0..HEADER_BYTES).map(|at| Segment::readable(gpa + u64::from(at), 1));
                self.segments.extend(bytes);
            }
        }
    }

    #[inline]
    fn push_data(&mut self, gpa: u64, bytes: u32, shape: &RequestShape, direction: Direction) {
        let at_most = match shape.data_segment_bytes {
            0 => u32::MAX,
            limit => limit,
        };
        let (mut gpa, mut rest) = (gpa, bytes);
        while rest > 0 {
            let len = rest.min(at_most);
            self.segments.push(match direction {
                Direction::ToDevice => Segment::readable(gpa, len),
                Direction::FromDevice => Segment::writable(gpa, len),
            });
            gpa = gpa.wrapping_add(u64::from(len));
            rest -= len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: SlotPlaces = SlotPlaces {
        header_gpa: 0x100,
        status_gpa: 0x120,
        data_gpa: 0x2000,
        margin: 64,
    };

    fn arrange(request: &BlkRequest, shape: RequestShape) -> (Vec<Segment>, usize) {
        let mut arrangement = Arrangement::default();
        arrangement.arrange(request, &shape, PLACES).unwrap();
        (arrangement.segments, arrangement.direct)
    }

    #[test]
    fn plain_shape_is_header_data_status() {
        let expected = vec![
            Segment::readable(0x100, 16),
            Segment::writable(0x2000, 4096),
            Segment::writable(0x120, 1),
        ];
        let read = arrange(&BlkRequest::read(0, 4096), RequestShape::default());
        assert_eq!(read, (expected, 3));
        let flush = vec![Segment::readable(0x100, 16), Segment::writable(0x120, 1)];
        let found = arrange(&BlkRequest::flush(), RequestShape::default());
        assert_eq!(found, (flush, 2));
    }

    #[test]
    fn merged_shapes_surround_the_data_they_can_join() {
        let shape = RequestShape {
            header: HeaderShape::WithData,
            status: StatusShape::WithData,
            data_segment_bytes: 512,
            table: TableShape::FirstDirect,
        };
        let read = vec![
            Segment::readable(0x100, 16),
            Segment::writable(0x2000, 512),
            Segment::writable(0x2200, 1),
        ];
        assert_eq!(arrange(&BlkRequest::read(0, 512), shape), (read, 1));
        let write = vec![
            Segment::readable(0x1ff0, 512),
            Segment::readable(0x21f0, 16),
            Segment::writable(0x120, 1),
        ];
        assert_eq!(arrange(&BlkRequest::write(0, 512), shape), (write, 1));
    }

    #[test]
    fn split_headers_cover_all_sixteen_bytes() {
        for (header, count) in [(HeaderShape::SplitAt(3), 2), (HeaderShape::Bytewise, 16)] {
            let shape = RequestShape {
                header,
                table: TableShape::Indirect,
                ..RequestShape::default()
            };
            let (segments, direct) = arrange(&BlkRequest::flush(), shape);
            let (parts, status) = segments.split_at(count);
            assert_eq!(status, [Segment::writable(0x120, 1)]);
            let end = parts.iter().fold(0x100, |at, part| {
                assert_eq!((part.gpa, part.flags), (at, 0));
                at + u64::from(part.len)
            });
            assert_eq!((end, direct), (0x110, 0));
        }
    }

    #[test]
    fn merged_shape_of_data_elsewhere_is_refused() {
        let shape = RequestShape {
            status: StatusShape::WithData,
            ..RequestShape::default()
        };
        let request = BlkRequest::read(0, 512).at(0x9000);
        let refused = Arrangement::default().arrange(&request, &shape, PLACES);
        assert!(
            matches!(refused, Err(FrontendError::Unusable { value: 0x9000, .. })),
            "{refused:?}"
        );
    }
}
