// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A clone of `/dev/fuse`, its buffers, and its way to the queues.
//!
//! A reply has to be written to the clone that its request was read from. One thread reads requests
//! into free buffers and posts them, another writes the replies: so a request that takes its time,
//! as one for a lock, holds up no other, until all buffers wait.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use log::{error, warn};
use ringside_frontend::fuse::flags::{IN_HEADER_BYTES, OUT_HEADER_BYTES};
use ringside_frontend::fuse::flags::{InitFlags, opcode};
use ringside_frontend::memory::{GuestMemory, GuestSlice};
use ringside_frontend::ring::Segment;
use ringside_frontend::{FrontendError, Result};

use super::lane::{Lane, Tag};
use super::protocol::{
    INIT_REPLY_BYTES, LOOK_BYTES, Look, MAX_DATA_BYTES, destroy, error_reply, strip_init_reply,
    strip_init_request, u32_at, u64_at,
};

const PAGE_BYTES: usize = 4096;
/// The data of a `WRITE` are to lie on pages of their own, as in a virtual machine.
const REQUEST_OFFSET: usize = PAGE_BYTES - LOOK_BYTES;
/// And those of a `READ`.
const REPLY_OFFSET: usize = PAGE_BYTES - OUT_HEADER_BYTES;
/// What the kernel wants room for beyond the data.
const REQUEST_BYTES: usize = LOOK_BYTES + MAX_DATA_BYTES + PAGE_BYTES;
/// A buffer for a request, or for a reply: the page with the header, the data, and arguments.
const AREA_BYTES: usize = PAGE_BYTES + MAX_DATA_BYTES + PAGE_BYTES;
/// Bytes of guest memory for one buffer of a channel.
pub(crate) const SLOT_BYTES: usize = 2 * AREA_BYTES;

/// What the channels of a mount share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// What `INIT` offered.
    offered: AtomicU64,
    /// What the command line wants of `INIT`.
    max_background: Option<u16>,
    /// Held by the one who reads requests, so that they are known in the order they were made.
    reading: Mutex<()>,
    /// `RELEASE` requests that the back-end has not answered.
    releases: Mutex<usize>,
    released: Condvar,
}

impl Shared {
    pub(crate) fn new(max_background: Option<u16>) -> Self {
        Self {
            max_background,
            ..Self::default()
        }
    }

    fn release_begins(&self) {
        *self.releases.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn release_ends(&self) {
        *self.releases.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.released.notify_all();
    }

    /// Waits until whatever was closed is closed. A guest waits for that itself, this kernel does
    /// not, and queues overtake each other: a program that was just written could not be run.
    fn wait_for_releases(&self) {
        let releases = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.released.wait_while(releases, |releases| *releases > 0);
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }
}

#[derive(Debug)]
struct Slot {
    request: GuestSlice,
    request_gpa: u64,
    reply: GuestSlice,
    reply_gpa: u64,
    /// The request in flight.
    look: Mutex<Option<Look>>,
}

/// A clone of `/dev/fuse` and its buffers.
#[derive(Debug)]
pub(crate) struct Channel {
    index: usize,
    fuse: File,
    slots: Vec<Slot>,
    free: Mutex<Vec<usize>>,
    freed: Condvar,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Yes.
    More,
    /// The file system is no longer mounted.
    Unmounted,
}

impl Channel {
    pub(crate) fn new(memory: &GuestMemory, index: usize, fuse: File, depth: u16) -> Result<Self> {
        let slot = || {
            let request_gpa = memory.alloc(AREA_BYTES, PAGE_BYTES)?;
            let reply_gpa = memory.alloc(AREA_BYTES, PAGE_BYTES)?;
            Ok(Slot {
                request: memory.slice(request_gpa, AREA_BYTES)?,
                request_gpa,
                reply: memory.slice(reply_gpa, AREA_BYTES)?,
                reply_gpa,
                look: Mutex::new(None),
            })
        };
        Ok(Self {
            index,
            fuse,
            slots: (0..depth).map(|_| slot()).collect::<Result<_>>()?,
            free: Mutex::new((0..usize::from(depth)).rev().collect()),
            freed: Condvar::new(),
        })
    }

    /// Reads one request and posts it.
    pub(crate) fn carry_request(
        &self,
        shared: &Shared,
        lane: &Lane,
        hiprio: &Lane,
    ) -> Result<Next> {
        let index = self.take();
        let Some(slot) = self.slots.get(index) else {
            return Ok(Next::Unmounted);
        };
        let reading = shared
            .reading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let read = slot
            .request
            .read_from(REQUEST_OFFSET, REQUEST_BYTES, self.fuse.as_fd());
        let len = match read {
            Ok(len) => len,
            Err(failed) => {
                self.give(index);
                return match failed.raw_os_error() {
                    Some(libc::ENODEV) => Ok(Next::Unmounted),
                    // Interrupted before it was read, or nothing there yet.
                    Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => Ok(Next::More),
                    _ => Err(FrontendError::Io {
                        action: "read of /dev/fuse",
                        source: failed,
                    }),
                };
            }
        };
        let mut start = [0; LOOK_BYTES];
        slot.request.read(REQUEST_OFFSET, &mut start);
        if u32_at(&start, 4) == opcode::INIT {
            slot.strip_init(shared, len);
        }
        let Some(look) = Look::at(&start, len) else {
            self.give(index);
            return Ok(Next::More);
        };
        if look.opcode == opcode::RELEASE {
            shared.release_begins();
        }
        drop(reading);
        if look.is_one_way() {
            self.post(hiprio, index, look)?;
            return Ok(Next::More);
        }
        if look.opcode != opcode::RELEASE {
            shared.wait_for_releases();
        }
        self.post(lane, index, look)?;
        Ok(Next::More)
    }

    /// Writes the reply of a completed request, and takes its buffer back.
    pub(crate) fn carry_reply(&self, shared: &Shared, slot: usize, used_len: u32) -> Result<Next> {
        let look = self.slots.get(slot).and_then(Slot::take_look);
        if look.is_some_and(|look| look.opcode == opcode::RELEASE) {
            shared.release_ends();
        }
        let next = match (self.slots.get(slot), look) {
            // The one request that is not the kernel's; virtiofsd does not even reply to it.
            (Some(_), Some(look)) if look.opcode == opcode::DESTROY => Ok(Next::Unmounted),
            (Some(buffers), Some(look)) if !look.is_one_way() => {
                self.write_reply(shared, buffers, look, used_len)
            }
            _ => Ok(Next::More),
        };
        self.give(slot);
        next
    }

    /// Tells the device that the session is over and waits for it to agree.
    pub(crate) fn destroy(&self, lane: &Lane, patience: Duration) -> Result<bool> {
        let index = self.take();
        if let Some(slot) = self.slots.get(index) {
            let request = destroy(u64::MAX);
            slot.request.write(REQUEST_OFFSET, &request);
            let mut start = [0; LOOK_BYTES];
            slot.request.read(REQUEST_OFFSET, &mut start);
            if let Some(look) = Look::at(&start, request.len()) {
                self.post(lane, index, look)?;
            }
        }
        Ok(self.wait_idle(patience))
    }

    /// Waits until nothing is in flight; false if that does not come.
    pub(crate) fn wait_idle(&self, patience: Duration) -> bool {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let depth = self.slots.len();
        let waited = self
            .freed
            .wait_timeout_while(free, patience, |free| free.len() < depth);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn post(&self, lane: &Lane, index: usize, look: Look) -> Result<()> {
        let Some(slot) = self.slots.get(index) else {
            return Ok(());
        };
        let segments = slot.segments(look);
        *slot.look.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
        let tag = Tag {
            channel: self.index,
            slot: index,
        };
        lane.post(tag, &segments)
    }

    fn write_reply(&self, shared: &Shared, slot: &Slot, look: Look, used_len: u32) -> Result<Next> {
        let mut header = [0; OUT_HEADER_BYTES];
        slot.reply.read(REPLY_OFFSET, &mut header);
        let len = u32_at(&header, 0);
        let sound = len == used_len
            && (OUT_HEADER_BYTES..=look.reply_bytes()).contains(&(len as usize))
            && u64_at(&header, 8) == look.unique;
        if !sound {
            error!(
                "reply to operation {} is broken: length {len}, used length {used_len}, room {}, \
                 unique {} for {}",
                look.opcode,
                look.reply_bytes(),
                u64_at(&header, 8),
                look.unique
            );
            return self.refuse(slot, look.unique);
        }
        if look.opcode == opcode::INIT && len as usize == INIT_REPLY_BYTES {
            let mut reply = [0; INIT_REPLY_BYTES];
            slot.reply.read(REPLY_OFFSET, &mut reply);
            let offered = InitFlags::from_bits_retain(shared.offered.load(Ordering::Acquire));
            strip_init_reply(&mut reply, offered, shared.max_background);
            slot.reply.write(REPLY_OFFSET, &reply);
        }
        let written = slot
            .reply
            .write_to(REPLY_OFFSET, len as usize, self.fuse.as_fd());
        match outcome(written) {
            Err(FrontendError::Io { source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) =>
            {
                error!(
                    "the kernel does not take the reply to operation {}",
                    look.opcode
                );
                self.refuse(slot, look.unique)
            }
            other => other,
        }
    }

    /// Ends a request whose reply cannot be passed on.
    fn refuse(&self, slot: &Slot, unique: u64) -> Result<Next> {
        slot.reply
            .write(REPLY_OFFSET, &error_reply(unique, libc::EIO));
        let written = slot
            .reply
            .write_to(REPLY_OFFSET, OUT_HEADER_BYTES, self.fuse.as_fd());
        outcome(written)
    }

    fn take(&self) -> usize {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(slot) = free.pop() {
                return slot;
            }
            free = self
                .freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give(&self, slot: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(slot);
        drop(free);
        self.freed.notify_all();
    }
}

impl Slot {
    fn take_look(&self) -> Option<Look> {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        look.take()
    }

    fn strip_init(&self, shared: &Shared, len: usize) {
        let mut request = vec![0; len.min(PAGE_BYTES)];
        self.request.read(REQUEST_OFFSET, &mut request);
        let offered = strip_init_request(&mut request);
        self.request.write(REQUEST_OFFSET, &request);
        shared.offered.store(offered.bits(), Ordering::Release);
    }

    /// The request and room for its reply, framed as Linux' driver does: header, arguments, and
    /// each page of data.
    fn segments(&self, look: Look) -> Vec<Segment> {
        let mut segments =
            Vec::with_capacity(4 + look.data_bytes.max(look.reply_data_bytes) / PAGE_BYTES);
        let mut push = |gpa: u64, bytes: usize, most: usize, segment: fn(u64, u32) -> Segment| {
            for at in (0..bytes).step_by(most) {
                // A buffer is far smaller than 4 GiB.
                let len = u32::try_from(most.min(bytes - at)).unwrap_or(u32::MAX);
                segments.push(segment(gpa + at as u64, len));
            }
        };
        let gpa = self.request_gpa + REQUEST_OFFSET as u64;
        let args_gpa = gpa + IN_HEADER_BYTES as u64;
        push(gpa, IN_HEADER_BYTES, PAGE_BYTES, Segment::readable);
        push(args_gpa, look.args_bytes, AREA_BYTES, Segment::readable);
        let data_gpa = args_gpa + look.args_bytes as u64;
        push(data_gpa, look.data_bytes, PAGE_BYTES, Segment::readable);
        if look.is_one_way() {
            return segments;
        }
        let gpa = self.reply_gpa + REPLY_OFFSET as u64;
        let args_gpa = gpa + OUT_HEADER_BYTES as u64;
        push(gpa, OUT_HEADER_BYTES, PAGE_BYTES, Segment::writable);
        push(
            args_gpa,
            look.reply_args_bytes,
            AREA_BYTES,
            Segment::writable,
        );
        let data_gpa = args_gpa + look.reply_args_bytes as u64;
        push(
            data_gpa,
            look.reply_data_bytes,
            PAGE_BYTES,
            Segment::writable,
        );
        segments
    }
}

/// What the writing of a reply came to.
fn outcome(written: io::Result<usize>) -> Result<Next> {
    match written {
        Ok(_) => Ok(Next::More),
        Err(failed) => match failed.raw_os_error() {
            // Nobody waits for it any more.
            Some(libc::ENOENT) => Ok(Next::More),
            Some(libc::ENODEV | libc::EPERM) => Ok(Next::Unmounted),
            _ => {
                warn!("write to /dev/fuse: {failed}");
                Err(FrontendError::Io {
                    action: "write to /dev/fuse",
                    source: failed,
                })
            }
        },
    }
}
