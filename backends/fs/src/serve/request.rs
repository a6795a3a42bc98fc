// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A request on the data thread.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use ringside_common::memory::{Buffers, IoScratch};
use ringside_common::num::usize_of;
use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;

use super::blocking::Job;
use super::outcome::{Later, On, Outcome};
use super::refusal::narrow;
use super::route::{self, To};
use super::steps::{clamp, errno, whole};
use crate::error::{Errno, Result};
use crate::passthrough::{Cx, DirScratch};
use crate::server::{self, Traits};
use crate::shared::Shared;
use crate::wire::flags::WriteFlags;
use crate::wire::header::OUT_HEADER_BYTES;
use crate::wire::limits::WRITE_ARGS_BYTES;
use crate::wire::operation::{Operation, ReadIn, WriteIn};
use crate::wire::reply::Written;

/// A parsed request whose reply has room.
pub(super) struct Request<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) buffers: &'a Buffers,
    pub(super) cx: Cx<'a>,
    pub(super) args: &'a [u8],
    pub(super) room: usize,
    pub(super) traits: Traits,
}

impl Request<'_> {
    /// Serves it, or says which threads go on with it.
    ///
    /// # Errors
    /// The errno of the reply.
    pub(super) fn serve(
        &mut self,
        op: &Operation<'_>,
        reply: &mut Vec<u8>,
        dirs: &mut DirScratch,
        io: &mut IoScratch,
    ) -> Result<Outcome> {
        let fs = &self.shared.fs;
        let header = self.cx.header;
        if let Some(to) = route::elsewhere(fs, header, op, &self.traits) {
            return self.go(to, op);
        }
        match op {
            Operation::Read(read) => match self.read_now(io, read)? {
                Some(bytes) => Ok(Outcome::Data(bytes)),
                None => self.go(route::own(fs, header, &self.traits), op),
            },
            Operation::Write(write) => match self.write_now(io, write)? {
                Some(written) => {
                    reply.extend_from_slice(&written.to_bytes());
                    Ok(Outcome::Reply)
                }
                None => self.go(route::own(fs, header, &self.traits), op),
            },
            Operation::SetLock { lock, waits: true } => match fs.set_lock(&self.cx, lock) {
                Ok(()) => Ok(Outcome::Data(0)),
                Err(Errno::AGAIN) => Ok(self.later(On::Lock(*lock, None))),
                Err(error) => Err(error),
            },
            op => {
                let clamped = clamp(op, self.room);
                let op = clamped.as_ref().unwrap_or(op);
                match server::serve(fs, &mut self.cx, op, dirs, reply) {
                    Err(Errno::AGAIN) if self.traits.opens => {
                        return self.go(route::own(fs, header, &self.traits), op);
                    }
                    Err(Errno::XDEV) if matches!(op, Operation::Lookup { .. }) => {
                        return self.go(route::beyond(fs, header, op, &self.traits), op);
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

    #[cold]
    fn later(&self, on: On) -> Outcome {
        Outcome::Later(Box::new(Later {
            header: *self.cx.header,
            kind: self.traits.kind,
            on,
        }))
    }

    /// Has a request served by others.
    #[cold]
    fn go(&mut self, to: To, op: &Operation<'_>) -> Result<Outcome> {
        if let Operation::SetLock { lock, waits: true } = op {
            return Ok(self.later(On::Lock(*lock, Some(to))));
        }
        let job = Job::new(self.shared, self.buffers, self.cx.header, self.args)?;
        Ok(self.later(On::Thread(job, to)))
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
        let buffers = self.buffers;
        let size = usize_of(read.size_bytes.into()).min(self.room);
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
        let buffers = self.buffers;
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
        let size = usize_of(write.size_bytes.into());
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
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}
