// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `-o LIST`: the options as QEMU's virtiofsd had them, and as libvirt gives them (9.0, for one).
//!
//! A list has items between commas, a word or `key=value`; a comma of a value is doubled. The words
//! are those that virtiofsd 1.14 takes, and libvirt's words for locks. As there, a word of this
//! list overrides the option of that name.

use clap::ValueEnum as _;
use clap::error::ErrorKind;
use ringside_common::cli::LogLevel;
use ringside_common::sandbox::Mode;
use thiserror::Error;

use super::{Options, values};
use crate::config::{CachePolicy, Negotiation};

/// Why a list was not understood.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(super) enum LegacyError {
    /// No such word.
    #[error("-o {item}: there is no such option")]
    Unknown { item: String },
    /// A value that means nothing.
    #[error("-o {key}={value}: not understood")]
    Value { key: String, value: String },
    /// A directory beside others.
    #[error("-o source does not go with --share")]
    SourceAndShares,
    /// Nothing is shared.
    #[error("one of --shared-dir, --share and -o source is needed")]
    NoSource,
}

impl LegacyError {
    pub(super) const fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::UnknownArgument,
            Self::Value { .. } => ErrorKind::InvalidValue,
            Self::SourceAndShares => ErrorKind::ArgumentConflict,
            Self::NoSource => ErrorKind::MissingRequiredArgument,
        }
    }
}

/// Puts what the lists say in its place.
///
/// # Errors
/// [`LegacyError`], naming the item.
pub(super) fn apply(options: &mut Options) -> Result<(), LegacyError> {
    if options.compatibility.legacy.is_empty() {
        return Ok(());
    }
    for list in std::mem::take(&mut options.compatibility.legacy) {
        for item in items(&list) {
            match item.split_once('=') {
                Some((key, value)) => set(options, key, value)?,
                None => switch(options, &item)?,
            }
        }
        options.compatibility.legacy.push(list);
    }
    if options.common.print_capabilities {
        return Ok(());
    }
    match (&options.share.shared_dir, options.share.shares.is_empty()) {
        (Some(_), false) => Err(LegacyError::SourceAndShares),
        (None, true) => Err(LegacyError::NoSource),
        _ => Ok(()),
    }
}

/// The items of a list, with doubled commas undone.
fn items(list: &str) -> Vec<String> {
    // No argument of a program has a NUL in it.
    let escaped = list.replace(",,", "\0");
    let items = escaped.split(',').map(|item| item.replace('\0', ","));
    items.collect()
}

fn set(options: &mut Options, key: &str, value: &str) -> Result<(), LegacyError> {
    let bad = || LegacyError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    match key {
        "source" if value.is_empty() => return Err(bad()),
        "source" => options.share.shared_dir = Some(value.into()),
        "cache" => {
            options.cache.cache = match value {
                "none" => CachePolicy::Never,
                value => values::cache(value).map_err(|_unknown| bad())?,
            };
        }
        "sandbox" => {
            options.sandbox.sandbox = Mode::from_str(value, true).map_err(|_unknown| bad())?;
        }
        "loglevel" => {
            options.common.log_level = match value {
                "err" => LogLevel::Error,
                value => LogLevel::from_str(value, true).map_err(|_unknown| bad())?,
            };
        }
        "modcaps" => {
            options.sandbox.modcaps = Some(value.parse().map_err(|_unknown| bad())?);
        }
        "xattrmap" => {
            options.features.xattrmap = Some(value.parse().map_err(|_unknown| bad())?);
        }
        _ => {
            return Err(LegacyError::Unknown {
                item: format!("{key}={value}"),
            });
        }
    }
    Ok(())
}

fn switch(options: &mut Options, word: &str) -> Result<(), LegacyError> {
    let (name, on) = match word.strip_prefix("no_") {
        Some(name) => (name, false),
        None => (word, true),
    };
    let negotiation = if on {
        Negotiation::Always
    } else {
        Negotiation::Never
    };
    match name {
        "xattr" => options.features.xattr = on,
        "posix_acl" => options.features.posix_acl = negotiation,
        "security_label" => options.features.security_label = negotiation,
        "killpriv_v2" => options.features.killpriv_v2 = on,
        "flock" => options.features.flock = on,
        "posix_lock" => options.features.posix_lock = on,
        "readdirplus" => options.cache.no_readdirplus = !on,
        "writeback" => options.cache.writeback = on,
        "allow_direct_io" => options.cache.allow_direct_io = on,
        "announce_submounts" if on => options.share.no_announce_submounts = false,
        _ => {
            return Err(LegacyError::Unknown {
                item: word.to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_with_doubled_commas_keep_one() {
        assert_eq!(items("source=/a,,b,xattr"), ["source=/a,b", "xattr"]);
        assert_eq!(items("a,,,b"), ["a,", "b"]);
        assert_eq!(items(""), [""]);
    }
}
