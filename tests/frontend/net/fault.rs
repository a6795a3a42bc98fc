// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a network device can do wrong.

/// A finding about the back-end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NetFault {
    /// Fewer bytes than a header were written to the first buffer.
    #[error("{used_len} bytes in the first buffer, less than a header")]
    NoHeader {
        /// Length in the used element.
        used_len: u32,
    },
    /// The number of buffers in the header is impossible: 0, or not 1 without merging.
    #[error("num_buffers is {found}")]
    NumBuffers {
        /// The field.
        found: u16,
    },
    /// Not all buffers of a frame were published at once.
    #[error("frame in {wanted} buffers, {published} of them published")]
    SplitPublication {
        /// What the header says.
        wanted: u16,
        /// What the used ring had.
        published: u16,
    },
    /// A buffer that is not the last of its frame is not full.
    #[error("buffer {at} of a frame holds {used_len} of {capacity} bytes and is not the last")]
    NotFull {
        /// Its place in the frame.
        at: u16,
        /// Length in the used element.
        used_len: u32,
        /// What it could hold.
        capacity: u32,
    },
    /// More bytes are claimed to be written than the buffer has, or none.
    #[error("used length {used_len} for a buffer of {capacity} bytes")]
    UsedLen {
        /// Length in the used element.
        used_len: u32,
        /// What it can hold.
        capacity: u32,
    },
    /// With `IN_ORDER`, chains come back in the order they were made available.
    #[error("head {found} used before head {expected}")]
    OutOfOrder {
        /// The head at the front.
        expected: u16,
        /// The head used.
        found: u16,
    },
    /// A frame is shorter than its sender made it, or longer.
    #[error("frame of {found} bytes, {expected} were sent")]
    FrameLength {
        /// Bytes received.
        found: usize,
        /// Bytes sent.
        expected: usize,
    },
    /// A byte of a frame is not what was sent.
    #[error("frame {sequence}, byte {offset}: {found:#04x}, {expected:#04x} was sent")]
    Content {
        /// Its sequence number.
        sequence: u64,
        /// The first differing byte.
        offset: usize,
        /// The byte received.
        found: u8,
        /// The byte sent.
        expected: u8,
    },
    /// A frame that belongs to another flow, or to none.
    #[error("a frame of {bytes} bytes of another flow")]
    Stranger {
        /// Its length.
        bytes: usize,
    },
    /// A frame came out of turn: one before it is lost, or it came before.
    #[error("frame {found} arrived, {expected} is next")]
    Sequence {
        /// The number received.
        found: u64,
        /// The number due.
        expected: u64,
    },
}
