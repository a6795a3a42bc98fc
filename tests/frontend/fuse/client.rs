// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection with all its queues.

use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::fuse::flags::InitFlags;
use crate::fuse::types::InitOut;

use super::error::FuseResult;
use super::queue::{FuseQueue, QueueConfig};
use crate::error::{FrontendError, Result};
use crate::memory::MemoryLayout;
use crate::ring::CallMode;
use crate::session::{Session, SessionBuilder};

/// How a client looks and behaves.
#[derive(Clone, Debug)]
pub struct FuseConfig {
    /// Request queues.
    pub request_queues: usize,
    /// Descriptors of each queue.
    pub queue_size: u16,
    /// What each request queue is made of.
    pub queue: QueueConfig,
    /// What `INIT` offers.
    pub init_flags: InitFlags,
    /// The session; its number of queues, memory and length of indirect tables are set from the
    /// above.
    pub session: SessionBuilder,
}

impl Default for FuseConfig {
    /// One request queue, and `INIT` as Linux sends it, but for direct mappings.
    fn default() -> Self {
        let unwanted = InitFlags::MAP_ALIGNMENT
            | InitFlags::HAS_INODE_DAX
            | InitFlags::PASSTHROUGH
            | InitFlags::OVER_IO_URING
            | InitFlags::REQUEST_TIMEOUT
            | InitFlags::INIT_RESERVED;
        let known = InitFlags::from_bits_retain((InitFlags::REQUEST_TIMEOUT.bits() << 1) - 1);
        Self {
            request_queues: 1,
            queue_size: 256,
            queue: QueueConfig::default(),
            init_flags: known.difference(unwanted),
            session: Session::builder(),
        }
    }
}

impl FuseConfig {
    /// Polled or called.
    #[must_use]
    pub fn calls(mut self, calls: CallMode) -> Self {
        self.session = self.session.calls(calls);
        self
    }

    /// The session as it is to be opened.
    fn builder(&self) -> SessionBuilder {
        const PAGE_BYTES: usize = 4096;
        // Header, arguments and the odd page of either direction, as `virtio_fs.c` has it.
        const OVERHEAD: usize = 6;
        let per_area = super::framing::HEAD_BYTES + self.queue.data_bytes + PAGE_BYTES;
        let slots = usize::from(self.queue.depth) * self.request_queues;
        let queue_size = usize::from(self.queue_size);
        // virtio 1.3 §2.7.5.3.1: no chain is longer than the queue.
        let tables = (2 * self.queue.data_bytes.div_ceil(PAGE_BYTES) + OVERHEAD).min(queue_size);
        let tables_bytes = 16 * tables * queue_size;
        let small = usize::from(HIPRIO.depth) * (super::framing::HEAD_BYTES + PAGE_BYTES);
        let bytes = 2 * (slots * per_area + small)
            + (self.request_queues + 1) * (tables_bytes + (1 << 20))
            + (16 << 20);
        self.session
            .clone()
            .queues(self.request_queues + 1)
            .queue_size(self.queue_size)
            .indirect_len(u16::try_from(tables).unwrap_or(u16::MAX))
            .memory(MemoryLayout::single(bytes.next_multiple_of(2 << 20)))
    }
}

/// What the high-priority queue is made of: `FORGET` has no data.
const HIPRIO: QueueConfig = QueueConfig {
    depth: 64,
    data_bytes: 4096,
    framing: super::framing::Framing::Kernel,
    indirect: true,
    timeout: std::time::Duration::from_secs(10),
};

/// A connection with all its queues started.
#[derive(Debug)]
pub struct FuseClient {
    /// The connection.
    pub session: Session,
    /// Queue 0.
    pub hiprio: FuseQueue,
    /// The request queues, 1 and up.
    pub queues: Vec<FuseQueue>,
    /// What `INIT` agreed on; all zero before.
    pub init: InitOut,
}

impl FuseClient {
    /// Connects, starts all queues and sends `INIT`.
    ///
    /// # Errors
    ///
    /// When the back-end refuses any of it.
    pub fn connect(socket: &Path, config: &FuseConfig) -> FuseResult<Self> {
        let stream = UnixStream::connect(socket).map_err(FrontendError::io("connect"))?;
        Self::from_stream(stream, config)
    }

    /// The same on a connected stream.
    ///
    /// # Errors
    ///
    /// When the back-end refuses any of it.
    pub fn from_stream(stream: UnixStream, config: &FuseConfig) -> FuseResult<Self> {
        let mut client = Self::without_init(stream, config)?;
        client.initialise(config.init_flags)?;
        Ok(client)
    }

    /// Starts all queues of a connected stream and sends nothing.
    ///
    /// # Errors
    ///
    /// When the back-end refuses any of it.
    pub fn without_init(stream: UnixStream, config: &FuseConfig) -> Result<Self> {
        let mut session = config.builder().from_stream(stream)?;
        let mut vrings = session.start_all()?.into_iter();
        let missing = || FrontendError::TooFewQueues {
            asked: config.request_queues + 1,
            offered: 0,
        };
        let hiprio = FuseQueue::new(vrings.next().ok_or_else(missing)?, HIPRIO)?;
        let queues = vrings
            .map(|vring| FuseQueue::new(vring, config.queue))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            session,
            hiprio,
            queues,
            init: InitOut::default(),
        })
    }

    /// Sends `INIT` on the first request queue, which begins a new session.
    ///
    /// # Errors
    ///
    /// When the device refuses it.
    pub fn initialise(&mut self, flags: InitFlags) -> FuseResult<()> {
        self.init = self.queue().init(flags)?;
        for queue in &mut self.queues {
            queue.setxattr_ext = self.init.flags.contains(InitFlags::SETXATTR_EXT);
        }
        Ok(())
    }

    /// The first request queue.
    ///
    /// # Panics
    ///
    /// When the client was told to have none.
    pub fn queue(&mut self) -> &mut FuseQueue {
        &mut self.queues[0]
    }

    /// Sends a `FORGET` on the high-priority queue and waits until the device has taken it.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub fn forget(&mut self, node: u64, nlookup: u64) -> FuseResult<()> {
        self.hiprio
            .send(&super::request::Request::forget(node, nlookup))
    }
}
