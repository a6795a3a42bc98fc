// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Group W of the hostile cases: who makes a thread of the back-end wait, and what becomes of it.
//!
//! Front-ends do it by eventfds that block, the host by a disk that does not answer, the kernel by
//! taking no more I/O. What hangs is bounded, told, and followed by an end that a supervisor sees.

#[path = "waits/calls.rs"]
mod calls;
#[path = "waits/disk.rs"]
mod disk;
#[path = "waits/failed.rs"]
mod failed;
