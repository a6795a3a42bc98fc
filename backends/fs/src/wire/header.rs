// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The headers: of a request (`struct fuse_in_header`), and of a reply (`struct fuse_out_header`).

use super::bytes::{Put, pack};
use super::flags::opcode;

/// Bytes of a request's header.
pub const IN_HEADER_BYTES: usize = 40;
/// Bytes of a reply's header.
pub const OUT_HEADER_BYTES: usize = 16;
/// What `total_extlen` counts in.
const EXTENSIONS_UNIT_BYTES: u32 = 8;

/// The header of a request.
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
    /// User of the calling process, as its file system sees it.
    pub uid: u32,
    /// Group of the calling process.
    pub gid: u32,
    /// The calling process, or 0.
    pub pid: u32,
    /// Bytes of extensions at the end of the request. Linux before 6.3 says 0 also when there are.
    pub extensions_bytes: u32,
}

impl InHeader {
    /// Takes a header apart. Any bytes are one.
    #[must_use]
    #[rustfmt::skip]
    pub fn parse(bytes: &[u8; IN_HEADER_BYTES]) -> Self {
        // A pattern, so that the offsets are checked when this is compiled.
        let &[
            l0, l1, l2, l3, o0, o1, o2, o3,
            q0, q1, q2, q3, q4, q5, q6, q7,
            n0, n1, n2, n3, n4, n5, n6, n7,
            u0, u1, u2, u3, g0, g1, g2, g3,
            p0, p1, p2, p3, e0, e1, _, _,
        ] = bytes;
        let units = u32::from(u16::from_le_bytes([e0, e1]));
        Self {
            len_bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            opcode: u32::from_le_bytes([o0, o1, o2, o3]),
            unique: u64::from_le_bytes([q0, q1, q2, q3, q4, q5, q6, q7]),
            node: u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]),
            uid: u32::from_le_bytes([u0, u1, u2, u3]),
            gid: u32::from_le_bytes([g0, g1, g2, g3]),
            pid: u32::from_le_bytes([p0, p1, p2, p3]),
            extensions_bytes: units.saturating_mul(EXTENSIONS_UNIT_BYTES),
        }
    }

    /// Whether this is the `INIT` of a guest of the other byte order. No operation has that number.
    #[must_use]
    pub fn is_foreign_init(&self) -> bool {
        self.opcode == opcode::INIT.swap_bytes()
    }

    /// The header as it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; IN_HEADER_BYTES] {
        let units = self.extensions_bytes.div_ceil(EXTENSIONS_UNIT_BYTES);
        pack(|out| {
            out.u32(self.len_bytes);
            out.u32(self.opcode);
            out.u64(self.unique);
            out.u64(self.node);
            out.u32(self.uid);
            out.u32(self.gid);
            out.u32(self.pid);
            // Clamped: the field has 16 bits.
            out.u16(u16::try_from(units).unwrap_or(u16::MAX));
        })
    }
}

/// How a request went.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OutHeader {
    /// Bytes of the reply, this header included.
    pub len_bytes: u32,
    /// 0, or the number of an error, negative.
    pub error: i32,
    /// The number of the request.
    pub unique: u64,
}

impl OutHeader {
    /// Takes a header apart. Any bytes are one.
    #[must_use]
    pub fn parse(bytes: &[u8; OUT_HEADER_BYTES]) -> Self {
        let &[l0, l1, l2, l3, e0, e1, e2, e3, unique @ ..] = bytes;
        Self {
            len_bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            error: i32::from_le_bytes([e0, e1, e2, e3]),
            unique: u64::from_le_bytes(unique),
        }
    }

    /// The header as it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; OUT_HEADER_BYTES] {
        pack(|out| {
            out.u32(self.len_bytes);
            out.put(&self.error.to_le_bytes());
            out.u64(self.unique);
        })
    }
}

/// The header of a reply of `len_bytes`, itself included; `error` is 0 or negative.
#[must_use]
pub fn out_header(len_bytes: u32, error: i32, unique: u64) -> [u8; OUT_HEADER_BYTES] {
    let header = OutHeader {
        len_bytes,
        error,
        unique,
    };
    header.to_bytes()
}
