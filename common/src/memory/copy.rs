// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies between our memory and streams of guest memory.

use libc::iovec;

pub(super) fn copy_out(iovecs: &[iovec], offset: usize, to: &mut [u8]) -> usize {
    each_piece(iovecs, offset, to.len(), |guest, at, len| {
        let Some(part) = to.get_mut(at..at + len) else {
            return;
        };
        // SAFETY: `guest` and `len` are a piece of an iovec that `Buffers::push` made from a run
        // of the snapshot still held; `part` has exactly `len` bytes and is ours alone.
        #[expect(unsafe_code, reason = "a copy out of guest memory")]
        unsafe {
            std::ptr::copy_nonoverlapping(guest, part.as_mut_ptr(), len);
        }
    })
}

pub(super) fn copy_in(iovecs: &[iovec], offset: usize, from: &[u8]) -> usize {
    each_piece(iovecs, offset, from.len(), |guest, at, len| {
        let Some(part) = from.get(at..at + len) else {
            return;
        };
        // SAFETY: as in `copy_out`, with the direction turned round.
        #[expect(unsafe_code, reason = "a copy into guest memory")]
        unsafe {
            std::ptr::copy_nonoverlapping(part.as_ptr(), guest, len);
        }
    })
}

/// Calls `each` with the pieces of `len_bytes` from `offset` of the stream; returns their sum.
#[inline]
pub(super) fn each_piece(
    iovecs: &[iovec],
    mut offset: usize,
    len_bytes: usize,
    mut each: impl FnMut(*mut u8, usize, usize),
) -> usize {
    let mut done = 0;
    for iov in iovecs {
        if done == len_bytes {
            break;
        }
        if offset >= iov.iov_len {
            offset -= iov.iov_len;
            continue;
        }
        let step = (iov.iov_len - offset).min(len_bytes - done);
        each(iov.iov_base.cast::<u8>().wrapping_add(offset), done, step);
        done += step;
        offset = 0;
    }
    done
}
