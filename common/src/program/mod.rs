// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back-end as a program: from its command line to its exit status.
//!
//! A device says what is its own by a [`Program`]; [`run`] does the rest, in this order:
//!
//! 1. what is asked for instead of serving: `ctl`, `--print-capabilities`, the man page;
//! 2. inherited descriptors, where the program confines itself; logging; the options as a whole
//!    ([`Program::setup`]), with the sockets that were passed;
//! 3. signals, the pid file, the sockets of management;
//! 4. the sockets of front-ends, limits, and the layers of [`sandbox`](crate::sandbox), of a program
//!    that confines itself;
//! 5. the devices ([`Setup::open`]), and the sockets of front-ends of any other program;
//! 6. management, and front-ends until SIGTERM.
//!
//! A program that confines itself opens what belongs to the host before step 4 has ended, and starts
//! threads after it.

mod confinement;
mod exit;
mod pid_file;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use log::LevelFilter;

pub use self::confinement::Confinement;
pub use self::exit::man_page;
use self::pid_file::PidFile;
use crate::cli::{Action, CommonArgs, CommonConfig, Endpoint, QueueCount};
use crate::daemon::{Control, Source, serve, serve_all};
use crate::device::Device;
use crate::error::HostError;
use crate::inherited::Inherited;
use crate::logging::{init_logging, init_syslog};
use crate::management::{Devices, Manage, ManagementSockets, Services};
use crate::sandbox::seccomp::AllowList;
use crate::sandbox::{Inside, Mode, SandboxError, Side, raise_descriptor_limit};
use crate::socket::check_path;
use crate::worker::WorkerOptions;

/// Between two attempts to connect to a front-end that is not there.
const CONNECT_RETRY: Duration = Duration::from_millis(200);

/// A back-end: its command line, and what it makes of it.
pub trait Program: Parser {
    /// What is served.
    type Device: Device;
    /// How queues are counted on the command line.
    type Queues: QueueCount;

    /// What it is called in the log.
    const NAME: &'static str;
    /// Its version, for management.
    const VERSION: &'static str;
    /// What `--print-capabilities` prints: vhost-user.rst "Backend program conventions".
    const CAPABILITIES: &'static str;
    /// Whether [`Setup::confinement`] is given: inherited descriptors are looked at before the
    /// options are.
    const CONFINES_ITSELF: bool = false;

    /// Reads a command line.
    ///
    /// # Errors
    /// What is wrong with it, or a text that was asked for.
    fn from_words(words: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(words)
    }

    /// The options of all back-ends.
    fn common(&self) -> &CommonArgs<Self::Queues>;

    /// What to do instead of serving.
    fn action(&self) -> Option<&Action>;

    /// How much is logged.
    fn log_level(&self) -> LevelFilter {
        self.common().log_level.into()
    }

    /// Whether the log goes to the system log.
    fn logs_to_system(&self) -> bool {
        false
    }

    /// Adds the system calls of this device to those that every back-end makes.
    ///
    /// # Errors
    /// When a rule is malformed.
    fn allow_system_calls(list: &mut AllowList) -> Result<(), SandboxError>;

    /// Checks the options as a whole and opens what is opened outside of a sandbox. Starts no
    /// thread.
    ///
    /// # Errors
    /// Why it cannot be served.
    fn setup(self) -> Result<Setup<Self::Device>, Box<dyn Error>>;
}

/// Makes the devices; called when the process is confined.
pub type Open<D> = Box<dyn FnOnce(Ground) -> Result<Opened<D>, Box<dyn Error>>>;

/// What the command line asks for.
#[expect(missing_debug_implementations, reason = "a function has no text")]
pub struct Setup<D> {
    /// Threads and management.
    pub common: CommonConfig,
    /// Where the front-ends of the devices are met, in the order of the devices.
    pub endpoints: Vec<Endpoint>,
    /// What is served and where, for the log.
    pub what: String,
    /// The files and folders of the host that the devices need after [`Setup::open`] has begun.
    pub roots: Vec<PathBuf>,
    /// What the process is locked into.
    pub confinement: Option<Confinement>,
    /// Whether a file beside each socket tells which process serves it, as virtiofsd's does.
    pub pid_file: bool,
    /// Makes the devices.
    pub open: Open<D>,
}

/// What devices are made with.
#[derive(Debug)]
pub struct Ground {
    /// What is left of the host.
    pub inside: Inside,
    /// The most descriptors that the process may have.
    pub max_files: u64,
    /// The handle of the control threads.
    pub control: Arc<Control>,
}

/// Devices that are ready to be served.
#[expect(missing_debug_implementations, reason = "methods have no text")]
pub struct Opened<D> {
    /// The devices, one for each endpoint.
    pub devices: Vec<Arc<D>>,
    /// Their counters.
    pub counters: Devices,
    /// Their methods of the control socket.
    pub manage: Arc<dyn Manage>,
}

/// The life of a back-end. Its status is to be returned from `main` at once: 0 after SIGTERM or
/// when all inherited connections have ended, 1 when it could not start or go on, 2 for a bad
/// command line, 3 when a data thread has failed, 4 when requests in flight did not end in time.
///
/// With a sandbox the process that was started waits for the one that serves, and ends as that one
/// does.
#[must_use]
pub fn run<P: Program>() -> ExitCode {
    let options = P::from_words(std::env::args_os()).unwrap_or_else(|error| error.exit());
    exit::exit_code(P::NAME, start(options))
}

/// Does what is asked for; returns the exit status.
fn start<P: Program>(options: P) -> Result<u8, Box<dyn Error>> {
    if let Some(Action::Ctl(ctl)) = options.action() {
        writeln!(io::stdout(), "{}", ctl.run()?)?;
        return Ok(0);
    }
    if options.common().print_capabilities {
        io::stdout().write_all(P::CAPABILITIES.as_bytes())?;
        return Ok(0);
    }
    if options.common().print_man {
        io::stdout().write_all(&man_page(P::command())?)?;
        return Ok(0);
    }
    let inherited = if P::CONFINES_ITSELF {
        Some(find_inherited(&options)?)
    } else {
        None
    };
    if options.logs_to_system() {
        init_syslog(P::NAME, options.log_level())?;
    } else {
        init_logging(options.log_level())?;
    }
    serve_as::<P>(options.setup()?, inherited)
}

fn find_inherited<P: Program>(options: &P) -> Result<Inherited, SandboxError> {
    Inherited::find(&options.common().inherited())
        .map_err(SandboxError::system("look for inherited descriptors"))
}

/// Binds what is bound outside, goes inside, and serves.
fn serve_as<P: Program>(
    setup: Setup<P::Device>,
    inherited: Option<Inherited>,
) -> Result<u8, Box<dyn Error>> {
    let (common, what) = (setup.common, setup.what);
    let endpoints = match &setup.confinement {
        Some(confinement) if confinement.sandbox != Mode::None => meet(setup.endpoints)?,
        _ => setup.endpoints,
    };
    let control = Arc::new(Control::new()?);
    let mut pid_files = Vec::new();
    for endpoint in &endpoints {
        if let (Endpoint::Listen { path, .. }, true) = (endpoint, setup.pid_file) {
            pid_files.push(PidFile::beside(path)?);
        }
    }
    let sockets =
        ManagementSockets::bind(common.control_socket.as_deref(), common.metrics.as_ref())?;
    let bind = || {
        let sources = endpoints.into_iter().map(Source::of);
        sources.collect::<Result<Vec<_>, _>>()
    };
    let ground = |max_files, inside| Ground {
        inside,
        max_files,
        control: Arc::clone(&control),
    };
    let (opened, sources, layers) = match setup.confinement {
        // A socket that is there says that the devices are, too.
        None => {
            let max_files = raise_descriptor_limit();
            let opened = (setup.open)(ground(max_files, Inside::whole_host()?))?;
            (opened, bind()?, "no sandbox".to_owned())
        }
        Some(confinement) => {
            let sources = bind()?;
            let max_files = confinement.limit()?;
            let inside = match confinement.enter(&setup.roots, inherited)? {
                // What was bound is removed here.
                Side::Outside { status } => return Ok(status),
                Side::Inside(inside) => inside,
            };
            let connects = sources.iter().any(|it| matches!(it, Source::Connect(_)));
            confinement.seal(connects, P::allow_system_calls)?;
            let (level, seccomp) = (inside.level, confinement.seccomp);
            let layers = format!("sandbox: {level}, seccomp: {seccomp}");
            ((setup.open)(ground(max_files, inside))?, sources, layers)
        }
    };
    let services = Services {
        program: P::NAME,
        version: P::VERSION,
        devices: opened.counters,
        manage: vec![opened.manage, Arc::clone(&control) as _],
    };
    let management = sockets.spawn(services, || {})?;
    let target = P::NAME.replace('-', "_");
    log::info!(target: &target, "serving {what}, {layers}");
    let served = opened.devices.into_iter().zip(sources).collect();
    serve_each(served, &common.workers(), &control)?;
    drop(management);
    Ok(0)
}

/// Serves each device from its source.
fn serve_each<D: Device>(
    mut served: Vec<(Arc<D>, Source)>,
    workers: &WorkerOptions,
    control: &Control,
) -> Result<(), HostError> {
    if let [_] = served.as_slice()
        && let Some((device, source)) = served.pop()
    {
        // One device needs no thread beside this one.
        return serve(&device, source, workers, control);
    }
    serve_all(served, workers, control)
}

/// Connects to front-ends that listen, from where their sockets can be reached.
fn meet(endpoints: Vec<Endpoint>) -> Result<Vec<Endpoint>, Box<dyn Error>> {
    let met = endpoints.into_iter().map(|endpoint| match endpoint {
        Endpoint::Connect(path) => {
            log::info!(
                "{}: one connection; with --sandbox none it would be made again when it ends",
                path.display()
            );
            check_path(&path)?;
            Ok(Endpoint::ConnectedFd(connect(&path)?))
        }
        endpoint => Ok(endpoint),
    });
    met.collect()
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
