// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parsers of single option values.

use std::time::Duration;

use ringside_common::cli::size;
use thiserror::Error;

use crate::config::{CachePolicy, InodeHandles, Negotiation, Share};
use crate::dax::MIN_WINDOW_BYTES;

/// `virtio_fs_config.tag` (virtio 1.3 §5.11.4).
const MAX_TAG_BYTES: usize = 36;
/// `NAME_MAX`.
const MAX_NAME_BYTES: usize = 255;

/// Why the value of an option was not understood.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ValueError {
    /// Not one of the words.
    #[error("expected one of {words}")]
    Word {
        /// Those that are.
        words: &'static str,
    },
    /// A tag that does not fit.
    #[error("a tag has 1 to {MAX_TAG_BYTES} bytes and no NUL")]
    Tag,
    /// No size that a window can have.
    #[error("not 0 nor a power of two from 2M, like 8G")]
    Window,
    /// Not a time.
    #[error("not a number of seconds")]
    Seconds,
    /// Nothing that separates the name from the path.
    #[error("expected NAME=PATH")]
    Share,
    /// A name that no directory entry can have.
    #[error("a name has 1 to {MAX_NAME_BYTES} bytes, no '/', and is not '.' or '..'")]
    Name,
}

/// Case is ignored, as virtiofsd does.
pub(super) fn cache(text: &str) -> Result<CachePolicy, ValueError> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(CachePolicy::Auto),
        "always" => Ok(CachePolicy::Always),
        "never" => Ok(CachePolicy::Never),
        "metadata" => Ok(CachePolicy::Metadata),
        _ => Err(ValueError::Word {
            words: "auto, always, never, metadata",
        }),
    }
}

pub(super) fn negotiation(text: &str) -> Result<Negotiation, ValueError> {
    match text {
        "never" => Ok(Negotiation::Never),
        "auto" => Ok(Negotiation::Auto),
        "always" => Ok(Negotiation::Always),
        _ => Err(ValueError::Word {
            words: "never, auto, always",
        }),
    }
}

/// `fallback` is virtiofsd's former name of `prefer`.
pub(super) fn inode_handles(text: &str) -> Result<InodeHandles, ValueError> {
    match text {
        "never" => Ok(InodeHandles::Never),
        "prefer" | "fallback" => Ok(InodeHandles::Prefer),
        "mandatory" => Ok(InodeHandles::Mandatory),
        _ => Err(ValueError::Word {
            words: "never, prefer, mandatory",
        }),
    }
}

pub(super) fn tag(text: &str) -> Result<String, ValueError> {
    if (1..=MAX_TAG_BYTES).contains(&text.len()) && !text.contains('\0') {
        Ok(text.to_owned())
    } else {
        Err(ValueError::Tag)
    }
}

/// 0, or a power of two of bytes that has room for what Linux maps at once.
pub(super) fn window(text: &str) -> Result<u64, ValueError> {
    if text == "0" {
        return Ok(0);
    }
    size(text)
        .ok()
        .filter(|size| size.is_power_of_two() && *size >= MIN_WINDOW_BYTES)
        .ok_or(ValueError::Window)
}

/// Decimal, like 0.5.
pub(super) fn seconds(text: &str) -> Result<Duration, ValueError> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or(ValueError::Seconds)
}

pub(super) fn share(text: &str) -> Result<Share, ValueError> {
    let (name, path) = text.split_once('=').ok_or(ValueError::Share)?;
    if path.is_empty() {
        return Err(ValueError::Share);
    }
    let is_name = (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.contains(['/', '\0'])
        && !matches!(name, "." | "..");
    if !is_name {
        return Err(ValueError::Name);
    }
    Ok(Share {
        name: Some(name.to_owned()),
        path: path.into(),
    })
}
