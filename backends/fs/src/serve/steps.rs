// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps that a data thread and a thread that may wait do alike.

use std::io;

use ringside_common::io::Promise;

use crate::error::{Errno, Result};
use crate::locks::Done;
use crate::wire::operation::{Operation, ReadIn};

/// Says how the waiting for a lock has ended.
pub(super) fn keep(promise: Promise) -> Done {
    Box::new(move |result: Result<()>| {
        promise.keep(result.err().map_or(0, |error| -error.raw_os_error()));
    })
}

/// Goes on until all of `size` bytes are moved, or no more are. What was moved before an error is
/// the result, not the error, unless `all` of them are needed: a guest takes a short read for the
/// end of the file, and a short write of its cache for a whole one.
pub(super) fn whole(
    size: usize,
    all: bool,
    mut step: impl FnMut(usize) -> io::Result<usize>,
) -> Result<usize> {
    let mut done = 0;
    while done < size {
        match step(done) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if done > 0 && !all => break,
            Err(error) => return Err(errno(&error)),
        }
    }
    Ok(done)
}

/// A reply cannot have more than the guest has room for: what asks for a number of bytes, asking
/// for no more than that; none for what does not.
#[inline]
pub(super) fn clamp<'a>(op: &Operation<'a>, room: usize) -> Option<Operation<'a>> {
    // Clamped: no request asks for more.
    let most = u32::try_from(room).unwrap_or(u32::MAX);
    let clamp = |read: &ReadIn| ReadIn {
        size_bytes: read.size_bytes.min(most),
        ..*read
    };
    Some(match op {
        Operation::ReadDir(read) => Operation::ReadDir(clamp(read)),
        Operation::ReadDirPlus(read) => Operation::ReadDirPlus(clamp(read)),
        Operation::GetXattr { name, size_bytes } => Operation::GetXattr {
            name,
            size_bytes: (*size_bytes).min(most),
        },
        Operation::ListXattr { size_bytes } => Operation::ListXattr {
            size_bytes: (*size_bytes).min(most),
        },
        _ => return None,
    })
}

pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 bytes, then an error.
    fn breaks(done: usize) -> io::Result<usize> {
        if done == 0 {
            return Ok(3);
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    #[test]
    fn part_before_an_error_is_the_result_unless_all_is_wanted() {
        assert_eq!(whole(8, false, breaks), Ok(3));
        assert_eq!(whole(8, true, breaks), Err(Errno::NOSPC));
        assert_eq!(whole(3, true, breaks), Ok(3));
    }
}
