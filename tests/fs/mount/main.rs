// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vhost-user-fs-mount`: mounts what a running vhost-user-fs back-end shares on the host itself,
//! without a virtual machine.
//!
//! The kernel speaks FUSE through `/dev/fuse`, a virtio-fs device speaks FUSE through virtqueues.
//! The tool is the driver of the device and carries messages between the two: a request is read
//! straight into memory that the back-end shares, and its reply is written from there. `protocol`
//! knows the few messages that differ, `lane` is a virtqueue, `channel` a clone of `/dev/fuse` with
//! its buffers and the two threads that serve it, and `bridge` begins and ends all of it.

mod bridge;
mod channel;
mod lane;
mod options;
mod protocol;
mod sys;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use log::LevelFilter;

use options::Options;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("vhost-user-fs-mount: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            // A closed standard error leaves nobody to tell.
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    ringside_common::logging::init_logging(LevelFilter::Warn)?;
    bridge::run(options)
}
