// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `tcpdump`: the frames that pass a device, and what it thinks of them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::kernel::{Host, eventually};
use crate::{Result, TestResult};

/// Bytes of the header of a `pcap` file, and of that of each frame.
const FILE_HEADER_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 16;

/// Why it cannot be asked.
pub(crate) fn needs() -> Option<String> {
    let run = Command::new("tcpdump").arg("--version").output();
    run.err().map(|error| format!("tcpdump: {error}"))
}

/// Holds finished TCP and UDP packets to what `tcpdump` says of them.
///
/// # Errors
///
/// When it calls one incorrect, or does not call each correct.
pub(crate) fn check(frames: &[Vec<u8>]) -> TestResult {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("frames.pcap");
    let mut file = File::create(&path)?;
    let words: [u32; 5] = [0x0004_0002, 0, 0, 1 << 18, 1];
    file.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
    for word in words {
        file.write_all(&word.to_le_bytes())?;
    }
    for frame in frames {
        let bytes = u32::try_from(frame.len())?;
        for word in [0, 0, bytes, bytes] {
            file.write_all(&word.to_le_bytes())?;
        }
        file.write_all(frame)?;
    }
    file.flush()?;
    let output = Command::new("tcpdump")
        .args(["-vv", "-n", "-r"])
        .arg(&path)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let good = text.matches("(correct)").count() + text.matches("[udp sum ok]").count();
    // "bad cksum" of IPv4 and "bad udp cksum" are two of them.
    let bad = text.lines().find(|line| {
        ["incorrect", "bad ", "truncated", "invalid"]
            .iter()
            .any(|w| line.contains(w))
    });
    match bad {
        Some(line) => Err(format!("tcpdump: {line}").into()),
        None if good != frames.len() => {
            Err(format!("{good} of {} checksums correct: {text}", frames.len()).into())
        }
        None => Ok(()),
    }
}

/// A running one that keeps what passes a device.
pub(crate) struct Capture {
    child: Child,
    dir: TempDir,
}

impl Capture {
    /// Watches `device` for frames that pass a `pcap-filter` expression.
    pub(crate) fn start(host: &Host, device: &str, filter: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("frames.pcap");
        let mut child = host.within(|| {
            Command::new("tcpdump")
                // As root, or it could not write where it has no rights.
                .args(["--immediate-mode", "-U", "-Z", "root", "-s", "0"])
                .args(["-i", device, "-w"])
                .arg(&path)
                .arg(filter)
                .stderr(Stdio::piped())
                .spawn()
        })?;
        let stderr = child.stderr.take().ok_or("no standard error")?;
        for line in BufReader::new(stderr).lines() {
            if line?.contains("listening on") {
                return Ok(Self { child, dir });
            }
        }
        Err("tcpdump does not listen".into())
    }

    /// All frames, when there are at least so many.
    pub(crate) fn frames(&self, count: usize) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        eventually("frames for tcpdump", || {
            frames = read(&fs::read(self.dir.path().join("frames.pcap"))?);
            Ok(frames.len() >= count)
        })?;
        Ok(frames)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended.
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let _ = self.child.wait();
    }
}

fn read(file: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = file.get(FILE_HEADER_BYTES..).unwrap_or_default();
    // The last frame may still be on its way.
    while let Some(header) = rest.first_chunk::<FRAME_HEADER_BYTES>() {
        let captured = [8, 9, 10, 11].map(|at: usize| header[at]);
        let end = FRAME_HEADER_BYTES + u32::from_le_bytes(captured) as usize;
        let Some(frame) = rest.get(FRAME_HEADER_BYTES..end) else {
            break;
        };
        frames.push(frame.to_vec());
        rest = &rest[end..];
    }
    frames
}
