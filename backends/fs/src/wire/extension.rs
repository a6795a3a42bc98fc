// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What follows the names of requests that create something: extensions, each behind a
//! `struct fuse_ext_header` of its size and its type.
//!
//! Types up to 31 are the number of security labels (`struct fuse_secctx_header` has the same
//! form); 32 is supplementary groups. Linux sends the labels always when `SECURITY_CTX` was agreed,
//! be it none, and one group at most. Since 6.3 the request's header says how many bytes the
//! extensions have; before, it says 0, and what follows the names is the labels.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use std::ffi::CStr;

use super::bytes::Reader;
use super::error::ParseError;
use super::flags::{EXT_GROUPS, InitFlags, MAX_NR_SECCTX};
use super::header::InHeader;
use super::lengths::{XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES};
use super::name::xattr_name;
use super::operation::Creation;
use ringside_common::num::usize_of;

/// Extensions are padded to this.
pub(super) const ALIGN_BYTES: usize = 8;
/// Bytes of `struct fuse_ext_header`.
pub(super) const HEADER_BYTES: usize = 8;

/// Bytes that the largest extensions served have: a label of 64 KiB, and one group.
pub(super) const MAX_BYTES: usize = HEADER_BYTES
    + LABEL_HEADER_BYTES
    + (XATTR_NAME_MAX_BYTES + 1)
    + XATTR_VALUE_MAX_BYTES
    + GROUP_BYTES;
/// Bytes of `struct fuse_secctx`.
const LABEL_HEADER_BYTES: usize = 8;
/// Bytes of the extension with one group.
const GROUP_BYTES: usize = HEADER_BYTES + 8;

/// Parses `bytes`, all that follows the names.
pub(super) fn parse<'a>(
    header: &InHeader,
    bytes: &'a [u8],
    negotiated: InitFlags,
) -> Result<Creation<'a>, ParseError> {
    let mut awaited = negotiated & (InitFlags::SECURITY_CTX | InitFlags::CREATE_SUPP_GROUP);
    let said_bytes = usize_of(header.extensions_bytes.into());
    // Where nothing was agreed the length was padding once, and there are drivers that never set
    // it.
    if !awaited.is_empty() && said_bytes != 0 && said_bytes != bytes.len() {
        return Err(ParseError::Extension);
    }
    let mut rest = Reader::new(bytes);
    let mut creation = Creation::default();
    while rest.end().is_err() {
        let (kind, content) = next(&mut rest)?;
        let flag = match kind {
            ..=MAX_NR_SECCTX => InitFlags::SECURITY_CTX,
            EXT_GROUPS => InitFlags::CREATE_SUPP_GROUP,
            _ => return Err(ParseError::Extension),
        };
        // Each at most once, and none that was not agreed.
        if !awaited.contains(flag) {
            return Err(ParseError::Extension);
        }
        awaited.remove(flag);
        if kind == EXT_GROUPS {
            creation.group = parse_group(content)?;
        } else {
            creation.security = parse_label(kind, content)?;
        }
    }
    Ok(creation)
}

/// The type of the next extension and what is in it.
fn next<'a>(rest: &mut Reader<'a>) -> Result<(u32, Reader<'a>), ParseError> {
    let size_bytes = usize_of(rest.u32()?.into());
    let kind = rest.u32()?;
    let content_bytes = size_bytes
        .checked_sub(HEADER_BYTES)
        .filter(|bytes| bytes.is_multiple_of(ALIGN_BYTES))
        .ok_or(ParseError::Extension)?;
    Ok((kind, Reader::new(rest.bytes(content_bytes)?)))
}

/// A security label: `struct fuse_secctx`, the name, the label, padding.
fn parse_label<'a>(
    count: u32,
    mut content: Reader<'a>,
) -> Result<Option<(&'a CStr, &'a [u8])>, ParseError> {
    match count {
        0 => content.end().map(|()| None),
        1 => {
            let size_bytes = usize_of(content.u32()?.into());
            content.u32()?;
            let name = xattr_name(&mut content)?;
            if size_bytes > XATTR_VALUE_MAX_BYTES {
                return Err(ParseError::ValueTooLong);
            }
            let label = content.bytes(size_bytes)?;
            padding(content)?;
            Ok(Some((name, label)))
        }
        _ => Err(ParseError::Extension),
    }
}

/// `struct fuse_supp_groups` of none or one.
fn parse_group(mut content: Reader<'_>) -> Result<Option<u32>, ParseError> {
    let group = match content.u32()? {
        0 => None,
        1 => Some(content.u32()?),
        _ => return Err(ParseError::Extension),
    };
    padding(content)?;
    Ok(group)
}

/// Refuses more bytes than padding has.
fn padding(mut content: Reader<'_>) -> Result<(), ParseError> {
    if content.rest().len() < ALIGN_BYTES {
        Ok(())
    } else {
        Err(ParseError::Extension)
    }
}
