// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device served in this process, on a socket pair: the real request path, for disks with any
//! engine below it.

pub mod watch;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use ringside_blk::device::{BlockDevice, BlockOptions};
use ringside_blk::engine::Engine;
use ringside_blk::storage::CacheMode;
use ringside_common::daemon::{Control, Source, serve};
use ringside_common::device::Device;
use ringside_common::error::HostError;
use ringside_common::worker::WorkerOptions;

use ringside_frontend::session::{Session, SessionBuilder};
use ringside_frontend::{FrontendError, Result};

/// Why a served connection did not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It ended in an error.
    #[error("serving failed")]
    Host(#[from] HostError),
    /// The control thread panicked.
    #[error("the control thread panicked")]
    Panicked,
}

/// A device that outlives its connections, each of which is served on a thread of its own.
#[derive(Debug)]
pub struct Served<D = BlockDevice> {
    device: Arc<D>,
    control: Arc<Control>,
    workers: WorkerOptions,
    thread: Option<JoinHandle<std::result::Result<(), HostError>>>,
}

impl Served {
    /// A device of four queues on `engine`.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn new(engine: Arc<dyn Engine>, cache: CacheMode) -> Result<Self> {
        Self::with_threads(engine, cache, 4, 4)
    }

    /// A device of so many queues on `engine`, all of which one data thread serves.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn on_one_thread(engine: Arc<dyn Engine>, num_queues: u16) -> Result<Self> {
        Self::with_threads(engine, CacheMode::Writeback, num_queues, 1)
    }

    fn with_threads(
        engine: Arc<dyn Engine>,
        cache: CacheMode,
        num_queues: u16,
        max_threads: usize,
    ) -> Result<Self> {
        let options = BlockOptions {
            num_queues,
            queue_size: 4096,
            seg_max: 126,
            serial: "in-process".to_owned(),
            cache,
        };
        Self::of(Arc::new(BlockDevice::new(engine, options)), max_threads)
    }
}

impl<D: Device + Send + Sync> Served<D> {
    /// This device, on so many data threads.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn of(device: Arc<D>, max_threads: usize) -> Result<Self> {
        Ok(Self {
            device,
            control: Arc::new(Control::new().map_err(FrontendError::io("eventfd"))?),
            workers: WorkerOptions {
                max_threads,
                cpus: Vec::new(),
                max_poll_ns: 0,
                stop_timeout: None,
                file_memory: false,
            },
            thread: None,
        })
    }

    /// Connects a front-end. The one before must have been dropped, and is waited for.
    ///
    /// # Errors
    ///
    /// When a message is refused or a thread or socket cannot be had.
    pub fn connect(&mut self, builder: SessionBuilder) -> Result<Session> {
        builder.from_stream(self.stream()?)
    }

    /// The socket of a front-end that has said nothing yet; else as [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// When a thread or socket cannot be had.
    pub fn stream(&mut self) -> Result<UnixStream> {
        let _ = self.wait_end();
        let (ours, theirs) = UnixStream::pair().map_err(FrontendError::io("socketpair"))?;
        let (device, control) = (Arc::clone(&self.device), Arc::clone(&self.control));
        let workers = self.workers.clone();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || serve(&device, Source::Connected(theirs), &workers, &control))
            .map_err(FrontendError::io("starting a thread"))?;
        self.thread = Some(thread);
        Ok(ours)
    }

    /// Waits until the connection has been let go of, its front-end having been dropped.
    ///
    /// # Errors
    ///
    /// What the process would have ended with.
    pub fn wait_end(&mut self) -> std::result::Result<(), ServeError> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => Ok(result?),
            Some(Err(_panic)) => Err(ServeError::Panicked),
        }
    }

    /// The handle that drains and resumes.
    #[must_use]
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }
}
