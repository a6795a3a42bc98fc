// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parsers of single option values.

use std::num::{NonZeroUsize, ParseIntError};

use thiserror::Error;

/// The largest queue a split virtqueue can have (virtio 1.3 §2.7).
const MAX_QUEUE_SIZE: u16 = 32768;
/// More data threads than queues can be offered are never used.
pub const MAX_THREADS: usize = 256;

/// Why the value of an option was not understood.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ValueError {
    /// Not a number.
    #[error("not a number")]
    Number(#[from] ParseIntError),
    /// Permission bits that are none.
    #[error("not permission bits in octal, 0 to 777")]
    Mode,
    /// A queue size that is not allowed.
    #[error("{size} is not a power of two from 2 to {MAX_QUEUE_SIZE}")]
    QueueSize {
        /// The size.
        size: u64,
    },
    /// A number of threads that is not allowed.
    #[error("{count} is not in 1 to {MAX_THREADS}")]
    Threads {
        /// The number.
        count: usize,
    },
    /// The group is not known here.
    #[error("there is no such group")]
    NoSuchGroup,
    /// The group could not be looked up.
    #[error("the group cannot be looked up")]
    Group(#[source] nix::Error),
}

pub(super) fn mode(text: &str) -> Result<u32, ValueError> {
    // `from_str_radix` would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ValueError::Mode);
    }
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or(ValueError::Mode)
}

/// A number is taken as it is, so that a group unknown to this machine can be given.
pub(super) fn group(text: &str) -> Result<u32, ValueError> {
    // The largest number means "leave as it is" to chown.
    if let Some(gid) = text.parse().ok().filter(|gid| *gid != u32::MAX) {
        return Ok(gid);
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(ValueError::NoSuchGroup),
        Err(errno) => Err(ValueError::Group(errno)),
    }
}

pub(super) fn queue_size(text: &str) -> Result<u16, ValueError> {
    let size: u64 = text.parse()?;
    u16::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && (2..=MAX_QUEUE_SIZE).contains(size))
        .ok_or(ValueError::QueueSize { size })
}

pub(super) fn threads(text: &str) -> Result<NonZeroUsize, ValueError> {
    let count: usize = text.parse()?;
    NonZeroUsize::new(count)
        .filter(|count| count.get() <= MAX_THREADS)
        .ok_or(ValueError::Threads { count })
}

/// A text that is no size.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("a size is a number of bytes, with K, M, G or T for powers of 1024")]
pub struct SizeError;

/// Parses a size in bytes that is not 0, like `512` or `2G`.
///
/// # Errors
/// [`SizeError`]
pub fn size(text: &str) -> Result<u64, SizeError> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (text.get(..text.len() - 1), 10),
        Some(b'M' | b'm') => (text.get(..text.len() - 1), 20),
        Some(b'G' | b'g') => (text.get(..text.len() - 1), 30),
        Some(b'T' | b't') => (text.get(..text.len() - 1), 40),
        _ => (Some(text), 0),
    };
    let number: u64 = digits
        .and_then(|digits| digits.parse().ok())
        .ok_or(SizeError)?;
    number
        .checked_mul(1 << shift)
        .filter(|size| *size > 0)
        .ok_or(SizeError)
}
