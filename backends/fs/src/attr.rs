// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attributes of nodes as the guest sees them.

use std::time::Duration;

use rustix::fs::Statx;

use crate::idmap::IdMaps;
use crate::wire::flags::AttrFlags;
use crate::wire::reply::{Attr, Timeout};

/// Attributes of a node from those of the host, and flags that tell the guest more about it.
#[must_use]
pub fn attr(stat: &Statx, ids: &IdMaps, flags: AttrFlags) -> Attr {
    Attr {
        ino: stat.stx_ino,
        size_bytes: stat.stx_size,
        blocks: stat.stx_blocks,
        atime_s: stat.stx_atime.tv_sec.cast_unsigned(),
        mtime_s: stat.stx_mtime.tv_sec.cast_unsigned(),
        ctime_s: stat.stx_ctime.tv_sec.cast_unsigned(),
        atime_ns: stat.stx_atime.tv_nsec,
        mtime_ns: stat.stx_mtime.tv_nsec,
        ctime_ns: stat.stx_ctime.tv_nsec,
        mode: u32::from(stat.stx_mode),
        nlink: stat.stx_nlink,
        uid: ids.uid_to_guest(stat.stx_uid),
        gid: ids.gid_to_guest(stat.stx_gid),
        rdev: device_number(stat.stx_rdev_major, stat.stx_rdev_minor),
        block_size_bytes: stat.stx_blksize,
        flags,
    }
}

/// A device number as Linux packs it into 32 bits (`new_encode_dev`): 12 bits of major
/// number amid 20 of minor number.
#[must_use]
pub fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// Major and minor number of such a device number.
#[must_use]
pub fn device_parts(number: u32) -> (u32, u32) {
    let major = (number >> 8) & 0xfff;
    let minor = (number & 0xff) | ((number >> 12) & 0xf_ff00);
    (major, minor)
}

/// How long the guest may believe something.
#[must_use]
pub fn timeout(lasts: Duration) -> Timeout {
    Timeout {
        seconds: lasts.as_secs(),
        nanos: lasts.subsec_nanos(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{AtFlags, Timespec, Timestamps};

    use super::*;
    use crate::sys;

    #[test]
    fn attr_of_a_file_has_what_the_host_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"12345").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(-5, 1),
            last_modification: time(1 << 33, 2),
        };
        rustix::fs::utimensat(&file, c"", &times, AtFlags::EMPTY_PATH).unwrap();
        let stat = sys::statx_of(file.as_fd()).unwrap();
        let host = stat.stx_uid;
        let rule = format!("host:{host}:77:1").parse().unwrap();
        let ids = IdMaps::new(&[rule], &[]).unwrap();

        let attr = attr(&stat, &ids, AttrFlags::SUBMOUNT);

        assert_eq!(attr.ino, stat.stx_ino);
        assert_eq!(attr.size_bytes, 5);
        assert_eq!(attr.blocks, stat.stx_blocks);
        assert_eq!((attr.atime_s, attr.atime_ns), (5_u64.wrapping_neg(), 1));
        assert_eq!((attr.mtime_s, attr.mtime_ns), (1 << 33, 2));
        assert_eq!(attr.ctime_s, stat.stx_ctime.tv_sec.cast_unsigned());
        assert_eq!(attr.mode & 0o170_000, 0o100_000);
        assert_eq!((attr.nlink, attr.uid, attr.gid), (1, 77, stat.stx_gid));
        assert_eq!((attr.rdev, attr.flags), (0, AttrFlags::SUBMOUNT));
        assert_eq!(attr.block_size_bytes, stat.stx_blksize);
    }

    #[test]
    fn attr_of_a_device_has_its_number() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let stat = sys::statx_of(null.as_fd()).unwrap();
        let attr = attr(&stat, &IdMaps::default(), AttrFlags::empty());
        assert_eq!((attr.rdev, attr.flags), (0x103, AttrFlags::empty()));
    }

    #[test]
    fn device_number_of_all_bits_comes_back() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(0xabc, 0xd_ef12), 0xdefa_bc12);
        assert_eq!(device_parts(0xdefa_bc12), (0xabc, 0xd_ef12));
        assert_eq!(device_parts(u32::MAX), (0xfff, 0xf_ffff));
    }

    #[test]
    fn timeout_of_a_duration_is_exact() {
        let expected = Timeout {
            seconds: 1,
            nanos: 500_000_000,
        };
        assert_eq!(timeout(Duration::from_millis(1500)), expected);
    }
}
