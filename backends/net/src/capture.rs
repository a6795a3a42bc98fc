// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Captures of what passes, as pcapng files that tcpdump and Wireshark read.
//!
//! Each port is an interface of the file. What the guest sends is inbound there, and every frame is
//! captured as it passes: a checksum that a receiver still has to fill in is wrong in the file, and
//! a frame that will be cut into segments is one long frame.
//!
//! # Threads
//! Data threads look at one word ([`Capture::is_on`]) for each frame. While it is set they copy the
//! frame into a queue of fixed size, and go on: a frame for which there is no room is counted and
//! not captured. A thread that exists while a capture runs writes the files. At the end of each it
//! writes what was lost into the statistics of each interface.
//!
//! A file system that does not answer keeps that thread waiting, and the requests that start or
//! stop a capture there; other requests are refused with that reason.

mod files;
mod pcapng;
mod queue;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use thiserror::Error;

use self::files::Files;
pub use self::files::{MAX_FILES, MIN_FILE_BYTES, Rotation};
use self::queue::{Queue, Record};
use self::writer::{Output, Writer};
use crate::counters::Direction;

/// The longest frame there is: the largest segment of a guest, with VLAN tags.
pub const MAX_SNAPLEN_BYTES: u32 = 65_558;

/// 8 MiB: what comes in at 10 Gbit/s while the writer is held up for 6 ms.
const QUEUE_ORDER: u32 = 20;

/// How long the end of the process waits for the last file.
const FINISH_PATIENCE: Duration = Duration::from_secs(5);

/// Instead of a port in [`Capture::mode`].
const ALL_PORTS: u16 = u16::MAX;

/// Why a capture was not started or not finished.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// There can be only one.
    #[error("a capture is running already; stop it first")]
    Running,
    /// There is none.
    #[error("no capture is running")]
    NotRunning,
    /// The file system has not answered an earlier request yet.
    #[error("a capture is just being started or stopped")]
    Busy,
    /// The file cannot be opened.
    #[error("{path}: cannot be opened for the capture")]
    Open {
        /// Its path.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// Something that is no file is at the path.
    #[error("{path}: is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Others have it, by its owner or by another name.
    #[error("{path}: is the file of another user, or has several names")]
    OfOthers {
        /// The path.
        path: PathBuf,
    },
    /// There is no thread to write it.
    #[error("the capture thread cannot be started")]
    Thread(#[source] io::Error),
    /// It could not be written to the end.
    #[error("the capture is incomplete")]
    Write(#[source] io::Error),
}

/// What to capture.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CaptureOptions {
    /// The first file; each is created, or replaced, for its owner alone.
    pub path: PathBuf,
    /// What becomes of one that is full.
    pub rotation: Rotation,
    /// Bytes kept of each frame, up to [`MAX_SNAPLEN_BYTES`].
    pub snaplen_bytes: u32,
    /// The index of the only port; `None`: all of them.
    pub port: Option<u16>,
}

/// What a capture has come to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CaptureSummary {
    /// Frames written.
    pub frames: u64,
    /// Frames for which there was no room in the queue.
    pub dropped: u64,
}

/// The data side: handed to every data thread.
#[derive(Debug)]
pub struct Capture {
    /// What data threads need to know in one word; 0: no capture runs. From the top: 16 bits that
    /// tell captures apart, the port, 32 bits of bytes to be kept.
    mode: AtomicU64,
    /// Made for the first capture, and kept.
    queue: OnceLock<Queue>,
    /// Frames that found no room, by port.
    dropped: Box<[AtomicU64]>,
}

impl Capture {
    /// Whether frames are captured, perhaps.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.mode.load(Ordering::Relaxed) != 0
    }

    /// Captures a frame of `bytes` that passes `port` at `now_ns` of the monotonic clock, if a
    /// capture runs. `read` copies from an offset of the frame into a buffer and returns how many
    /// bytes there were.
    #[inline]
    pub fn frame(
        &self,
        port: u16,
        direction: Direction,
        now_ns: u64,
        bytes: usize,
        read: impl FnMut(usize, &mut [u8]) -> usize,
    ) {
        let mode = self.mode.load(Ordering::Relaxed);
        if mode != 0 {
            let mode = Mode::from_word(mode);
            // No frame is that long.
            let frame_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            let record = Record {
                port,
                session: mode.session,
                direction,
                time_ns: now_ns,
                frame_bytes,
                kept_bytes: frame_bytes.min(mode.snaplen_bytes),
            };
            self.push(mode.port, record, read);
        }
    }

    #[cold]
    fn push(&self, only: u16, record: Record, read: impl FnMut(usize, &mut [u8]) -> usize) {
        if only != ALL_PORTS && only != record.port {
            return;
        }
        let Some(queue) = self.queue.get() else {
            return;
        };
        if !queue.push(record, read)
            && let Some(dropped) = self.dropped.get(usize::from(record.port))
        {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends the capture `session`, if that is the one that runs.
    fn turn_off(&self, session: u16) {
        let running = self.mode.load(Ordering::Relaxed);
        if Mode::from_word(running).session == session {
            // Lost to a capture that has begun meanwhile, which is to go on.
            let _ = self
                .mode
                .compare_exchange(running, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// [`Capture::mode`] taken apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Mode {
    session: u16,
    port: u16,
    snaplen_bytes: u32,
}

impl Mode {
    fn to_word(self) -> u64 {
        u64::from(self.session) << 48 | u64::from(self.port) << 32 | u64::from(self.snaplen_bytes)
    }

    fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        Self {
            session: u16::from_le_bytes([g, h]),
            port: u16::from_le_bytes([e, f]),
            snaplen_bytes: u32::from_le_bytes([a, b, c, d]),
        }
    }
}

/// The control side: starts and stops captures, from any thread.
#[derive(Debug)]
pub struct CaptureControl {
    capture: Arc<Capture>,
    ports: Vec<String>,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    last_session: u16,
    writer: Option<Handle>,
}

#[derive(Debug)]
struct Handle {
    session: u16,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<CaptureSummary, CaptureError>>,
}

impl Handle {
    /// Has the thread finish its file.
    fn ask_to_stop(&self, capture: &Capture) {
        capture.turn_off(self.session);
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }

    fn finish(self) -> Result<CaptureSummary, CaptureError> {
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(CaptureError::Write(io::Error::other("the thread panicked"))),
        }
    }
}

impl CaptureControl {
    /// No capture yet, of the ports of these names; their indices are those of the list.
    #[must_use]
    pub fn new(ports: Vec<String>) -> Self {
        let capture = Capture {
            mode: AtomicU64::new(0),
            queue: OnceLock::new(),
            dropped: ports.iter().map(|_| AtomicU64::new(0)).collect(),
        };
        Self {
            capture: Arc::new(capture),
            ports,
            running: Mutex::default(),
        }
    }

    /// The data side.
    #[must_use]
    pub fn capture(&self) -> &Arc<Capture> {
        &self.capture
    }

    fn lock(&self) -> Result<MutexGuard<'_, Running>, CaptureError> {
        match self.running.try_lock() {
            Ok(running) => Ok(running),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(CaptureError::Busy),
        }
    }

    /// Starts a capture; this waits for the file system.
    ///
    /// # Errors
    /// [`CaptureError`] if one runs, or the file or the thread cannot be made.
    pub fn start(&self, options: &CaptureOptions) -> Result<(), CaptureError> {
        let mut running = self.lock()?;
        // One that has failed has said so, and is no reason against the next.
        running.writer.take_if(|handle| handle.thread.is_finished());
        if running.writer.is_some() {
            return Err(CaptureError::Running);
        }
        let (files, file) = Files::open(&options.path, options.rotation)?;
        let session = running.last_session.checked_add(1).unwrap_or(1);
        let mode = Mode {
            session,
            port: options.port.unwrap_or(ALL_PORTS),
            snaplen_bytes: options.snaplen_bytes.clamp(1, MAX_SNAPLEN_BYTES),
        };
        self.capture.queue.get_or_init(|| Queue::new(QUEUE_ORDER));
        for dropped in &self.capture.dropped {
            dropped.store(0, Ordering::Relaxed);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let output = Output::new(files, file, options.rotation.max_bytes);
        let writer = Writer::new(&self.capture, self.ports.clone(), mode, &stop, output);
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || writer.run())
            .map_err(CaptureError::Thread)?;
        self.capture.mode.store(mode.to_word(), Ordering::Release);
        *running = Running {
            last_session: session,
            writer: Some(Handle {
                session,
                stop,
                thread,
            }),
        };
        Ok(())
    }

    /// Stops the capture that runs and finishes its file; this waits for the file system.
    ///
    /// # Errors
    /// [`CaptureError::NotRunning`], or why the capture is not whole.
    pub fn stop(&self) -> Result<CaptureSummary, CaptureError> {
        let mut running = self.lock()?;
        let handle = running.writer.take().ok_or(CaptureError::NotRunning)?;
        handle.ask_to_stop(&self.capture);
        handle.finish()
    }
}

impl Drop for CaptureControl {
    fn drop(&mut self) {
        let running = self.running.get_mut();
        let running = running.unwrap_or_else(PoisonError::into_inner);
        let Some(handle) = running.writer.take() else {
            return;
        };
        handle.ask_to_stop(&self.capture);
        let deadline = Instant::now() + FINISH_PATIENCE;
        while !handle.thread.is_finished() {
            if Instant::now() >= deadline {
                log::error!("capture: the file system does not answer: the file is not finished");
                return;
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        match handle.finish() {
            Ok(summary) => log::info!(
                "capture: {} frames, {} dropped",
                summary.frames,
                summary.dropped
            ),
            // It has said so.
            Err(error) => log::debug!("capture: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
