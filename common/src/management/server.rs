// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The loop of the management thread.
//!
//! What keeps one client from holding up others, or us:
//! - everything is non-blocking and a client has turns of a bounded length;
//! - each door has room for [`MAX_CLIENTS`]; one more, and the client that has been quiet the
//!   longest is closed. The doors do not share this room, so a flood of HTTP connections cannot
//!   close a control client;
//! - what may wait for a device is called on a thread of its own ([`Calls`]), and its client alone
//!   waits for it;
//! - a line, a request head and what is buffered for a client are bounded;
//! - an HTTP exchange has a deadline. While no such client is there, nothing wakes the thread.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use epoll::Events;

use super::calls::Calls;
use super::connection::{Connection, Door, Next, Stream};
use super::protocol::Services;
use crate::io::EpollLoop;
use crate::limited;
use crate::socket::BoundSocket;

/// Clients served at once on each door.
pub(super) const MAX_CLIENTS: usize = 32;

/// Accepted at once, before clients and the stop request have their turn.
const ACCEPT_BATCH: usize = 32;

/// How long no connection is accepted after we ran out of file descriptors or memory. The
/// listener stays readable, so without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long the end waits for the calls under way; `drain` waits for less.
const CALLS_PATIENCE: Duration = Duration::from_secs(12);

const STOP_TOKEN: u64 = 0;
const CONTROL_TOKEN: u64 = 1;
const METRICS_TOKEN: u64 = 2;
const CALLS_TOKEN: u64 = 3;
/// Tokens of clients count up from here and are never used twice: an event of a client that was
/// just closed cannot be taken for one of its successor.
const FIRST_CLIENT_TOKEN: u64 = 16;

/// A listening socket of either kind.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(BoundSocket),
    Tcp(TcpListener),
}

impl Listener {
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.listener().set_nonblocking(true),
            Self::Tcp(listener) => listener.set_nonblocking(true),
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(socket) => {
                let (stream, _) = socket.listener().accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.listener().as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// One door and its state.
#[derive(Debug)]
struct Entrance {
    door: Door,
    listener: Listener,
    token: u64,
    /// Set while accepting is paused.
    paused_until: Option<Instant>,
}

/// Everything the management thread owns.
#[derive(Debug)]
pub(super) struct Server {
    epoll: EpollLoop,
    /// Readable when the thread is to end; kept open here for as long as the thread waits on it.
    stop: Arc<OwnedFd>,
    /// Set when it is to end: how long calls are waited for.
    stop_until: Option<Instant>,
    services: Services,
    entrances: Vec<Entrance>,
    clients: BTreeMap<u64, Connection>,
    calls: Calls,
    /// Clients that have requests left and wait for their next turn.
    again: Vec<u64>,
    next_token: u64,
    /// Counts turns; the clock by which clients are compared.
    count: u64,
}

impl Server {
    pub(super) fn new(
        listeners: Vec<(Door, Listener)>,
        services: Services,
        stop: Arc<OwnedFd>,
    ) -> io::Result<Self> {
        let epoll = EpollLoop::new()?;
        epoll.add_for(stop.as_fd(), Events::EPOLLIN, STOP_TOKEN)?;
        let calls = Calls::new()?;
        epoll.add_for(calls.as_fd(), Events::EPOLLIN, CALLS_TOKEN)?;
        let mut entrances = Vec::new();
        for (door, listener) in listeners {
            let token = match door {
                Door::Control => CONTROL_TOKEN,
                Door::Metrics => METRICS_TOKEN,
            };
            listener.set_nonblocking()?;
            epoll.add_for(listener.as_fd(), Events::EPOLLIN, token)?;
            entrances.push(Entrance {
                door,
                listener,
                token,
                paused_until: None,
            });
        }
        Ok(Self {
            epoll,
            stop,
            stop_until: None,
            services,
            entrances,
            clients: BTreeMap::new(),
            calls,
            again: Vec::new(),
            next_token: FIRST_CLIENT_TOKEN,
            count: 0,
        })
    }

    /// Serves until the stop event is signalled and the calls under way have ended, or hang.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        loop {
            ready.clear();
            let pause = self.pause(Instant::now());
            self.epoll.wait(pause, |token| ready.push(token))?;
            let now = Instant::now();
            let again = mem::take(&mut self.again);
            for &token in &ready {
                match token {
                    STOP_TOKEN => self.stop_calls(now)?,
                    CALLS_TOKEN => self.deliver(now)?,
                    CONTROL_TOKEN | METRICS_TOKEN => self.accept(token, now)?,
                    client if again.contains(&client) => (),
                    client => self.advance(client, now)?,
                }
            }
            for client in again {
                self.advance(client, now)?;
            }
            self.expire(now)?;
            if let Some(until) = self.stop_until {
                if self.calls.are_none() {
                    return Ok(());
                }
                if until <= Instant::now() {
                    limited!(
                        warn,
                        "management: a call that waits for the host is given up"
                    );
                    return Ok(());
                }
            }
        }
    }

    /// Begins no more calls.
    fn stop_calls(&mut self, now: Instant) -> io::Result<()> {
        self.stop_until = Some(now + CALLS_PATIENCE);
        self.epoll
            .modify(self.stop.as_fd(), Events::empty(), STOP_TOKEN)
    }

    /// Gives the replies of calls that have ended to the clients that still wait for them.
    fn deliver(&mut self, now: Instant) -> io::Result<()> {
        for (token, reply) in self.calls.finished() {
            if let Some(client) = self.clients.get_mut(&token) {
                client.answered(reply);
                self.advance(token, now)?;
            }
        }
        Ok(())
    }

    /// Zero while a client has requests left, else up to the next deadline, if there is one.
    fn pause(&self, now: Instant) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadlines = self.clients.values().filter_map(|client| client.deadline);
        let pauses = self
            .entrances
            .iter()
            .filter_map(|entrance| entrance.paused_until);
        let next = deadlines.chain(pauses).chain(self.stop_until).min();
        next.map(|next| next.saturating_duration_since(now))
    }

    fn accept(&mut self, token: u64, now: Instant) -> io::Result<()> {
        for _ in 0..ACCEPT_BATCH {
            let Some(entrance) = self.entrances.iter_mut().find(|one| one.token == token) else {
                return Ok(());
            };
            let door = entrance.door;
            match entrance.listener.accept() {
                Ok(stream) => self.admit(stream, door, now)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_of_one_connection(&error) => (),
                Err(error) => {
                    entrance.paused_until = Some(now + ACCEPT_PAUSE);
                    self.epoll
                        .modify(entrance.listener.as_fd(), Events::empty(), token)?;
                    limited!(warn, "management: cannot accept: {error}");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, stream: Stream, door: Door, now: Instant) -> io::Result<()> {
        let same_door = || {
            self.clients
                .iter()
                .filter(|(_, client)| client.door == door)
        };
        if same_door().count() >= MAX_CLIENTS {
            let quietest = same_door().min_by_key(|(_, client)| client.last_active);
            if let Some((token, _)) = quietest.map(|(token, client)| (*token, client)) {
                limited!(debug, "management: too many clients, closing the quietest");
                self.clients.remove(&token);
            }
        }
        let token = self.next_token;
        self.next_token += 1;
        self.count += 1;
        let client = Connection::new(stream, door, now, self.count);
        self.epoll.add_for(client.as_fd(), client.interest, token)?;
        self.clients.insert(token, client);
        Ok(())
    }

    /// Gives a client its turn and does what it wants next.
    fn advance(&mut self, token: u64, now: Instant) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(&token) else {
            return Ok(());
        };
        self.count += 1;
        let interest = match client.advance(&self.services, now, self.count) {
            Next::Close => {
                self.clients.remove(&token);
                return Ok(());
            }
            Next::Again => {
                self.again.push(token);
                // It will have its turn without an event; one in between would be one too many.
                Events::empty()
            }
            Next::Wait(events) => events,
            Next::Call(call) => {
                if let Err(refusal) = self.calls.begin(token, call, self.stop_until.is_some()) {
                    client.answered(refusal);
                    self.again.push(token);
                }
                Events::empty()
            }
        };
        if client.interest != interest {
            client.interest = interest;
            self.epoll.modify(client.as_fd(), interest, token)?;
        }
        Ok(())
    }

    fn expire(&mut self, now: Instant) -> io::Result<()> {
        self.clients
            .retain(|_, client| client.deadline.is_none_or(|deadline| deadline > now));
        for entrance in &mut self.entrances {
            if entrance.paused_until.is_some_and(|until| until <= now) {
                entrance.paused_until = None;
                self.epoll
                    .modify(entrance.listener.as_fd(), Events::EPOLLIN, entrance.token)?;
            }
        }
        Ok(())
    }
}

/// Whether `accept` failed for the connection at hand only; see accept(2), "Error handling".
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::TimedOut
            | ErrorKind::NetworkDown
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
    )
}
