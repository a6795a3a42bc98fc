// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line every back-end shares, after QEMU's "Backend program conventions".
//!
//! [`CommonArgs`] is what the user wrote; a back-end flattens it into its own arguments.
//! [`CommonArgs::into_config`] turns it into a [`CommonConfig`], checked and typed, or says what is
//! wrong; a back-end that serves several front-ends calls [`CommonArgs::into_config_of_many`]. How
//! queues are counted is the device's choice, see [`QueueCount`].

mod cpus;
mod values;

use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use log::LevelFilter;
use thiserror::Error;

pub use self::cpus::{CpuList, CpuListError};
pub use self::values::{MAX_THREADS, SizeError, ValueError, size};
use crate::inherited;
use crate::management::{self, CtlError, MetricsAddress};
use crate::num::ns_of;
use crate::socket::{InheritedSocket, SocketError};
use crate::worker::WorkerOptions;

/// Why the command line cannot be followed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CliError {
    /// Nothing says where the front-end is.
    #[error(
        "one of --socket-path, --fd and --connect is needed, or a socket passed by the service \
         manager"
    )]
    NoEndpoint,
    /// Several sockets for a device that has one front-end.
    #[error("--socket-path was given {count} times: this back-end serves one front-end")]
    TooManySocketPaths {
        /// How many.
        count: usize,
    },
    /// The service manager passed several sockets.
    #[error("the service manager passed {count} sockets, expected 1")]
    TooManyActivationSockets {
        /// How many.
        count: usize,
    },
    /// The service manager passed something we cannot use.
    #[error("the service manager passed an unusable socket")]
    ActivationSocket(#[source] SocketError),
    /// The descriptor of `--fd` is no usable socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// How a device lets its user say how many queues it offers.
pub trait QueueCount: Args {
    /// The number of vrings that the device has then, 1 to 256.
    fn vrings(&self) -> u16;
}

/// The number of vrings as it is.
#[derive(Args, Clone, Debug)]
#[group(id = "queue-count")]
#[command(about = None, long_about = None)]
pub struct NumQueues {
    /// Most queues offered to the front-end
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Queues")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    pub num_queues: u16,
}

impl QueueCount for NumQueues {
    fn vrings(&self) -> u16 {
        self.num_queues
    }
}

/// A socket for ourselves.
const PRIVATE_SOCKET_MODE: u32 = 0o600;
/// A socket for a group, as virtiofsd makes it.
const GROUP_SOCKET_MODE: u32 = 0o770;

/// Options every back-end has.
///
/// The group `listening` holds the options that name a socket to listen on; a device that has more
/// of them adds them to it, and the options about such sockets go with them too.
#[derive(Args, Clone, Debug)]
#[group(id = "common")]
// Else the text above would replace what the back-end says about itself.
#[command(about = None, long_about = None)]
#[command(group = ArgGroup::new("listening").multiple(true))]
pub struct CommonArgs<Q: QueueCount = NumQueues> {
    /// Listen for the front-end on this Unix socket
    ///
    /// A socket file left over by a crash is replaced. The program refuses any other file there.
    #[arg(
        long,
        value_name = "PATH",
        groups = ["endpoint", "listening"],
        help_heading = "Connection"
    )]
    pub socket_path: Vec<PathBuf>,

    /// Use this inherited socket, either listening or already connected to the front-end
    #[arg(
        long,
        value_name = "N",
        group = "endpoint",
        help_heading = "Connection"
    )]
    #[arg(value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: Option<i32>,

    /// Connect to a front-end that listens on this Unix socket; retry until it answers
    #[arg(
        long,
        value_name = "PATH",
        group = "endpoint",
        help_heading = "Connection"
    )]
    pub connect: Option<PathBuf>,

    /// Permissions of the socket, in octal [default: 600, or 770 with --socket-group]
    #[arg(long, value_name = "MODE", help_heading = "Connection")]
    #[arg(requires = "listening", conflicts_with_all = ["fd", "connect"])]
    #[arg(value_parser = values::mode)]
    pub socket_mode: Option<u32>,

    /// Group of the socket, by name or number
    #[arg(long, value_name = "GROUP", help_heading = "Connection")]
    #[arg(requires = "listening", conflicts_with_all = ["fd", "connect"])]
    #[arg(value_parser = values::group)]
    pub socket_group: Option<u32>,

    /// The number of queues.
    #[command(flatten)]
    pub queues: Q,

    /// Largest queue accepted, a power of two
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32768,
        help_heading = "Queues"
    )]
    #[arg(value_parser = values::queue_size)]
    pub queue_size: u16,

    /// The most data threads: one per started queue, up to this number [default: number of CPUs]
    #[arg(long, value_name = "N", help_heading = "Queues")]
    #[arg(value_parser = values::threads)]
    pub threads: Option<NonZeroUsize>,

    /// CPUs for the data threads, in turn, like 0-3,5
    #[arg(long, value_name = "LIST", help_heading = "Queues")]
    pub cpus: Option<CpuList>,

    /// Microseconds that a thread polls, at most, before it sleeps; it adapts below that; 0 is off
    #[arg(long, value_name = "US", default_value_t = 50, help_heading = "Queues")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub poll_us: u32,

    /// Seconds that a stop of a ring or of the process waits while none of its requests ends; then
    /// the process ends with status 4. 0 sets no limit
    #[arg(long, value_name = "S", default_value_t = 300, help_heading = "Queues")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub stop_timeout: u32,

    /// Also accept guest memory in a file on a local disk (ext4, XFS); data threads may have to
    /// wait for that disk
    ///
    /// Without this option memory is a memfd, or a file on tmpfs or hugetlbfs.
    #[arg(long, help_heading = "Queues")]
    pub allow_file_memory: bool,

    /// Serve the management protocol (JSON lines) on this Unix socket
    #[arg(long, value_name = "PATH", help_heading = "Management")]
    pub control_socket: Option<PathBuf>,

    /// Serve metrics for Prometheus on PORT, ADDR:PORT or a Unix socket (a PATH with a slash)
    ///
    /// A port alone means 127.0.0.1. Connections are neither encrypted nor authenticated.
    #[arg(long, value_name = "ADDR|PATH", help_heading = "Management")]
    pub metrics: Option<MetricsAddress>,

    /// The log level, below `RUST_LOG`.
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = LogLevel::Info)]
    #[arg(ignore_case = true)]
    #[arg(
        help_heading = "Management",
        help = "Log messages of this level and of more severe ones, unless RUST_LOG is set"
    )]
    pub log_level: LogLevel,

    /// Print what this back-end can do as JSON, and exit
    #[arg(long, exclusive = true)]
    pub print_capabilities: bool,

    /// Print the man page, and exit
    #[arg(long, exclusive = true, hide = true)]
    pub print_man: bool,
}

/// How much to log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Faults that make the back-end useless.
    Error,
    /// Faults that an operator should look at.
    Warn,
    /// Start, stop, and connections.
    Info,
    /// Faults of a guest or a front-end.
    Debug,
    /// Every message.
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// Where the front-end is met.
#[derive(Debug)]
pub enum Endpoint {
    /// Bind and listen; see [`BoundSocket::bind`](crate::socket::BoundSocket::bind).
    Listen {
        /// The path of the socket.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its group, if not ours.
        group: Option<u32>,
    },
    /// Accept from a socket that was passed to us listening.
    ListenFd(UnixListener),
    /// Serve the one connection that was passed to us.
    ConnectedFd(UnixStream),
    /// Connect, and again when the connection ends.
    Connect(PathBuf),
}

/// For the line that tells what is served.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen { path, mode, .. } => {
                write!(f, "socket {} (mode {mode:o})", path.display())
            }
            Self::ListenFd(_) => f.write_str("a socket that was passed"),
            Self::ConnectedFd(_) => f.write_str("a connection that was passed"),
            Self::Connect(path) => write!(f, "socket {} of the front-end", path.display()),
        }
    }
}

impl From<InheritedSocket> for Endpoint {
    fn from(socket: InheritedSocket) -> Self {
        match socket {
            InheritedSocket::Listening(listener) => Self::ListenFd(listener),
            InheritedSocket::Connected(stream) => Self::ConnectedFd(stream),
        }
    }
}

/// The checked form of [`CommonArgs`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommonConfig {
    /// Queues offered, 1 to 256.
    pub num_queues: u16,
    /// Largest queue accepted, a power of two up to 32768.
    pub queue_size: u16,
    /// Most data threads.
    pub threads: NonZeroUsize,
    /// CPUs to pin data threads to, round-robin; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Upper bound of adaptive polling; zero: off.
    pub poll: Duration,
    /// How long a stop waits without progress; none: there is no limit.
    pub stop_timeout: Option<Duration>,
    /// Whether guest memory may be in a file on a local disk.
    pub file_memory: bool,
    /// Where the management protocol is served.
    pub control_socket: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics: Option<MetricsAddress>,
}

impl CommonConfig {
    /// The options of the data threads.
    #[must_use]
    pub fn workers(&self) -> WorkerOptions {
        WorkerOptions {
            max_threads: self.threads.get(),
            cpus: self.cpus.clone(),
            max_poll_ns: ns_of(self.poll),
            stop_timeout: self.stop_timeout,
            file_memory: self.file_memory,
        }
    }
}

impl<Q: QueueCount> CommonArgs<Q> {
    /// The permission bits of a socket that is bound: a group that is named is let in.
    #[must_use]
    pub fn socket_mode(&self) -> u32 {
        let default = match self.socket_group {
            Some(_) => GROUP_SOCKET_MODE,
            None => PRIVATE_SOCKET_MODE,
        };
        self.socket_mode.unwrap_or(default)
    }

    /// Keeps the last path only: for a device where an option that is given again replaces the one
    /// before.
    pub fn keep_last_socket_path(&mut self) {
        let before = self.socket_path.len().saturating_sub(1);
        self.socket_path.drain(..before);
    }

    /// Checks what the parser cannot, and takes over the socket of `--fd` or, when no endpoint is
    /// given, the one the service manager passed. The endpoint comes beside the rest.
    ///
    /// To be called once, at start, before other descriptors are opened.
    ///
    /// # Errors
    ///
    /// [`CliError`] if there is no endpoint, or several, or its socket is unusable.
    pub fn into_config(self) -> Result<(CommonConfig, Endpoint), CliError> {
        self.into_config_with(&inherited::passed())
    }

    /// The same for a device that has any number of front-ends, none included.
    ///
    /// # Errors
    ///
    /// [`CliError`] if the socket of an endpoint is unusable.
    pub fn into_config_of_many(self) -> Result<(CommonConfig, Vec<Endpoint>), CliError> {
        self.into_config_of_many_with(&inherited::passed())
    }

    fn into_config_with(self, passed: &[RawFd]) -> Result<(CommonConfig, Endpoint), CliError> {
        if self.socket_path.len() > 1 {
            let count = self.socket_path.len();
            return Err(CliError::TooManySocketPaths { count });
        }
        if !self.names_an_endpoint() && passed.len() > 1 {
            let count = passed.len();
            return Err(CliError::TooManyActivationSockets { count });
        }
        let endpoint = self.endpoints(passed)?.pop().ok_or(CliError::NoEndpoint)?;
        Ok((self.config(), endpoint))
    }

    fn into_config_of_many_with(
        self,
        passed: &[RawFd],
    ) -> Result<(CommonConfig, Vec<Endpoint>), CliError> {
        let endpoints = self.endpoints(passed)?;
        Ok((self.config(), endpoints))
    }

    fn config(self) -> CommonConfig {
        let default_threads = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        CommonConfig {
            num_queues: self.queues.vrings(),
            queue_size: self.queue_size,
            threads: self.threads.unwrap_or_else(default_threads),
            cpus: self.cpus.map(CpuList::into_inner).unwrap_or_default(),
            poll: Duration::from_micros(self.poll_us.into()),
            stop_timeout: (self.stop_timeout > 0)
                .then(|| Duration::from_secs(self.stop_timeout.into())),
            file_memory: self.allow_file_memory,
            control_socket: self.control_socket,
            metrics: self.metrics,
        }
    }

    /// The descriptors that this process was told to use as its endpoint.
    #[must_use]
    pub fn inherited(&self) -> Vec<RawFd> {
        match self.fd {
            Some(fd) => vec![fd],
            None if self.names_an_endpoint() => Vec::new(),
            None => inherited::passed(),
        }
    }

    /// Whether the command line says where the front-end is met.
    fn names_an_endpoint(&self) -> bool {
        !self.socket_path.is_empty() || self.connect.is_some() || self.fd.is_some()
    }

    /// The endpoints that were named; if none were, those the service manager passed.
    fn endpoints(&self, passed: &[RawFd]) -> Result<Vec<Endpoint>, CliError> {
        if !self.names_an_endpoint() {
            let sockets = passed.iter().map(|fd| InheritedSocket::from_number(*fd));
            return sockets
                .map(|socket| {
                    socket
                        .map(Endpoint::from)
                        .map_err(CliError::ActivationSocket)
                })
                .collect();
        }
        let listen = self
            .socket_path
            .iter()
            .map(|path| self.listen(path.clone()));
        let mut endpoints: Vec<Endpoint> = listen.collect();
        endpoints.extend(self.connect.clone().map(Endpoint::Connect));
        if let Some(fd) = self.fd {
            endpoints.push(InheritedSocket::from_number(fd)?.into());
        }
        Ok(endpoints)
    }

    fn listen(&self, path: PathBuf) -> Endpoint {
        Endpoint::Listen {
            path,
            mode: self.socket_mode(),
            group: self.socket_group,
        }
    }
}

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Call a method of a running back-end on its control socket
    Ctl(CtlArgs),
}

/// Arguments of the subcommand `ctl`.
#[derive(Args, Clone, Debug)]
pub struct CtlArgs {
    /// The control socket of a running back-end
    pub path: PathBuf,
    /// The method to call; `help` lists them
    pub method: String,
    /// Parameters of the method
    #[arg(value_name = "KEY=VALUE")]
    pub params: Vec<String>,
}

impl CtlArgs {
    /// Calls the method and returns its result as indented JSON.
    ///
    /// # Errors
    ///
    /// [`CtlError`] if the back-end cannot be reached or answers with an error.
    pub fn run(&self) -> Result<String, CtlError> {
        management::ctl(&self.path, &self.method, &self.params)
    }
}

#[cfg(test)]
mod tests;
