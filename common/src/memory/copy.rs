// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies between our memory and streams of guest memory.

use libc::iovec;

#[inline]
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

#[inline]
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
    offset: usize,
    len_bytes: usize,
    mut each: impl FnMut(*mut u8, usize, usize),
) -> usize {
    // Most are in the first segment, or there is no other.
    if let Some((first, others)) = iovecs.split_first()
        && let Some(there) = first.iov_len.checked_sub(offset)
        && (there >= len_bytes || others.is_empty())
    {
        let step = there.min(len_bytes);
        each(first.iov_base.cast::<u8>().wrapping_add(offset), 0, step);
        return step;
    }
    each_of_several(iovecs, offset, len_bytes, each)
}

/// The same, however they are cut. Not inlined, so that the usual copy does not pay for it.
#[inline(never)]
fn each_of_several(
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

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 10;

    /// `stream` in segments of these lengths.
    fn cut(stream: &mut [u8; BYTES], lengths: &[usize]) -> Vec<iovec> {
        let mut at = 0;
        let segment = |iov_len: &usize| {
            let iov_base = stream.as_mut_ptr().wrapping_add(at).cast();
            at += iov_len;
            iovec {
                iov_base,
                iov_len: *iov_len,
            }
        };
        lengths.iter().map(segment).collect()
    }

    #[test]
    fn copies_have_what_there_is_from_any_offset_however_the_stream_is_cut() {
        for lengths in [&[BYTES][..], &[1, 9], &[9, 1], &[3, 5, 2], &[1; BYTES]] {
            for (from, len) in
                (0..=BYTES + 2).flat_map(|from| (0..=BYTES + 2).map(move |n| (from, n)))
            {
                let range = from.min(BYTES)..(from + len).min(BYTES);
                let case = format!("{len} bytes from {from} of {lengths:?}");
                let mut stream = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
                let expected = stream.get(range.clone()).unwrap().to_vec();
                let mut to = vec![0; len];
                let copied = copy_out(&cut(&mut stream, lengths), from, &mut to);
                assert_eq!(copied, expected.len(), "{case}");
                assert_eq!(to[..copied], expected, "{case}");
                assert!(to[copied..].iter().all(|byte| *byte == 0), "{case}");

                let mut stream = [0; BYTES];
                let given = vec![7; len];
                let copied = copy_in(&cut(&mut stream, lengths), from, &given);
                assert_eq!(copied, expected.len(), "{case}");
                let mut expected = [0; BYTES];
                expected.get_mut(range).unwrap().fill(7);
                assert_eq!(stream, expected, "{case}");
            }
        }
    }
}
