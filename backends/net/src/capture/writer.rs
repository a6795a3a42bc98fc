// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that writes the files of a capture.

use std::error::Error as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringside_common::num::unsigned;
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::files::Files;
use super::pcapng::{self, Packet, Statistics};
use super::queue::Record;
use super::{Capture, CaptureError, CaptureSummary, Mode};

/// Between two looks at an empty queue; writers do not wake us, as that would cost them.
const PAUSE: Duration = Duration::from_millis(5);

/// What is handed to the kernel at once.
const BUFFER_BYTES: usize = 256 << 10;

const APPLICATION: &str = concat!("ringside-net ", env!("CARGO_PKG_VERSION"));

/// The file that is written, and those behind it.
#[derive(Debug)]
pub(super) struct Output {
    files: Files,
    file: BufWriter<File>,
    /// As long as a file may be.
    max_bytes: u64,
    written_bytes: u64,
}

impl Output {
    pub(super) fn new(files: Files, first: File, max_bytes: Option<u64>) -> Self {
        Self {
            files,
            file: BufWriter::with_capacity(BUFFER_BYTES, first),
            max_bytes: max_bytes.unwrap_or(u64::MAX),
            written_bytes: 0,
        }
    }

    fn write(&mut self, blocks: &[u8]) -> Result<(), CaptureError> {
        self.written_bytes = self.written_bytes.saturating_add(blocks.len() as u64);
        self.file.write_all(blocks).map_err(CaptureError::Write)
    }

    fn flush(&mut self) -> Result<(), CaptureError> {
        self.file.flush().map_err(CaptureError::Write)
    }

    /// Whether the file has no room for `bytes` more.
    fn is_full(&self, more_bytes: usize) -> bool {
        self.written_bytes.saturating_add(more_bytes as u64) > self.max_bytes
    }

    fn next(&mut self) -> Result<(), CaptureError> {
        self.flush()?;
        let file = self.files.next()?;
        self.file = BufWriter::with_capacity(BUFFER_BYTES, file);
        self.written_bytes = 0;
        Ok(())
    }
}

/// What the thread needs.
#[derive(Debug)]
pub(super) struct Writer {
    capture: Arc<Capture>,
    ports: Vec<String>,
    mode: Mode,
    stop: Arc<AtomicBool>,
    output: Output,
    /// When the file was begun.
    start_unix_ns: u64,
    /// Frames in the file, by port.
    frames: Vec<u64>,
    /// Frames that had found no room when the file was begun, by port.
    dropped_before: Vec<u64>,
    /// Frames in the files before.
    frames_before: u64,
    /// Of one frame, used again.
    bytes: Vec<u8>,
    block: Vec<u8>,
}

impl Writer {
    pub(super) fn new(
        capture: &Arc<Capture>,
        ports: Vec<String>,
        mode: Mode,
        stop: &Arc<AtomicBool>,
        output: Output,
    ) -> Self {
        Self {
            capture: Arc::clone(capture),
            frames: vec![0; ports.len()],
            dropped_before: vec![0; ports.len()],
            frames_before: 0,
            ports,
            mode,
            stop: Arc::clone(stop),
            output,
            start_unix_ns: 0,
            bytes: Vec::new(),
            block: Vec::new(),
        }
    }

    /// Writes the files until it is told to stop, or cannot go on.
    pub(super) fn run(mut self) -> Result<CaptureSummary, CaptureError> {
        let result = self.write();
        if let Err(error) = &result {
            self.capture.turn_off(self.mode.session);
            let cause = error.source().map(|cause| format!(": {cause}"));
            log::error!("capture: stopped: {error}{}", cause.unwrap_or_default());
        }
        result
    }

    fn write(&mut self) -> Result<CaptureSummary, CaptureError> {
        self.begin_file()?;
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            self.drain()?;
            if stopping && self.capture.queue.get().is_none_or(|q| q.is_empty()) {
                break;
            }
            // Whoever reads along is to see what has come.
            self.output.flush()?;
            thread::park_timeout(PAUSE);
        }
        self.end_file()?;
        self.output.flush()?;
        let dropped = self.capture.dropped.iter();
        Ok(CaptureSummary {
            frames: self.frames_before,
            dropped: dropped.map(|dropped| dropped.load(Ordering::Relaxed)).sum(),
        })
    }

    /// Writes what is at the front of each file.
    fn begin_file(&mut self) -> Result<(), CaptureError> {
        self.start_unix_ns = now_ns(ClockId::Realtime);
        self.block.clear();
        pcapng::section_header(&mut self.block, APPLICATION);
        for name in &self.ports {
            pcapng::interface(&mut self.block, name, self.mode.snaplen_bytes);
        }
        self.output.write(&self.block)
    }

    /// Writes what is in the queue.
    fn drain(&mut self) -> Result<(), CaptureError> {
        let capture = Arc::clone(&self.capture);
        let Some(queue) = capture.queue.get() else {
            return Ok(());
        };
        // The clocks are compared each time, so that steps of the wall clock show.
        let offset_ns = now_ns(ClockId::Realtime).wrapping_sub(now_ns(ClockId::Monotonic));
        while let Some(record) = queue.pop(&mut self.bytes) {
            let port = usize::from(record.port);
            if record.session != self.mode.session || port >= self.frames.len() {
                // Left over by a capture before this.
                continue;
            }
            self.packet(record, offset_ns);
            // A file has one frame at least, however little room it has.
            let end_bytes = self.ports.len() * pcapng::STATISTICS_BYTES;
            if self.output.is_full(self.block.len() + end_bytes)
                && self.frames.iter().any(|frames| *frames > 0)
            {
                self.next_file()?;
                self.packet(record, offset_ns);
            }
            self.output.write(&self.block)?;
            if let Some(frames) = self.frames.get_mut(port) {
                *frames = frames.wrapping_add(1);
            }
        }
        Ok(())
    }

    /// The block of the frame in hand.
    fn packet(&mut self, record: Record, offset_ns: u64) {
        self.block.clear();
        let packet = Packet {
            interface: record.port.into(),
            unix_ns: record.time_ns.wrapping_add(offset_ns),
            direction: record.direction,
            frame_bytes: record.frame_bytes,
            data: &self.bytes,
        };
        pcapng::packet(&mut self.block, &packet);
    }

    fn next_file(&mut self) -> Result<(), CaptureError> {
        self.end_file()?;
        self.output.next()?;
        self.begin_file()
    }

    /// Writes the statistics, and counts anew.
    fn end_file(&mut self) -> Result<(), CaptureError> {
        let end_unix_ns = now_ns(ClockId::Realtime);
        self.block.clear();
        let before = self.dropped_before.iter_mut();
        let ports = self.frames.iter_mut().zip(&self.capture.dropped);
        for (interface, ((frames, dropped), before)) in (0..).zip(ports.zip(before)) {
            let frames = mem::take(frames);
            let all_dropped = dropped.load(Ordering::Relaxed);
            let dropped = all_dropped.wrapping_sub(mem::replace(before, all_dropped));
            let statistics = Statistics {
                interface,
                start_unix_ns: self.start_unix_ns,
                end_unix_ns,
                received: frames.wrapping_add(dropped),
                dropped,
            };
            pcapng::statistics(&mut self.block, &statistics);
            self.frames_before = self.frames_before.wrapping_add(frames);
        }
        self.output.write(&self.block)
    }
}

fn now_ns(clock: ClockId) -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    unsigned(tv_sec)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(unsigned(tv_nsec))
}
