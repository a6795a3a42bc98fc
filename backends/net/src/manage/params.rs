// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parameters of a method.
//!
//! `ringside-net ctl` sends as a number what looks like one, and `10M` as a string: both are
//! understood wherever a number is.

use std::num::NonZeroU64;
use std::path::PathBuf;

use ringside_common::limit::Rate;
use ringside_common::management::ManageError;
use serde_json::Value;

use crate::capture::{MAX_FILES, MIN_FILE_BYTES, Rotation};
use crate::options::{ValueError, bytes_rate, number, packets_rate};

/// An object, or nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Params<'a>(&'a Value);

impl<'a> Params<'a> {
    pub(super) fn new(params: &'a Value) -> Self {
        Self(params)
    }

    /// Refuses parameters of other names: a slip of the pen is not to pass for a wish.
    pub(super) fn only(self, names: &[&str]) -> Result<(), ManageError> {
        let given = self
            .0
            .as_object()
            .into_iter()
            .flat_map(|object| object.keys());
        match given
            .into_iter()
            .find(|name| !names.contains(&name.as_str()))
        {
            Some(name) => Err(ManageError::UnknownParam { name: name.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn get(self, name: &str) -> Option<&'a Value> {
        self.0.get(name)
    }

    pub(super) fn required(self, name: &'static str) -> Result<&'a Value, ManageError> {
        self.get(name).ok_or(ManageError::MissingParam { name })
    }

    /// The working directory of the back-end is not that of its client.
    pub(super) fn absolute_path(self, name: &'static str) -> Result<PathBuf, ManageError> {
        let path = self.required(name)?.as_str().map(PathBuf::from);
        path.filter(|path| path.is_absolute())
            .ok_or_else(|| invalid(name, "an absolute path"))
    }

    /// A number, if there is one.
    pub(super) fn amount(self, name: &'static str) -> Result<Option<u64>, ManageError> {
        self.get(name)
            .map(|value| {
                amount(value).ok_or_else(|| invalid(name, "a number, perhaps with K, M or G"))
            })
            .transpose()
    }

    /// How the files of a capture are bounded.
    pub(super) fn rotation(self) -> Result<Rotation, ManageError> {
        let max_bytes = match self.get("max_bytes") {
            None => None,
            Some(value) if value == "off" => Some(None),
            Some(value) => {
                let bytes = amount(value).filter(|bytes| *bytes >= MIN_FILE_BYTES);
                let expected = "a number of bytes from 100K, or off";
                Some(Some(bytes.ok_or_else(|| invalid("max_bytes", expected))?))
            }
        };
        let files = self.amount("files")?.map(|files| {
            let files = u32::try_from(files).ok();
            files
                .filter(|files| (1..=MAX_FILES).contains(files))
                .ok_or_else(|| invalid("files", "a number from 1 to 1000"))
        });
        Rotation::of(max_bytes, files.transpose()?)
            .ok_or_else(|| invalid("files", "1 without a bound"))
    }

    /// What becomes of a limit of bytes.
    pub(super) fn bytes_limit(self, before: Option<Rate>) -> Result<Option<Rate>, ManageError> {
        let asked = self.rate("bytes", bytes_rate, "a rate up to 50G, or off")?;
        let burst = self.amount("burst_bytes")?;
        changed(before, asked, burst).ok_or_else(|| invalid("burst_bytes", "bytes to be limited"))
    }

    /// What becomes of a limit of packets.
    pub(super) fn packets_limit(self, before: Option<Rate>) -> Result<Option<Rate>, ManageError> {
        let asked = self.rate("packets", packets_rate, "a rate up to 100M, or off")?;
        let burst = self.amount("burst_packets")?;
        changed(before, asked, burst)
            .ok_or_else(|| invalid("burst_packets", "packets to be limited"))
    }

    fn rate(
        self,
        name: &'static str,
        check: fn(u64) -> Result<NonZeroU64, ValueError>,
        expected: &'static str,
    ) -> Result<Asked, ManageError> {
        match self.get(name) {
            None => Ok(Asked::Nothing),
            Some(value) if value == "off" || value == 0 => Ok(Asked::Off),
            Some(value) => amount(value)
                .and_then(|per_s| check(per_s).ok())
                .map(Asked::Rate)
                .ok_or_else(|| invalid(name, expected)),
        }
    }
}

/// What a request makes of a rate.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// Nothing was said.
    Nothing,
    Off,
    Rate(NonZeroU64),
}

/// A new rate comes with a new burst; a burst alone goes to the rate there is. `None` if there is
/// no rate for the burst.
fn changed(before: Option<Rate>, asked: Asked, burst: Option<u64>) -> Option<Option<Rate>> {
    match (asked, before) {
        (Asked::Rate(per_s), _) => Some(Some(Rate { per_s, burst })),
        (Asked::Nothing, Some(rate)) => Some(Some(Rate {
            burst: burst.or(rate.burst),
            ..rate
        })),
        (Asked::Off, _) | (Asked::Nothing, None) => burst.is_none().then_some(None),
    }
}

fn amount(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => number(text).ok(),
        other => other.as_u64(),
    }
}

/// A parameter that is not as it is `expected`.
pub(super) fn invalid(name: &'static str, expected: &'static str) -> ManageError {
    ManageError::InvalidParam { name, expected }
}
