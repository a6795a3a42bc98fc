// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a frame cannot be finished, and the bounds of one that can.

use thiserror::Error;

/// The most bytes of headers that are repeated in front of each segment: two tags, either IP with
/// all options or as many extension headers, and TCP with all options.
pub const MAX_HEADERS_BYTES: usize = 256;

/// The most segments of one packet: 64 KiB in pieces of 48 bytes, below which TCP does not go in
/// Linux. A driver that asks for more wants the work, not the packets.
pub const MAX_SEGMENTS: usize = 1366;

/// Why a frame cannot be finished; it must be dropped.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum FinishFault {
    /// The checksum, or what it covers, is not in the frame.
    #[error("checksum past the frame")]
    ChecksumPastFrame,
    /// The checksum left out is not that of the packet to be segmented.
    #[error("checksum is not that of the packet")]
    ChecksumElsewhere,
    /// A fragment, of which only the first has all headers.
    #[error("a fragment is not to be segmented")]
    Fragment,
    /// UFO, which is only for links that take it.
    #[error("fragmentation is not done here")]
    Fragmentation,
    /// More than [`MAX_HEADERS_BYTES`].
    #[error("headers of more than {MAX_HEADERS_BYTES} bytes")]
    HeadersTooLong,
    /// A version or a header's length that cannot be.
    #[error("malformed headers")]
    Malformed,
    /// Not the protocol that the virtio header says, or headers that cannot be repeated.
    #[error("not the protocol of the virtio header")]
    OtherProtocol,
    /// Segments without payload.
    #[error("segments of 0 bytes")]
    SizeZero,
    /// More than the receiver takes.
    #[error("frame of {frame_bytes} bytes for a receiver of {max_frame_bytes}")]
    TooLong {
        /// Length of the frame, or of the longest segment.
        frame_bytes: usize,
        /// What the receiver takes.
        max_frame_bytes: usize,
    },
    /// More than [`MAX_SEGMENTS`].
    #[error("{segments} segments")]
    TooManySegments {
        /// How many there would be.
        segments: usize,
    },
    /// The headers are not all there.
    #[error("headers past the frame")]
    Truncated,
}
