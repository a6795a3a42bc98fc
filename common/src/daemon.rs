// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a back-end process: one listener for all of it, one front-end after the other.
//!
//! The control thread waits for the listener, the connection and signals in one epoll. While a
//! front-end is connected the next one waits in the listener's queue. When a connection ends, its
//! requests are completed, its threads end, its memory and descriptors are released, and the next
//! front-end finds the device as the first one did.
//!
//! SIGTERM drains, flushes and returns from [`serve`]; SIGHUP asks the device to look at its
//! backing.

mod control;

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use epoll::Events;

use self::control::Participant;
pub use self::control::{Control, DRAIN_PATIENCE};
use crate::cli::Endpoint;
use crate::device::Device;
use crate::error::{FrontEndError, HostError};
use crate::io::EpollLoop;
use crate::limited;
use crate::logging::LogLimiter;
use crate::session::SessionError;
use crate::session::connection::{Connection, Progress};
use crate::session::received::Quarantine;
use crate::socket::{BoundSocket, SocketError, check_path};
use crate::sys::signal::Signals;
use crate::watchdog::Watchdog;
use crate::worker::{Pool, WorkerOptions};

/// Where front-ends come from.
#[derive(Debug)]
pub enum Source {
    /// A socket we have bound and remove at the end.
    Bound(BoundSocket),
    /// A listening socket that was handed to us.
    Listener(UnixListener),
    /// One connection that was handed to us; the process ends with it.
    Connected(UnixStream),
    /// The front-end listens; we connect, and again when it has gone.
    Connect(PathBuf),
}

impl Source {
    /// Listens at `path`, for this user alone.
    ///
    /// # Errors
    /// As [`BoundSocket::bind`].
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, SocketError> {
        Ok(Self::Bound(BoundSocket::bind(path.as_ref(), 0o600, None)?))
    }

    /// The source that the command line asks for; binds the socket if it is ours to bind.
    ///
    /// # Errors
    /// When it cannot be bound, or its path is none that a socket can have.
    pub fn of(endpoint: Endpoint) -> Result<Self, SocketError> {
        Ok(match endpoint {
            Endpoint::Listen { path, mode, group } => {
                Self::Bound(BoundSocket::bind(&path, mode, group)?)
            }
            Endpoint::ListenFd(listener) => Self::Listener(listener),
            Endpoint::ConnectedFd(stream) => Self::Connected(stream),
            Endpoint::Connect(path) => {
                check_path(&path)?;
                Self::Connect(path)
            }
        })
    }
}

/// Between two attempts to connect to a front-end that is not there.
const CONNECT_RETRY: Duration = Duration::from_millis(200);

/// Epoll tokens.
const SIGNAL: u64 = 0;
const CONTROL: u64 = 1;
const LISTENER: u64 = 2;
const CONNECTION: u64 = 3;
/// Another front-end while one is served.
const NEXT: u64 = 4;

/// Serves `device` to the front-ends of `source` until SIGTERM.
///
/// # Errors
/// When the process cannot go on; a front-end's errors end its connection only.
pub fn serve<D: Device>(
    device: &Arc<D>,
    source: Source,
    options: &WorkerOptions,
    control: &Control,
) -> Result<(), HostError> {
    let pool = new_pool(options, control)?;
    serve_one(device, source, &pool, control)?;
    log::info!("bye");
    Ok(())
}

/// Serves several devices that belong together, each to the front-ends of its own source, until
/// SIGTERM. Their vrings share data threads, see [`Device::group`].
///
/// # Errors
/// As [`serve`]; the first error ends all of them.
pub fn serve_all<D: Device>(
    devices: Vec<(Arc<D>, Source)>,
    options: &WorkerOptions,
    control: &Control,
) -> Result<(), HostError> {
    let pool = new_pool(options, control)?;
    let result = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, (device, source)) in devices.into_iter().enumerate() {
            let pool = &pool;
            let thread = std::thread::Builder::new()
                .name(format!("control-{number}"))
                .spawn_scoped(scope, move || {
                    let result = serve_one(&device, source, pool, control);
                    if result.is_err() {
                        control.signals.terminate();
                    }
                    result
                })
                .map_err(HostError::of("starting a control thread"));
            if thread.is_err() {
                control.signals.terminate();
            }
            threads.push(thread);
        }
        let mut result = Ok(());
        for thread in threads {
            let ended = thread.and_then(|thread| thread.join().unwrap_or(Ok(())));
            result = result.and(ended);
        }
        result
    });
    log::info!("bye");
    result
}

fn new_pool<D: Device>(
    options: &WorkerOptions,
    control: &Control,
) -> Result<Arc<Pool<D>>, HostError> {
    let watchdog = Watchdog::new(control.signals, options.stop_timeout)
        .map_err(HostError::of("making the watchdog"))?;
    Ok(Pool::new(options.clone(), watchdog))
}

fn serve_one<D: Device>(
    device: &Arc<D>,
    source: Source,
    pool: &Arc<Pool<D>>,
    control: &Control,
) -> Result<(), HostError> {
    let signals = control.signals;
    let epoll = EpollLoop::new().map_err(HostError::of("making an epoll instance"))?;
    let add = |fd, token| {
        epoll
            .add(fd, token)
            .map_err(HostError::of("adding to epoll"))
    };
    add(signals.fd(), SIGNAL)?;
    add(control.signal.as_fd(), CONTROL)?;
    let name = match device.name() {
        "" => String::new(),
        name => format!("{name}: "),
    };
    let daemon = Daemon {
        device,
        pool,
        participant: control.join(),
        signals,
        reloads: Cell::new(signals.reloads()),
        tears: Cell::new(signals.tears()),
        epoll: &epoll,
        quarantine: Arc::new(Quarantine::new(name.clone())),
        name,
        penance: Penance::default(),
        told: Told::default(),
    };
    match source {
        Source::Bound(socket) => daemon.accept_all(socket.listener())?,
        Source::Listener(listener) => daemon.accept_all(&listener)?,
        Source::Connected(stream) => daemon.converse(stream)?,
        Source::Connect(path) => daemon.connect_all(&path)?,
    }
    let flushed = daemon.flush();
    if pool.watchdog().has_failed() {
        return Err(HostError::data_thread_ended());
    }
    flushed.map_err(HostError::of("flushing at exit"))
}

struct Daemon<'a, D: Device> {
    device: &'a Arc<D>,
    pool: &'a Arc<Pool<D>>,
    participant: Participant<'a>,
    signals: Signals,
    /// Signals that were followed.
    reloads: Cell<u32>,
    tears: Cell<u32>,
    epoll: &'a EpollLoop,
    /// Unwanted descriptors of the front-ends of this socket.
    quarantine: Arc<Quarantine>,
    /// What log lines begin with, where a process has several devices.
    name: String,
    penance: Penance,
    told: Told,
}

/// The limits on log lines about the front-ends of this socket. They can come and go as often as they
/// like: that must neither fill the log nor hide lines about other sockets.
#[derive(Debug, Default)]
struct Told {
    absent: LogLimiter,
    connected: LogLimiter,
    left: LogLimiter,
    broken: LogLimiter,
    crowded: LogLimiter,
    refused: LogLimiter,
    full: LogLimiter,
    unstable: LogLimiter,
}

/// How long a socket serves no front-end after one whose eventfds made a data thread wait. That costs
/// others some 40 ms each time; a front-end that does it again and again gets only a fraction of
/// their time.
#[derive(Debug, Default)]
struct Penance(Cell<u32>);

impl Penance {
    /// Doubled each time, up to the longest.
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(64);

    /// The pause after a session.
    fn after(&self, stuck: bool, lasted: Duration) -> Duration {
        if lasted >= Self::LONGEST {
            self.0.set(0);
        }
        if !stuck {
            return Duration::ZERO;
        }
        let offences = self.0.get();
        self.0.set(offences.saturating_add(1));
        let pause = Self::SHORTEST.saturating_mul(1 << offences.min(6));
        pause.min(Self::LONGEST)
    }
}

impl<D: Device> Daemon<'_, D> {
    /// One front-end after the other.
    fn accept_all(&self, listener: &UnixListener) -> Result<(), HostError> {
        listener
            .set_nonblocking(true)
            .map_err(HostError::of("preparing the listener"))?;
        self.listen(listener, Events::EPOLLIN, LISTENER)?;
        while !self.signals.terminating() {
            match listener.accept() {
                Ok((stream, _)) => {
                    // While one is served, each that comes is reported once; else as long as it waits.
                    self.listen(listener, Events::EPOLLIN | Events::EPOLLET, NEXT)?;
                    self.converse(stream)?;
                    self.listen(listener, Events::EPOLLIN, LISTENER)?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait_outside()?,
                Err(e) => {
                    // No descriptor is free, which needs time, or the peer has gone already.
                    let name = &self.name;
                    limited!(self.told.refused, warn, "{name}no connection accepted: {e}");
                    self.nap(CONNECT_RETRY)?;
                }
            }
        }
        Ok(())
    }

    /// Has `events` of the listener reported as `token` from now on.
    fn listen(&self, listener: &UnixListener, events: Events, token: u64) -> Result<(), HostError> {
        // The first time it is not there yet.
        let _ = self.epoll.remove(listener.as_fd());
        self.epoll
            .add_for(listener.as_fd(), events, token)
            .map_err(HostError::of("adding to epoll"))
    }

    /// The front-end listens.
    fn connect_all(&self, path: &Path) -> Result<(), HostError> {
        let mut told = false;
        while !self.signals.terminating() {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    told = false;
                    self.converse(stream)?;
                }
                Err(e) if !told => {
                    limited!(
                        self.told.absent,
                        info,
                        "{}waiting for {}: {e}",
                        self.name,
                        path.display()
                    );
                    told = true;
                }
                Err(_) => {}
            }
            self.nap(CONNECT_RETRY)?;
        }
        Ok(())
    }

    /// Serves one front-end to the end.
    fn converse(&self, stream: UnixStream) -> Result<(), HostError> {
        let name = &self.name;
        let started = Instant::now();
        if self.quarantine.is_full() {
            limited!(
                self.told.full,
                error,
                "{name}no front-end is served: those before have handed over too many files that \
                 cannot be closed"
            );
            return Ok(());
        }
        let device = Arc::clone(self.device);
        let pool = Arc::clone(self.pool);
        let quarantine = Arc::clone(&self.quarantine);
        let mut connection = Connection::new(stream, device, pool, quarantine);
        limited!(self.told.connected, info, "{name}a front-end has connected");
        let events = Events::EPOLLIN | Events::EPOLLOUT | Events::EPOLLRDHUP | Events::EPOLLET;
        self.epoll
            .add_for(connection.fd(), events, CONNECTION)
            .map_err(HostError::of("adding to epoll"))?;
        let result = self.exchange(&mut connection);
        let _ = self.epoll.remove(connection.fd());
        connection.session().end();
        let penance = self
            .penance
            .after(connection.session().is_stuck(), started.elapsed());
        if let Err(error) = result {
            limited!(
                self.told.broken,
                warn,
                "{name}the connection was closed: {error}"
            );
        } else {
            limited!(self.told.left, info, "{name}the front-end has left");
        }
        drop(connection);
        self.rest(penance)
    }

    /// Serves nobody for `pause`.
    fn rest(&self, pause: Duration) -> Result<(), HostError> {
        let begin = Instant::now();
        while let Some(left) = pause.checked_sub(begin.elapsed())
            && !self.signals.terminating()
        {
            self.nap(left)?;
        }
        Ok(())
    }

    /// Answers messages until the front-end goes, breaks the protocol, or we are told to end.
    fn exchange(&self, connection: &mut Connection<D>) -> Result<(), SessionError> {
        self.follow_pause(Some(connection))?;
        loop {
            let pause = match connection.proceed()? {
                Progress::Closed => return Ok(()),
                Progress::Busy => Some(Duration::ZERO),
                Progress::Waiting | Progress::Blocked => None,
            };
            if self.signals.terminating() {
                return Ok(());
            }
            let control = self.wait(pause)?;
            if connection.session().is_stuck() {
                return Err(FrontEndError::CallBlocks.into());
            }
            let tears = self.signals.tears();
            if self.tears.replace(tears) != tears && connection.session().memory_is_torn() {
                return Err(FrontEndError::MemoryTruncated.into());
            }
            if control {
                self.follow_pause(Some(connection))?;
            }
        }
    }

    /// Waits for anything while there is no front-end.
    fn wait_outside(&self) -> Result<(), HostError> {
        if self.wait(None)? {
            self.follow_pause(None)?;
        }
        Ok(())
    }

    /// Does what [`Control::pause`] has asked for.
    fn follow_pause(&self, connection: Option<&mut Connection<D>>) -> Result<(), HostError> {
        let (paused, round) = self.participant.wanted();
        if let Some(connection) = connection {
            connection.session().pause(paused)?;
        }
        let mut flush_failed = false;
        if paused && let Err(error) = self.flush() {
            // The thread that has asked for the pause is told; the session goes on.
            limited!(
                self.told.unstable,
                error,
                "{}not all that was written is stable: {error}",
                self.name
            );
            flush_failed = true;
        }
        self.participant.reached(round, flush_failed);
        Ok(())
    }

    /// Makes what was acknowledged stable; a disk may take its time.
    fn flush(&self) -> io::Result<()> {
        let bounded = self.signals.terminating();
        let _waiting = self.pool.watchdog().wait_for(
            "what was written to be stable",
            Instant::now(),
            bounded,
            None,
        );
        self.device.flush()
    }

    /// Sleeps until something has happened, for `pause` at most; returns whether the control handle
    /// was used.
    fn wait(&self, pause: Option<Duration>) -> Result<bool, HostError> {
        let (mut control, mut crowded) = (false, false);
        self.epoll
            .wait(pause, |token| {
                control |= token == CONTROL;
                crowded |= token == NEXT;
            })
            .map_err(HostError::of("waiting for events"))?;
        if crowded {
            limited!(
                self.told.crowded,
                info,
                "{}another front-end waits until the one that is served has left",
                self.name
            );
        }
        self.follow_reload();
        Ok(control)
    }

    fn follow_reload(&self) {
        let reloads = self.signals.reloads();
        if self.reloads.replace(reloads) == reloads {
            return;
        }
        if let Err(error) = self.device.reload() {
            limited!(error, "the backing could not be looked at again: {error}");
        }
    }

    /// Waits for `pause`, or less when a signal comes.
    fn nap(&self, pause: Duration) -> Result<(), HostError> {
        if self.signals.terminating() {
            return Ok(());
        }
        self.epoll
            .wait_for(pause)
            .map_err(HostError::of("waiting for events"))?;
        self.follow_reload();
        self.follow_pause(None)
    }
}
