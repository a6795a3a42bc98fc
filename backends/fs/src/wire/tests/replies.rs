// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The layout of each reply, from `fuse.h`, written and read back.

use std::fmt::Debug;

use super::super::dirents::{DirEntries, DirEntry};
use super::super::flags::{AttrFlags, InitFlags, IoctlFlags, OpenOutFlags};
use super::super::operation::Time;
use super::super::reply::{
    Attr, AttrOut, CopiedWide, Created, Entry, InitOut, IoctlOut, Lock, Lseek, Opened, StatFs,
    Statx, Timeout, Written, XattrSize,
};
use super::client::{ReplyBody, parse_dirents, parse_dirents_plus};
use super::{d, q, s, w};

/// `bytes` are what `body` is written as, and what it is read from; cut or longer they are not.
fn check<T: ReplyBody + Debug + PartialEq>(body: T, written: &[u8], expected: &[u8]) {
    assert_eq!(written, expected);
    assert_eq!(T::parse(written), Ok(body));
    T::parse(&written[1..]).unwrap_err();
    T::parse(&[written, &[0]].concat()).unwrap_err();
}

fn attr() -> Attr {
    Attr {
        ino: 1,
        size_bytes: 2,
        blocks: 3,
        atime_s: 4,
        mtime_s: 5,
        ctime_s: 6,
        atime_ns: 7,
        mtime_ns: 8,
        ctime_ns: 9,
        mode: 10,
        nlink: 11,
        uid: 12,
        gid: 13,
        rdev: 14,
        block_size_bytes: 15,
        flags: AttrFlags::SUBMOUNT | AttrFlags::DAX,
    }
}

/// `struct fuse_attr`.
fn attr_bytes() -> Vec<u8> {
    [
        // ino, size, blocks, atime, mtime, ctime
        [q(1), q(2), q(3), q(4), q(5), q(6)].concat(),
        // atimensec, mtimensec, ctimensec, mode, nlink
        [d(7), d(8), d(9), d(10), d(11)].concat(),
        // uid, gid, rdev, blksize, flags
        [d(12), d(13), d(14), d(15), d(3)].concat(),
    ]
    .concat()
}

fn entry() -> Entry {
    Entry {
        node: 21,
        generation: 22,
        entry_timeout: Timeout {
            seconds: 23,
            nanos: 25,
        },
        attr_timeout: Timeout {
            seconds: 24,
            nanos: 26,
        },
        attr: attr(),
    }
}

/// `struct fuse_entry_out`.
fn entry_bytes() -> Vec<u8> {
    // nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, attr
    [q(21), q(22), q(23), q(24), d(25), d(26), attr_bytes()].concat()
}

#[test]
fn entries_and_attributes_have_the_layout_of_fuse_h() {
    assert_eq!(entry_bytes().len(), 128);
    check(entry(), &entry().to_bytes(), &entry_bytes());

    let out = AttrOut {
        timeout: Timeout {
            seconds: 31,
            nanos: 32,
        },
        attr: attr(),
    };
    // attr_valid, attr_valid_nsec, dummy, attr
    let bytes = [q(31), d(32), d(0), attr_bytes()].concat();
    assert_eq!(bytes.len(), 104);
    check(out, &out.to_bytes(), &bytes);
}

#[test]
fn what_opens_has_the_layout_of_fuse_h() {
    let opened = Opened {
        handle: 41,
        flags: OpenOutFlags::KEEP_CACHE | OpenOutFlags::PARALLEL_DIRECT_WRITES,
    };
    // fh, open_flags, backing_id
    let bytes = [q(41), d(0x42), d(0)].concat();
    check(opened, &opened.to_bytes(), &bytes);

    let created = Created {
        entry: entry(),
        opened,
    };
    let bytes = [entry_bytes(), bytes].concat();
    assert_eq!(bytes.len(), 144);
    check(created, &created.to_bytes(), &bytes);
}

#[test]
fn statx_has_the_layout_of_fuse_h() {
    let statx = Statx {
        timeout: Timeout {
            seconds: 1,
            nanos: 2,
        },
        mask: 3,
        block_size_bytes: 4,
        attributes: 5,
        nlink: 6,
        uid: 7,
        gid: 8,
        mode: 9,
        ino: 10,
        size_bytes: 11,
        blocks: 12,
        attributes_mask: 13,
        atime: Time::new(u64::MAX, 15),
        btime: Time::new(16, 17),
        ctime: Time::new(18, 19),
        mtime: Time::new(20, 21),
        rdev_major: 22,
        rdev_minor: 23,
        dev_major: 24,
        dev_minor: 25,
    };
    let bytes = [
        // attr_valid, attr_valid_nsec, flags, spare
        [q(1), d(2), d(0), q(0), q(0)].concat(),
        // mask, blksize, attributes, nlink, uid, gid, mode, __spare0
        [d(3), d(4), q(5), d(6), d(7), d(8), w(9), w(0)].concat(),
        // ino, size, blocks, attributes_mask
        [q(10), q(11), q(12), q(13)].concat(),
        // atime, btime, ctime, mtime: tv_sec, tv_nsec, __reserved
        [q(u64::MAX), d(15), d(0), q(16), d(17), d(0)].concat(),
        [q(18), d(19), d(0), q(20), d(21), d(0)].concat(),
        // rdev_major, rdev_minor, dev_major, dev_minor, __spare2
        [d(22), d(23), d(24), d(25), vec![0; 14 * 8]].concat(),
    ]
    .concat();
    assert_eq!(bytes.len(), 288);
    check(statx, &statx.to_bytes(), &bytes);
}

#[test]
fn init_has_the_layout_of_fuse_h() {
    let init = InitOut {
        major: 7,
        minor: 45,
        max_readahead_bytes: 1,
        flags: InitFlags::ASYNC_READ | InitFlags::SECURITY_CTX | InitFlags::REQUEST_TIMEOUT,
        max_background: 2,
        congestion_threshold: 3,
        max_write_bytes: 4,
        time_gran_ns: 5,
        max_pages: 6,
        map_alignment: 7,
        max_stack_depth: 8,
        request_timeout_s: 9,
    };
    let bytes = [
        // major, minor, max_readahead, flags, max_background, congestion_threshold
        [d(7), d(45), d(1), d(1), w(2), w(3)].concat(),
        // max_write, time_gran, max_pages, map_alignment, flags2
        [d(4), d(5), w(6), w(7), d(0x401)].concat(),
        // max_stack_depth, request_timeout, unused
        [d(8), w(9), vec![0; 11 * 2]].concat(),
    ]
    .concat();
    assert_eq!(bytes.len(), 64);
    check(init, &init.to_bytes(), &bytes);
}

#[test]
fn statfs_has_the_layout_of_fuse_h() {
    let statfs = StatFs {
        blocks: 1,
        blocks_free: 2,
        blocks_available: 3,
        files: 4,
        files_free: 5,
        block_size_bytes: 6,
        name_max_bytes: 7,
        fragment_size_bytes: 8,
    };
    let bytes = [
        // blocks, bfree, bavail, files, ffree
        [q(1), q(2), q(3), q(4), q(5)].concat(),
        // bsize, namelen, frsize, padding, spare
        [d(6), d(7), d(8), d(0), vec![0; 6 * 4]].concat(),
    ]
    .concat();
    assert_eq!(bytes.len(), 80);
    check(statfs, &statfs.to_bytes(), &bytes);
}

#[test]
fn small_replies_have_the_layout_of_fuse_h() {
    let written = Written { size_bytes: 1 };
    check(written, &written.to_bytes(), &[d(1), d(0)].concat());
    let xattr = XattrSize { size_bytes: 2 };
    check(xattr, &xattr.to_bytes(), &[d(2), d(0)].concat());
    let copied = CopiedWide {
        size_bytes: 1 << 40,
    };
    check(copied, &copied.to_bytes(), &q(1 << 40));
    let lseek = Lseek {
        offset_bytes: 1 << 41,
    };
    check(lseek, &lseek.to_bytes(), &q(1 << 41));
    let lock = Lock {
        start: 1,
        end: 2,
        kind: 3,
        pid: 4,
    };
    // start, end, type, pid
    let bytes = [q(1), q(2), d(3), d(4)].concat();
    check(lock, &lock.to_bytes(), &bytes);
    let ioctl = IoctlOut {
        result: -2,
        flags: IoctlFlags::RETRY,
    };
    // result, flags, in_iovs, out_iovs
    let bytes = [d(u32::MAX - 1), d(4), d(0), d(0)].concat();
    check(ioctl, &ioctl.to_bytes(), &bytes);
}

const FIRST: DirEntry<'static> = DirEntry {
    ino: 1,
    next_offset: 2,
    kind: 4,
    name: b"12345678",
};
const SECOND: DirEntry<'static> = DirEntry {
    ino: 3,
    next_offset: u64::MAX,
    kind: 8,
    name: b"x",
};

#[test]
fn listing_has_the_layout_of_fuse_h() {
    let mut out = vec![0xaa];
    let mut entries = DirEntries::new(&mut out, 64);
    assert!(entries.add(&FIRST));
    assert!(entries.add(&SECOND));
    // ino, off, namelen, type, name, padding to 8 bytes
    let bytes = [
        [q(1), q(2), d(8), d(4), s(b"12345678")].concat(),
        [q(3), q(u64::MAX), d(1), d(8), s(b"x\0\0\0\0\0\0\0")].concat(),
    ]
    .concat();
    assert_eq!((out[0], &out[1..]), (0xaa, bytes.as_slice()));
    assert_eq!(parse_dirents(&bytes), Ok(vec![FIRST, SECOND]));
    parse_dirents(&bytes[..63]).unwrap_err();
}

#[test]
fn listing_with_nodes_has_the_layout_of_fuse_h() {
    let mut out = Vec::new();
    let mut entries = DirEntries::new(&mut out, 320);
    let none = Entry::default();
    assert!(entries.add_plus(&entry(), &FIRST));
    assert!(entries.add_plus(&none, &SECOND));
    let bytes = [
        entry_bytes(),
        [q(1), q(2), d(8), d(4), s(b"12345678")].concat(),
        vec![0; 128],
        [q(3), q(u64::MAX), d(1), d(8), s(b"x\0\0\0\0\0\0\0")].concat(),
    ]
    .concat();
    assert_eq!(out, bytes);
    let read = parse_dirents_plus(&bytes);
    assert_eq!(read, Ok(vec![(entry(), FIRST), (none, SECOND)]));
}

#[test]
fn listing_that_is_full_takes_nothing_more() {
    for (limit_bytes, expected) in [(0, 0), (1, 0), (31, 0), (32, 1), (63, 1), (64, 2), (95, 2)] {
        let mut out = Vec::new();
        let mut entries = DirEntries::new(&mut out, limit_bytes);
        let mut taken = 0;
        while taken < 10 && entries.add(&SECOND) {
            taken += 1;
        }
        assert!(!entries.fits(1, false));
        assert_eq!((taken, out.len()), (expected, expected * 32));
    }
    let mut out = Vec::new();
    let mut entries = DirEntries::new(&mut out, 159);
    assert_eq!(
        (entries.fits(1, true), entries.fits(1, false)),
        (false, true)
    );
    assert!(!entries.add_plus(&entry(), &SECOND));
    assert!(out.is_empty());
    assert!(DirEntries::new(&mut out, 160).fits(1, true));
    assert!(!DirEntries::new(&mut out, usize::MAX).fits(usize::MAX, true));
}
