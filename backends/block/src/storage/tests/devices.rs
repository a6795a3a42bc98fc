// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host block devices.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::io::{Errno, ReadWriteFlags};
use tempfile::TempDir;

use super::{image_file, open, options, read_only, skip};
use crate::storage::{Bounce, BounceError, CacheMode, Image, ImageError, ImageOptions, RangeLocks};

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
    let bounce = Bounce::new(image, &locks);
    bounce
        .write(0, 1 << 20, ReadWriteFlags::empty(), &mut |_, bytes| {
            bytes.fill(9);
            Ok(())
        })
        .unwrap();
    bounce
        .write_zeroes(512, 512, false, ReadWriteFlags::empty())
        .unwrap();
    bounce
        .write_zeroes(4096, 4096, true, ReadWriteFlags::empty())
        .unwrap();
    bounce
        .write_zeroes(8192, 4096, false, ReadWriteFlags::empty())
        .unwrap();
    bounce.discard(16384 + 512, 8192).unwrap();
    rustix::fs::fdatasync(image).unwrap();
    let mut read = Vec::new();
    bounce
        .read(0, 1 << 20, &mut |_, bytes| {
            read.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    let mut expected = vec![9; 1 << 20];
    expected[512..1024].fill(0);
    expected[4096..12288].fill(0);
    expected[20480..24576].fill(0);
    assert!(read == expected, "{:?}", image.cache());
    let beyond = bounce.read(1 << 20, 512, &mut |_, _| Ok(()));
    assert_eq!(beyond, Err(BounceError::EndOfImage { offset: 1 << 20 }));
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
