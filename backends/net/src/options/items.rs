// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists like `socket=PATH,vlan=5,isolated`.

use thiserror::Error;

use super::values::ValueError;

/// Why a list was not understood.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SpecError {
    /// Something that is not known here.
    #[error("'{key}' is not known here; expected {expected}")]
    Unknown {
        /// What was written.
        key: String,
        /// What could have been.
        expected: &'static str,
    },
    /// A key without its value.
    #[error("{key} needs a value")]
    NoValue {
        /// The key.
        key: String,
    },
    /// A value where none belongs.
    #[error("{key} takes no value")]
    UnexpectedValue {
        /// The key.
        key: String,
    },
    /// A key that is there already.
    #[error("{key} is given twice")]
    Twice {
        /// The key.
        key: String,
    },
    /// A value that is not understood.
    #[error("{key}: '{value}' is {error}")]
    Value {
        /// The key.
        key: String,
        /// What was written.
        value: String,
        /// What is wrong with it.
        error: ValueError,
    },
    /// Nothing says where the guest is.
    #[error("one of socket=PATH, connect=PATH and fd=N is needed")]
    NoEndpoint,
    /// Several things say where the guest is.
    #[error("only one of socket=, connect= and fd= can be given")]
    TwoEndpoints,
    /// A burst of nothing.
    #[error("burst= belongs behind the limit- that it is for")]
    BurstWithoutLimit,
    /// Several files of which none is ever full.
    #[error("files= needs a bound: max-bytes=off is one file")]
    FilesWithoutBytes,
    /// A link that a switch cannot use.
    #[error("cannot be an uplink; expected tap:, packet:, stream: or dgram:")]
    NoUplink,
}

/// One part of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Item {
    pub(super) key: String,
    value: Option<String>,
}

/// Takes a list apart. Two commas are one that belongs to the text.
pub(super) fn items(text: &str) -> Vec<Item> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.into_iter().map(Item::of).collect()
}

impl Item {
    fn of(part: String) -> Self {
        match part.split_once('=') {
            Some((key, value)) => Self {
                key: key.to_owned(),
                value: Some(value.to_owned()),
            },
            None => Self {
                key: part,
                value: None,
            },
        }
    }

    /// What was written.
    pub(super) fn text(&self) -> String {
        match &self.value {
            Some(value) => format!("{}={value}", self.key),
            None => self.key.clone(),
        }
    }

    /// The value, read by `parse`.
    pub(super) fn parse<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Result<T, SpecError> {
        let value = self.value.as_deref().ok_or_else(|| SpecError::NoValue {
            key: self.key.clone(),
        })?;
        parse(value).map_err(|error| SpecError::Value {
            key: self.key.clone(),
            value: value.to_owned(),
            error,
        })
    }

    /// Puts the value, read by `parse`, where there is none yet.
    pub(super) fn parse_into<T>(
        &self,
        slot: &mut Option<T>,
        parse: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Result<(), SpecError> {
        let value = self.parse(parse)?;
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(self.twice()),
        }
    }

    /// Sets a flag that is not set yet.
    pub(super) fn set(&self, flag: &mut bool) -> Result<(), SpecError> {
        if self.value.is_some() {
            return Err(SpecError::UnexpectedValue {
                key: self.key.clone(),
            });
        }
        if std::mem::replace(flag, true) {
            return Err(self.twice());
        }
        Ok(())
    }

    pub(super) fn unknown(&self, expected: &'static str) -> SpecError {
        SpecError::Unknown {
            key: self.key.clone(),
            expected,
        }
    }

    fn twice(&self) -> SpecError {
        SpecError::Twice {
            key: self.key.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_taken_apart_at_single_commas() {
        let taken = |text| -> Vec<(String, Option<String>)> {
            let parts = items(text).into_iter();
            parts.map(|item| (item.key, item.value)).collect()
        };
        let item = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(taken(""), [item("", None)]);
        assert_eq!(
            taken("socket=/a,,b=c,isolated,x="),
            [
                item("socket", Some("/a,b=c")),
                item("isolated", None),
                item("x", Some("")),
            ]
        );
        assert_eq!(taken("a,,,b"), [item("a,", None), item("b", None)]);
        assert_eq!(taken("a,"), [item("a", None), item("", None)]);
    }
}
