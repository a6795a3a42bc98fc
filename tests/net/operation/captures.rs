// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Captures: files that are full, that are none, or on a file system that does not answer.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{PATIENCE, Result, TestResult, counters, open, send};

const BYTES: usize = 1000;
const MAX_BYTES: u64 = 100_000;

fn is_here(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// The frames of a file, which is whole, private and not too long.
fn frames_in(path: &Path) -> Result<usize> {
    let metadata = fs::metadata(path)?;
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{path:?}");
    assert!(metadata.len() <= MAX_BYTES, "{path:?}: {}", metadata.len());
    let tcpdump = Command::new("tcpdump")
        .args(["-nn", "-e", "-r"])
        .arg(path)
        .output()?;
    assert!(tcpdump.status.success(), "{tcpdump:?}");
    let text = String::from_utf8(tcpdump.stdout)?;
    let frames = text.lines().filter(|line| line.contains(" > ")).count();
    let capinfos = Command::new("capinfos")
        .args(["-M", "-c"])
        .arg(path)
        .output()?;
    assert!(capinfos.status.success(), "{capinfos:?}");
    let text = String::from_utf8(capinfos.stdout)?;
    assert!(
        text.trim_end().ends_with(&format!(" {frames}")),
        "{frames}: {text}"
    );
    Ok(frames)
}

/// The file of a capture with this number.
fn numbered(dir: &TempDir, number: usize) -> PathBuf {
    match number {
        0 => dir.path().join("c.pcapng"),
        number => dir.path().join(format!("c.pcapng.{number}")),
    }
}

/// The frames in each file that is there.
fn count(dir: &TempDir) -> Result<Vec<usize>> {
    (0..4)
        .map(|number| numbered(dir, number))
        .filter(|path| path.exists())
        .map(|path| frames_in(&path))
        .collect()
}

#[test]
fn f5_13_files_of_a_capture_are_filled_in_turn_over_a_drain_and_a_restart() -> TestResult {
    for program in ["tcpdump", "capinfos"] {
        if !is_here(program) {
            skip!("no {program} here");
        }
    }
    let dir = TempDir::new()?;
    let capture = format!("{},max-bytes=100K,files=3", numbered(&dir, 0).display());
    for round in 0..2 {
        let args = ["--backend", "switch", "--capture", &capture];
        let mut back_end = NetBackEnd::start(2, &args)?;
        let mut left = open(&mut back_end, 0)?;
        let mut right = open(&mut back_end, 1)?;
        right.pairs[0].rx.post_all()?;
        let mut got = Vec::new();
        // Each is there as it is sent and as it is received.
        for sequence in 0..60 {
            send(&mut left, sequence, BYTES)?;
            right.pairs[0].rx.wait(&mut got, PATIENCE)?;
            right.pairs[0].rx.post_all()?;
            if sequence == 30 {
                back_end.control("drain", &Value::Null)?;
                back_end.control("resume", &Value::Null)?;
            }
        }
        assert!(back_end.terminate()?.success());
        let frames = count(&dir)?;
        assert_eq!(
            (frames.len(), frames.iter().sum()),
            (2, 120),
            "{round}: {frames:?}"
        );
    }
    Ok(())
}

/// As many frames of each kind as are sent, however often a file is begun.
#[test]
fn f5_13_files_of_a_capture_are_begun_anew_when_all_are_full() -> TestResult {
    if !is_here("capinfos") {
        skip!("no capinfos here");
    }
    let dir = TempDir::new()?;
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    right.pairs[0].rx.post_all()?;
    let params = json!({"path": numbered(&dir, 0), "max_bytes": "100K", "files": 3});
    let started = back_end.control("capture-start", &params)?;
    assert_eq!(
        (&started["max_bytes"], &started["files"]),
        (&json!(100_000), &json!(3))
    );
    let mut got = Vec::new();
    for sequence in 0..200 {
        send(&mut left, sequence, BYTES)?;
        right.pairs[0].rx.wait(&mut got, PATIENCE)?;
        right.pairs[0].rx.post_all()?;
    }
    let stopped = back_end.control("capture-stop", &Value::Null)?;
    assert_eq!(
        (&stopped["frames"], &stopped["dropped"]),
        (&json!(400), &json!(0))
    );
    let frames = count(&dir)?;
    assert_eq!(frames.len(), 3, "{frames:?}");
    // Four were full, and the fifth is the second one, begun anew.
    let full = frames[2];
    assert_eq!(frames, [full, 400 - 4 * full, full]);
    Ok(())
}

#[test]
fn f5_13_capture_to_what_is_no_file_is_refused() -> TestResult {
    let back_end = NetBackEnd::start(1, &["--backend", "switch"])?;
    let dir = TempDir::new()?;
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("directory"))?;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )?;
    // Somebody reads: opening it would succeed.
    let _reader = File::options().read(true).write(true).open(path("fifo"))?;
    let _listener = std::os::unix::net::UnixListener::bind(path("socket"))?;
    std::os::unix::fs::symlink(path("victim"), path("link"))?;
    for (name, expected) in [
        (path("directory"), "is not a regular file"),
        (path("fifo"), "is not a regular file"),
        (path("socket"), "is not a regular file"),
        (PathBuf::from("/dev/null"), "is not a regular file"),
        (path("link"), "cannot be opened"),
        (path("none/c"), "cannot be opened"),
        (PathBuf::from("/"), "cannot be opened"),
    ] {
        let params = json!({ "path": name });
        let said = back_end.control("capture-start", &params);
        let said = said.err().ok_or_else(|| format!("{name:?}: it started"))?;
        assert!(said.contains(expected), "{said}");
    }
    assert!(!path("victim").exists());
    Ok(())
}

/// A FUSE file system whose server never answers.
struct Silent {
    dir: TempDir,
    device: Option<File>,
}

impl Silent {
    fn mount() -> Result<Self> {
        let dir = TempDir::new()?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let (from, kind) = (Some("silent"), Some("fuse"));
        mount(
            from,
            dir.path(),
            kind,
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(Self {
            dir,
            device: Some(device),
        })
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("c.pcapng")
    }

    /// Whoever waits is told that nobody will answer.
    fn end(&mut self) {
        self.device = None;
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.end();
        // What is left is seen by whoever runs the tests.
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn f5_13_capture_on_a_file_system_that_does_not_answer_holds_up_nobody() -> TestResult {
    let mut silent = match Silent::mount() {
        Ok(silent) => silent,
        Err(error) => skip!("no FUSE file system can be mounted: {error}"),
    };
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    right.pairs[0].rx.post_all()?;
    let start = json!({ "path": silent.file() });
    thread::scope(|scope| {
        let waits = scope.spawn(|| back_end.control("capture-start", &start));
        // Who asks for a capture while it waits is told so; what asks for none goes on.
        let busy = "a capture is just being started or stopped";
        loop {
            let said = back_end.control("capture-stop", &Value::Null);
            let said = said.err().ok_or("a capture ran")?;
            if said.contains(busy) {
                break;
            }
            assert!(said.contains("no capture is running"), "{said}");
            assert!(!waits.is_finished(), "it did not wait");
            thread::sleep(Duration::from_millis(1));
        }
        let said = back_end
            .control("capture-start", &start)
            .err()
            .ok_or("it started")?;
        assert!(said.contains(busy), "{said}");
        back_end.control("info", &Value::Null)?;
        back_end.control("drain", &Value::Null)?;
        back_end.control("resume", &Value::Null)?;
        send(&mut left, 1, BYTES)?;
        right.pairs[0].rx.wait(&mut Vec::new(), PATIENCE)?;
        assert_eq!(counters(&back_end, 1, 0)?["good_packets"], 1);
        assert!(!waits.is_finished());
        silent.end();
        let said = waits.join().map_err(|_panic| "a panic")?;
        let said = said.err().ok_or("it started")?;
        assert!(said.contains("cannot be opened"), "{said}");
        TestResult::Ok(())
    })?;
    // Now that nobody waits, a capture can be had.
    let path = back_end.process().path("c.pcapng");
    back_end.control("capture-start", &json!({ "path": path }))?;
    back_end.control("capture-stop", &Value::Null)?;
    Ok(())
}

#[test]
fn f5_13_process_ends_though_a_capture_waits_for_a_file_system() -> TestResult {
    let silent = match Silent::mount() {
        Ok(silent) => silent,
        Err(error) => skip!("no FUSE file system can be mounted: {error}"),
    };
    let mut back_end = NetBackEnd::start(1, &["--backend", "switch"])?;
    let start = json!({ "path": silent.file() });
    thread::scope(|scope| {
        let (back_end, start) = (&back_end, &start);
        // Its answer is that the process has ended.
        let _waits = scope.spawn(move || back_end.control("capture-start", start));
        let busy = "a capture is just being started or stopped";
        let until = std::time::Instant::now() + PATIENCE;
        while !back_end
            .control("capture-stop", &Value::Null)
            .is_err_and(|said| said.contains(busy))
        {
            assert!(std::time::Instant::now() < until, "it never waited");
            thread::sleep(Duration::from_millis(1));
        }
        let id = i32::try_from(back_end.id())?;
        let pid = rustix::process::Pid::from_raw(id).ok_or("no such process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        TestResult::Ok(())
    })?;
    assert!(back_end.process().wait_exit(PATIENCE)?.success());
    Ok(())
}

#[test]
fn f5_11_capture_has_nothing_of_a_link_that_is_down() -> TestResult {
    if !is_here("tcpdump") || !is_here("capinfos") {
        skip!("no tcpdump or capinfos here");
    }
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    let mut left = open(&mut back_end, 0)?;
    let mut right = open(&mut back_end, 1)?;
    right.pairs[0].rx.post_all()?;
    left.pairs[0].rx.post_all()?;
    let path = back_end.process().path("c.pcapng");
    let params = json!({"path": path, "port": "port1", "max_bytes": "100K"});
    back_end.control("capture-start", &params)?;
    for state in ["up", "down", "up"] {
        back_end.control("link", &json!({"port": "port1", "state": state}))?;
        for sequence in 0..10 {
            send(&mut left, sequence, 100)?;
            send(&mut right, sequence, 100)?;
        }
    }
    let stopped = back_end.control("capture-stop", &Value::Null)?;
    assert_eq!(stopped["frames"], 40, "{stopped}");
    assert_eq!(frames_in(&path)?, 40);
    Ok(())
}
