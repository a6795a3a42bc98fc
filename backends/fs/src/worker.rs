// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The data side: a chain with a request comes, its reply goes back in it.
//!
//! virtio 1.3 §5.11.6: the device-readable bytes are the header, the arguments and the data of a
//! request, the device-writable ones those of its reply. All is served on the data thread unless
//! it may wait long (`route`); then a thread of the mount that it waits for does the same and writes
//! the reply itself. A lock that is waited for takes no thread. So a queue always goes on, and the
//! one for urgent requests (`FORGET`) waits for nothing that another does.
//!
//! The bytes of a file go between it and the guest's memory without a stop. Reads are tried without
//! waiting first, and handed over if the bytes are not in memory.

mod blocking;
mod queue;
mod refusal;
mod route;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use ringside_common::chain::ChainFault;
use ringside_common::io::Promise;
use ringside_common::memory::IoScratch;
use ringside_common::worker::{Counted, RequestCx, RequestWorker};
use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;

use crate::credentials::ThreadContext;
use crate::device::Shared;
use crate::error::{Errno, Result};
use crate::locks::Done;
use crate::passthrough::{Cx, DirScratch};
use crate::server::{self, kind_of};
use crate::wire::flags::{WriteFlags, opcode};
use crate::wire::header::{IN_HEADER_BYTES, InHeader, OUT_HEADER_BYTES, out_header};
use crate::wire::limits::{WRITE_ARGS_BYTES, args_limit_bytes, has_reply};
use crate::wire::operation::{LockIn, Operation, ReadIn, WriteIn};
use crate::wire::reply::Written;

pub use self::queue::FsQueue;
use self::queue::Pending;
use self::refusal::{narrow, refuse};
use self::route::To;

/// A thread that may wait has written the reply: its bytes, negative if it is an error.
const TAG_REPLIED: u16 = 0;
/// A lock was got, or not: 0 or a negative errno.
const TAG_LOCK: u16 = 1;

/// What is counted as "other".
const OTHER: usize = server::KINDS.len() - 1;

/// The data side of the device on one data thread.
#[derive(Debug)]
pub struct FsWorker {
    shared: Arc<Shared>,
    thread: ThreadContext,
    scratch: Scratch,
}

/// What is used again from request to request.
#[derive(Debug, Default)]
struct Scratch {
    args: Vec<u8>,
    reply: Vec<u8>,
    dirs: DirScratch,
    io: IoScratch,
}

/// How a request ended.
enum Outcome {
    /// The reply is in the scratch buffer.
    Reply,
    /// So many bytes are behind the place of the header.
    Data(usize),
    /// There is none.
    NoReply,
    /// It will come.
    Later,
}

impl FsWorker {
    /// The data side of the calling thread.
    ///
    /// # Errors
    /// When the kernel does not set the thread up.
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let thread = ThreadContext::new(shared.proc_self_fd())?;
        Ok(Self {
            shared,
            thread,
            scratch: Scratch::default(),
        })
    }

    /// Serves the request of `head`, whose header was taken off.
    fn serve(
        &mut self,
        queue: &mut FsQueue,
        rcx: &mut RequestCx<'_>,
        head: u16,
        header: &InHeader,
    ) -> Result<Outcome> {
        let buffers = rcx.buffers(head).ok_or(Errno::IO)?;
        let rest_bytes = buffers.readable_bytes();
        refusal::check_byte_order(header)?;
        if u64::from(header.len_bytes) != rest_bytes + IN_HEADER_BYTES as u64 {
            return Err(Errno::INVAL);
        }
        let limit = args_limit_bytes(header.opcode);
        let args_bytes = usize::try_from(rest_bytes).map_or(limit, |rest| rest.min(limit));
        let Scratch {
            args,
            reply,
            dirs,
            io,
        } = &mut self.scratch;
        args.resize(args_bytes, 0);
        buffers.read_at(0, args);
        let op = Operation::parse(header, args, self.shared.fs.negotiated())
            .map_err(|error| Errno::from_raw_os_error(error.errno()))?;
        queue.note(head, header.unique, kind_of(&op));
        if !has_reply(header.opcode) {
            self.shared.serve_silent(header, &op);
            return Ok(Outcome::NoReply);
        }
        let room = usize::try_from(buffers.writable_bytes()).unwrap_or(usize::MAX);
        let room = room.checked_sub(OUT_HEADER_BYTES).ok_or(Errno::INVAL)?;
        if room < op.reply_bytes() {
            return Err(Errno::INVAL);
        }
        server::check_read_only(&self.shared.fs, &op)?;
        let mut request = Request {
            shared: &self.shared,
            rcx,
            head,
            cx: Cx {
                header,
                thread: &mut self.thread,
                waits: false,
            },
            args,
            room,
            queue,
        };
        request.serve(&op, reply, dirs, io)
    }

    /// Writes the reply and gives the chain back.
    fn answer(
        &mut self,
        rcx: &mut RequestCx<'_>,
        head: u16,
        header: &InHeader,
        kind: usize,
        outcome: &Result<Outcome>,
    ) {
        let Some(buffers) = rcx.buffers(head) else {
            return;
        };
        let reply = &mut self.scratch.reply;
        let ok = outcome.is_ok();
        let (used_bytes, bytes) = match outcome {
            Ok(Outcome::Later) => return,
            Ok(Outcome::NoReply) => (0, 0),
            Ok(Outcome::Data(bytes)) => {
                let len = narrow(OUT_HEADER_BYTES + bytes);
                buffers.write_front(out_header(len, 0, header.unique));
                (len, *bytes as u64)
            }
            Ok(Outcome::Reply) => {
                let len = narrow(reply.len());
                if let Some(place) = reply.first_chunk_mut() {
                    *place = out_header(len, 0, header.unique);
                }
                buffers.write_at(0, reply);
                (len, 0)
            }
            Err(error) => (refuse(buffers, header, *error), 0),
        };
        rcx.complete(head, used_bytes, Counted { kind, bytes, ok });
    }
}

/// A parsed request whose reply has room.
struct Request<'a, 'c> {
    shared: &'a Arc<Shared>,
    rcx: &'a mut RequestCx<'c>,
    head: u16,
    cx: Cx<'a>,
    args: &'a [u8],
    room: usize,
    queue: &'a FsQueue,
}

impl Request<'_, '_> {
    fn serve(
        &mut self,
        op: &Operation<'_>,
        reply: &mut Vec<u8>,
        dirs: &mut DirScratch,
        io: &mut IoScratch,
    ) -> Result<Outcome> {
        let fs = &self.shared.fs;
        let header = self.cx.header;
        if let Some(to) = route::elsewhere(fs, header, op) {
            return self.go(&to, op);
        }
        match op {
            Operation::Read(read) => match self.read_now(io, read)? {
                Some(bytes) => Ok(Outcome::Data(bytes)),
                None => self.go(&route::own(fs, header, op), op),
            },
            Operation::Write(write) => match self.write_now(io, write)? {
                Some(written) => {
                    reply.extend_from_slice(&written.to_bytes());
                    Ok(Outcome::Reply)
                }
                None => self.go(&route::own(fs, header, op), op),
            },
            Operation::SetLock { lock, waits: true } => self.wait_for_lock(lock),
            op => {
                let op = clamp(op, self.room);
                match server::serve(fs, &mut self.cx, &op, dirs, reply) {
                    Err(Errno::AGAIN) if server::may_open(&op) => {
                        return self.go(&route::own(fs, header, &op), &op);
                    }
                    Err(Errno::XDEV) if matches!(op, Operation::Lookup { .. }) => {
                        return self.go(&route::beyond(fs, header, &op), &op);
                    }
                    served => served?,
                }
                if reply.len() - OUT_HEADER_BYTES > self.room {
                    return Err(Errno::RANGE);
                }
                Ok(Outcome::Reply)
            }
        }
    }

    /// Has a request served by others.
    fn go(&mut self, to: &To, op: &Operation<'_>) -> Result<Outcome> {
        let header = self.cx.header;
        if let Operation::SetLock { lock, waits: true } = op {
            let promise = self.wait_parked()?;
            let queue = self.queue.index();
            blocking::wait_for_lock(self.shared, header, lock, queue, promise, &to.pool);
            return Ok(Outcome::Later);
        }
        blocking::hand_over(self.shared, self.rcx, self.head, header, self.args, to)
    }

    /// Reads what is in memory; none when the rest has to be waited for.
    fn read_now(&mut self, io: &mut IoScratch, read: &ReadIn) -> Result<Option<usize>> {
        let (fs, node) = (&self.shared.fs, self.cx.header.node);
        let target = match fs.target(&self.cx, node, read.handle, OFlags::RDONLY) {
            Err(Errno::AGAIN) => return Ok(None),
            target => target?,
        };
        if target.waits_to_read() {
            return Ok(None);
        }
        let buffers = self.rcx.buffers(self.head).ok_or(Errno::IO)?;
        let size = usize::try_from(read.size_bytes).map_or(self.room, |size| size.min(self.room));
        let mut flags = if target.may_try() {
            ReadWriteFlags::NOWAIT
        } else {
            ReadWriteFlags::empty()
        };
        let mut done = 0;
        while done < size {
            let mut scatter = io.scatter();
            scatter.push_writable(buffers, OUT_HEADER_BYTES + done, size - done);
            let offset = read.offset_bytes.saturating_add(done as u64);
            match scatter.read_at(target.as_fd(), offset, flags) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if is_unsupported(&error) && !flags.is_empty() => {
                    target.cannot_try();
                    flags = ReadWriteFlags::empty();
                }
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(Some(done))
    }

    /// Writes to the page cache; none where a write waits for a disk or another machine.
    fn write_now(&mut self, io: &mut IoScratch, write: &WriteIn) -> Result<Option<Written>> {
        let buffers = self.rcx.buffers(self.head).ok_or(Errno::IO)?;
        let data_bytes = buffers
            .readable_bytes()
            .checked_sub(WRITE_ARGS_BYTES as u64);
        if data_bytes != Some(u64::from(write.size_bytes)) {
            return Err(Errno::INVAL);
        }
        let (target, flags) = match self.shared.fs.write_target(&mut self.cx, write) {
            Err(Errno::AGAIN) => return Ok(None),
            target => target?,
        };
        if target.waits_to_write() {
            return Ok(None);
        }
        let size = usize::try_from(write.size_bytes).unwrap_or(usize::MAX);
        let all = write.write_flags.contains(WriteFlags::CACHE);
        let written = whole(size, all, |done| {
            let mut gather = io.gather();
            gather.push_part(buffers, WRITE_ARGS_BYTES + done, size - done);
            let offset = write.offset_bytes.saturating_add(done as u64);
            gather.write_at(target.as_fd(), offset, flags)
        });
        Ok(Some(Written {
            size_bytes: narrow(written?),
        }))
    }

    /// The promise of a lock, for one who may wait beside those that do.
    fn wait_parked(&mut self) -> Result<Promise> {
        if !self.queue.may_wait(self.rcx.parked()) {
            // As fcntl(2) and flock(2) have it where there is no room for another lock. EAGAIN is
            // no answer to who waits, EDEADLK is a lie, and after EINTR the guest asks again at once.
            return Err(Errno::NOLCK);
        }
        self.rcx.promise(self.head, TAG_LOCK).ok_or(Errno::NOLCK)
    }

    /// Takes a lock, or waits for it without a thread.
    fn wait_for_lock(&mut self, lock: &LockIn) -> Result<Outcome> {
        let fs = &self.shared.fs;
        match fs.set_lock(&self.cx, lock) {
            Ok(()) => return Ok(Outcome::Data(0)),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        let done = keep(self.wait_parked()?);
        if let Err((error, done)) = fs.wait_for_lock(&self.cx, lock, self.queue.index(), done) {
            done(Err(error));
        }
        Ok(Outcome::Later)
    }
}

/// Says how the waiting for a lock has ended.
fn keep(promise: Promise) -> Done {
    Box::new(move |result: Result<()>| {
        promise.keep(result.err().map_or(0, |error| -error.raw_os_error()));
    })
}

/// Goes on until all of `size` bytes are moved, or no more are. What was moved before an error is
/// the result, not the error, unless it is to be `all` of them: a guest takes a short read for the
/// end of the file, and a short write of its cache for a whole one.
fn whole(
    size: usize,
    all: bool,
    mut step: impl FnMut(usize) -> io::Result<usize>,
) -> Result<usize> {
    let mut done = 0;
    while done < size {
        match step(done) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if done > 0 && !all => break,
            Err(error) => return Err(errno(&error)),
        }
    }
    Ok(done)
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

/// A reply cannot have more than the guest has room for.
fn clamp<'a>(op: &Operation<'a>, room: usize) -> Operation<'a> {
    let most = u32::try_from(room).unwrap_or(u32::MAX);
    let clamp = |read: &ReadIn| ReadIn {
        size_bytes: read.size_bytes.min(most),
        ..*read
    };
    match op {
        Operation::ReadDir(read) => Operation::ReadDir(clamp(read)),
        Operation::ReadDirPlus(read) => Operation::ReadDirPlus(clamp(read)),
        Operation::GetXattr { name, size_bytes } => Operation::GetXattr {
            name,
            size_bytes: (*size_bytes).min(most),
        },
        Operation::ListXattr { size_bytes } => Operation::ListXattr {
            size_bytes: (*size_bytes).min(most),
        },
        op => op.clone(),
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl RequestWorker for FsWorker {
    const BUDGET: usize = 8;

    type Queue = FsQueue;

    fn start_queue(&mut self, index: u16, size: u16) -> FsQueue {
        FsQueue::new(index, size, self.shared.has_indirect())
    }

    fn request(
        &mut self,
        queue: &mut FsQueue,
        rcx: &mut RequestCx<'_>,
        head: u16,
        chain: std::result::Result<(), ChainFault>,
    ) {
        queue.note(head, 0, OTHER);
        self.scratch.reply.clear();
        self.scratch.reply.resize(OUT_HEADER_BYTES, 0);
        let header = rcx.buffers(head).and_then(|buffers| {
            // The header of the reply is at its front.
            buffers.keep_front();
            buffers.take_header()
        });
        let header = header.as_ref().map(InHeader::parse);
        let Some(header) = header else {
            // Nobody to reply to.
            let header = InHeader {
                opcode: opcode::FORGET,
                ..InHeader::default()
            };
            return self.answer(rcx, head, &header, OTHER, &Err(Errno::INVAL));
        };
        let outcome = match chain {
            Ok(()) => self.serve(queue, rcx, head, &header),
            Err(_) => Err(Errno::IO),
        };
        let kind = queue.pending(head).kind;
        self.answer(rcx, head, &header, kind, &outcome);
    }

    fn io_done(
        &mut self,
        queue: &mut FsQueue,
        rcx: &mut RequestCx<'_>,
        head: u16,
        tag: u16,
        result: i32,
    ) {
        let Pending { unique, kind } = queue.pending(head);
        if tag == TAG_REPLIED {
            let counted = Counted {
                kind,
                bytes: 0,
                ok: result > 0,
            };
            return rcx.complete(head, result.unsigned_abs(), counted);
        }
        let header = InHeader {
            unique,
            opcode: opcode::SETLKW,
            ..InHeader::default()
        };
        let outcome = if result == 0 {
            Ok(Outcome::Data(0))
        } else {
            Err(Errno::from_raw_os_error(-result))
        };
        self.answer(rcx, head, &header, kind, &outcome);
    }

    fn stopping(&mut self, queue: &mut FsQueue) {
        self.shared.fs.locks.cancel_queue(queue.index().into());
    }
}

#[cfg(test)]
mod tests;
