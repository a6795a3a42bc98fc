// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What tests of this crate share.

use std::fs::File;
use std::io::Write;

use crate::credentials::ThreadContext;

/// Says that a test cannot run here, as the script that runs the tests counts it.
pub(crate) fn skip(test: &str, reason: &str) {
    let line = format!("\nRINGSIDE-SKIP {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Runs what is all of a test that needs root, on a thread of its own.
pub(crate) fn as_root<F: FnOnce() + Send + 'static>(run: F) {
    if rustix::process::geteuid().is_root() {
        return std::thread::spawn(run).join().unwrap();
    }
    let name = std::any::type_name::<F>();
    skip(name.trim_end_matches("::{{closure}}"), "needs root");
}

/// Sets up the calling thread.
pub(crate) fn context() -> ThreadContext {
    let directory = File::open("/proc/self/fd").unwrap();
    ThreadContext::new(std::os::fd::AsFd::as_fd(&directory)).unwrap()
}
