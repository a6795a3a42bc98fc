// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images on the file systems of this machine, and beside the QEMU installed on it.

mod devices;
mod locks;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use tempfile::TempDir;

use super::*;

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
        let path = Bounce::new(&image, &locks);
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
        let path = Bounce::new(&image, &locks);
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
            let bounce = Bounce::new(&image, &locks);
            bounce
                .write_zeroes(512, 1 << 18, unmap, ReadWriteFlags::empty())
                .unwrap();
            bounce.discard(1 << 19, 1 << 18).unwrap();
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
            let bounce = Bounce::new(&image, &locks);
            scope.spawn(move || {
                for round in 0..=250_u8 {
                    let flags = ReadWriteFlags::empty();
                    bounce
                        .write(half * 256, 256, flags, &mut |_, bytes| {
                            bytes.fill(round);
                            Ok(())
                        })
                        .unwrap();
                    bounce
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
