// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of extended attributes, changed between guest and host.
//!
//! The grammar is that of virtiofsd's `--xattrmap`: rules of fields, each with a separator of its
//! own choice. The first rule that matches decides. A rule of the scope `client` matches what the
//! guest asks for by its `key`, one of the scope `server` matches what the host lists by its
//! `prepend`. A name that no rule matches is refused to the guest (EPERM; ENODATA
//! where it asks for the value), or not shown to it.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::str::FromStr;

use thiserror::Error;

use crate::error::{Errno, Result};

/// The capabilities of an executable file, which Linux drops when the file is written to.
const SECURITY_CAPABILITY: &CStr = c"security.capability";

/// The rules of `--xattrmap`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct XattrMap {
    rules: Vec<Rule>,
    capability: Option<CString>,
}

/// What is wrong with rules.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum XattrMapError {
    /// No rules at all.
    #[error("no rules")]
    Empty,
    /// The separator is missing at the end.
    #[error("rule {0} ends before its last separator")]
    Incomplete(usize),
    /// Not one of the types.
    #[error("rule {rule}: {text:?} is none of prefix, ok, bad, unsupported and map")]
    Type {
        /// Which rule, from 1.
        rule: usize,
        /// What is written.
        text: String,
    },
    /// Not one of the scopes.
    #[error("rule {rule}: {text:?} is none of client, server and all")]
    Scope {
        /// Which rule, from 1.
        rule: usize,
        /// What is written.
        text: String,
    },
    /// A byte that no name has.
    #[error("rule {0} has a NUL in it")]
    Nul(usize),
    /// Something behind a rule of the type `map`.
    #[error("rule {0} is a map and not the last rule")]
    MapNotLast(usize),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Action {
    /// Something is put before the name on the way to the host, and taken off on the way back.
    Prefix,
    Pass,
    Deny,
    Unsupported,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Rule {
    action: Action,
    client: bool,
    server: bool,
    key: Vec<u8>,
    prepend: Vec<u8>,
}

impl Rule {
    fn both(action: Action, key: &str, prepend: &str) -> Self {
        Self {
            action,
            client: true,
            server: true,
            key: key.into(),
            prepend: prepend.into(),
        }
    }
}

/// Fields that all end with one separator.
struct Fields<'a> {
    rest: &'a str,
    separator: char,
    /// The number of the rule, from 1.
    rule: usize,
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> std::result::Result<&'a str, XattrMapError> {
        let (field, rest) = self
            .rest
            .split_once(self.separator)
            .ok_or(XattrMapError::Incomplete(self.rule))?;
        if field.contains('\0') {
            return Err(XattrMapError::Nul(self.rule));
        }
        self.rest = rest;
        Ok(field)
    }

    /// Adds the rule, or those that a map stands for, and says whether it was a map.
    fn parse(&mut self, rules: &mut Vec<Rule>) -> std::result::Result<bool, XattrMapError> {
        let action = match self.next()? {
            "prefix" => Action::Prefix,
            "ok" => Action::Pass,
            "bad" => Action::Deny,
            "unsupported" => Action::Unsupported,
            "map" => {
                let (key, prepend) = (self.next()?, self.next()?);
                add_map(rules, key, prepend);
                return Ok(true);
            }
            text => {
                return Err(XattrMapError::Type {
                    rule: self.rule,
                    text: text.to_owned(),
                });
            }
        };
        let (client, server) = match self.next()? {
            "client" => (true, false),
            "server" => (false, true),
            "all" => (true, true),
            text => {
                return Err(XattrMapError::Scope {
                    rule: self.rule,
                    text: text.to_owned(),
                });
            }
        };
        rules.push(Rule {
            client,
            server,
            ..Rule::both(action, self.next()?, self.next()?)
        });
        Ok(false)
    }
}

/// What `map` is short for. Where only some names get the prefix, the guest sees neither names of
/// the host that would look like them, nor gets at the prefixed ones directly.
fn add_map(rules: &mut Vec<Rule>, key: &str, prepend: &str) {
    rules.push(Rule::both(Action::Prefix, key, prepend));
    if key.is_empty() {
        rules.push(Rule::both(Action::Deny, "", ""));
    } else {
        rules.push(Rule::both(Action::Deny, prepend, key));
        rules.push(Rule::both(Action::Pass, "", ""));
    }
}

impl FromStr for XattrMap {
    type Err = XattrMapError;

    fn from_str(text: &str) -> std::result::Result<Self, XattrMapError> {
        let mut rules = Vec::new();
        let mut rest = text.trim();
        let mut number = 0;
        while let Some(separator) = rest.chars().next() {
            number += 1;
            let mut fields = Fields {
                rest: rest.strip_prefix(separator).unwrap_or_default(),
                separator,
                rule: number,
            };
            let is_map = fields.parse(&mut rules)?;
            rest = fields.rest.trim_start();
            if is_map && !rest.is_empty() {
                return Err(XattrMapError::MapNotLast(number));
            }
        }
        if rules.is_empty() {
            return Err(XattrMapError::Empty);
        }
        let mut map = Self {
            rules,
            capability: None,
        };
        if let Ok(Cow::Owned(name)) = map.to_host(SECURITY_CAPABILITY) {
            map.capability = (*name != *SECURITY_CAPABILITY).then_some(name);
        }
        Ok(map)
    }
}

impl XattrMap {
    /// Whether some rule matches whatever the guest may ask for.
    #[must_use]
    pub fn decides_all_of_guest(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.client && rule.key.is_empty())
    }

    /// Whether some rule matches whatever the host may list.
    #[must_use]
    pub fn decides_all_of_host(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.server && rule.prepend.is_empty())
    }

    /// The name on the host of what the guest calls `name`.
    ///
    /// # Errors
    /// `EPERM` or `EOPNOTSUPP`, as the rule says; `EPERM` where there is none.
    pub fn to_host<'a>(&self, name: &'a CStr) -> Result<Cow<'a, CStr>> {
        let bytes = name.to_bytes();
        let found = self
            .rules
            .iter()
            .find(|rule| rule.client && bytes.starts_with(&rule.key));
        match found.map(|rule| (rule.action, &rule.prepend)) {
            Some((Action::Pass, _)) => Ok(Cow::Borrowed(name)),
            Some((Action::Prefix, prepend)) => {
                let name = CString::new([prepend, bytes].concat());
                name.map(Cow::Owned).map_err(|_no_such_name| Errno::INVAL)
            }
            Some((Action::Unsupported, _)) => Err(Errno::OPNOTSUPP),
            Some((Action::Deny, _)) | None => Err(Errno::PERM),
        }
    }

    /// What the guest sees of a name that the host lists; none: it does not see it.
    #[must_use]
    pub fn to_guest<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let found = self
            .rules
            .iter()
            .find(|rule| rule.server && name.starts_with(&rule.prepend))?;
        match found.action {
            Action::Pass => Some(name),
            Action::Prefix => name.strip_prefix(&*found.prepend).filter(|n| !n.is_empty()),
            Action::Deny | Action::Unsupported => None,
        }
    }

    /// Turns a list of names with a NUL behind each, as the host gives it, into what the guest
    /// sees. It is never longer.
    pub fn list_to_guest(&self, list: &mut Vec<u8>) {
        let seen = list
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty())
            .filter_map(|name| self.to_guest(name))
            .flat_map(|name| name.iter().copied().chain([0]))
            .collect();
        *list = seen;
    }

    /// The name of `security.capability` on the host, if it has another one there. The host then
    /// does not know what it means: a request that writes to a file, truncates it or changes its
    /// owner has to remove it (CVE-2021-20263).
    #[must_use]
    pub fn capability(&self) -> Option<&CStr> {
        self.capability.as_deref()
    }
}

#[cfg(test)]
mod tests;
