// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User and group numbers, changed between guest and host.
//!
//! The two directions are separate: a rule for one says nothing about the other, except that `map`
//! is two rules. A number that no rule names stays as it is. The syntax is that of virtiofsd's
//! `--translate-uid` and `--translate-gid`.

use std::num::ParseIntError;
use std::str::FromStr;

use thiserror::Error;

use crate::error::{Errno, Result};

/// One rule as it is written: `KIND:FIRST:TO:COUNT`, with any separator.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IdTranslation {
    /// `guest:GUEST:HOST:COUNT`: numbers of the guest become as many of the host.
    Guest(Span),
    /// `host:HOST:GUEST:COUNT`: numbers of the host become as many of the guest.
    Host(Span),
    /// `squash-guest:GUEST:HOST:COUNT`: numbers of the guest become one of the host.
    SquashGuest(Span),
    /// `squash-host:HOST:GUEST:COUNT`: numbers of the host become one of the guest.
    SquashHost(Span),
    /// `forbid-guest:GUEST:COUNT`: numbers the guest may not use; `to` is 0.
    ForbidGuest(Span),
    /// `map:GUEST:HOST:COUNT`: `guest` and the reverse.
    Map(Span),
}

/// Which numbers a rule is about, and what becomes of the first of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// The first.
    pub from: u32,
    /// What that becomes.
    pub to: u32,
    /// How many.
    pub count: u32,
}

/// What is wrong with rules.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum IdMapError {
    /// Not one of the kinds.
    #[error(
        "{0:?} is none of guest, host, squash-guest, squash-host, forbid-guest and map, with a \
         separator behind it"
    )]
    Kind(String),
    /// Too few numbers or too many.
    #[error("{kind} takes {expected} numbers, not {found}")]
    Fields {
        /// The kind of rule.
        kind: String,
        /// How many numbers it takes.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Not a number.
    #[error("{text:?} is no number of a user or group: {source}")]
    Number {
        /// What is written.
        text: String,
        /// What is wrong with it.
        source: ParseIntError,
    },
    /// Numbers of more than 32 bits.
    #[error("{count} numbers from {first} on are more than there are")]
    Overflow {
        /// The first.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Two rules for one number.
    #[error("two rules for {0} in the same direction")]
    Twice(u32),
}

impl FromStr for IdTranslation {
    type Err = IdMapError;

    fn from_str(text: &str) -> std::result::Result<Self, IdMapError> {
        let is_kind = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let unknown = || IdMapError::Kind(text.to_owned());
        let separator = text.chars().find(|&c| !is_kind(c)).ok_or_else(unknown)?;
        let (kind, numbers) = text.split_once(separator).ok_or_else(unknown)?;
        let kind = kind.to_lowercase();
        let with: fn(Span) -> Self = match kind.as_str() {
            "guest" => Self::Guest,
            "host" => Self::Host,
            "squash-guest" => Self::SquashGuest,
            "squash-host" => Self::SquashHost,
            "forbid-guest" => Self::ForbidGuest,
            "map" => Self::Map,
            _ => return Err(IdMapError::Kind(kind)),
        };
        let numbers = numbers
            .split(separator)
            .map(number)
            .collect::<std::result::Result<Vec<u32>, _>>()?;
        let forbids = kind == "forbid-guest";
        match *numbers {
            [from, count] if forbids => Ok(with(Span { from, to: 0, count })),
            [from, to, count] if !forbids => Ok(with(Span { from, to, count })),
            _ => Err(IdMapError::Fields {
                kind,
                expected: if forbids { 2 } else { 3 },
                found: numbers.len(),
            }),
        }
    }
}

fn number(text: &str) -> std::result::Result<u32, IdMapError> {
    text.parse().map_err(|source| IdMapError::Number {
        text: text.to_owned(),
        source,
    })
}

/// All rules, for users and for groups. The default changes nothing.
#[derive(Clone, Debug, Default)]
pub struct IdMaps {
    uid: Both,
    gid: Both,
}

/// Both directions.
#[derive(Clone, Debug, Default)]
struct Both {
    to_host: OneWay,
    to_guest: OneWay,
}

/// Rules that do not overlap, by their first number.
#[derive(Clone, Debug, Default)]
struct OneWay(Vec<Rule>);

#[derive(Clone, Copy, Debug)]
struct Rule {
    first: u32,
    last: u32,
    becomes: Becomes,
}

#[derive(Clone, Copy, Debug)]
enum Becomes {
    /// One number for each, from this on.
    Each(u32),
    /// This.
    One(u32),
    Forbidden,
}

impl OneWay {
    fn add(&mut self, span: Span, becomes: Becomes) -> std::result::Result<(), IdMapError> {
        let Span { from, count, .. } = span;
        // The end is exclusive, and a number too: there is no user 2^32 - 1.
        let ends = |first: u32| match first.checked_add(count) {
            Some(end) => Ok(end),
            None => Err(IdMapError::Overflow { first, count }),
        };
        let end = ends(from)?;
        if let Becomes::Each(to) = becomes {
            ends(to)?;
        }
        if count == 0 {
            return Ok(());
        }
        let rule = Rule {
            first: from,
            last: end - 1,
            becomes,
        };
        let at = self.0.partition_point(|other| other.last < rule.first);
        if let Some(other) = self.0.get(at).filter(|other| other.first <= rule.last) {
            return Err(IdMapError::Twice(other.first.max(rule.first)));
        }
        self.0.insert(at, rule);
        Ok(())
    }

    fn get(&self, id: u32) -> Result<u32> {
        if self.0.is_empty() {
            return Ok(id);
        }
        let at = self.0.partition_point(|rule| rule.last < id);
        match self.0.get(at).filter(|rule| rule.first <= id) {
            None => Ok(id),
            Some(rule) => match rule.becomes {
                Becomes::Each(to) => Ok(to.saturating_add(id - rule.first)),
                Becomes::One(to) => Ok(to),
                Becomes::Forbidden => Err(Errno::PERM),
            },
        }
    }
}

impl Both {
    fn new(rules: &[IdTranslation]) -> std::result::Result<Self, IdMapError> {
        let mut maps = Self::default();
        let Self { to_host, to_guest } = &mut maps;
        for rule in rules {
            match *rule {
                IdTranslation::Guest(span) => to_host.add(span, Becomes::Each(span.to))?,
                IdTranslation::Host(span) => to_guest.add(span, Becomes::Each(span.to))?,
                IdTranslation::SquashGuest(span) => to_host.add(span, Becomes::One(span.to))?,
                IdTranslation::SquashHost(span) => to_guest.add(span, Becomes::One(span.to))?,
                IdTranslation::ForbidGuest(span) => to_host.add(span, Becomes::Forbidden)?,
                IdTranslation::Map(span) => {
                    to_host.add(span, Becomes::Each(span.to))?;
                    let Span { from, to, count } = span;
                    let back = Span {
                        from: to,
                        to: from,
                        count,
                    };
                    to_guest.add(back, Becomes::Each(from))?;
                }
            }
        }
        Ok(maps)
    }
}

impl IdMaps {
    /// The rules for users and those for groups, in any order.
    ///
    /// # Errors
    /// Ranges beyond 32 bits, and two rules for the same number.
    pub fn new(
        uid: &[IdTranslation],
        gid: &[IdTranslation],
    ) -> std::result::Result<Self, IdMapError> {
        Ok(Self {
            uid: Both::new(uid)?,
            gid: Both::new(gid)?,
        })
    }

    /// A user of the guest as the host has it.
    ///
    /// # Errors
    /// `EPERM` for one the guest may not use.
    pub fn uid_to_host(&self, uid: u32) -> Result<u32> {
        self.uid.to_host.get(uid)
    }

    /// A group of the guest as the host has it.
    ///
    /// # Errors
    /// `EPERM` for one the guest may not use.
    pub fn gid_to_host(&self, gid: u32) -> Result<u32> {
        self.gid.to_host.get(gid)
    }

    /// A user of the host as the guest sees it.
    #[must_use]
    pub fn uid_to_guest(&self, uid: u32) -> u32 {
        self.uid.to_guest.get(uid).unwrap_or(uid)
    }

    /// A group of the host as the guest sees it.
    #[must_use]
    pub fn gid_to_guest(&self, gid: u32) -> u32 {
        self.gid.to_guest.get(gid).unwrap_or(gid)
    }
}

#[cfg(test)]
mod tests;
