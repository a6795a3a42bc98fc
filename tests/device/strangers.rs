// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that nobody here wrote, unchanged, under Ringside's daemon: virtiofsd, which is a
//! library on crates.io, by the adapter for rust-vmm devices.
//!
//! It wants libcap-ng to link with, so this is built with the feature `strangers` only.

mod bridge;

use std::error::Error;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use ringside_common::adapter::Adapter;
use ringside_common::daemon::{Control, Source, serve};
use ringside_common::device::Device as _;
use ringside_common::error::HostError;
use ringside_common::worker::WorkerOptions;
use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::{Framing, FuseClient, FuseConfig};
use ringside_frontend::ring::CallMode;
use ringside_tests::skip;
use ringside_tests::vm::{Device, Guest, needs};
use virtiofsd::passthrough::{Config, PassthroughFs};
use virtiofsd::vhost_user::{VhostUserFsBackend, VhostUserFsBackendBuilder};

use bridge::Bridge;

type TestResult = Result<(), Box<dyn Error>>;
type Virtiofsd = Adapter<Bridge<VhostUserFsBackend<PassthroughFs>>>;

/// A share that virtiofsd serves, under Ringside's daemon.
struct Served {
    device: Arc<Virtiofsd>,
    listener: UnixListener,
}

impl Served {
    fn new(share: &Path, socket: &Path) -> Result<Self, Box<dyn Error>> {
        let config = Config {
            root_dir: share.to_string_lossy().into_owned(),
            ..Config::default()
        };
        let virtiofsd = VhostUserFsBackendBuilder::default().build(PassthroughFs::new(config)?)?;
        Ok(Self {
            device: Arc::new(Adapter::new("virtiofsd", Bridge::new(virtiofsd))?),
            listener: UnixListener::bind(socket)?,
        })
    }

    /// Serves the front-end that comes next, to its end.
    fn next(&self) -> Result<JoinHandle<Result<(), HostError>>, Box<dyn Error>> {
        let device = Arc::clone(&self.device);
        let listener = self.listener.try_clone()?;
        let control = Control::new()?;
        let options = WorkerOptions {
            max_threads: 2,
            cpus: Vec::new(),
            max_poll_ns: 0,
            stop_timeout: None,
            file_memory: false,
        };
        Ok(std::thread::spawn(move || {
            let (stream, _) = listener.accept().map_err(HostError::of("accepting"))?;
            serve(&device, Source::Connected(stream), &options, &control)
        }))
    }
}

fn ended(thread: JoinHandle<Result<(), HostError>>) -> TestResult {
    thread.join().map_err(|_panic| "the device panicked")??;
    Ok(())
}

#[test]
fn virtiofsd_serves_one_front_end_after_the_other() -> TestResult {
    let dir = tempfile::tempdir()?;
    let share = dir.path().join("share");
    fs::create_dir(&share)?;
    fs::write(share.join("greeting"), "from the host")?;
    let socket = dir.path().join("socket");
    let served = Served::new(&share, &socket)?;
    for (framing, indirect, calls) in [
        (Framing::Kernel, true, CallMode::Wanted),
        (Framing::Kernel, false, CallMode::Never),
        (Framing::Contiguous, true, CallMode::Wanted),
    ] {
        let thread = served.next()?;
        let mut config = FuseConfig::default().calls(calls);
        config.queue.framing = framing;
        config.queue.indirect = indirect;
        let mut client = FuseClient::connect(&socket, &config)?;
        let queue = client.queue();
        let node = queue.lookup(ROOT_NODE, "greeting")?.node;
        for _ in 0..200 {
            assert_eq!(queue.lookup(ROOT_NODE, "greeting")?.node, node);
        }
        drop(client);
        ended(thread)?;
    }
    let stats = served.device.stats().snapshot();
    assert!(
        stats.queues.iter().any(|queue| queue.chains >= 600),
        "{stats:?}"
    );
    Ok(())
}

#[test]
fn virtiofsd_serves_a_linux_guest() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let dir = tempfile::tempdir()?;
    let share = dir.path().join("share");
    fs::create_dir(&share)?;
    fs::write(share.join("greeting"), "from the host\n")?;
    let socket = dir.path().join("socket");
    let served = Served::new(&share, &socket)?;
    let thread = served.next()?;
    let outcome = Guest::new()
        .device(Device::fs("share", &socket, "stranger"))
        .script(concat!(
            include_str!("../vm/guest/share.sh"),
            include_str!("vm/share.sh")
        ))
        .run()?;
    assert_eq!(outcome.exit_code, 0, "{outcome:?}");
    ended(thread)?;
    let random = fs::read(share.join("random"))?;
    assert_eq!(
        (random.len(), random == fs::read(share.join("copy"))?),
        (4 << 20, true)
    );
    Ok(())
}
