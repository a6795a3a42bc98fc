// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-blk` as a program: what it opens, and what it would need in a sandbox.

use std::error::Error;
use std::sync::Arc;

use clap::ValueEnum as _;
use ringside_common::cli::{Action, CommonArgs, NumQueues};
use ringside_common::device::Device as _;
use ringside_common::management::Devices;
use ringside_common::program::{Opened, Program, Setup};
use ringside_common::sandbox::SandboxError;
use ringside_common::sandbox::seccomp::AllowList;

use crate::device::{BlockDevice, BlockOptions};
use crate::engine::FileEngine;
use crate::manage::BlockManagement;
use crate::options::Options;
use crate::request::SECTOR_BYTES;
use crate::storage::{BLKDISCARD, CacheMode, Image};

impl Program for Options {
    type Device = BlockDevice;
    type Queues = NumQueues;

    const NAME: &'static str = "ringside-blk";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const CAPABILITIES: &'static str = r#"{
  "type": "block",
  "features": [
    "read-only",
    "blk-file"
  ]
}
"#;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn action(&self) -> Option<&Action> {
        self.command.as_ref()
    }

    fn allow_system_calls(list: &mut AllowList) -> Result<(), SandboxError> {
        list.allow(&[libc::SYS_fallocate, libc::SYS_fdatasync]);
        list.allow_value(libc::SYS_ioctl, 1, BLKDISCARD.into())
    }

    fn setup(self) -> Result<Setup<BlockDevice>, Box<dyn Error>> {
        let disk = self.disk;
        let (common, endpoint) = self.common.into_config()?;
        let (image, io_engine) = disk.open()?;
        if image.cache() == CacheMode::Unsafe && !disk.memory {
            log::warn!("cache=unsafe: a flush of the guest does nothing; a host crash loses data");
        }
        let block = BlockOptions {
            num_queues: common.num_queues,
            queue_size: common.queue_size,
            seg_max: disk.seg_max,
            serial: disk.serial(),
            cache: image.cache(),
        };
        Ok(Setup {
            common,
            what: format!("{}, on {endpoint}", described(&image)),
            endpoints: vec![endpoint],
            // The image is open, and is not opened again.
            roots: Vec::new(),
            confinement: None,
            pid_file: false,
            open: Box::new(move |ground| {
                let engine = Arc::new(FileEngine::new(image, io_engine)?);
                let device = Arc::new(BlockDevice::new(engine, block));
                let manage = BlockManagement::new(Arc::clone(&device), ground.control);
                Ok(Opened {
                    counters: Devices::Single(Arc::clone(device.stats()).into()),
                    manage: Arc::new(manage),
                    devices: vec![device],
                })
            }),
        })
    }
}

/// The disk, for the line that tells what is served.
fn described(image: &Image) -> String {
    let cache = image.cache().to_possible_value();
    format!(
        "{}, {} bytes, {}, cache {}",
        image.path().display(),
        image.capacity_sectors() * SECTOR_BYTES,
        if image.is_read_only() {
            "read-only"
        } else {
            "read-write"
        },
        cache.as_ref().map_or("", |cache| cache.get_name()),
    )
}
