// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures and how they are printed, for all benches.
//!
//! A shared machine is noisy, so two sides are only compared within one run, in turn, and figures
//! come as a median with the range of the middle 80 %.

use std::fmt;
use std::io::Write as _;

/// Prints a line; a closed standard output ends nothing.
pub(crate) fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// What was measured several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// The value that so many percent are not above.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let at = (self.0.len().saturating_sub(1) * percent + 50) / 100;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// Median and the middle 80 %.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = (self.percentile(10), self.percentile(90));
        write!(f, "{:.2} ({low:.2}..{high:.2})", self.median())
    }
}

/// Whether an option was given on the command line, which cargo adds `--bench` to.
pub(crate) fn has_option(name: &str) -> bool {
    std::env::args().skip(1).any(|arg| arg == name)
}
