// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The maps of a user namespace (`user_namespaces(7)`), and how they are set.
//!
//! A process may map its own number without privileges; every other map is set by `newuidmap(1)`
//! and `newgidmap(1)`, unless we are root. They are set from outside, by the parent of the process
//! that is in the namespace.

use std::fmt::Write as _;
use std::io;
use std::num::ParseIntError;
use std::process::{Command, Stdio};
use std::str::FromStr;

use rustix::process::{Pid, getegid, geteuid};
use thiserror::Error;

/// One range of user or group numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdRange {
    /// The first number inside.
    pub inside: u32,
    /// The first number outside.
    pub outside: u32,
    /// How many follow one another.
    pub count: u32,
}

/// Why a range was not understood.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdRangeError {
    /// Not three numbers between equal delimiters.
    #[error("expected :INSIDE:OUTSIDE:COUNT:")]
    Shape,
    /// Not a number.
    #[error("not a number of 32 bits")]
    Number(#[from] ParseIntError),
}

impl FromStr for IdRange {
    type Err = IdRangeError;

    /// `:INSIDE:OUTSIDE:COUNT:`, with any delimiter that is neither letter nor digit.
    fn from_str(text: &str) -> Result<Self, IdRangeError> {
        let delimiter = text
            .chars()
            .next()
            .filter(|c| !c.is_alphanumeric())
            .ok_or(IdRangeError::Shape)?;
        let inner = text
            .strip_prefix(delimiter)
            .and_then(|rest| rest.strip_suffix(delimiter))
            .ok_or(IdRangeError::Shape)?;
        let fields: Vec<&str> = inner.split(delimiter).collect();
        let [inside, outside, count] = fields[..] else {
            return Err(IdRangeError::Shape);
        };
        Ok(Self {
            inside: inside.parse()?,
            outside: outside.parse()?,
            count: count.parse()?,
        })
    }
}

/// Both maps of a user namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Maps {
    users: Vec<IdRange>,
    groups: Vec<IdRange>,
}

impl Maps {
    /// The given ranges; where there are none, our own number stays what it is.
    pub(super) fn new(users: &[IdRange], groups: &[IdRange]) -> Self {
        let own = |id| {
            vec![IdRange {
                inside: id,
                outside: id,
                count: 1,
            }]
        };
        Self {
            users: match users {
                [] => own(geteuid().as_raw()),
                ranges => ranges.to_vec(),
            },
            groups: match groups {
                [] => own(getegid().as_raw()),
                ranges => ranges.to_vec(),
            },
        }
    }

    /// Whether there is a user 0 inside.
    pub(super) fn have_root_user(&self) -> bool {
        maps_root(&self.users)
    }

    /// Whether there is a group 0 inside.
    pub(super) fn have_root_group(&self) -> bool {
        maps_root(&self.groups)
    }

    /// Sets the maps of process `pid`.
    pub(super) fn write(&self, pid: Pid) -> io::Result<()> {
        write_map(pid, "uid_map", "newuidmap", &self.users, geteuid().as_raw())?;
        if is_own(&self.groups, getegid().as_raw()) && !geteuid().is_root() {
            // The kernel's condition for a group map without privilege.
            std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        }
        write_map(
            pid,
            "gid_map",
            "newgidmap",
            &self.groups,
            getegid().as_raw(),
        )
    }
}

fn maps_root(ranges: &[IdRange]) -> bool {
    ranges.iter().any(|r| r.inside == 0 && r.count > 0)
}

fn is_own(ranges: &[IdRange], own: u32) -> bool {
    matches!(ranges, [IdRange { outside, count: 1, .. }] if *outside == own)
}

fn write_map(pid: Pid, file: &str, helper: &str, ranges: &[IdRange], own: u32) -> io::Result<()> {
    if geteuid().is_root() || is_own(ranges, own) {
        let mut text = String::new();
        for range in ranges {
            let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.count);
        }
        return std::fs::write(format!("/proc/{pid}/{file}"), text);
    }
    let mut command = Command::new(helper);
    command.arg(pid.to_string()).stdin(Stdio::null());
    for range in ranges {
        command.args([range.inside, range.outside, range.count].map(|n| n.to_string()));
    }
    let output = command
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{helper}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{helper}: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_with_any_delimiter_is_read() {
        let expected = IdRange {
            inside: 0,
            outside: 100_000,
            count: 65_536,
        };
        for text in [":0:100000:65536:", ",0,100000,65536,", "/0/100000/65536/"] {
            assert_eq!(text.parse::<IdRange>().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn range_with_wrong_shape_is_refused() {
        for text in [
            "",
            ":",
            "::",
            "0:1:2",
            ":0:1:",
            ":0:1:2:3:",
            ":0:1:2,",
            "a0a1a2a",
        ] {
            let error = text.parse::<IdRange>().unwrap_err();
            assert!(matches!(error, IdRangeError::Shape), "{text}: {error}");
        }
        for text in [":0:1:4294967296:", ":0::2:", ":-1:0:1:"] {
            let error = text.parse::<IdRange>().unwrap_err();
            assert!(matches!(error, IdRangeError::Number(_)), "{text}: {error}");
        }
    }

    #[test]
    fn maps_have_root_by_each_number_of_its_own() {
        let root = IdRange {
            inside: 0,
            outside: 1000,
            count: 1,
        };
        let other = IdRange { inside: 1, ..root };
        let none = IdRange { count: 0, ..root };
        for (users, groups, expected) in [
            (root, root, (true, true)),
            (root, other, (true, false)),
            (other, root, (false, true)),
            (none, none, (false, false)),
        ] {
            let maps = Maps::new(&[users], &[groups]);
            assert_eq!((maps.have_root_user(), maps.have_root_group()), expected);
        }
    }
}
