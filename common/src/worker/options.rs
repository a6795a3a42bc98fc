// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the operator wants data threads to be.

use std::num::NonZeroUsize;
use std::time::Duration;

/// How data threads are made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerOptions {
    /// The most there are, but for those of vrings that are served alone.
    pub max_threads: usize,
    /// Processors they are bound to in turn; empty for any.
    pub cpus: Vec<usize>,
    /// The longest they poll before they sleep.
    pub max_poll_ns: u64,
    /// How long the process waits for requests that do not end; none: without a limit.
    pub stop_timeout: Option<Duration>,
    /// Whether guest memory may be in a file on a local disk, for which they may have to wait.
    pub file_memory: bool,
}

impl Default for WorkerOptions {
    /// What the command line of a back-end has for defaults.
    fn default() -> Self {
        Self {
            max_threads: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            cpus: Vec::new(),
            max_poll_ns: 50_000,
            stop_timeout: Some(Duration::from_secs(300)),
            file_memory: false,
        }
    }
}
