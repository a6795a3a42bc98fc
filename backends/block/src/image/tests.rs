// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images on the file systems of this machine, and beside the QEMU installed on it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::slow_path::{RangeLocks, SlowPath};

fn options(path: &Path) -> ImageOptions {
    ImageOptions {
        path: path.to_owned(),
        read_only: false,
        size_bytes: None,
        cache: CacheMode::Writeback,
        block_size_bytes: None,
        discard: DiscardMode::Unmap,
        lock: true,
    }
}

fn read_only(path: &Path) -> ImageOptions {
    ImageOptions {
        read_only: true,
        ..options(path)
    }
}

/// Opens an image that may be open in a process just forked by another test, until that execs.
fn open(options: &ImageOptions) -> Image {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match Image::open(options) {
            Err(ImageError::InUse { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

/// A directory whose file systems differ: a disk's and tmpfs.
fn dirs() -> Vec<TempDir> {
    let shm = Path::new("/dev/shm");
    let on_tmpfs = shm.is_dir().then(|| TempDir::new_in(shm).unwrap());
    std::iter::once(TempDir::new().unwrap())
        .chain(on_tmpfs)
        .collect()
}

fn image_file(dir: &TempDir, len_bytes: u64) -> PathBuf {
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(len_bytes).unwrap();
    path
}

fn skip(test: &str, reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "RINGSIDE-SKIP {test}: {reason}").unwrap();
}

#[test]
fn open_of_a_file_gives_its_size_and_block_sizes() {
    for dir in dirs() {
        let path = image_file(&dir, 1 << 20);
        let image = open(&options(&path));
        assert_eq!(image.capacity_sectors(), 2048);
        assert_eq!(image.topology().logical_block_bytes, 512);
        assert_eq!(image.topology().physical_block_bytes, 4096);
        let expected = Alignment {
            memory_bytes: 1,
            offset_bytes: 1,
            block_bytes: 512,
        };
        assert_eq!(image.alignment(), expected);
        assert!(image.can_discard());
        assert!(!image.is_read_only());
        assert_eq!(
            rustix::io::fcntl_getfd(&image).unwrap(),
            rustix::io::FdFlags::CLOEXEC
        );
        let flags = rustix::fs::fcntl_getfl(&image).unwrap();
        assert!(!flags.intersects(OFlags::NONBLOCK | OFlags::DIRECT));
    }
}

#[test]
fn open_changes_neither_content_nor_size_nor_blocks() {
    for dir in dirs() {
        for len in [0, 1, 4097, 100_000] {
            let path = dir.path().join("disk.raw");
            fs::write(&path, vec![0xab; len]).unwrap();
            let before = fs::metadata(&path).unwrap();
            for cache in [CacheMode::Writeback, CacheMode::None] {
                open(&ImageOptions {
                    cache,
                    ..options(&path)
                });
            }
            let after = fs::metadata(&path).unwrap();
            assert_eq!(
                (after.len(), after.blocks()),
                (before.len(), before.blocks())
            );
            assert_eq!(fs::read(&path).unwrap(), vec![0xab; len]);
        }
    }
}

#[test]
fn open_rounds_the_capacity_up_to_blocks() {
    let dir = TempDir::new().unwrap();
    for (len_bytes, block_size_bytes, sectors) in [
        (0, 512, 0),
        (1, 512, 1),
        (512, 512, 1),
        (513, 512, 2),
        (1, 4096, 8),
        (65537, 65536, 256),
    ] {
        let path = image_file(&dir, len_bytes);
        let block_size_bytes = Some(block_size_bytes);
        let image = open(&ImageOptions {
            block_size_bytes,
            ..options(&path)
        });
        assert_eq!(image.capacity_sectors(), sectors);
    }
}

#[test]
fn open_direct_keeps_to_what_the_file_demands() {
    for dir in dirs() {
        let path = image_file(&dir, (1 << 20) + 100);
        let image = open(&ImageOptions {
            cache: CacheMode::None,
            ..options(&path)
        });
        let Alignment {
            memory_bytes,
            offset_bytes,
            block_bytes,
        } = image.alignment();
        assert!(offset_bytes >= 512 && offset_bytes >= memory_bytes);
        assert_eq!(block_bytes, offset_bytes);
        assert_eq!(image.topology().logical_block_bytes, offset_bytes);
        assert!(
            rustix::fs::fcntl_getfl(&image)
                .unwrap()
                .contains(OFlags::DIRECT)
        );
        // The demands suffice.
        let locks: Arc<RangeLocks> = Arc::default();
        let path = SlowPath::new(&image, &locks);
        let flags = ReadWriteFlags::DSYNC;
        let mark = |_, bytes: &mut [u8]| {
            bytes.fill(7);
            Ok(())
        };
        path.write((1 << 20) - 512, 512, flags, &mut { mark })
            .unwrap();
        path.write(1, 2, flags, &mut { mark }).unwrap();
        let mut read = Vec::new();
        path.read(0, 1 << 20, &mut |_, bytes| {
            read.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        assert_eq!(read[..4], [0, 7, 7, 0]);
        assert_eq!(read[(1 << 20) - 513..], [&[0][..], &[7; 512]].concat());
    }
}

#[test]
fn write_into_the_tail_never_grows_the_capacity() {
    let dir = TempDir::new().unwrap();
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let path = image_file(&dir, 4096 + 100);
        let block_size_bytes = Some(512);
        let image = open(&ImageOptions {
            cache,
            block_size_bytes,
            ..options(&path)
        });
        let capacity_sectors = image.capacity_sectors();
        let locks: Arc<RangeLocks> = Arc::default();
        let path = SlowPath::new(&image, &locks);
        path.write(4096, 512, ReadWriteFlags::empty(), &mut |_, bytes| {
            bytes.fill(7);
            Ok(())
        })
        .unwrap();
        assert_eq!(image.refresh().unwrap(), capacity_sectors);
    }
}

#[test]
fn open_of_a_bad_block_size_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = image_file(&dir, 4096);
    for block_size_bytes in [0, 1, 256, 513, 1536, 1 << 17, 1 << 31, u32::MAX] {
        let options = ImageOptions {
            block_size_bytes: Some(block_size_bytes),
            ..options(&path)
        };
        let error = Image::open(&options).unwrap_err();
        assert!(
            matches!(error, ImageError::BlockSize { block_size_bytes: b } if b == block_size_bytes)
        );
    }
}

#[test]
fn open_of_another_file_type_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RWXU).unwrap();
    for path in [fifo.as_path(), dir.path(), Path::new("/dev/null")] {
        for options in [options(path), read_only(path)] {
            let error = Image::open(&options).unwrap_err();
            assert!(matches!(error, ImageError::FileType { .. }), "{error}");
        }
    }
}

#[test]
fn open_of_a_missing_image_creates_it_only_with_a_size() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("new.raw");
    let is_missing = |error| {
        matches!(
            error,
            ImageError::Open {
                source: Errno::NOENT,
                ..
            }
        )
    };
    assert!(is_missing(Image::open(&options(&path)).unwrap_err()));
    let size_bytes = Some(1 << 30);
    assert!(is_missing(
        Image::open(&ImageOptions {
            size_bytes,
            ..read_only(&path)
        })
        .unwrap_err()
    ));
    let odd = Image::open(&ImageOptions {
        size_bytes: Some(1000),
        ..options(&path)
    })
    .unwrap_err();
    assert!(matches!(
        odd,
        ImageError::Size {
            size_bytes: 1000,
            block_size_bytes: 512
        }
    ));
    assert!(!path.exists());

    let image = open(&ImageOptions {
        size_bytes,
        ..options(&path)
    });
    assert_eq!(image.capacity_sectors(), 1 << 21);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.blocks(), metadata.permissions().mode() & 0o777),
        (0, 0o600)
    );
    drop(image);

    // An existing image keeps its size.
    let size_bytes = Some(1 << 31);
    let image = open(&ImageOptions {
        size_bytes,
        ..options(&path)
    });
    assert_eq!(image.capacity_sectors(), 1 << 21);
}

#[test]
fn create_of_an_impossible_size_leaves_no_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("new.raw");
    let size_bytes = Some(1 << 63);
    let error = Image::open(&ImageOptions {
        size_bytes,
        ..options(&path)
    })
    .unwrap_err();
    assert!(matches!(error, ImageError::Create { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn e15_content_that_looks_like_a_format_is_plain_bytes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.raw");
    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.resize(1024, 0);
    fs::write(&path, &header).unwrap();
    let image = open(&options(&path));
    assert_eq!(image.capacity_sectors(), 2);
    let mut read = vec![0; 1024];
    assert_eq!(image.read_at(&mut read, 0), Ok(1024));
    assert_eq!(read, header);
}

#[test]
fn j5_refresh_follows_the_size_and_resize_sets_it() {
    let dir = TempDir::new().unwrap();
    let path = image_file(&dir, 1 << 20);
    let image = open(&options(&path));
    let file = File::options().write(true).open(&path).unwrap();
    for (len_bytes, sectors) in [(2 << 20, 4096), (512, 1), (513, 2), (0, 0)] {
        file.set_len(len_bytes).unwrap();
        assert_eq!(image.refresh().unwrap(), sectors);
        assert_eq!(image.capacity_sectors(), sectors);
    }
    assert_eq!(image.resize(3 << 20).unwrap(), 6144);
    assert_eq!(file.metadata().unwrap().len(), 3 << 20);
    let odd = image.resize(1000).unwrap_err();
    assert!(matches!(
        odd,
        ImageError::Size {
            size_bytes: 1000,
            block_size_bytes: 512
        }
    ));
    assert!(matches!(
        image.resize(1 << 63).unwrap_err(),
        ImageError::Resize { .. }
    ));
    assert_eq!(image.capacity_sectors(), 6144);
    drop(image);
    let image = open(&read_only(&path));
    assert!(matches!(
        image.resize(512).unwrap_err(),
        ImageError::NotResizable { .. }
    ));
}

#[test]
fn zeroing_and_discarding_leave_zeroes_and_nothing_else_changed() {
    for dir in dirs() {
        for unmap in [false, true] {
            let path = dir.path().join("disk.raw");
            fs::write(&path, vec![9; 1 << 20]).unwrap();
            let image = open(&options(&path));
            let blocks_before = fs::metadata(&path).unwrap().blocks();
            let locks: Arc<RangeLocks> = Arc::default();
            let slow_path = SlowPath::new(&image, &locks);
            slow_path
                .write_zeroes(512, 1 << 18, unmap, ReadWriteFlags::empty())
                .unwrap();
            slow_path.discard(1 << 19, 1 << 18).unwrap();
            let mut expected = vec![9; 1 << 20];
            expected[512..512 + (1 << 18)].fill(0);
            expected[1 << 19..3 << 18].fill(0);
            assert!(fs::read(&path).unwrap() == expected, "unmap {unmap}");
            let freed = blocks_before - fs::metadata(&path).unwrap().blocks();
            let least = if unmap { 900 } else { 512 };
            assert!(freed >= least, "{freed} of {blocks_before}");
        }
    }
}

#[test]
fn discard_that_is_ignored_or_impossible_is_not_offered() {
    let dir = TempDir::new().unwrap();
    let path = image_file(&dir, 4096);
    let ignore = ImageOptions {
        discard: DiscardMode::Ignore,
        ..options(&path)
    };
    assert!(!open(&ignore).can_discard());
    assert!(!open(&read_only(&path)).can_discard());
}

#[test]
fn read_only_image_is_not_written() {
    let dir = TempDir::new().unwrap();
    let path = image_file(&dir, 4096);
    let image = open(&read_only(&path));
    assert!(image.is_read_only());
    assert_eq!(
        image.write_at(&[1], 0, ReadWriteFlags::empty()),
        Err(Errno::BADF)
    );
}

#[test]
fn anonymous_image_is_zero_and_resizable() {
    let image = Image::anonymous(1 << 20, Some(4096)).unwrap();
    assert_eq!(image.capacity_sectors(), 2048);
    assert_eq!(image.topology().logical_block_bytes, 4096);
    assert!(image.can_discard());
    let mut read = vec![1; 4096];
    assert_eq!(image.read_at(&mut read, 0), Ok(4096));
    assert_eq!(read, [0; 4096]);
    assert_eq!(image.resize(2 << 20).unwrap(), 4096);
    let odd = Image::anonymous(1000, None).unwrap_err();
    assert!(matches!(odd, ImageError::Size { .. }));
}

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

/// A loop device over a file, gone when dropped.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn over(file: &Path, arguments: &[&str]) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(arguments)
            .arg(file)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let path = String::from_utf8(output.stdout).unwrap().trim().into();
        Some(Self { path })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        drop(
            Command::new("losetup")
                .arg("--detach")
                .arg(&self.path)
                .status(),
        );
    }
}

#[test]
fn block_device_is_served_to_its_limits() {
    const TEST: &str = "block_device_is_served_to_its_limits";
    let dir = TempDir::new().unwrap();
    let file = image_file(&dir, 1 << 20);
    let Some(device) = LoopDevice::over(&file, &["--sector-size", "4096"]) else {
        return skip(TEST, "no loop device to be had");
    };
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let image = open(&ImageOptions {
            cache,
            ..options(&device.path)
        });
        assert_eq!(image.capacity_sectors(), 2048);
        assert_eq!(image.topology().logical_block_bytes, 4096);
        assert!(image.can_discard());
        let error = Image::open(&options(&device.path)).unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::InUse {
                    permission: "write",
                    ..
                }
            ),
            "{error}"
        );
        assert!(matches!(
            image.resize(4096).unwrap_err(),
            ImageError::NotResizable { .. }
        ));
        check_device_io(&image);
    }
}

fn check_device_io(image: &Image) {
    let locks: Arc<RangeLocks> = Arc::default();
    let path = SlowPath::new(image, &locks);
    path.write(0, 1 << 20, ReadWriteFlags::empty(), &mut |_, bytes| {
        bytes.fill(9);
        Ok(())
    })
    .unwrap();
    path.write_zeroes(512, 512, false, ReadWriteFlags::empty())
        .unwrap();
    path.write_zeroes(4096, 4096, true, ReadWriteFlags::empty())
        .unwrap();
    path.write_zeroes(8192, 4096, false, ReadWriteFlags::empty())
        .unwrap();
    path.discard(16384 + 512, 8192).unwrap();
    rustix::fs::fdatasync(image).unwrap();
    let mut read = Vec::new();
    path.read(0, 1 << 20, &mut |_, bytes| {
        read.extend_from_slice(bytes);
        Ok(())
    })
    .unwrap();
    let mut expected = vec![9; 1 << 20];
    expected[512..1024].fill(0);
    expected[4096..12288].fill(0);
    expected[20480..24576].fill(0);
    assert!(read == expected, "{:?}", image.cache());
    let beyond = path.read(1 << 20, 512, &mut |_, _| Ok(()));
    assert_eq!(
        beyond,
        Err(crate::slow_path::SlowPathError::EndOfImage { offset: 1 << 20 })
    );
}

#[test]
fn read_only_block_device_is_refused_for_writing() {
    const TEST: &str = "read_only_block_device_is_refused_for_writing";
    let dir = TempDir::new().unwrap();
    let file = image_file(&dir, 1 << 20);
    let Some(device) = LoopDevice::over(&file, &["--read-only"]) else {
        return skip(TEST, "no loop device to be had");
    };
    let error = Image::open(&options(&device.path)).unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::ReadOnlyDevice { .. }
                | ImageError::Open {
                    source: Errno::ACCESS | Errno::PERM | Errno::ROFS,
                    ..
                }
        ),
        "{error}"
    );
    assert_eq!(open(&read_only(&device.path)).capacity_sectors(), 2048);
}

#[test]
fn block_device_that_grew_is_seen_by_refresh() {
    const TEST: &str = "block_device_that_grew_is_seen_by_refresh";
    let dir = TempDir::new().unwrap();
    let file = image_file(&dir, 1 << 20);
    let Some(device) = LoopDevice::over(&file, &[]) else {
        return skip(TEST, "no loop device to be had");
    };
    let image = open(&options(&device.path));
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    let status = Command::new("losetup")
        .arg("--set-capacity")
        .arg(&device.path)
        .status();
    assert!(status.unwrap().success());
    assert_eq!(image.refresh().unwrap(), 4096);
}

#[test]
fn e12_direct_unaligned_writes_of_two_threads_lose_no_update() {
    let dir = TempDir::new().unwrap();
    let path = image_file(&dir, 8192);
    let image = open(&ImageOptions {
        cache: CacheMode::None,
        ..options(&path)
    });
    let locks: Arc<RangeLocks> = Arc::default();
    std::thread::scope(|scope| {
        for half in 0..2_u64 {
            let slow_path = SlowPath::new(&image, &locks);
            scope.spawn(move || {
                for round in 0..=250_u8 {
                    let flags = ReadWriteFlags::empty();
                    slow_path
                        .write(half * 256, 256, flags, &mut |_, bytes| {
                            bytes.fill(round);
                            Ok(())
                        })
                        .unwrap();
                    slow_path
                        .read(half * 256, 256, &mut |_, bytes| {
                            assert_eq!(bytes, [round; 256]);
                            Ok(())
                        })
                        .unwrap();
                }
            });
        }
    });
    let mut read = vec![0; 513];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut read, 0)
        .unwrap();
    assert_eq!(read, [&[250; 512][..], &[0]].concat());
}
