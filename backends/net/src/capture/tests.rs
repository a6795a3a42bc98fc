// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Captures as a whole: files on disk, read back by us and by tcpdump.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;

use tempfile::TempDir;

use super::*;

/// A UDP packet from 192.0.2.1 to 192.0.2.2, its checksum left out.
const FRAME: [u8; 60] = {
    let head = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 8, 0, // Ethernet
        0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0xf6, 0xbe, 192, 0, 2, 1, 192, 0, 2, 2, // IPv4
        0x10, 0, 0x20, 0, 0, 26, 0, 0, // UDP
    ];
    let mut frame = [0xa5; 60];
    let mut at = 0;
    while at < head.len() {
        frame[at] = head[at];
        at += 1;
    }
    frame
};

/// What a file says, block by block.
#[derive(Debug, Default, Eq, PartialEq)]
struct Contents {
    interfaces: usize,
    /// Interface, kept bytes, frame bytes, direction bits.
    packets: Vec<(u32, u32, u32, u32)>,
    /// Received and dropped, by interface.
    statistics: Vec<(u64, u64)>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn contents(path: &Path) -> Contents {
    let file = fs::read(path).unwrap();
    let mut rest = &file[..];
    let mut contents = Contents::default();
    assert_eq!(u32_at(rest, 0), 0x0a0d_0d0a, "a section header comes first");
    while !rest.is_empty() {
        let length = usize::try_from(u32_at(rest, 4)).unwrap();
        let block = &rest[..length];
        assert_eq!(u32_at(block, 4), u32_at(block, length - 4));
        match u32_at(block, 0) {
            1 => contents.interfaces += 1,
            5 => contents
                .statistics
                .push((u64_at(block, 48), u64_at(block, 60))),
            6 => contents.packets.push((
                u32_at(block, 8),
                u32_at(block, 20),
                u32_at(block, 24),
                u32_at(block, length - 12),
            )),
            _ => (),
        }
        rest = &rest[length..];
    }
    contents
}

struct Fixture {
    dir: TempDir,
    control: CaptureControl,
}

impl Fixture {
    fn new() -> Self {
        let ports = ["vm0", "vm1", "uplink"].map(String::from);
        Self {
            dir: TempDir::new().unwrap(),
            control: CaptureControl::new(ports.to_vec()),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("capture.pcapng")
    }

    fn options(&self) -> CaptureOptions {
        CaptureOptions {
            path: self.path(),
            rotation: Rotation::default(),
            snaplen_bytes: MAX_SNAPLEN_BYTES,
            port: None,
        }
    }

    fn pass(&self, port: u16, direction: Direction, bytes: usize) {
        let capture = self.control.capture();
        capture.frame(port, direction, 1, bytes, |offset, to| {
            for (to, from) in to.iter_mut().zip(FRAME.iter().cycle().skip(offset % 60)) {
                *to = *from;
            }
            to.len()
        });
    }
}

#[test]
fn capture_that_is_off_reads_no_frame() {
    let fixture = Fixture::new();
    let capture = fixture.control.capture();
    assert!(!capture.is_on());
    capture.frame(0, Direction::Rx, 0, 60, |_, _| panic!("read"));
    let error = fixture.control.stop().unwrap_err();
    assert!(matches!(error, CaptureError::NotRunning), "{error}");
}

#[test]
fn capture_of_all_ports_has_every_frame_with_its_direction() {
    let fixture = Fixture::new();
    fixture.control.start(&fixture.options()).unwrap();
    assert!(fixture.control.capture().is_on());
    fixture.pass(0, Direction::Tx, 60);
    fixture.pass(1, Direction::Rx, 60);
    fixture.pass(2, Direction::Rx, 65_550);

    let summary = fixture.control.stop().unwrap();

    assert!(!fixture.control.capture().is_on());
    fixture.pass(0, Direction::Tx, 60);
    let expected = CaptureSummary {
        frames: 3,
        dropped: 0,
    };
    assert_eq!(summary, expected);
    let expected = Contents {
        interfaces: 3,
        packets: vec![(0, 60, 60, 1), (1, 60, 60, 2), (2, 65_550, 65_550, 2)],
        statistics: vec![(1, 0), (1, 0), (1, 0)],
    };
    assert_eq!(contents(&fixture.path()), expected);
}

#[test]
fn capture_of_one_port_keeps_as_much_as_asked_of_its_frames_alone() {
    let fixture = Fixture::new();
    let options = CaptureOptions {
        snaplen_bytes: 42,
        port: Some(1),
        ..fixture.options()
    };
    fixture.control.start(&options).unwrap();
    for port in [0, 1, 2] {
        fixture.pass(port, Direction::Tx, 1514);
    }
    assert_eq!(fixture.control.stop().unwrap().frames, 1);
    let contents = contents(&fixture.path());
    assert_eq!(contents.packets, [(1, 42, 1514, 1)]);
    assert_eq!(contents.statistics, [(0, 0), (1, 0), (0, 0)]);
}

#[test]
fn capture_runs_once_at_a_time_and_again_after_its_stop() {
    let fixture = Fixture::new();
    for _ in 0..3 {
        fixture.control.start(&fixture.options()).unwrap();
        let error = fixture.control.start(&fixture.options()).unwrap_err();
        assert!(matches!(error, CaptureError::Running), "{error}");
        fixture.pass(0, Direction::Tx, 60);
        fixture.control.stop().unwrap();
        // The file was replaced, and nothing is left over from the capture before.
        assert_eq!(contents(&fixture.path()).packets, [(0, 60, 60, 1)]);
    }
}

#[test]
fn frames_without_room_are_counted_in_the_statistics() {
    let fixture = Fixture::new();
    fixture.control.start(&fixture.options()).unwrap();
    // The writer has to take out some of these meanwhile; how many, nobody knows.
    let passed = 600;
    for _ in 0..passed {
        fixture.pass(2, Direction::Rx, 65_550);
    }
    let CaptureSummary { frames, dropped } = fixture.control.stop().unwrap();
    assert_eq!(frames + dropped, passed);
    let contents = contents(&fixture.path());
    assert_eq!(contents.packets.len() as u64, frames);
    assert_eq!(contents.statistics, [(0, 0), (0, 0), (passed, dropped)]);
}

#[test]
fn frame_passed_while_the_writer_is_held_up_is_dropped_and_counted() {
    let fixture = Fixture::new();
    fixture.control.start(&fixture.options()).unwrap();
    let capture = fixture.control.capture();
    let (reading, done) = (Barrier::new(2), Barrier::new(2));
    let dropped = thread::scope(|scope| {
        // An unfinished record holds up the writer until this thread goes on.
        scope.spawn(|| {
            capture.frame(0, Direction::Tx, 1, 60, |_, to| {
                reading.wait();
                done.wait();
                to.len()
            });
        });
        reading.wait();
        for _ in 0..200 {
            fixture.pass(1, Direction::Rx, 65_550);
        }
        let dropped = capture.dropped[1].load(Ordering::Relaxed);
        done.wait();
        dropped
    });
    // 2^20 words of 8 bytes hold 127 of them, and the one that holds them up.
    assert_eq!(dropped, 73);
    let summary = fixture.control.stop().unwrap();
    let expected = CaptureSummary {
        frames: 128,
        dropped,
    };
    assert_eq!(summary, expected);
}

#[test]
fn stop_waits_for_a_frame_that_is_being_copied() {
    let fixture = Fixture::new();
    fixture.control.start(&fixture.options()).unwrap();
    let capture = fixture.control.capture();
    let reading = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            capture.frame(0, Direction::Tx, 1, 60, |_, to| {
                reading.wait();
                thread::sleep(Duration::from_millis(50));
                to.len()
            });
        });
        reading.wait();
        assert_eq!(fixture.control.stop().unwrap().frames, 1);
    });
}

#[test]
fn file_is_private_and_must_be_one() {
    let fixture = Fixture::new();
    fixture.control.start(&fixture.options()).unwrap();
    fixture.control.stop().unwrap();
    let mode = fs::metadata(fixture.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for path in ["/dev/null", "/dev/full"] {
        let options = CaptureOptions {
            path: path.into(),
            ..fixture.options()
        };
        let error = fixture.control.start(&options).unwrap_err();
        assert!(matches!(error, CaptureError::NotAFile { .. }), "{error}");
    }
    let options = CaptureOptions {
        path: fixture.dir.path().join("none/x"),
        ..fixture.options()
    };
    let error = fixture.control.start(&options).unwrap_err();
    assert!(matches!(error, CaptureError::Open { .. }), "{error}");
    assert!(!fixture.control.capture().is_on());
}

#[test]
fn f5_13_file_that_is_there_becomes_private_and_a_link_is_refused() {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    let fixture = Fixture::new();
    let path = fixture.path();
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fixture.control.start(&fixture.options()).unwrap();
    fixture.control.stop().unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let victim = fixture.dir.path().join("victim");
    let in_vain = || fixture.control.start(&fixture.options()).unwrap_err();
    for exists in [true, false] {
        fs::write(&victim, "precious").unwrap();
        if !exists {
            fs::remove_file(&victim).unwrap();
        }
        fs::remove_file(&path).unwrap();
        symlink(&victim, &path).unwrap();
        let error = in_vain();
        assert!(matches!(error, CaptureError::Open { .. }), "{error}");
        assert_eq!(victim.exists(), exists);
        if exists {
            assert_eq!(fs::read(&victim).unwrap(), b"precious");
        }
    }
    fs::remove_file(&path).unwrap();
    fs::write(&victim, "precious").unwrap();
    fs::hard_link(&victim, &path).unwrap();
    assert!(matches!(in_vain(), CaptureError::OfOthers { .. }));
    fs::remove_file(&victim).unwrap();
    if chown(&path, Some(12_345), None).is_ok() {
        assert!(matches!(in_vain(), CaptureError::OfOthers { .. }));
    }
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn writer_that_cannot_write_turns_the_capture_off_and_says_so() {
    let fixture = Fixture::new();
    File::create(fixture.path())
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let (files, _) = Files::open(&fixture.path(), Rotation::default()).unwrap();
    let read_only = File::open(fixture.path()).unwrap();
    let mode = Mode {
        session: 9,
        port: ALL_PORTS,
        snaplen_bytes: 64,
    };
    let capture = fixture.control.capture();
    capture.mode.store(mode.to_word(), Ordering::Relaxed);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = Writer::new(
        capture,
        fixture.control.ports.clone(),
        mode,
        &stop,
        Output::new(files, read_only, None),
    );
    let error = writer.run().unwrap_err();
    let CaptureError::Write(cause) = error else {
        panic!("{error}");
    };
    assert_eq!(cause.raw_os_error(), Some(libc::EBADF));
    assert!(!capture.is_on());
}

#[test]
fn f5_13_files_are_filled_in_turn_and_each_is_whole() {
    const MAX_BYTES: u64 = 100_000;
    let fixture = Fixture::new();
    let options = CaptureOptions {
        rotation: Rotation {
            max_bytes: Some(MAX_BYTES),
            files: 3,
        },
        ..fixture.options()
    };
    let numbered = |number: u32| match number {
        0 => fixture.path(),
        number => fixture.dir.path().join(format!("capture.pcapng.{number}")),
    };
    for (frames, bytes, expected) in [
        // Each takes its block of 44 bytes and the frame; at the end are three of 76.
        (60, 1514, &[60][..]),
        (70, 1514, &[63, 7]),
        (200, 1514, &[11, 63, 63]),
        // The longest frames there are: one to a file.
        (4, 65_558, &[1, 1, 1]),
    ] {
        for number in 0..4 {
            let _ = fs::remove_file(numbered(number));
        }
        fixture.control.start(&options).unwrap();
        for _ in 0..frames {
            fixture.pass(1, Direction::Rx, bytes);
        }
        let summary = fixture.control.stop().unwrap();
        assert_eq!((summary.frames, summary.dropped), (frames, 0));
        for (number, expected) in (0..).zip(expected) {
            let path = numbered(number);
            let metadata = fs::metadata(&path).unwrap();
            assert!(metadata.len() <= MAX_BYTES, "{metadata:?}");
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            let contents = contents(&path);
            assert_eq!(contents.packets.len(), *expected, "file {number}");
            let of_port = (u64::try_from(*expected).unwrap(), 0);
            assert_eq!(contents.statistics, [(0, 0), of_port, (0, 0)]);
            assert_eq!(contents.interfaces, 3);
        }
        let next = u32::try_from(expected.len()).unwrap();
        assert!(!numbered(next).exists());
    }
}

#[test]
fn f5_13_next_file_is_looked_at_like_the_first_and_found_where_the_first_is() {
    use std::os::unix::fs::symlink;

    let fixture = Fixture::new();
    let [here, there] = ["here", "there"].map(|name| fixture.dir.path().join(name));
    fs::create_dir(&here).unwrap();
    let options = CaptureOptions {
        path: here.join("c"),
        rotation: Rotation {
            max_bytes: Some(MIN_FILE_BYTES),
            files: 2,
        },
        ..fixture.options()
    };
    fixture.control.start(&options).unwrap();
    fs::rename(&here, &there).unwrap();
    for _ in 0..100 {
        fixture.pass(0, Direction::Tx, 1514);
    }
    assert_eq!(fixture.control.stop().unwrap().frames, 100);
    let [first, second] = ["c", "c.1"].map(|name| contents(&there.join(name)).packets.len());
    assert_eq!(first + second, 100);

    let victim = there.join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::remove_file(there.join("c.1")).unwrap();
    symlink(&victim, there.join("c.1")).unwrap();
    let options = CaptureOptions {
        path: there.join("c"),
        ..options
    };
    fixture.control.start(&options).unwrap();
    for _ in 0..100 {
        fixture.pass(0, Direction::Tx, 1514);
    }
    let error = fixture.control.stop().unwrap_err();
    assert!(matches!(error, CaptureError::Open { .. }), "{error}");
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    // What there is until then is whole.
    assert_eq!(contents(&there.join("c")).packets.len(), first);

    let long = CaptureOptions {
        path: there.join("c".repeat(254)),
        ..options
    };
    let error = fixture.control.start(&long).unwrap_err();
    assert!(matches!(error, CaptureError::Open { .. }), "{error}");
}

#[test]
fn mode_survives_its_word() {
    let mode = Mode {
        session: 0x1234,
        port: 0x5678,
        snaplen_bytes: 0x9abc_def0,
    };
    assert_eq!(Mode::from_word(mode.to_word()), mode);
    assert_eq!(mode.to_word(), 0x1234_5678_9abc_def0);
}

#[test]
fn f6_11_tcpdump_and_capinfos_read_the_file_and_count_the_same() {
    let fixture = Fixture::new();
    fixture.control.start(&fixture.options()).unwrap();
    for _ in 0..1_000 {
        fixture.pass(0, Direction::Tx, 60);
        fixture.pass(1, Direction::Rx, 60);
    }
    let summary = fixture.control.stop().unwrap();
    assert_eq!(summary.frames, 2_000);
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .arg(fixture.path())
            .output();
        output.ok().map(|output| {
            assert!(output.status.success(), "{program}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    };
    if let Some(text) = run("tcpdump", &["-n", "--nano", "-r"]) {
        let line = "IP 192.0.2.1.4096 > 192.0.2.2.8192: UDP, length 18";
        assert_eq!(text.lines().count(), 2_000);
        assert!(text.lines().all(|got| got.ends_with(line)), "{text}");
    } else {
        skipped("tcpdump");
    }
    if let Some(text) = run("capinfos", &["-M", "-c", "-I"]) {
        assert!(text.contains("Number of packets:   2000"), "{text}");
        assert!(text.contains("Number of interfaces in file: 3"), "{text}");
    } else {
        skipped("capinfos");
    }
}

/// A countable line; see `tests/run`.
fn skipped(tool: &str) {
    let line = format!("\nRINGSIDE-SKIP capture::tests: no {tool} here\n");
    let _ = io::stderr().write_all(line.as_bytes());
}
