// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-fs` as a program: the folders that it shares are its roots, and it confines itself
//! before it makes the device, so that the device starts with what it goes on with.

use std::error::Error;
use std::ffi::OsString;
use std::sync::Arc;

use log::LevelFilter;
use ringside_common::cli::{Action, CommonArgs};
use ringside_common::device::Device as _;
use ringside_common::management::Devices;
use ringside_common::num::usize_of;
use ringside_common::program::{Ground, Opened, Program, Setup};
use ringside_common::sandbox::seccomp::AllowList;
use ringside_common::sandbox::{Level, SandboxError};

use crate::config::{FsConfig, InodeHandles, Share};
use crate::device::FsDevice;
use crate::manage::FsManagement;
use crate::options::{Config, Options, RequestQueues};
use crate::passthrough::Root;
use crate::seccomp;
use crate::shared::FsOptions;

impl Program for Options {
    type Device = FsDevice;
    type Queues = RequestQueues;

    const NAME: &'static str = "ringside-fs";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    /// With the features that libvirt looks for.
    const CAPABILITIES: &'static str = r#"{
  "type": "fs",
  "features": [
    "posix-acl-negotiation-mode",
    "security-label-negotiation-mode",
    "separate-options"
  ]
}
"#;
    const CONFINES_ITSELF: bool = true;

    fn from_words(words: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::read(words)
    }

    fn common(&self) -> &CommonArgs<RequestQueues> {
        &self.common
    }

    fn action(&self) -> Option<&Action> {
        self.command.as_ref()
    }

    /// `-d`, or `--log-level`.
    fn log_level(&self) -> LevelFilter {
        if self.compatibility.debug {
            LevelFilter::Debug
        } else {
            self.common.log_level.into()
        }
    }

    fn logs_to_system(&self) -> bool {
        self.compatibility.syslog
    }

    fn allow_system_calls(list: &mut AllowList) -> Result<(), SandboxError> {
        seccomp::allow(list)
    }

    fn setup(self) -> Result<Setup<FsDevice>, Box<dyn Error>> {
        let Config {
            common,
            endpoint,
            fs,
            shares,
            tag,
            num_request_queues,
            confinement,
        } = self.into_config()?;
        let what = described(&shares, tag.as_deref(), fs.readonly);
        let options = FsOptions {
            tag,
            num_request_queues,
            queue_size: common.queue_size,
            max_files: 0,
        };
        Ok(Setup {
            common,
            what: format!("{what}, on {endpoint}"),
            endpoints: vec![endpoint],
            roots: shares.iter().map(|share| share.path.clone()).collect(),
            confinement: Some(confinement),
            pid_file: true,
            open: Box::new(move |ground| open(fs, options, shares, ground)),
        })
    }
}

/// The folder, for the line that tells what is served.
fn described(shares: &[Share], tag: Option<&str>, read_only: bool) -> String {
    let shares: Vec<String> = shares
        .iter()
        .map(|share| match &share.name {
            Some(name) => format!("{name}={}", share.path.display()),
            None => share.path.display().to_string(),
        })
        .collect();
    format!(
        "{}{}, {}",
        shares.join(", "),
        tag.map_or_else(String::new, |tag| format!(" with the tag {tag}")),
        if read_only { "read-only" } else { "read-write" },
    )
}

/// Makes the device, with every layer of the sandbox on.
fn open(
    mut config: FsConfig,
    mut options: FsOptions,
    shares: Vec<Share>,
    ground: Ground,
) -> Result<Opened<FsDevice>, Box<dyn Error>> {
    let inside = ground.inside;
    if inside.level == Level::Landlock && config.inode_file_handles == InodeHandles::Prefer {
        // What is opened by its handle has no path, and Landlock goes by paths.
        config.inode_file_handles = InodeHandles::Never;
    }
    options.max_files = usize_of(ground.max_files);
    let roots = shares.into_iter().zip(inside.share_roots);
    let roots = roots.map(|(Share { name, .. }, fd)| Root { name, fd });
    let device = FsDevice::new(config, options, roots.collect(), inside.proc_self_fd)?;
    let device = Arc::new(device);
    Ok(Opened {
        counters: Devices::Single(Arc::clone(device.stats()).into()),
        manage: Arc::new(FsManagement::new(Arc::clone(&device))),
        devices: vec![device],
    })
}
