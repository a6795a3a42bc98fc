// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G9 to G11: sizes, offsets and cookies that are out of range.

use std::collections::BTreeSet;
use std::fs;

use ringside_frontend::fuse::flags::{InitFlags, ROOT_NODE, opcode};
use ringside_frontend::fuse::types::CopyFileRange;
use ringside_frontend::fuse::{FuseQueue, Request};
use ringside_frontend::load::Rng;
use ringside_tests::covering;
use ringside_tests::hostile::{Result, TestResult};

use crate::scene::{Scene, bytes_of, errno, raw, refusal};

/// Node and handle of a file of the guest.
fn file(queue: &mut FuseQueue, content: &[u8]) -> Result<(u64, u64)> {
    let (entry, opened) = queue.create(ROOT_NODE, "file", 2, 0o600)?;
    queue.write(entry.node, opened.handle, 0, content)?;
    Ok((entry.node, opened.handle))
}

#[test]
fn g9_reads_of_any_size_give_what_there_is_and_there_is_room_for() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (node, handle) = file(queue, &[7; 10_000])?;
    for (size, room, expected) in [
        (u32::MAX, 100, 100),
        (u32::MAX, 20_000, 10_000),
        (1 << 31, 9_999, 9_999),
        (50, 100, 50),
        (0, 100, 0),
        (100, 0, 0),
    ] {
        let request = Request::read(node, handle, 0, size);
        let bytes = bytes_of(queue, &request, 90);
        let (header, used_len) = raw(queue, &bytes, 16 + room)?;
        assert_eq!((header.error, header.unique), (0, 90), "{size} bytes");
        assert_eq!((header.len_bytes, used_len), (16 + expected, 16 + expected));
    }
    for (offset, expected) in [
        (10_000, 0),
        (i64::MAX as u64 - 100, 0),
        (i64::MAX as u64, libc::EINVAL),
        (1 << 63, libc::EINVAL),
        (u64::MAX, libc::EINVAL),
        (u64::MAX - 50, libc::EINVAL),
    ] {
        let answer = queue.read(node, handle, offset, 100);
        assert_eq!(errno(answer), expected, "offset {offset}");
    }
    scene.check(client)
}

#[test]
fn g9_writes_that_have_not_the_size_they_say_are_refused() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (node, handle) = file(queue, b"content")?;
    for (claimed, data) in [
        (0, 1),
        (1, 0),
        (10, 9),
        (10, 11),
        (u32::MAX, 10),
        (u32::MAX, 0),
        (1 << 20, 50_000),
    ] {
        let mut bytes = bytes_of(queue, &Request::write(node, handle, 0, claimed), 91);
        bytes.resize(bytes.len() + data, 0xee);
        let len = u32::try_from(bytes.len())?;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        let answer = raw(queue, &bytes, 24)?;
        assert_eq!(answer, refusal(91, libc::EINVAL), "{claimed}, is {data}");
    }
    for offset in [1 << 63, u64::MAX] {
        let answer = queue.write(node, handle, offset, b"x");
        assert_eq!(errno(answer), libc::EINVAL, "offset {offset}");
    }
    let far = queue.write(node, handle, 1 << 62, b"x");
    assert_eq!(errno(far), libc::EFBIG);
    assert_eq!(queue.write(node, handle, 0, b"")?, 0);
    assert_eq!(fs::read(scene.host("file"))?, b"content");
    scene.check(client)
}

#[test]
fn g9_positions_and_ranges_out_of_range_are_refused() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (node, handle) = file(queue, b"content")?;
    for whence in [1, 5, 99, 1 << 31, u32::MAX] {
        let sought = queue.lseek(node, handle, 0, whence);
        assert_eq!(errno(sought), libc::EINVAL, "whence {whence}");
    }
    for offset in [7, 1 << 63, u64::MAX] {
        for whence in [3, 4] {
            let sought = queue.lseek(node, handle, offset, whence);
            assert_eq!(errno(sought), libc::ENXIO, "{offset}, whence {whence}");
        }
    }
    for (offset, len, mode, expected) in [
        (0, 0, 0, libc::EINVAL),
        (0, 1 << 63, 0, libc::EINVAL),
        (1 << 63, 1, 0, libc::EINVAL),
        (u64::MAX, u64::MAX, 0, libc::EINVAL),
        (i64::MAX as u64, i64::MAX as u64, 0, libc::EFBIG),
        (0, 10, u32::MAX, libc::EOPNOTSUPP),
        (0, 10, 2, libc::EOPNOTSUPP),
    ] {
        let answer = queue.fallocate(node, handle, offset, len, mode);
        assert_eq!(errno(answer), expected, "{offset} {len} {mode}");
    }
    let copy = CopyFileRange {
        handle_in: handle,
        node_out: node,
        handle_out: handle,
        len_bytes: 7,
        ..CopyFileRange::default()
    };
    let beyond = i64::MAX as u64;
    for (offset_in, offset_out, len, flags, expected) in [
        (0, 3, 7, 0, libc::EINVAL),
        (0, 0, 7, 0, libc::EINVAL),
        (1 << 63, 0, 7, 0, libc::EINVAL),
        (0, u64::MAX, 7, 0, libc::EINVAL),
        (0, 100, 7, 1, libc::EINVAL),
        (0, beyond, 7, 0, libc::EFBIG),
        (100, 200, u64::MAX, 0, 0),
    ] {
        for wide in [false, true] {
            let copy = CopyFileRange {
                offset_in_bytes: offset_in,
                offset_out_bytes: offset_out,
                len_bytes: len,
                flags,
                wide,
                ..copy
            };
            let answer = queue.copy_file_range(node, &copy);
            assert_eq!(errno(answer), expected, "{copy:?}");
        }
    }
    assert_eq!(fs::read(scene.host("file"))?, b"content");
    scene.check(client)
}

#[test]
fn g10_listings_of_any_size_have_whole_entries() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    for number in 0..100 {
        fs::write(scene.host(&format!("entry-{number}")), "")?;
    }
    let queue = client.queue();
    let handle = queue.opendir(ROOT_NODE)?.handle;
    for size in (0..300).chain([1000, 4096, 100_000]) {
        assert!(queue.readdir(ROOT_NODE, handle, 0, size)?.len() <= 102);
        let plus = queue.readdirplus(ROOT_NODE, handle, 0, size)?;
        for entry in plus.iter().filter_map(|entry| entry.entry) {
            if entry.node != 0 {
                queue.forget(entry.node, 1)?;
            }
        }
    }
    // More than there is room for, and more than anybody has.
    for opcode in [opcode::READDIR, opcode::READDIRPLUS] {
        for room in [0, 1, 23, 200] {
            let mut request = Request::readdir(ROOT_NODE, handle, 0, u32::MAX);
            request.opcode = opcode;
            let bytes = bytes_of(queue, &request, 92);
            let (header, used_len) = raw(queue, &bytes, 16 + room)?;
            assert_eq!((header.error, header.len_bytes), (0, used_len));
            assert!(used_len as usize <= 16 + room);
        }
    }
    queue.releasedir(ROOT_NODE, handle)?;
    scene.check(client)
}

#[test]
fn g10_cookies_of_any_value_are_answered_and_do_no_harm() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let mut expected = BTreeSet::from([b".".to_vec(), b"..".to_vec()]);
    for number in 0..300 {
        let name = format!("entry-{number}");
        fs::write(scene.host(&name), "")?;
        expected.insert(name.into_bytes());
    }
    let queue = client.queue();
    let handle = queue.opendir(ROOT_NODE)?.handle;
    let mut rng = Rng::new(10);
    for _ in 0..2000 {
        let cookie = rng.next_u64() >> rng.below(64);
        match errno(queue.readdir(ROOT_NODE, handle, cookie, 500)) {
            0 | libc::EINVAL => {}
            other => panic!("errno {other} for cookie {cookie}"),
        }
    }
    assert_eq!(listed(queue, handle, 700)?, expected);
    queue.releasedir(ROOT_NODE, handle)?;
    scene.check(client)
}

/// Lists a directory to its end; each name must come once.
fn listed(queue: &mut FuseQueue, handle: u64, size: u32) -> Result<BTreeSet<Vec<u8>>> {
    let (mut names, mut offset) = (BTreeSet::new(), 0);
    loop {
        let entries = queue.readdir(ROOT_NODE, handle, offset, size)?;
        let Some(last) = entries.last() else {
            return Ok(names);
        };
        offset = last.offset;
        for entry in entries {
            assert!(names.insert(entry.name.clone()), "{:?} twice", entry.name);
        }
    }
}

#[test]
fn g10_directory_that_changes_is_listed_to_its_end() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let dir = scene.host("");
    for number in 0..2000 {
        fs::write(dir.join(format!("stays-{number}")), "")?;
        fs::write(dir.join(format!("goes-{number}")), "")?;
    }
    let queue = client.queue();
    let handle = queue.opendir(ROOT_NODE)?.handle;
    let (mut names, mut offset, mut round) = (BTreeSet::new(), 0, 0);
    loop {
        let entries = queue.readdir(ROOT_NODE, handle, offset, 4096)?;
        let Some(last) = entries.last() else { break };
        offset = last.offset;
        names.extend(entries.into_iter().map(|entry| entry.name));
        for number in (round * 40..round * 40 + 40).filter(|&number| number < 2000) {
            fs::remove_file(dir.join(format!("goes-{number}")))?;
            fs::write(dir.join(format!("comes-{number}")), "")?;
        }
        round += 1;
        assert!(round < 10_000, "no end");
    }
    for number in 0..2000 {
        let name = format!("stays-{number}");
        assert!(names.contains(name.as_bytes()), "{name} is missing");
    }
    queue.releasedir(ROOT_NODE, handle)?;
    scene.check(client)
}

/// 10^6 entries with `RINGSIDE_FULL_MATRIX=1`, else fewer.
#[test]
fn g10_large_directory_is_listed_once() -> TestResult {
    let full = std::env::var_os(covering::FULL_VARIABLE).is_some();
    let entries = if full { 1_000_000 } else { 20_000 };
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let dir = rustix::fs::open(
        scene.host(""),
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    )?;
    for number in 0..entries {
        let kind = rustix::fs::FileType::RegularFile;
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(&dir, format!("{number}"), kind, mode, 0)?;
    }
    let queue = client.queue();
    let handle = queue.opendir(ROOT_NODE)?.handle;
    assert_eq!(listed(queue, handle, 100_000)?.len(), entries + 2);
    queue.releasedir(ROOT_NODE, handle)?;
    scene.check(client)
}

#[test]
fn g11_values_that_have_not_the_size_they_say_are_refused() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let flags = client.init.flags & !InitFlags::SETXATTR_EXT;
    client.initialise(flags)?;
    let queue = client.queue();
    let (node, _) = file(queue, b"")?;
    let sound = Request::setxattr(node, "user.a", b"value", 0, false);
    for claimed in [0, 4, 6, 65_536, u32::MAX] {
        let mut request = sound.clone();
        request.args[..4].copy_from_slice(&claimed.to_le_bytes());
        let answer = errno(queue.call(&request));
        let expected = if claimed == u32::MAX {
            libc::E2BIG
        } else {
            libc::EINVAL
        };
        assert_eq!(answer, expected, "{claimed} bytes claimed");
    }
    for flags in [4, 1 << 31, u32::MAX] {
        let answer = queue.setxattr(node, "user.a", b"value", flags);
        assert_eq!(errno(answer), libc::EINVAL, "flags {flags}");
    }
    let long = queue.setxattr(node, "user.a", &[1; 65_537], 0);
    assert_eq!(errno(long), libc::E2BIG);
    assert_eq!(queue.listxattr_size(node)?, 0);
    scene.check(client)
}

#[test]
fn g11_values_longer_than_the_room_are_erange() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (node, _) = file(queue, b"")?;
    queue.setxattr(node, "user.a", &[1; 1000], 0)?;
    let listing = |size| Request::listxattr(node, size);
    for (request, room, expected) in [
        (Request::getxattr(node, "user.a", u32::MAX), 999, Err(())),
        (Request::getxattr(node, "user.a", u32::MAX), 1000, Ok(1000)),
        (Request::getxattr(node, "user.a", 999), 5000, Err(())),
        (Request::getxattr(node, "user.a", 1000), 1000, Ok(1000)),
        (listing(u32::MAX), 6, Err(())),
        (listing(u32::MAX), 7, Ok(7)),
        (listing(6), 100, Err(())),
    ] {
        let bytes = bytes_of(queue, &request, 93);
        let (header, used_len) = raw(queue, &bytes, 16 + room)?;
        assert_eq!((header.unique, header.len_bytes), (93, used_len));
        let answer = match header.error {
            0 => Ok(used_len - 16),
            error if error == -libc::ERANGE => Err(()),
            other => return Err(format!("{request:?}: {other}").into()),
        };
        assert_eq!(answer, expected, "{request:?}, room for {room}");
    }
    scene.check(client)
}

#[test]
fn f7_6_guest_of_the_other_byte_order_is_refused_in_its_own_with_a_word_in_the_log() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    // FUSE_INIT 7.38 as s390x sends it: length, opcode, unique, node, ids and pid, then its fields.
    let mut bytes = Vec::new();
    for word in [104_u32, 26, 0, 77, 0, 0, 0, 0, 0, 0, 7, 38, 0x2_0000, !0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.resize(104, 0);
    for _ in 0..1000 {
        let (header, used_len) = raw(queue, &bytes, 16 + 64)?;
        let told = (header.len_bytes.swap_bytes(), header.error.swap_bytes());
        assert_eq!((told, used_len), ((16, -libc::EPROTO), 16));
        assert_eq!(header.unique.swap_bytes(), 77);
    }
    let log = scene.log();
    let lines = log.matches("big-endian").count();
    assert!((1..100).contains(&lines), "{log}");
    scene.check(client)
}
