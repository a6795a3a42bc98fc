// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the suites of hostile cases share: a running back-end as the victim, and the check that
//! comes after each case.
//!
//! * [`Victim`]: a `ringside-blk` and what it cost before anything was done to it;
//!   [`Victim::check`] is the common check.
//! * [`Bystander`]: verified I/O on another queue, during a case and after it.
//! * [`SlowDisk`]: keeps writes to a file in flight for long.
//! * [`Injection`]: system calls that fail or hang.
//! * [`silent::SilentFile`]: a file whose server answers nothing.
//! * [`Trap`]: an eventfd to which a write waits.
//! * [`support_chains`]: a `ringside-blk` with a ring laid by hand, checked to the byte.
//! * [`wire`]: bodies of messages, sound or not.

mod bystander;
mod injection;
pub mod silent;
mod slow_disk;
pub mod support_chains;
mod trap;
mod victim;
pub mod wire;

use std::time::{Duration, Instant};

pub use bystander::Bystander;
pub use injection::Injection;
pub use slow_disk::SlowDisk;
pub use trap::Trap;
pub use victim::{DISK_BYTES, Footprint, QUEUES, Victim, expect_refusal, negotiated};

/// Result of a step of a hostile case.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// What a hostile case returns.
pub type TestResult = Result<()>;

/// How long anything may take on a busy machine; not a bound of any case.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `probe` until it is true.
///
/// # Errors
///
/// When it is not within [`PATIENCE`], or fails.
pub fn wait_until(what: &str, mut probe: impl FnMut() -> Result<bool>) -> TestResult {
    /// What happens at once is to be seen at once: some cases want the middle of it.
    const EAGER: Duration = Duration::from_millis(20);
    let start = Instant::now();
    while !probe()? {
        if start.elapsed() > PATIENCE {
            return Err(format!("not within {PATIENCE:?}: {what}").into());
        }
        if start.elapsed() < EAGER {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}
