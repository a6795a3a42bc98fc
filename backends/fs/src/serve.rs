// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The data side: a chain with a request comes, its reply goes back in it.
//!
//! virtio 1.3 §5.11.6: the device-readable bytes are the header, the arguments and the data of a
//! request, the device-writable ones those of its reply. All is served on the data thread unless
//! it may wait long (`route`); then a thread of the mount that it waits for does the same and
//! writes the reply itself. A lock that is waited for takes no thread. So a queue always goes on,
//! and the one for urgent requests (`FORGET`) waits for nothing that another does.
//!
//! What is served on the data thread is an errand: where a mount that was quick is not, another
//! thread takes the vrings, and from then on the mount's requests go to its threads (`stall`).
//!
//! The bytes of a file go between it and the guest's memory without a stop. Reads are tried without
//! waiting first, and handed over if the bytes are not in memory.

mod blocking;
mod outcome;
mod queue;
mod refusal;
mod request;
mod route;
mod stall;
mod steps;

use std::io;
use std::sync::Arc;

use ringside_common::chain::ChainFault;
use ringside_common::io::Promise;
use ringside_common::memory::{Buffers, IoScratch, Lent};
use ringside_common::num::usize_of;
use ringside_common::worker::{Brought, Counted, RequestCx, RequestWorker, WhileAway};

use crate::credentials::ThreadContext;
use crate::error::{Errno, Result};
use crate::passthrough::{Cx, DirScratch};
use crate::server;
use crate::shared::Shared;
use crate::wire::flags::opcode;
use crate::wire::header::{IN_HEADER_BYTES, InHeader, OUT_HEADER_BYTES, out_header};
use crate::wire::limits::{args_limit_bytes, has_reply};
use crate::wire::operation::{LockIn, Operation};

pub use self::outcome::Later;
use self::outcome::{On, Outcome};
pub use self::queue::FsQueue;
use self::queue::Pending;
use self::refusal::{narrow, refuse};
use self::request::Request;
use self::stall::{Away, Where};
use self::steps::keep;

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
    /// What the errand is about.
    at: Arc<Where>,
}

/// What is used again from request to request.
#[derive(Debug, Default)]
struct Scratch {
    args: Vec<u8>,
    reply: Vec<u8>,
    dirs: DirScratch,
    io: IoScratch,
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
            at: Arc::default(),
        })
    }

    /// Serves a request whose header was taken off; returns what kind it is, too.
    fn serve(&mut self, buffers: &Buffers, header: &InHeader) -> (usize, Result<Outcome>) {
        let mut kind = OTHER;
        let outcome = self.serve_as(&mut kind, buffers, header);
        (kind, outcome)
    }

    #[inline]
    fn serve_as(
        &mut self,
        kind: &mut usize,
        buffers: &Buffers,
        header: &InHeader,
    ) -> Result<Outcome> {
        let rest_bytes = buffers.readable_bytes();
        refusal::check_byte_order(header)?;
        if u64::from(header.len_bytes) != rest_bytes + IN_HEADER_BYTES as u64 {
            return Err(Errno::INVAL);
        }
        let limit = args_limit_bytes(header.opcode);
        let args_bytes = usize_of(rest_bytes).min(limit);
        let Scratch {
            args,
            reply,
            dirs,
            io,
        } = &mut self.scratch;
        args.resize(args_bytes, 0);
        buffers.read_at(0, args);
        let op = match Operation::parse(header, args, self.shared.fs.negotiated()) {
            Ok(op) => op,
            Err(error) => return Err(Errno::from_raw_os_error(error.errno())),
        };
        let traits = op.traits();
        *kind = traits.kind;
        self.at.goes_to(header.node, &op);
        if !has_reply(header.opcode) {
            self.shared.serve_silent(header, &op);
            return Ok(Outcome::NoReply);
        }
        let room = usize_of(buffers.writable_bytes());
        let room = room.checked_sub(OUT_HEADER_BYTES).ok_or(Errno::INVAL)?;
        if room < op.reply_bytes() {
            return Err(Errno::INVAL);
        }
        server::check_read_only(&self.shared.fs, &traits)?;
        let mut request = Request {
            shared: &self.shared,
            buffers,
            cx: Cx {
                header,
                thread: &mut self.thread,
                waits: false,
            },
            args,
            room,
            traits,
        };
        request.serve(&op, reply, dirs, io)
    }

    /// Writes the reply.
    fn reply(
        &mut self,
        buffers: &Buffers,
        header: &InHeader,
        kind: usize,
        outcome: Result<Outcome>,
    ) -> Brought<Box<Later>> {
        let reply = &mut self.scratch.reply;
        let ok = outcome.is_ok();
        let (used_bytes, bytes) = match outcome {
            Ok(Outcome::Later(later)) => return Brought::Later(later),
            Ok(Outcome::NoReply) => (0, 0),
            Ok(Outcome::Data(bytes)) => {
                let len = narrow(OUT_HEADER_BYTES + bytes);
                buffers.write_front(out_header(len, 0, header.unique));
                (len, bytes as u64)
            }
            Ok(Outcome::Reply) => {
                let len = narrow(reply.len());
                if let Some(place) = reply.first_chunk_mut() {
                    *place = out_header(len, 0, header.unique);
                }
                buffers.write_at(0, reply);
                (len, 0)
            }
            Err(error) => (refuse(buffers, header, error), 0),
        };
        Brought::Replied(used_bytes, Counted { kind, bytes, ok })
    }

    /// Writes a reply without a body and gives the chain back.
    fn answer(
        &mut self,
        rcx: &mut RequestCx<'_>,
        head: u16,
        header: &InHeader,
        kind: usize,
        result: Result<()>,
    ) {
        let Some(buffers) = rcx.buffers(head) else {
            return;
        };
        let outcome = result.map(|()| Outcome::Data(0));
        if let Brought::Replied(used_bytes, counted) = self.reply(buffers, header, kind, outcome) {
            rcx.complete(head, used_bytes, counted);
        }
    }

    /// Has a lock waited for without a thread.
    fn wait_for_lock(&mut self, header: &InHeader, lock: &LockIn, queue: u16, promise: Promise) {
        let cx = Cx {
            header,
            thread: &mut self.thread,
            waits: false,
        };
        let waits = (self.shared.fs).wait_for_lock(&cx, lock, queue, keep(promise));
        if let Err((error, done)) = waits {
            done(Err(error));
        }
    }
}

/// The promise of a lock, for a request that may wait beside those that do.
fn wait_parked(queue: &FsQueue, rcx: &mut RequestCx<'_>, head: u16) -> Result<Promise> {
    if !queue.may_wait(rcx.parked()) {
        // As fcntl(2) and flock(2) have it where there is no room for another lock. EAGAIN is
        // no answer to a request that waits, EDEADLK is a lie, and after EINTR the guest asks again
        // at once.
        return Err(Errno::NOLCK);
    }
    rcx.promise(head, TAG_LOCK).ok_or(Errno::NOLCK)
}

impl RequestWorker for FsWorker {
    const BUDGET: usize = 8;
    const ERRANDS: bool = true;

    type Queue = FsQueue;
    type Later = Box<Later>;

    fn start_queue(&mut self, index: u16, size: u16) -> FsQueue {
        FsQueue::new(index, size, self.shared.has_indirect())
    }

    fn errand(
        &mut self,
        buffers: &mut Lent,
        chain: std::result::Result<(), ChainFault>,
    ) -> Brought<Box<Later>> {
        self.scratch.reply.clear();
        self.scratch.reply.resize(OUT_HEADER_BYTES, 0);
        // The header of the reply is at its front.
        buffers.keep_front();
        let header = buffers.take_header();
        let header = header.as_ref().map(InHeader::parse);
        let Some(header) = header else {
            // Without a header there is no request to reply to.
            let header = InHeader {
                opcode: opcode::FORGET,
                ..InHeader::default()
            };
            return self.reply(buffers, &header, OTHER, Err(Errno::INVAL));
        };
        let (kind, outcome) = match chain {
            Ok(()) => self.serve(buffers, &header),
            Err(_) => (OTHER, Err(Errno::IO)),
        };
        self.reply(buffers, &header, kind, outcome)
    }

    /// Has others go on with a request.
    fn go_on(
        &mut self,
        queue: &mut FsQueue,
        rcx: &mut RequestCx<'_>,
        head: u16,
        later: Box<Later>,
    ) {
        let Later { header, kind, on } = *later;
        queue.note(head, header.unique, kind);
        let waits = match on {
            On::Thread(job, to) => match rcx.hand_out(head, TAG_REPLIED) {
                Some(promise) => {
                    job.hand_over(&to, promise);
                    Ok(())
                }
                None => Err(Errno::IO),
            },
            On::Lock(lock, to) => wait_parked(queue, rcx, head).map(|promise| {
                let queue = queue.index();
                match to {
                    Some(to) => {
                        blocking::wait_for_lock(
                            &self.shared,
                            &header,
                            &lock,
                            queue,
                            promise,
                            &to.pool,
                        );
                    }
                    None => self.wait_for_lock(&header, &lock, queue, promise),
                }
            }),
        };
        if waits.is_err() {
            self.answer(rcx, head, &header, kind, waits);
        }
    }

    fn while_away(&self) -> Option<Arc<dyn WhileAway>> {
        Some(Arc::new(Away::of_this_thread(&self.shared, &self.at)))
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
        let result = if result == 0 {
            Ok(())
        } else {
            Err(Errno::from_raw_os_error(-result))
        };
        self.answer(rcx, head, &header, kind, result);
    }

    fn stopping(&mut self, queue: &mut FsQueue) {
        self.shared.fs.locks.cancel_queue(queue.index().into());
    }
}
