// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-blk`: a vhost-user block device back-end.

use std::process::ExitCode;

use ringside_blk::options::Options;
use ringside_common::program;

fn main() -> ExitCode {
    program::run::<Options>()
}
