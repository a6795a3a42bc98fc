// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parts of what was to be moved.

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
