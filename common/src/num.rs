// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers that change their type and keep their value.

use std::time::Duration;

/// `n` as the length or index of something in this process. Nothing is cut off: this crate builds
/// for 64-bit targets only.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the crate refuses targets on which usize has fewer than 64 bits"
)]
pub const fn usize_of(n: u64) -> usize {
    n as usize
}

/// The length of something in this process as a number of the protocols, which have 64 bits.
#[must_use]
pub const fn u64_of(n: usize) -> u64 {
    n as u64
}

/// A number that the kernel declares as signed and never makes negative, such as the size of a file
/// or the seconds of a clock.
#[must_use]
pub const fn unsigned(n: i64) -> u64 {
    debug_assert!(n >= 0);
    n.cast_unsigned()
}

/// `duration` in nanoseconds, at most `u64::MAX`: 584 years.
#[must_use]
pub fn ns_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Duration, ns_of, u64_of, unsigned, usize_of};

    #[test]
    fn the_largest_numbers_keep_their_value() {
        assert_eq!(usize_of(u64::MAX), usize::MAX);
        assert_eq!(u64_of(usize::MAX), u64::MAX);
        assert_eq!(unsigned(i64::MAX), 0x7fff_ffff_ffff_ffff);
        assert_eq!(ns_of(Duration::MAX), u64::MAX);
    }
}
