// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the bytes of a request and of its reply are spread over descriptors.

use crate::ring::Segment;

/// Data lies on pages of its own.
pub(super) const PAGE_BYTES: usize = 4096;
/// Room in front of the data of a slot, for header and arguments: those of a `SETXATTR` are the
/// longest, with a value of 64 KiB.
pub(super) const HEAD_BYTES: usize = 72 << 10;
/// Where the arguments lie in the head if the header does not touch them.
const ARGS_OFFSET: usize = 64;

/// How the bytes of a request and of its reply are spread over descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// As Linux does: the header, the arguments, and each page of the data.
    #[default]
    Kernel,
    /// One descriptor to read, one to write.
    Contiguous,
    /// Cut into descriptors of that many bytes, across header, arguments and data alike.
    Chunks(u32),
}

/// The lengths of header, arguments and data, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) header: usize,
    pub(super) args: usize,
    pub(super) data: usize,
}

impl Parts {
    /// `bytes` with a header of at most `header` bytes; what the head does not take is data.
    pub(super) fn of_bytes(bytes: usize, header: usize) -> Self {
        let header = bytes.min(header);
        let args = (bytes - header).min(HEAD_BYTES - ARGS_OFFSET);
        Self {
            header,
            args,
            data: bytes - header - args,
        }
    }

    pub(super) fn total(self) -> usize {
        self.header + self.args + self.data
    }

    /// Where header and arguments lie in the area; the data follow the head.
    #[inline]
    pub(super) fn offsets(self, framing: Framing) -> (usize, usize) {
        match framing {
            Framing::Kernel => (0, ARGS_OFFSET),
            Framing::Contiguous | Framing::Chunks(_) => {
                let args = HEAD_BYTES - self.args;
                (args - self.header, args)
            }
        }
    }
}

/// Appends the descriptors of one direction to `segments`; `area_gpa` is where the head starts.
#[inline]
pub(super) fn arrange(
    segments: &mut Vec<Segment>,
    area_gpa: u64,
    parts: Parts,
    framing: Framing,
    segment: fn(u64, u32) -> Segment,
) {
    let mut push = |offset: usize, bytes: usize, most: usize| {
        let mut at = offset;
        while at < offset + bytes {
            let here = most.min(offset + bytes - at);
            // A slot is far smaller than 4 GiB.
            let len = u32::try_from(here).unwrap_or(u32::MAX);
            segments.push(segment(area_gpa + at as u64, len));
            at += here;
        }
    };
    let (header, args) = parts.offsets(framing);
    match framing {
        Framing::Kernel => {
            push(header, parts.header, usize::MAX);
            push(args, parts.args, usize::MAX);
            push(HEAD_BYTES, parts.data, PAGE_BYTES);
        }
        Framing::Contiguous => push(header, parts.total(), usize::MAX),
        Framing::Chunks(bytes) => push(header, parts.total(), bytes.max(1) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lens(parts: Parts, framing: Framing) -> Vec<(u64, u32)> {
        let mut segments = Vec::new();
        arrange(&mut segments, 0, parts, framing, Segment::writable);
        assert!(segments.iter().all(|segment| segment.flags == 2));
        segments.iter().map(|s| (s.gpa, s.len)).collect()
    }

    #[test]
    fn framings_cover_all_bytes_in_order() {
        let parts = Parts {
            header: 40,
            args: 8,
            data: 5000,
        };
        let head = HEAD_BYTES as u64;
        let kernel = [(0, 40), (64, 8), (head, 4096), (head + 4096, 904)];
        assert_eq!(lens(parts, Framing::Kernel), kernel);
        assert_eq!(lens(parts, Framing::Contiguous), [(head - 48, 5048)]);
        let chunks = [(head - 48, 3000), (head + 2952, 2048)];
        assert_eq!(lens(parts, Framing::Chunks(3000)), chunks);
    }

    #[test]
    fn any_number_of_bytes_has_its_parts() {
        for bytes in [0, 1, 39, 40, 41, HEAD_BYTES, HEAD_BYTES + 5000] {
            let parts = Parts::of_bytes(bytes, 40);
            assert_eq!(parts.total(), bytes);
            assert_eq!(parts.header, bytes.min(40));
        }
        assert_eq!(Parts::of_bytes(HEAD_BYTES, 40).data, 24);
    }
}
