// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Skipping a test so that the runner script can count it.
//!
//! libtest knows no skip at run time, so a test whose tools are missing returns early. To keep that
//! from passing for a success, [`skip!`](crate::skip!) writes one `RINGSIDE-SKIP <test>: <reason>`
//! line to the real standard error, past libtest's capture.

use std::io::Write;

/// What a skipped test returns: the successful value of its return type.
pub trait Outcome {
    /// The value that ends the test without failing it.
    fn skipped() -> Self;
}

impl Outcome for () {
    fn skipped() -> Self {}
}

impl<E> Outcome for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Writes the countable line. Tests use [`skip!`](crate::skip!), which finds the test's name.
pub fn report(test: &str, reason: &str) {
    say(&format!("RINGSIDE-SKIP {test}: {reason}"));
}

/// Writes a row of the matrix of front-ends that nobody here wrote; `tests/run` repeats them at its
/// end.
pub fn front_end(name: &str, what: &str) {
    say(&format!("RINGSIDE-FRONT-END {name}: {what}"));
}

/// Writes a line to the real standard error.
pub(crate) fn say(text: &str) {
    // The leading line feed puts the mark at the start of a line even after libtest's unfinished
    // "test name ... "; one write keeps lines of parallel tests whole.
    let line = format!("\n{text}\n");
    // A closed standard error leaves nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Reports the running test as skipped and returns from it.
///
/// The test must return `()` or `Result<(), E>`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        fn marker() {}
        // "crate::module::test::marker": the only way to learn the enclosing function's name.
        let name = ::std::any::type_name_of_val(&marker);
        $crate::skip::report(
            name.strip_suffix("::marker").unwrap_or(name),
            &::std::format!($($reason)+),
        );
        return $crate::skip::Outcome::skipped();
    }};
}
