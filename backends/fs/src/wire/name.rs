// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of directory entries, checked before any system call sees them.

use std::ffi::CStr;

use thiserror::Error;

/// The longest name of a directory entry that a path can have (`PATH_MAX` without the NUL), and that
/// FUSE has (`FUSE_NAME_MAX`; 1024 before Linux 6.15). What a file system takes is for the host to
/// say: 255 bytes of most, but 255 units of UTF-16 of vfat, exfat and ntfs3, which are up to 765 bytes
/// here, and more of those by FUSE.
pub const NAME_MAX_BYTES: usize = 4095;

/// One component of a path: 1 to 4095 bytes, none of them NUL or a slash, and neither "." nor "..".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Name<'a>(&'a CStr);

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NameError {
    /// No bytes.
    #[error("an empty name")]
    Empty,
    /// "." or "..".
    #[error("a name of dots")]
    Dots,
    /// A slash in it.
    #[error("a name with a slash")]
    Slash,
    /// More than 4095 bytes.
    #[error("a name of more than {NAME_MAX_BYTES} bytes")]
    TooLong,
}

impl<'a> Name<'a> {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: &'a CStr) -> Result<Self, NameError> {
        let bytes = name.to_bytes();
        match bytes {
            [] => Err(NameError::Empty),
            b"." | b".." => Err(NameError::Dots),
            _ if bytes.contains(&b'/') => Err(NameError::Slash),
            _ if bytes.len() > NAME_MAX_BYTES => Err(NameError::TooLong),
            _ => Ok(Self(name)),
        }
    }

    /// The name as the kernel takes it.
    #[must_use]
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// Its bytes, without the NUL.
    #[must_use]
    pub fn to_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}
