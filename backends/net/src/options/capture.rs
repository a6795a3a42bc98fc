// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--capture`: where frames are captured from the start.

use std::path::PathBuf;
use std::str::FromStr;

use super::items::{Item, SpecError, items};
use super::values;
use crate::capture::Rotation;

/// The value of `--capture`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CaptureSpec {
    /// The first file.
    pub path: PathBuf,
    /// What becomes of one that is full.
    pub rotation: Rotation,
}

impl FromStr for CaptureSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let items = items(text);
        let (first, more) = items
            .split_first()
            .map_or((None, &[][..]), |(first, more)| (Some(first), more));
        // An equals sign does no harm in a name.
        let path = first.map_or_else(String::new, Item::text);
        let path = values::path(&path).map_err(|error| SpecError::Value {
            key: "PATH".to_owned(),
            value: path,
            error,
        })?;
        let (mut max_bytes, mut files) = (None, None);
        for item in more {
            match item.key.as_str() {
                "max-bytes" => item.parse_into(&mut max_bytes, values::capture_bytes)?,
                "files" => item.parse_into(&mut files, values::capture_files)?,
                _ => return Err(item.unknown("max-bytes=N or files=N")),
            }
        }
        let rotation = Rotation::of(max_bytes, files).ok_or(SpecError::FilesWithoutBytes)?;
        Ok(Self { path, rotation })
    }
}

#[cfg(test)]
mod tests {
    use super::super::values::ValueError;
    use super::*;

    fn capture(text: &str) -> Result<CaptureSpec, SpecError> {
        text.parse()
    }

    #[test]
    fn capture_is_read_with_its_bounds() {
        let usual = Rotation::default();
        for (text, path, max_bytes, files) in [
            ("/tmp/c", "/tmp/c", usual.max_bytes, usual.files),
            ("a=b,,c,files=2", "a=b,c", usual.max_bytes, 2),
            ("c,max-bytes=5M", "c", Some(5_000_000), usual.files),
            ("c,files=1,max-bytes=100K", "c", Some(100_000), 1),
            ("c,max-bytes=off", "c", None, 1),
        ] {
            let path = path.into();
            let rotation = Rotation { max_bytes, files };
            assert_eq!(capture(text), Ok(CaptureSpec { path, rotation }), "{text}");
        }
    }

    #[test]
    fn capture_with_a_fault_says_which() {
        for (text, key, value, error) in [
            ("", "PATH", "", ValueError::Path),
            (
                "c,max-bytes=99999",
                "max-bytes",
                "99999",
                ValueError::CaptureBytes,
            ),
            ("c,max-bytes=", "max-bytes", "", ValueError::CaptureBytes),
            ("c,files=0", "files", "0", ValueError::CaptureFiles),
            ("c,files=1001", "files", "1001", ValueError::CaptureFiles),
        ] {
            let expected = SpecError::Value {
                key: key.to_owned(),
                value: value.to_owned(),
                error,
            };
            assert_eq!(capture(text), Err(expected), "{text}");
        }
        let alone = capture("c,max-bytes=off,files=2");
        assert_eq!(alone, Err(SpecError::FilesWithoutBytes));
        for text in ["c,d", "c,count=2"] {
            let error = capture(text).unwrap_err();
            assert!(matches!(error, SpecError::Unknown { .. }), "{error}");
        }
    }
}
