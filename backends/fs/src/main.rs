// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-fs`: a vhost-user file system device back-end.
//!
//! Exit codes: 0 after SIGTERM or when an inherited connection has ended, 1 when it could not
//! start or go on, 2 for a bad command line,
//! 3 when a data thread has failed, 4 when requests in flight did not end in time. With a sandbox the process that was started waits for
//! the one that serves, and ends as that one does.

use std::error::Error;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory as _;
use ringside_common::cli::{Endpoint, exit_code};
use ringside_common::daemon::{Control, Source, serve};
use ringside_common::device::Device as _;
use ringside_common::logging::{init_logging, init_syslog};
use ringside_common::management::{Devices, ManagementSockets, Services};
use ringside_common::sandbox::{Inherited, Inside, Level, Mode, Side};
use ringside_common::socket::check_path;
use ringside_fs::config::{FsConfig, InodeHandles, Share};
use ringside_fs::device::FsDevice;
use ringside_fs::manage::FsManagement;
use ringside_fs::options::{Action, CAPABILITIES, Config, Options};
use ringside_fs::passthrough::Root;
use ringside_fs::pid_file::PidFile;
use ringside_fs::process;
use ringside_fs::shared::FsOptions;

const PROGRAM: &str = "ringside-fs";

/// Between two attempts to connect to a front-end that is not there.
const CONNECT_RETRY: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let options = Options::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    exit_code(PROGRAM, run(options))
}

fn run(options: Options) -> Result<u8, Box<dyn Error>> {
    if let Some(Action::Ctl(ctl)) = options.command {
        writeln!(io::stdout(), "{}", ctl.run()?)?;
        return Ok(0);
    }
    if options.common.print(CAPABILITIES, Options::command())? {
        return Ok(0);
    }
    let inherited = process::inherited(&options)?;
    if options.compatibility.syslog {
        init_syslog(PROGRAM, options.log_level())?;
    } else {
        init_logging(options.log_level())?;
    }
    start(options.into_config()?, inherited)
}

/// Binds what is to be bound outside, and goes inside; returns with the exit status.
fn start(config: Config, inherited: Inherited) -> Result<u8, Box<dyn Error>> {
    let Config {
        common,
        mut fs,
        shares,
        tag,
        num_request_queues,
        process,
        ..
    } = config;
    let workers = common.workers();
    let place = common.endpoint.to_string();
    let what = described(&shares, tag.as_deref(), fs.readonly);
    let endpoint = reach(common.endpoint, process.sandbox)?;
    let control = Arc::new(Control::new()?);
    let _pid_file = match &endpoint {
        Endpoint::Listen { path, .. } => Some(PidFile::beside(path)?),
        _ => None,
    };
    let sockets =
        ManagementSockets::bind(common.control_socket.as_deref(), common.metrics.as_ref())?;
    let source = Source::of(endpoint)?;
    let max_files = process::limit(&process)?;
    let inside = match process::enter(&process, &shares, fs.readonly, inherited)? {
        // What was bound is removed here.
        Side::Outside { status } => return Ok(status),
        Side::Inside(inside) => inside,
    };
    if inside.level == Level::Landlock && fs.inode_file_handles == InodeHandles::Prefer {
        // What is opened by its handle has no path, and Landlock goes by paths.
        fs.inode_file_handles = InodeHandles::Never;
    }
    let level = inside.level;
    process::seal(&process, matches!(source, Source::Connect(_)))?;
    let options = FsOptions {
        tag,
        num_request_queues,
        queue_size: common.queue_size,
        max_files,
    };
    let device = open_device(fs, options, shares, inside)?;
    let services = Services {
        program: PROGRAM,
        version: env!("CARGO_PKG_VERSION"),
        devices: Devices::Single(Arc::clone(device.stats()).into()),
        manage: vec![
            Arc::new(FsManagement::new(Arc::clone(&device))),
            Arc::clone(&control) as _,
        ],
    };
    let management = sockets.spawn(services, || {})?;
    log::info!(
        "serving {what}, on {place}, sandbox: {level}, seccomp: {}",
        process.seccomp
    );
    serve(&device, source, &workers, &control)?;
    drop(management);
    Ok(0)
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

/// A front-end that listens is met before the sandbox is entered, where its socket can be reached.
fn reach(endpoint: Endpoint, sandbox: Mode) -> Result<Endpoint, Box<dyn Error>> {
    match endpoint {
        Endpoint::Connect(path) if sandbox != Mode::None => {
            log::info!(
                "{}: one connection; with --sandbox none it would be made again when it ends",
                path.display()
            );
            check_path(&path)?;
            Ok(Endpoint::ConnectedFd(connect(&path)?))
        }
        endpoint => Ok(endpoint),
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                std::thread::sleep(CONNECT_RETRY);
            }
            connected => return connected,
        }
    }
}

fn open_device(
    config: FsConfig,
    options: FsOptions,
    shares: Vec<Share>,
    inside: Inside,
) -> io::Result<Arc<FsDevice>> {
    let roots = shares
        .into_iter()
        .zip(inside.share_roots)
        .map(|(share, fd)| Root {
            name: share.name,
            fd,
        })
        .collect();
    FsDevice::new(config, options, roots, inside.proc_self_fd).map(Arc::new)
}
