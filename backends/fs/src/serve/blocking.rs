// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests on threads that may wait.
//!
//! A job has the request and the guest's memory for itself: it parses the one again, writes its
//! reply to the other, and returns how many bytes that were, negative if it is an error.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::Arc;

use ringside_common::io::Promise;
use ringside_common::memory::{Buffers, IoScratch, Payload};
use ringside_common::num::usize_of;
use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;

use super::refusal::narrow;
use super::route::To;
use super::steps::{clamp, keep, whole};
use crate::credentials::ThreadContext;
use crate::error::{Errno, Result};
use crate::passthrough::{Cx, DirScratch};
use crate::pool::{Fate, Pool, Work};
use crate::server;
use crate::shared::Shared;
use crate::tables::Watched;
use crate::wire::flags::WriteFlags;
use crate::wire::header::{InHeader, OUT_HEADER_BYTES, out_header};
use crate::wire::limits::WRITE_ARGS_BYTES;
use crate::wire::operation::{LockIn, Operation, ReadIn, WriteIn};
use crate::wire::reply::Written;

thread_local! {
    /// Of a thread that may wait, once it has served a request.
    static THREAD: RefCell<Option<ThreadContext>> = const { RefCell::new(None) };
}

/// A request on its way to another thread.
#[derive(Debug)]
pub(super) struct Job {
    shared: Arc<Shared>,
    header: InHeader,
    args: Vec<u8>,
    /// All that the guest has sent but the header, if there is more than the arguments.
    data: Option<Payload>,
    reply: Payload,
    room: usize,
}

/// Has another thread try to take a lock; if another owner has it, it is waited for without a
/// thread.
pub(super) fn wait_for_lock(
    shared: &Arc<Shared>,
    header: &InHeader,
    lock: &LockIn,
    queue: u16,
    promise: Promise,
    pool: &Arc<Pool>,
) {
    let (shared, header, lock) = (Arc::clone(shared), *header, *lock);
    let run = move |fate| {
        let done = keep(promise);
        if fate == Fate::Refused {
            return done(Err(Errno::NOLCK));
        }
        let mut done = Some(done);
        let waits = with_context(&shared, |thread| {
            let cx = Cx {
                header: &header,
                thread,
                waits: true,
            };
            let done = done.take().ok_or(Errno::IO)?;
            match shared.fs.wait_for_lock(&cx, &lock, queue, done) {
                Ok(()) => Ok(()),
                Err((error, done)) => {
                    done(Err(error));
                    Ok(())
                }
            }
        });
        if let (Err(error), Some(done)) = (waits, done) {
            done(Err(error));
        }
    };
    pool.run(Work::Changes, Box::new(run));
}

/// Calls `act` with the context of this thread, which is set up the first time.
fn with_context<R>(
    shared: &Shared,
    act: impl FnOnce(&mut ThreadContext) -> Result<R>,
) -> Result<R> {
    THREAD.with_borrow_mut(|thread| {
        let thread = match thread {
            Some(thread) => thread,
            None => thread.insert(ThreadContext::new(shared.proc_self_fd())?),
        };
        act(thread)
    })
}

impl Job {
    /// Of a request that was parsed before, and whose reply has room.
    pub(super) fn new(
        shared: &Arc<Shared>,
        buffers: &Buffers,
        header: &InHeader,
        args: &[u8],
    ) -> Result<Self> {
        let room = usize_of(buffers.writable_bytes());
        Ok(Self {
            shared: Arc::clone(shared),
            header: *header,
            args: args.to_vec(),
            data: (buffers.readable_bytes() > args.len() as u64)
                .then(|| buffers.readable_payload())
                .flatten(),
            reply: buffers.writable_payload().ok_or(Errno::IO)?,
            room: room.saturating_sub(OUT_HEADER_BYTES),
        })
    }

    /// Has it done, and the promise kept.
    pub(super) fn hand_over(self, to: &To, promise: Promise) {
        let watched = to.stall.as_ref().map(Watched::new);
        let run = move |fate| {
            let replied = self.run(fate);
            drop(watched);
            promise.keep(replied);
        };
        to.pool.run(to.work, Box::new(run));
    }

    fn run(&self, fate: Fate) -> i32 {
        let result = match fate {
            Fate::Run => with_context(&self.shared, |thread| self.serve(thread)),
            Fate::Refused => Err(Errno::AGAIN),
        };
        let (body_bytes, error) = match result {
            Ok(bytes) => (bytes, 0),
            Err(error) => (0, -error.raw_os_error()),
        };
        let used_bytes = narrow(OUT_HEADER_BYTES + body_bytes);
        let head = out_header(used_bytes, error, self.header.unique);
        self.reply.write_at(0, &head);
        // Clamped: a chain may have more than 2 GiB, a reply has not.
        let used_bytes = i32::try_from(used_bytes).unwrap_or(i32::MAX);
        if error == 0 { used_bytes } else { -used_bytes }
    }

    /// Serves the request; returns the bytes of the reply behind its header.
    fn serve(&self, thread: &mut ThreadContext) -> Result<usize> {
        let fs = &self.shared.fs;
        let header = &self.header;
        let op = Operation::parse(header, &self.args, fs.negotiated())
            .map_err(|error| Errno::from_raw_os_error(error.errno()))?;
        let mut cx = Cx {
            header,
            thread,
            waits: true,
        };
        match op {
            Operation::Read(read) => self.read(&cx, &read),
            Operation::Write(write) => self.write(&mut cx, &write),
            op => {
                let op = clamp(&op, self.room).unwrap_or(op);
                let mut out = Vec::new();
                server::serve(fs, &mut cx, &op, &mut DirScratch::default(), &mut out)?;
                if out.len() > self.room {
                    return Err(Errno::RANGE);
                }
                Ok(self.reply.write_at(OUT_HEADER_BYTES, &out))
            }
        }
    }

    fn read(&self, cx: &Cx<'_>, read: &ReadIn) -> Result<usize> {
        let (fs, node) = (&self.shared.fs, self.header.node);
        let target = fs.target(cx, node, read.handle, OFlags::RDONLY)?;
        let size = usize_of(read.size_bytes.into()).min(self.room);
        let mut scratch = IoScratch::default();
        whole(size, true, |done| {
            let mut scatter = scratch.scatter();
            scatter.push_payload(&self.reply, OUT_HEADER_BYTES + done, size - done);
            let offset = read.offset_bytes.saturating_add(done as u64);
            scatter.read_at(target.as_fd(), offset, ReadWriteFlags::empty())
        })
    }

    fn write(&self, cx: &mut Cx<'_>, write: &WriteIn) -> Result<usize> {
        let (target, flags) = self.shared.fs.write_target(cx, write)?;
        let size = usize_of(write.size_bytes.into());
        let all = write.write_flags.contains(WriteFlags::CACHE);
        let mut scratch = IoScratch::default();
        let written = match &self.data {
            None => 0,
            Some(data) => whole(size, all, |done| {
                let mut gather = scratch.gather();
                gather.push_payload(data, WRITE_ARGS_BYTES + done, size - done);
                let offset = write.offset_bytes.saturating_add(done as u64);
                gather.write_at(target.as_fd(), offset, flags)
            })?,
        };
        let written = Written {
            size_bytes: narrow(written),
        };
        Ok(self.reply.write_at(OUT_HEADER_BYTES, &written.to_bytes()))
    }
}
