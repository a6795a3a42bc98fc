// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks of images, beside the QEMU installed on this machine.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{dirs, image_file, open, options, read_only, skip};
use crate::storage::{Image, ImageError, ImageOptions};

#[test]
fn i13_second_writer_is_refused_and_readers_share() {
    for dir in dirs() {
        let path = image_file(&dir, 4096);
        let in_use = |options: &ImageOptions, expected: &str| {
            let error = Image::open(options).unwrap_err();
            let said = format!("{}: in use by another process, ", path.display());
            assert!(error.to_string().starts_with(&said), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        };
        let writer = open(&options(&path));
        in_use(&options(&path), "\"write\"");
        in_use(&read_only(&path), "\"write\"");
        drop(open(&ImageOptions {
            lock: false,
            ..options(&path)
        }));
        drop(writer);
        let reader = open(&read_only(&path));
        drop(open(&read_only(&path)));
        in_use(&options(&path), "\"write\"");
        drop(reader);
        drop(open(&options(&path)));
    }
}

/// Runs QEMU's tool on an image until it has opened it, and keeps it there.
struct QemuIo {
    child: Child,
    /// Closing it ends the tool.
    stdin: Option<ChildStdin>,
    output: String,
}

impl QemuIo {
    /// `None` without a `qemu-io`. Its output is an error if the image could not be opened.
    fn open(path: &Path, mode: &[&str]) -> Option<Self> {
        let mut child = Command::new("qemu-io")
            .args(["-f", "raw"])
            .args(mode)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdin.as_mut()?.write_all(b"length\n").unwrap_or_default();
        let mut output = String::new();
        // The answer, with a prompt before it; or the end, if the image was refused.
        while stdout.read_line(&mut output).unwrap() != 0 && !output.contains("iB\n") {}
        if !output.contains("iB\n") {
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut output)
                .unwrap();
        }
        Some(Self {
            child,
            stdin,
            output,
        })
    }

    fn is_open(&self) -> bool {
        self.output.contains("iB\n")
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.stdin.take());
        drop(self.child.wait());
    }
}

fn check_in_use(options: &ImageOptions) {
    let error = Image::open(options).unwrap_err();
    let is_expected = matches!(
        error,
        ImageError::InUse {
            permission: "write",
            ..
        }
    );
    assert!(is_expected, "{error}");
}

/// The tools of QEMU write only where nobody forbids it, and forbid nothing themselves: so one
/// that reads can share an image with a writer, as it can with a QEMU.
#[test]
fn i13_qemu_tools_and_ringside_see_each_other() {
    const TEST: &str = "i13_qemu_tools_and_ringside_see_each_other";
    const QEMU_WRITER: &[&str] = &[];
    const QEMU_READER: &[&str] = &["-r"];
    let dir = TempDir::new().unwrap();
    let path = image_file(&dir, 1 << 20);

    let Some(writer) = QemuIo::open(&path, QEMU_WRITER) else {
        return skip(TEST, "no qemu-io on this machine");
    };
    assert!(writer.is_open(), "{}", writer.output);
    check_in_use(&options(&path));
    check_in_use(&read_only(&path));
    drop(writer);

    for ours in [options(&path), read_only(&path)] {
        let image = open(&ours);
        let refused = QemuIo::open(&path, QEMU_WRITER).unwrap();
        assert!(!refused.is_open());
        assert!(
            refused.output.contains("Failed to get \"write\" lock"),
            "{}",
            refused.output
        );
        let reader = QemuIo::open(&path, QEMU_READER).unwrap();
        assert!(reader.is_open(), "{}", reader.output);
        drop(image);
        drop(open(&ours));
    }
    assert!(QemuIo::open(&path, QEMU_WRITER).unwrap().is_open());
}

/// A child killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A QEMU with a virtio-blk device on an image, stopped before its first instruction.
fn qemu_guest(path: &Path, read_only: &str) -> Option<Killed> {
    let drive = format!(
        "file={},format=raw,if=none,id=d,read-only={read_only}",
        path.display()
    );
    Command::new("qemu-system-x86_64")
        .args([
            "-S",
            "-display",
            "none",
            "-nodefaults",
            "-device",
            "virtio-blk-pci,drive=d",
        ])
        .args(["-drive", &drive])
        .stderr(Stdio::piped())
        .spawn()
        .ok()
        .map(Killed)
}

/// Waits until the QEMU denies others to write: until its device is there.
fn wait_for_guest(path: &Path) {
    let locked = format!(":{} 201 201", fs::metadata(path).unwrap().ino());
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fs::read_to_string("/proc/locks").unwrap().contains(&locked) {
        assert!(Instant::now() < deadline, "no lock by QEMU");
        std::thread::yield_now();
    }
}

#[test]
fn i13_qemu_guest_and_ringside_exclude_each_other() {
    const TEST: &str = "i13_qemu_guest_and_ringside_exclude_each_other";
    let dir = TempDir::new().unwrap();
    let path = image_file(&dir, 1 << 20);

    let Some(writer) = qemu_guest(&path, "off") else {
        return skip(TEST, "no qemu-system-x86_64 on this machine");
    };
    wait_for_guest(&path);
    check_in_use(&options(&path));
    check_in_use(&read_only(&path));
    drop(writer);

    let reader = qemu_guest(&path, "on").unwrap();
    wait_for_guest(&path);
    check_in_use(&options(&path));
    drop(open(&read_only(&path)));
    drop(reader);

    for (ours, theirs) in [
        (options(&path), "off"),
        (options(&path), "on"),
        (read_only(&path), "off"),
    ] {
        let image = open(&ours);
        let mut refused = qemu_guest(&path, theirs).unwrap();
        let mut said = String::new();
        refused
            .0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(said.contains("\"write\" lock"), "{said}");
        drop(image);
    }
}
