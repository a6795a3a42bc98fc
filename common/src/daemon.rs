// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a back-end process: one listener for all of it, one front-end after the other.
//!
//! The control thread waits for the listener, the connection and signals in one epoll. While a
//! front-end is connected the next one waits in the listener's queue. A connection that ends, for
//! whatever reason, is drained: its requests are completed, its threads end, its memory and
//! descriptors are let go, and the next front-end finds the device as the first one did.
//!
//! SIGTERM drains, flushes and returns from [`serve`]; SIGHUP asks the device to look at its
//! backing.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use epoll::Events;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm_sys_util::epoll::EventSet;

use crate::cli::Endpoint;
use crate::device::{Device, EVENT_RELOAD};
use crate::error::{FrontEndError, HostError};
use crate::io::EpollLoop;
use crate::logging::LogLimiter;
use crate::session::connection::{Connection, Progress};
use crate::socket::{BoundSocket, SocketError};
use crate::sys::signal::Signals;
use crate::worker::WorkerOptions;

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
    /// The source that the command line asks for; binds the socket if it is ours to bind.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn of(endpoint: Endpoint) -> Result<Self, SocketError> {
        Ok(match endpoint {
            Endpoint::Listen { path, mode, group } => {
                Self::Bound(BoundSocket::bind(&path, mode, group)?)
            }
            Endpoint::ListenFd(listener) => Self::Listener(listener),
            Endpoint::ConnectedFd(stream) => Self::Connected(stream),
            Endpoint::Connect(path) => Self::Connect(path),
        })
    }
}

/// Between two attempts to connect to a front-end that is not there.
const CONNECT_RETRY: Duration = Duration::from_millis(200);

/// A front-end can come and go as often as it likes; the log is not to follow.
static CONNECTED: LogLimiter = LogLimiter::new();
static LEFT: LogLimiter = LogLimiter::new();
static BROKEN: LogLimiter = LogLimiter::new();

/// Epoll tokens.
const SIGNAL: u64 = 0;
const CONTROL: u64 = 1;
const LISTENER: u64 = 2;
const CONNECTION: u64 = 3;

/// Requests to the control thread from other threads of the process.
#[derive(Debug)]
pub struct Control {
    wanted: Mutex<Pause>,
    changed: Condvar,
    signal: std::os::fd::OwnedFd,
}

#[derive(Debug, Default)]
struct Pause {
    wanted: bool,
    reached: bool,
    /// It was reached, but the device could not make stable what it had written.
    flush_failed: bool,
}

impl Control {
    /// A handle for one [`serve`].
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            wanted: Mutex::default(),
            changed: Condvar::new(),
            signal,
        })
    }

    /// Stops taking requests and returns when those in flight are done; or goes on.
    ///
    /// Returns false when that took longer than `patience`, and is then still under way; or when
    /// what was acknowledged could not be made stable.
    pub fn pause(&self, paused: bool, patience: Duration) -> bool {
        let mut state = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        state.wanted = paused;
        // Full means that a wake-up is due already.
        let _ = rustix::io::write(&self.signal, &1_u64.to_ne_bytes());
        let waited = self
            .changed
            .wait_timeout_while(state, patience, |s| s.reached != s.wanted);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.reached == paused && !state.flush_failed
    }

    fn wanted(&self) -> bool {
        self.wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wanted
    }

    fn reached(&self, paused: bool, flush_failed: bool) {
        let mut state = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        state.reached = paused;
        state.flush_failed = flush_failed;
        drop(state);
        self.changed.notify_all();
    }
}

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
    raise_descriptor_limit();
    let signals = Signals::install().map_err(HostError::of("installing signal handlers"))?;
    let epoll = EpollLoop::new().map_err(HostError::of("making an epoll instance"))?;
    let add = |fd, token| {
        epoll
            .add(fd, token)
            .map_err(HostError::of("adding to epoll"))
    };
    add(signals.fd(), SIGNAL)?;
    add(control.signal.as_fd(), CONTROL)?;
    let daemon = Daemon {
        device,
        options,
        control,
        signals,
        epoll: &epoll,
    };
    match source {
        Source::Bound(socket) => daemon.accept_all(socket.listener())?,
        Source::Listener(listener) => daemon.accept_all(&listener)?,
        Source::Connected(stream) => daemon.converse(stream)?,
        Source::Connect(path) => daemon.connect_all(&path)?,
    }
    device.flush().map_err(HostError::of("flushing at exit"))?;
    log::info!("bye");
    Ok(())
}

struct Daemon<'a, D: Device> {
    device: &'a Arc<D>,
    options: &'a WorkerOptions,
    control: &'a Control,
    signals: Signals,
    epoll: &'a EpollLoop,
}

impl<D: Device> Daemon<'_, D> {
    /// One front-end after the other.
    fn accept_all(&self, listener: &UnixListener) -> Result<(), HostError> {
        listener
            .set_nonblocking(true)
            .map_err(HostError::of("preparing the listener"))?;
        let listening = Events::EPOLLIN;
        self.epoll
            .add_for(listener.as_fd(), listening, LISTENER)
            .map_err(HostError::of("adding to epoll"))?;
        while !self.signals.terminating() {
            match listener.accept() {
                Ok((stream, _)) => {
                    // Level-triggered for those who wait, silent while one is served.
                    let _ = self.epoll.remove(listener.as_fd());
                    self.converse(stream)?;
                    self.epoll
                        .add_for(listener.as_fd(), listening, LISTENER)
                        .map_err(HostError::of("adding to epoll"))?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait_outside()?,
                Err(e) => {
                    // No descriptor left, or the peer has gone already. The former needs time.
                    log::warn!("no connection accepted: {e}");
                    self.nap(CONNECT_RETRY)?;
                }
            }
        }
        Ok(())
    }

    /// The front-end listens.
    fn connect_all(&self, path: &std::path::Path) -> Result<(), HostError> {
        let mut told = false;
        while !self.signals.terminating() {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    told = false;
                    self.converse(stream)?;
                }
                Err(e) if !told => {
                    log::info!("waiting for {}: {e}", path.display());
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
        stream
            .set_nonblocking(false)
            .map_err(HostError::of("preparing the connection"))?;
        let device = Arc::clone(self.device);
        let mut connection = match Connection::new(stream, device, self.options.clone()) {
            Ok(connection) => connection,
            Err(error) => {
                log::error!("a front-end was turned away: {error}: {}", error.source);
                return Ok(());
            }
        };
        if let Some(suppressed) = CONNECTED.allow() {
            log::info!("a front-end has connected ({suppressed} more not shown)");
        }
        let events = Events::EPOLLIN | Events::EPOLLOUT | Events::EPOLLRDHUP | Events::EPOLLET;
        self.epoll
            .add_for(connection.fd(), events, CONNECTION)
            .map_err(HostError::of("adding to epoll"))?;
        let result = self.exchange(&mut connection);
        let _ = self.epoll.remove(connection.fd());
        connection.session().end();
        if let Err(error) = result {
            if let Some(suppressed) = BROKEN.allow() {
                log::warn!("the connection was closed: {error} ({suppressed} more not shown)");
            }
        } else if let Some(suppressed) = LEFT.allow() {
            log::info!("the front-end has left ({suppressed} more not shown)");
        }
        Ok(())
    }

    /// Answers messages until the front-end goes, breaks the protocol, or we are told to end.
    fn exchange(&self, connection: &mut Connection<D>) -> Result<(), vhost::vhost_user::Error> {
        let fail = |e: HostError| vhost::vhost_user::Error::ReqHandlerError(io::Error::other(e));
        self.follow_pause(Some(connection)).map_err(fail)?;
        loop {
            match connection.proceed()? {
                Progress::Closed => return Ok(()),
                Progress::Waiting | Progress::Blocked => {}
            }
            if self.signals.terminating() {
                return Ok(());
            }
            let control = self.wait().map_err(fail)?;
            if self.signals.take_torn() && connection.session().memory_is_torn() {
                return Err(FrontEndError::MemoryTruncated.into());
            }
            if control {
                self.follow_pause(Some(connection)).map_err(fail)?;
            }
        }
    }

    /// Waits for anything while there is no front-end.
    fn wait_outside(&self) -> Result<(), HostError> {
        if self.wait()? {
            self.follow_pause(None)?;
        }
        Ok(())
    }

    /// Does what [`Control::pause`] has asked for.
    fn follow_pause(&self, connection: Option<&Connection<D>>) -> Result<(), HostError> {
        let paused = self.control.wanted();
        if let Some(connection) = connection {
            connection.session().pause(paused)?;
        }
        let mut flush_failed = false;
        if paused && let Err(error) = self.device.flush() {
            // A reason to tell who has asked, and none to leave the front-end alone.
            log::error!("not all that was written is stable: {error}");
            flush_failed = true;
        }
        self.control.reached(paused, flush_failed);
        Ok(())
    }

    /// Sleeps until something has happened; returns whether the control handle was used.
    fn wait(&self) -> Result<bool, HostError> {
        let mut control = false;
        let mut signalled = false;
        self.epoll
            .wait(true, |token| {
                control |= token == CONTROL;
                signalled |= token == SIGNAL;
            })
            .map_err(HostError::of("waiting for events"))?;
        if signalled {
            self.signals.acknowledge();
        }
        if self.signals.take_reload() {
            self.reload();
        }
        Ok(control)
    }

    fn reload(&self) {
        let result = self.device.handle_event(EVENT_RELOAD, EventSet::IN, &[], 0);
        if let Err(error) = result {
            log::error!("the backing could not be looked at again: {error}");
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
        if self.signals.take_reload() {
            self.reload();
        }
        self.follow_pause(None)
    }
}

/// A full table of memory slots and 256 queues need more descriptors than the usual soft limit.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::debug!("the limit of open files stays at {current:?}: {error}");
        }
    }
}
