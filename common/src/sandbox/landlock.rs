// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Landlock (landlock(7)): where namespaces are forbidden, the kernel can still be asked to let
//! this process open nothing outside of the shares.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetError, RulesetStatus,
};

use super::Level;
use super::error::SandboxError;

/// Restricts this thread, and those it will start, to what is beneath `shares`.
///
/// # Errors
/// When the rules are not taken; a kernel without Landlock is [`Level::None`].
pub(super) fn restrict(shares: &[OwnedFd]) -> Result<Level, SandboxError> {
    // Truncation is the last of the rights that matter here (Linux 6.2); the crate leaves out what
    // an older kernel does not know.
    let rights = AccessFs::from_all(ABI::V3);
    let rules = shares
        .iter()
        .map(|share| Ok::<_, RulesetError>(PathBeneath::new(share, rights)));
    let status = Ruleset::default()
        .handle_access(rights)?
        .create()?
        .add_rules(rules)?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => Level::None,
        _ => Level::Landlock,
    })
}
