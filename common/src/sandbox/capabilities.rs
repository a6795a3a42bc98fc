// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capabilities: all are given up but a named few (capabilities(7)).

use std::str::FromStr;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::error::SandboxError;

/// A change of the capabilities that are kept: `+sys_admin:-chown`, as virtiofsd's `--modcaps`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CapabilityChanges {
    added: CapabilitySet,
    removed: CapabilitySet,
}

impl Default for CapabilityChanges {
    fn default() -> Self {
        Self {
            added: CapabilitySet::empty(),
            removed: CapabilitySet::empty(),
        }
    }
}

impl CapabilityChanges {
    /// `kept`, changed.
    #[must_use]
    pub fn apply(self, kept: CapabilitySet) -> CapabilitySet {
        (kept | self.added) - self.removed
    }

    /// Whether `capability` was taken away explicitly.
    #[must_use]
    pub fn removes(self, capability: CapabilitySet) -> bool {
        self.removed.intersects(capability)
    }
}

impl FromStr for CapabilityChanges {
    type Err = SandboxError;

    /// Names without `CAP_`, in any case; of two about one capability the later counts.
    fn from_str(text: &str) -> Result<Self, SandboxError> {
        let mut changes = Self::default();
        for change in text.split(':') {
            let unknown = || SandboxError::Capability {
                text: change.to_owned(),
            };
            let (adds, name) = match change.split_at_checked(1) {
                Some(("+", name)) => (true, name),
                Some(("-", name)) => (false, name),
                _ => return Err(unknown()),
            };
            let capability =
                CapabilitySet::from_name(&name.to_ascii_uppercase()).ok_or_else(unknown)?;
            changes.added.set(capability, adds);
            changes.removed.set(capability, !adds);
        }
        Ok(changes)
    }
}

/// Gives up every capability that is not in `kept`, in all sets, for this thread and those it will
/// start. Returns those of `kept` that the process did not have.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_capabilities(kept: CapabilitySet) -> Result<CapabilitySet, SandboxError> {
    let failed = SandboxError::system::<Errno>;
    let had = capabilities(None).map_err(failed("read the capabilities"))?;
    if had.effective.contains(CapabilitySet::SETPCAP) {
        limit_bounding_set(kept).map_err(failed("drop capabilities"))?;
    }
    clear_ambient_capability_set().map_err(failed("drop capabilities"))?;
    let left = had.permitted & kept;
    let sets = CapabilitySets {
        effective: left,
        permitted: left,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(failed("drop capabilities"))?;
    Ok(kept - left)
}

/// What no program started from here can get back; without SETPCAP it is `no_new_privs` alone that
/// sees to it.
fn limit_bounding_set(kept: CapabilitySet) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => {
                remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // Past the last capability that this kernel knows.
            Err(_) => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_a_list_are_applied_in_order() {
        let changes: CapabilityChanges = "+sys_admin:-chown:-SYS_NICE:+sys_nice".parse().unwrap();
        let kept = changes.apply(CapabilitySet::CHOWN | CapabilitySet::FOWNER);
        let expected = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_NICE | CapabilitySet::FOWNER;
        assert_eq!(kept, expected);
        assert!(changes.removes(CapabilitySet::CHOWN));
        assert!(!changes.removes(CapabilitySet::SYS_NICE));
    }

    #[test]
    fn changes_that_are_none_are_refused_by_name() {
        for (text, culprit) in [
            ("", ""),
            ("+chown:", ""),
            ("chown", "chown"),
            ("+chown:-nothing", "-nothing"),
            ("+", "+"),
            ("ü", "ü"),
        ] {
            match text.parse::<CapabilityChanges>().unwrap_err() {
                SandboxError::Capability { text: told } => assert_eq!(told, culprit),
                other => panic!("{text}: {other}"),
            }
        }
    }
}
