// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Suites that others have written for file systems, over the bridge (`vhost-user-fs-mount`): what
//! passes on the host's file system passes on the mount.
//!
//! `RINGSIDE_FS_BACK_END=virtiofsd` runs them on virtiofsd, which shows what the bridge and the
//! suites themselves are worth. `RINGSIDE_FULL_MATRIX=1` runs all combinations of options, and as
//! long as is good. `tests/fs/install` installs the programs.

#[path = "conformance/beyond.rs"]
mod beyond;
#[path = "conformance/bridge.rs"]
mod bridge;
#[path = "conformance/fsx.rs"]
mod fsx;
#[path = "conformance/pjdfstest.rs"]
mod pjdfstest;
#[path = "conformance/stress.rs"]
mod stress;
#[path = "conformance/support.rs"]
mod support;
#[path = "conformance/work.rs"]
mod work;
