// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of directory entries and of extended attributes, checked before any system call sees them.

use std::ffi::CStr;

use super::bytes::Reader;
use super::error::{NameError, ParseError};
use super::lengths::{NAME_MAX_BYTES, XATTR_NAME_MAX_BYTES};

/// One component of a path: 1 to 4095 bytes, none of them NUL or a slash, and neither "." nor "..".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Name<'a>(&'a CStr);

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

/// Reads the name of an extended attribute, of 1 to 255 bytes.
pub(super) fn xattr_name<'a>(fields: &mut Reader<'a>) -> Result<&'a CStr, ParseError> {
    let name = fields.string(XATTR_NAME_MAX_BYTES, ParseError::XattrName)?;
    if name.is_empty() {
        return Err(ParseError::XattrName);
    }
    Ok(name)
}
