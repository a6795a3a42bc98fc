// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Replies that say no.

use crate::error::{Errno, Result};
use crate::wire::header::{InHeader, OUT_HEADER_BYTES, out_header};
use crate::wire::limits::has_reply;
use ringside_common::limited;
use ringside_common::memory::Buffers;

/// Refuses the INIT of a guest whose numbers have the other byte order.
pub(super) fn check_byte_order(header: &InHeader) -> Result<()> {
    if !header.is_foreign_init() {
        return Ok(());
    }
    limited!(
        error,
        "a big-endian guest cannot be served: FUSE has the guest's byte order"
    );
    Err(Errno::PROTO)
}

/// Replies with an error, where there is room and someone to read it; returns the bytes.
pub(super) fn refuse(buffers: &Buffers, header: &InHeader, error: Errno) -> u32 {
    if !has_reply(header.opcode) || buffers.writable_bytes() < OUT_HEADER_BYTES as u64 {
        return 0;
    }
    let len = narrow(OUT_HEADER_BYTES);
    let code = -error.raw_os_error();
    buffers.write_front(if header.is_foreign_init() {
        // So that the guest understands it. The number of the request is repeated as it came.
        out_header(len.swap_bytes(), code.swap_bytes(), header.unique)
    } else {
        out_header(len, code, header.unique)
    });
    len
}

/// Bytes of a reply, clamped: no chain has 4 GiB.
pub(super) fn narrow(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
