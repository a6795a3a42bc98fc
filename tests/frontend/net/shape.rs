// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a buffer is laid out over descriptors.

use crate::ring::Segment;

/// The layout of a chain over one contiguous buffer that starts with the header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Lengths of the first descriptors, as far as the buffer goes.
    pub first_bytes: &'static [u32],
    /// Length of each descriptor after those; 0 for one with all the rest.
    pub rest_bytes: u32,
    /// Whether they lie in an indirect table.
    pub indirect: bool,
}

impl Shape {
    /// One descriptor.
    pub const WHOLE: Self = Self {
        first_bytes: &[],
        rest_bytes: 0,
        indirect: false,
    };
    /// A modern header in a descriptor of its own, as Linux sends.
    pub const HEADER_APART: Self = Self {
        first_bytes: &[12],
        ..Self::WHOLE
    };
    /// Every byte of a modern header and of the addresses apart.
    pub const BYTEWISE: Self = Self {
        first_bytes: &[1; 24],
        ..Self::WHOLE
    };
    /// A header that is cut in its fields and whose last part is joined to the frame.
    pub const CUT: Self = Self {
        first_bytes: &[3, 4, 30],
        rest_bytes: 700,
        indirect: false,
    };

    /// The same in an indirect table.
    #[must_use]
    pub const fn in_table(mut self) -> Self {
        self.indirect = true;
        self
    }

    /// Lays out `bytes` from `gpa` on.
    #[inline]
    pub(super) fn arrange(
        &self,
        (mut gpa, mut left): (u64, u32),
        segment: fn(u64, u32) -> Segment,
        into: &mut Vec<Segment>,
    ) {
        into.clear();
        let rest = match self.rest_bytes {
            0 => u32::MAX,
            bytes => bytes,
        };
        let mut first = self.first_bytes.iter();
        while left > 0 {
            let here = (*first.next().unwrap_or(&rest)).clamp(1, left);
            into.push(segment(gpa, here));
            gpa += u64::from(here);
            left -= here;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arranged_segments_cover_the_buffer_in_order() {
        let mut segments = Vec::new();
        Shape::CUT.arrange((0x1000, 800), Segment::readable, &mut segments);
        let expected = [
            Segment::readable(0x1000, 3),
            Segment::readable(0x1003, 4),
            Segment::readable(0x1007, 30),
            Segment::readable(0x1025, 700),
            Segment::readable(0x12e1, 63),
        ];
        assert_eq!(segments, expected);
        Shape::HEADER_APART.arrange((0x1000, 8), Segment::writable, &mut segments);
        assert_eq!(segments, [Segment::writable(0x1000, 8)]);
    }
}
