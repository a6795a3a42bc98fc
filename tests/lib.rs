// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything the Ringside test suites share.
//!
//! * [`frontend`]: an in-process vhost-user front-end with a driver side that can also misbehave.
//! * [`hostile`]: a running back-end as the victim of hostile cases, and the check after each.
//! * [`process`]: runs a back-end binary as a child and samples it through `/proc`.
//! * [`vm`]: boots a real Linux guest in QEMU with a back-end attached.
//! * [`mod@skip`]: how a test says, countably, that its machine lacks something.

pub mod frontend;
pub mod hostile;
pub mod process;
pub mod skip;
pub mod vm;
