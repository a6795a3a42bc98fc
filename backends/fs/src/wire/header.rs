// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The header of a request (`struct fuse_in_header`).

/// Bytes of a request's header.
pub const IN_HEADER_BYTES: usize = 40;
/// Bytes of a reply's header.
pub const OUT_HEADER_BYTES: usize = 16;

/// Who asks what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InHeader {
    /// Bytes of the request, this header included.
    pub len_bytes: u32,
    /// What is asked for.
    pub opcode: u32,
    /// The number that the reply repeats.
    pub unique: u64,
    /// The node it is about.
    pub node: u64,
    /// User of the calling process, as its file system sees him.
    pub uid: u32,
    /// Group of the calling process.
    pub gid: u32,
    /// The calling process, or 0.
    pub pid: u32,
    /// Bytes of extensions at the end of the request.
    pub extensions_bytes: u32,
}
