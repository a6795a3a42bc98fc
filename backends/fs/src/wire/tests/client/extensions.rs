// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extensions as a guest writes them.

use super::super::super::bytes::Put;
use super::super::super::extension::{ALIGN_BYTES, HEADER_BYTES};
use super::super::super::flags::{EXT_GROUPS, InitFlags};
use super::super::super::operation::Creation;

/// Appends the extensions of `creation` as Linux 6.3 and later send them.
pub(super) fn put(out: &mut Vec<u8>, creation: &Creation<'_>, negotiated: InitFlags) {
    if negotiated.contains(InitFlags::SECURITY_CTX) {
        let mut content = Vec::new();
        if let Some((name, label)) = creation.security {
            content.u32(u32::try_from(label.len()).unwrap_or(u32::MAX));
            content.u32(0);
            content.put(name.to_bytes_with_nul());
            content.put(label);
        }
        put_one(out, u32::from(creation.security.is_some()), content);
    }
    if let Some(group) = creation.group
        && negotiated.contains(InitFlags::CREATE_SUPP_GROUP)
    {
        let mut content = Vec::new();
        content.u32(1);
        content.u32(group);
        put_one(out, EXT_GROUPS, content);
    }
}

/// Appends one extension.
fn put_one(out: &mut Vec<u8>, kind: u32, mut content: Vec<u8>) {
    content.resize(content.len().next_multiple_of(ALIGN_BYTES), 0);
    let size_bytes = content.len().saturating_add(HEADER_BYTES);
    out.u32(u32::try_from(size_bytes).unwrap_or(u32::MAX));
    out.u32(kind);
    out.put(&content);
}
