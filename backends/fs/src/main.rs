// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-fs`: a vhost-user file system device back-end.

use std::process::ExitCode;

use ringside_common::program;
use ringside_fs::options::Options;

fn main() -> ExitCode {
    program::run::<Options>()
}
