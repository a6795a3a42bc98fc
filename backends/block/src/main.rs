// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-blk`: a vhost-user block device back-end.
//!
//! Exit codes: 0 after SIGTERM or when an inherited connection has ended, 1 when it could not
//! start or go on, 2 for a bad command line,
//! 3 when a data thread has failed, 4 when requests in flight did not end in time.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser as _, ValueEnum as _};
use ringside_blk::device::{BlockDevice, BlockOptions};
use ringside_blk::engine::FileEngine;
use ringside_blk::manage::BlockManagement;
use ringside_blk::options::{Action, Options};
use ringside_blk::request::SECTOR_BYTES;
use ringside_blk::storage::{CacheMode, Image};
use ringside_common::cli::{CommonConfig, exit_code};
use ringside_common::daemon::{Control, Source, raise_descriptor_limit, serve};
use ringside_common::device::Device as _;
use ringside_common::logging::init_logging;
use ringside_common::management::{Devices, ManagementSockets, Services};

/// vhost-user.rst "Backend program conventions".
const CAPABILITIES: &str = r#"{
  "type": "block",
  "features": [
    "read-only",
    "blk-file"
  ]
}
"#;

fn main() -> ExitCode {
    exit_code("ringside-blk", run(Options::parse()).map(|()| 0))
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    if let Some(Action::Ctl(ctl)) = options.command {
        writeln!(std::io::stdout(), "{}", ctl.run()?)?;
        return Ok(());
    }
    if options.common.print(CAPABILITIES, Options::command())? {
        return Ok(());
    }
    init_logging(options.common.log_level.into())?;
    let disk = options.disk;
    let config = options.common.into_config()?;
    let (image, io_engine) = disk.open()?;
    if image.cache() == CacheMode::Unsafe && !disk.memory {
        log::warn!("cache=unsafe: a flush of the guest does nothing; a host crash loses data");
    }
    let block = BlockOptions {
        num_queues: config.num_queues,
        queue_size: config.queue_size,
        seg_max: disk.seg_max,
        serial: disk.serial(),
        cache: image.cache(),
    };
    let what = described(&image);
    let engine = Arc::new(FileEngine::new(image, io_engine)?);
    start(&Arc::new(BlockDevice::new(engine, block)), &what, config)
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

fn start(
    device: &Arc<BlockDevice>,
    what: &str,
    config: CommonConfig,
) -> Result<(), Box<dyn Error>> {
    let workers = config.workers();
    let control = Arc::new(Control::new()?);
    let sockets =
        ManagementSockets::bind(config.control_socket.as_deref(), config.metrics.as_ref())?;
    let place = config.endpoint.to_string();
    let source = Source::of(config.endpoint)?;
    let methods = BlockManagement::new(Arc::clone(device), Arc::clone(&control));
    let services = Services {
        program: "ringside-blk",
        version: env!("CARGO_PKG_VERSION"),
        devices: Devices::Single(Arc::clone(device.stats()).into()),
        manage: vec![Arc::new(methods), Arc::clone(&control) as _],
    };
    let management = sockets.spawn(services, || {})?;
    log::info!("serving {what}, on {place}, no sandbox");
    raise_descriptor_limit();
    serve(device, source, &workers, &control)?;
    drop(management);
    Ok(())
}
