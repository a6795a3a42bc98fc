// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-net`: a vhost-user network device back-end.

use std::process::ExitCode;

use ringside_common::program;
use ringside_net::options::Options;

fn main() -> ExitCode {
    program::run::<Options>()
}
