// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One client of the management thread, on either door; never blocks.
//!
//! A client is asked for more input only when it took the reply to what it asked before, so a
//! client that does not read costs one reply of memory and nothing else.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use epoll::Events;

use super::http;
use super::protocol::{self, Answer, Call, Services};

/// The longest request line of the control protocol.
pub(super) const MAX_LINE_BYTES: usize = 64 << 10;

/// Read at once; also the most that is buffered beyond a line.
const READ_BYTES: usize = 16 << 10;

/// Requests served before others have their turn.
const TURN_REQUESTS: usize = 16;

/// For a whole HTTP exchange, and for a control client to take its last reply. Shorter in tests,
/// one of which waits for it.
const EXCHANGE_TIME: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

/// For a client to close after our last reply. Closing first while input is unread would reset the
/// connection, and the client might lose the reply.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// The two things that are served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Door {
    Control,
    Metrics,
}

/// The two kinds of stream.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Tcp(stream) => stream.write(buffer),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

/// How far a conversation has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Requests are taken.
    Open,
    /// The last reply is being written.
    LastReply,
    /// Everything is said; input is thrown away until the client closes.
    Linger,
}

/// Whether a call of the client is under way: requests behind it wait, so that replies are in
/// order.
#[derive(Debug)]
enum Called {
    No,
    /// It was just read.
    Now(Call),
    UnderWay,
}

/// What a connection wants after its turn.
#[derive(Debug)]
pub(super) enum Next {
    /// To be woken by these events.
    Wait(Events),
    /// The reply of a call, see [`Connection::answered`]; meanwhile it takes no events but a
    /// hang-up.
    Call(Call),
    /// Another turn, after the others: it has requests left.
    Again,
    /// To be closed.
    Close,
}

/// A client and what is buffered for it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    pub(super) door: Door,
    phase: Phase,
    input: Vec<u8>,
    /// Bytes of `input` known to hold no end of line.
    scanned: usize,
    output: Vec<u8>,
    written: usize,
    end_of_input: bool,
    call: Called,
    /// When the connection is closed, whatever it does.
    pub(super) deadline: Option<Instant>,
    /// The server's count at the time of the last whole request; the lowest is closed first.
    pub(super) last_active: u64,
    pub(super) interest: Events,
}

impl Connection {
    pub(super) fn new(stream: Stream, door: Door, now: Instant, count: u64) -> Self {
        Self {
            stream,
            door,
            phase: Phase::Open,
            input: Vec::new(),
            scanned: 0,
            output: Vec::new(),
            written: 0,
            end_of_input: false,
            call: Called::No,
            deadline: (door == Door::Metrics).then(|| now + EXCHANGE_TIME),
            last_active: count,
            interest: Events::EPOLLIN,
        }
    }

    /// Does what can be done without waiting, within the bounds of one turn.
    pub(super) fn advance(&mut self, services: &Services, now: Instant, count: u64) -> Next {
        if matches!(self.call, Called::UnderWay) {
            // Only the end of the client wakes it.
            return Next::Close;
        }
        let mut may_read = true;
        for _ in 0..TURN_REQUESTS {
            match self.flush() {
                Ok(true) => (),
                Ok(false) => return Next::Wait(Events::EPOLLOUT),
                Err(_) => return Next::Close,
            }
            match self.phase {
                Phase::Open => (),
                Phase::LastReply => {
                    if self.stream.shutdown_write().is_err() {
                        return Next::Close;
                    }
                    self.phase = Phase::Linger;
                    self.deadline = Some(now + LINGER_TIME);
                }
                Phase::Linger => self.input.clear(),
            }
            if self.phase == Phase::Open && self.serve(services, now) {
                self.last_active = count;
                if let Called::Now(call) = mem::replace(&mut self.call, Called::No) {
                    self.call = Called::UnderWay;
                    return Next::Call(call);
                }
            } else if self.end_of_input {
                return Next::Close;
            } else if !may_read {
                return Next::Wait(Events::EPOLLIN);
            } else {
                may_read = false;
                match self.fill() {
                    Ok(()) => (),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => (),
                    Err(_) => return Next::Close,
                }
            }
        }
        Next::Again
    }

    /// The call has ended; to be advanced then.
    pub(super) fn answered(&mut self, reply: Vec<u8>) {
        self.call = Called::No;
        self.output = reply;
    }

    /// Serves one request if a whole one is there. Called with nothing left to write.
    fn serve(&mut self, services: &Services, now: Instant) -> bool {
        match self.door {
            Door::Control => self.serve_line(services, now),
            Door::Metrics => match http::answer(services, &self.input) {
                Some(reply) => {
                    self.output = reply;
                    self.phase = Phase::LastReply;
                    true
                }
                None => false,
            },
        }
    }

    fn serve_line(&mut self, services: &Services, now: Instant) -> bool {
        let end = self
            .input
            .iter()
            .skip(self.scanned)
            .position(|byte| *byte == b'\n');
        let length = end.map_or(self.input.len(), |end| self.scanned + end);
        if length > MAX_LINE_BYTES {
            self.output = protocol::too_long(MAX_LINE_BYTES);
            self.phase = Phase::LastReply;
            self.deadline = Some(now + EXCHANGE_TIME);
            return true;
        }
        if end.is_none() {
            self.scanned = length;
            return false;
        }
        let line: Vec<u8> = self.input.drain(..=length).collect();
        self.scanned = 0;
        match protocol::answer(services, &line) {
            Answer::Reply(reply) => self.output = reply,
            Answer::Call(call) => self.call = Called::Now(call),
        }
        true
    }

    fn fill(&mut self) -> io::Result<()> {
        let before = self.input.len();
        self.input.resize(before + READ_BYTES, 0);
        let read = retry(|| self.stream.read(&mut self.input[before..]));
        self.input
            .truncate(before + read.as_ref().map_or(0, |bytes| *bytes));
        self.end_of_input |= read? == 0;
        Ok(())
    }

    /// Writes; `true` when nothing is left.
    fn flush(&mut self) -> io::Result<bool> {
        while let Some(rest) = self
            .output
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            match retry(|| self.stream.write(rest)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.output = Vec::new();
        self.written = 0;
        Ok(true)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn retry<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            result => return result,
        }
    }
}
