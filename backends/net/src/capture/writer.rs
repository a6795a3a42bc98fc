// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that writes the file of a capture.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::pcapng::{self, Packet, Statistics};
use super::{Capture, CaptureSummary, Mode};

/// Between two looks at an empty queue; writers do not wake us, as that would cost them.
const PAUSE: Duration = Duration::from_millis(5);

/// What is handed to the kernel at once.
const BUFFER_BYTES: usize = 256 << 10;

const APPLICATION: &str = concat!("ringside-net ", env!("CARGO_PKG_VERSION"));

/// What the thread needs.
#[derive(Debug)]
pub(super) struct Writer {
    capture: Arc<Capture>,
    ports: Vec<String>,
    mode: Mode,
    stop: Arc<AtomicBool>,
    file: BufWriter<File>,
    start_unix_ns: u64,
    /// Frames written, by port.
    frames: Vec<u64>,
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
        file: File,
    ) -> Self {
        Self {
            capture: Arc::clone(capture),
            frames: vec![0; ports.len()],
            ports,
            mode,
            stop: Arc::clone(stop),
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            start_unix_ns: now_ns(ClockId::Realtime),
            bytes: Vec::new(),
            block: Vec::new(),
        }
    }

    /// Writes the file until it is told to stop, or cannot go on.
    pub(super) fn run(mut self) -> io::Result<CaptureSummary> {
        let result = self.write();
        if let Err(error) = &result {
            self.capture.turn_off(self.mode.session);
            log::error!("capture: stopped: {error}");
        }
        result
    }

    fn write(&mut self) -> io::Result<CaptureSummary> {
        pcapng::section_header(&mut self.block, APPLICATION);
        for name in &self.ports {
            pcapng::interface(&mut self.block, name, self.mode.snaplen_bytes);
        }
        self.file.write_all(&self.block)?;
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            self.drain()?;
            if stopping && self.capture.queue.get().is_none_or(|q| q.is_empty()) {
                break;
            }
            // Whoever reads along is to see what has come.
            self.file.flush()?;
            thread::park_timeout(PAUSE);
        }
        self.finish()
    }

    /// Writes what is in the queue.
    fn drain(&mut self) -> io::Result<()> {
        let Some(queue) = self.capture.queue.get() else {
            return Ok(());
        };
        // The clocks are compared each time, so that steps of the wall clock show.
        let offset_ns = now_ns(ClockId::Realtime).wrapping_sub(now_ns(ClockId::Monotonic));
        while let Some(record) = queue.pop(&mut self.bytes) {
            let frames = self.frames.get_mut(usize::from(record.port));
            let Some(frames) = frames.filter(|_| record.session == self.mode.session) else {
                // Left over by a capture before this.
                continue;
            };
            self.block.clear();
            let packet = Packet {
                interface: record.port.into(),
                unix_ns: record.time_ns.wrapping_add(offset_ns),
                direction: record.direction,
                frame_bytes: record.frame_bytes,
                data: &self.bytes,
            };
            pcapng::packet(&mut self.block, &packet);
            self.file.write_all(&self.block)?;
            *frames = frames.wrapping_add(1);
        }
        Ok(())
    }

    /// Writes the statistics.
    fn finish(&mut self) -> io::Result<CaptureSummary> {
        let mut summary = CaptureSummary::default();
        let end_unix_ns = now_ns(ClockId::Realtime);
        self.block.clear();
        let ports = (0..).zip(self.frames.iter().zip(&self.capture.dropped));
        for (interface, (frames, dropped)) in ports {
            let dropped = dropped.load(Ordering::Relaxed);
            let statistics = Statistics {
                interface,
                start_unix_ns: self.start_unix_ns,
                end_unix_ns,
                received: frames.wrapping_add(dropped),
                dropped,
            };
            pcapng::statistics(&mut self.block, &statistics);
            summary.frames = summary.frames.wrapping_add(*frames);
            summary.dropped = summary.dropped.wrapping_add(dropped);
        }
        self.file.write_all(&self.block)?;
        self.file.flush()?;
        Ok(summary)
    }
}

fn now_ns(clock: ClockId) -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    let seconds = u64::try_from(tv_sec).unwrap_or(0);
    let rest = u64::try_from(tv_nsec).unwrap_or(0);
    seconds.wrapping_mul(1_000_000_000).wrapping_add(rest)
}
