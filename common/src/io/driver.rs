// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two engines: `io_uring`, or epoll with blocking threads.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ::epoll::Events;

use super::epoll::EpollLoop;
use crate::limited;
use crate::sys::Readiness;
use crate::sys::uring::Uring;

/// How I/O is done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Engine {
    /// `io_uring`, or threads where the kernel has none for us.
    #[default]
    Uring,
    /// Blocking threads.
    Threads,
    /// On the data thread itself: for files that never block, such as anonymous memory.
    Inline,
}

/// What does I/O, and tells of events, for one data thread.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one per data thread, and the large one is hot"
)]
pub(crate) enum Driver {
    Uring(Uring),
    Epoll(EpollLoop),
}

impl Driver {
    /// An engine for the calling thread.
    ///
    /// # Errors
    /// When neither can be set up.
    pub(crate) fn new(engine: Engine, files: &[Arc<OwnedFd>]) -> io::Result<Self> {
        if engine == Engine::Uring {
            let fds: Vec<_> = files.iter().map(|fd| fd.as_raw_fd()).collect();
            let ring = Uring::new().and_then(|mut ring| {
                if !fds.is_empty() {
                    ring.register_files(&fds)?;
                }
                Ok(ring)
            });
            match ring {
                Ok(ring) => return Ok(Self::Uring(ring)),
                Err(e) => {
                    limited!(info, "no io_uring here ({e}): blocking threads do the I/O");
                }
            }
        }
        EpollLoop::new().map(Self::Epoll)
    }

    /// Reports as `token` whenever `fd` becomes ready, and now if it is.
    pub(super) fn watch(
        &mut self,
        fd: BorrowedFd<'_>,
        readiness: Readiness,
        token: u64,
    ) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.watch(fd, readiness, token),
            Self::Epoll(poll) => match readiness {
                Readiness::Readable => poll.add(fd, token),
                Readiness::Writable => poll.add_for(fd, Events::EPOLLOUT | Events::EPOLLET, token),
            },
        }
    }
}
