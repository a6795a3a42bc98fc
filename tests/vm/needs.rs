// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests that cannot run on this machine say so loudly.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

/// Why no guest can be run here; `None` when everything is there.
#[must_use]
pub fn needs() -> Option<String> {
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/install");
    match Command::new(&install).arg("--check").output() {
        Err(error) => Some(format!("{}: {error}", install.display())),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Says that a test is skipped, past the test harness's capture, so that skips can be counted.
/// With `RINGSIDE_NO_SKIP` set a skip is a failure.
///
/// # Errors
/// When skips are not allowed.
pub fn skip(test: &str, reason: &str) -> io::Result<()> {
    writeln!(io::stderr(), "RINGSIDE-SKIP {test}: {reason}")?;
    match std::env::var_os("RINGSIDE_NO_SKIP") {
        None => Ok(()),
        Some(_) => Err(io::Error::other(format!("{test} skipped: {reason}"))),
    }
}
