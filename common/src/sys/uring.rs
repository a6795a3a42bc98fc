// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thin layer over the `io-uring` crate: set-up with what the kernel offers, and the unsafe push.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, Probe, opcode, types};

use super::{IoVecs, Readiness};

/// Submission entries. A turn of the worker takes a few dozen chains per vring, and a full queue
/// only costs an early submit.
const SQ_ENTRIES: u32 = 256;
/// Completion entries; also the bound on I/O in flight per data thread, so that the completion
/// queue cannot overflow. Some are left over for watches and cancellations.
const CQ_ENTRIES: u32 = 4096;
/// See [`CQ_ENTRIES`].
pub(crate) const MAX_IN_FLIGHT: usize = 3072;

/// A completion: token, result, and whether more follow for the same submission.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) token: u64,
    pub(crate) result: i32,
    pub(crate) more: bool,
}

/// One `io_uring`, used by the thread that made it.
pub(crate) struct Uring {
    ring: IoUring,
    has_files: bool,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("fd", &self.ring.as_raw_fd())
            .finish()
    }
}

impl Uring {
    /// Sets a ring up with the best flags this kernel takes.
    ///
    /// `SINGLE_ISSUER` and `DEFER_TASKRUN` (6.1) keep completions from interrupting the thread;
    /// `COOP_TASKRUN` (5.19) does half of that.
    pub(crate) fn new() -> io::Result<Self> {
        let mut best = IoUring::builder();
        best.setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag();
        let mut good = IoUring::builder();
        good.setup_coop_taskrun().setup_taskrun_flag();
        let mut plain = IoUring::builder();
        let mut last = io::Error::from_raw_os_error(libc::ENOSYS);
        for builder in [&mut best, &mut good, &mut plain] {
            builder.setup_cqsize(CQ_ENTRIES).dontfork();
            match builder.build(SQ_ENTRIES) {
                Ok(ring) => return Self::checked(ring),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn checked(ring: IoUring) -> io::Result<Self> {
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::PollAdd::CODE,
            opcode::AsyncCancel::CODE,
        ];
        // EXT_ARG came with 5.11, multishot poll with 5.13 and RSRC_TAGS beside it.
        let recent =
            ring.params().is_feature_ext_arg() && ring.params().is_feature_resource_tagging();
        if recent && needed.iter().all(|code| probe.is_supported(*code)) {
            return Ok(Self {
                ring,
                has_files: false,
            });
        }
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    /// Registers files, so that no request has to look its descriptor up.
    pub(crate) fn register_files(&mut self, fds: &[RawFd]) -> io::Result<()> {
        self.ring.submitter().register_files(fds)?;
        self.has_files = true;
        Ok(())
    }

    /// Submissions not yet seen by the kernel.
    pub(crate) fn queued(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Whether completions are there, or would be after an enter.
    #[inline]
    pub(crate) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// Submits what is queued; with `wait`, sleeps until a completion is there.
    pub(crate) fn enter(&mut self, wait: bool) -> io::Result<()> {
        Self::entered(self.ring.submit_and_wait(usize::from(wait)))
    }

    fn entered(result: io::Result<usize>) -> io::Result<()> {
        match result {
            Ok(_) => Ok(()),
            // EINTR: a signal. EBUSY and EAGAIN: reap first, the entries stay queued.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Submits what is queued and waits for `count` completions, for `pause_ns` at most.
    pub(crate) fn enter_for(&mut self, count: usize, pause_ns: u64) -> io::Result<()> {
        const SECOND_NS: u64 = 1_000_000_000;
        let nanoseconds = (pause_ns % SECOND_NS) as u32;
        let timeout = types::Timespec::new()
            .sec(pause_ns / SECOND_NS)
            .nsec(nanoseconds);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(count, &arguments) {
            Err(e) if e.raw_os_error() == Some(libc::ETIME) => Ok(()),
            other => Self::entered(other),
        }
    }

    /// Moves all completions to `out`.
    #[inline]
    pub(crate) fn reap(&mut self, out: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            out.push(Completion {
                token: entry.user_data(),
                result: entry.result(),
                more: io_uring::cqueue::more(entry.flags()),
            });
        }
    }

    pub(crate) fn read(
        &mut self,
        file: u32,
        to: IoVecs,
        offset: u64,
        token: u64,
    ) -> io::Result<()> {
        let fd = types::Fixed(file);
        let entry = match single(to) {
            Some((base, len)) => opcode::Read::new(fd, base, len).offset(offset).build(),
            None => opcode::Readv::new(fd, to.base, to.count)
                .offset(offset)
                .build(),
        };
        self.push(&entry.user_data(token))
    }

    pub(crate) fn write(
        &mut self,
        file: u32,
        from: IoVecs,
        offset: u64,
        flags: i32,
        token: u64,
    ) -> io::Result<()> {
        let fd = types::Fixed(file);
        let entry = match single(from) {
            Some((base, len)) => opcode::Write::new(fd, base, len)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            None => opcode::Writev::new(fd, from.base, from.count)
                .offset(offset)
                .rw_flags(flags)
                .build(),
        };
        self.push(&entry.user_data(token))
    }

    pub(crate) fn fdatasync(&mut self, file: u32, token: u64) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fixed(file))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.push(&entry.user_data(token))
    }

    /// Completes with `token` whenever `fd` becomes ready, until cancelled.
    pub(crate) fn watch(
        &mut self,
        fd: BorrowedFd<'_>,
        readiness: Readiness,
        token: u64,
    ) -> io::Result<()> {
        let events = match readiness {
            Readiness::Readable => libc::POLLIN,
            Readiness::Writable => libc::POLLOUT,
        };
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events.cast_unsigned().into())
            .multi(true)
            .build();
        self.push(&entry.user_data(token))
    }

    /// Cancels the submission with `token`; the cancellation itself completes with `own_token`.
    pub(crate) fn cancel(&mut self, token: u64, own_token: u64) -> io::Result<()> {
        self.push(&opcode::AsyncCancel::new(token).build().user_data(own_token))
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        loop {
            // SAFETY: every pointer in an entry comes from `IoVecs`, whose table and buffers are
            // kept until the completion is seen; descriptors are registered or kept likewise.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.enter(false)?;
        }
    }
}

impl Drop for Uring {
    /// Closing the ring lets go of its files some time later; a lock on one of them would outlive
    /// the session, or the process.
    fn drop(&mut self) {
        if self.has_files {
            // What cannot be done here, the kernel does on its own.
            let _ = self.ring.submitter().unregister_files();
        }
    }
}

/// A table of one entry is read or written without a table: the kernel has less to import.
#[inline]
fn single(iovecs: IoVecs) -> Option<(*mut u8, u32)> {
    if iovecs.count != 1 {
        return None;
    }
    // SAFETY: `IoVecs` names `count` entries that are alive, see there.
    let iov = unsafe { iovecs.base.read() };
    // Clamped: what does not fit is a short transfer, continued by the caller. The kernel's own
    // bound is lower still.
    Some((
        iov.iov_base.cast(),
        u32::try_from(iov.iov_len).unwrap_or(0x7fff_f000),
    ))
}
