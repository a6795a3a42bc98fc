// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G1, G2, G15 and G16: requests that are none, operations that are not served, replies without
//! room.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use ringside_frontend::fuse::flags::{InitFlags, ROOT_NODE, opcode};
use ringside_frontend::fuse::{FuseClient, Request};
use ringside_fs::wire::limits::has_reply;
use ringside_tests::hostile::TestResult;
use ringside_tests::process::flood;

use crate::scene::{Scene, UNTOUCHED, bytes_of, config, errno, raw, refusal};

#[test]
fn g1_requests_without_a_whole_header_come_back_unanswered() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let whole = bytes_of(queue, &Request::statfs(ROOT_NODE), 77);
    for len in 0..40 {
        for room in [1, 15, 16, 96] {
            let (header, used_len) = raw(queue, &whole[..len], room)?;
            assert_eq!(used_len, 0, "{len} bytes, room for {room}");
            if room >= 16 {
                assert_eq!(header, UNTOUCHED, "{len} bytes, room for {room}");
            }
        }
    }
    assert_eq!(raw(queue, &whole, 96)?.1, 96);
    scene.check(client)
}

#[test]
fn g1_length_that_is_not_that_of_the_request_is_refused() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let whole = bytes_of(queue, &Request::getattr(ROOT_NODE, None), 77);
    assert_eq!(whole.len(), 56);
    let beyond = (1 << 20) + 4096 + 1;
    for claimed in [0, 1, 16, 39, 40, 55, 57, beyond, 1 << 31, u32::MAX] {
        let mut wrong = whole.clone();
        wrong[..4].copy_from_slice(&claimed.to_le_bytes());
        assert_eq!(
            raw(queue, &wrong, 120)?,
            refusal(77, libc::EINVAL),
            "claims {claimed} bytes"
        );
    }
    // More bytes than are claimed.
    for more in [1, 4, 4096, 100_000] {
        let mut wrong = whole.clone();
        wrong.resize(56 + more, 0);
        let answer = raw(queue, &wrong, 120)?;
        assert_eq!(answer, refusal(77, libc::EINVAL), "{more} bytes more");
    }
    scene.check(client)
}

#[test]
fn g1_arguments_too_short_or_too_long_are_refused() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let fixed = [
        Request::getattr(ROOT_NODE, None),
        Request::open(ROOT_NODE, 0),
        Request::opendir(ROOT_NODE, 0),
        Request::read(ROOT_NODE, 1, 0, 0),
        Request::readdir(ROOT_NODE, 1, 0, 0),
        Request::release(ROOT_NODE, 1, 0),
        Request::flush(ROOT_NODE, 1, 0),
        Request::fsync(ROOT_NODE, 1, false),
        Request::lseek(ROOT_NODE, 1, 0, 3),
        Request::fallocate(ROOT_NODE, 1, 0, 1, 0),
        Request::access(ROOT_NODE, 0),
        Request::syncfs(ROOT_NODE),
        Request::statx(ROOT_NODE, None, 0, 0),
        Request::listxattr(ROOT_NODE, 0),
    ];
    for request in fixed {
        for len in [0, 1, request.args.len() - 1, request.args.len() + 1, 4000] {
            let mut wrong = request.clone();
            wrong.args.resize(len, 0);
            let bytes = bytes_of(queue, &wrong, 78);
            assert_eq!(
                raw(queue, &bytes, 400)?,
                refusal(78, libc::EINVAL),
                "operation {} with {len} bytes",
                request.opcode
            );
        }
    }
    scene.check(client)
}

#[test]
fn g2_operations_unknown_or_not_served_are_enosys() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let unknown = [0, 7, 19, opcode::BMAP, opcode::POLL];
    let unknown = unknown.into_iter().chain(54..=200);
    let unknown = unknown.chain([4096, 0x100_0003, 1 << 31, u32::MAX]);
    for opcode in unknown {
        for args in [0, 8, 48] {
            let request = Request::new(opcode, ROOT_NODE, vec![0; args], 200);
            let answer = queue.call(&request);
            assert_eq!(errno(answer), libc::ENOSYS, "operation {opcode}");
        }
    }
    scene.check(client)
}

#[test]
fn g2_operations_before_init_are_answered_and_init_still_works() -> TestResult {
    let scene = Scene::start(&[])?;
    let stream = UnixStream::connect(scene.socket())?;
    let mut client = FuseClient::without_init(stream, &config())?;
    let queue = client.queue();
    for opcode in (0..60).filter(|&opcode| opcode != opcode::INIT) {
        for args in [0, 8, 16, 40, 48, 64, 88] {
            let request = Request::new(opcode, ROOT_NODE, vec![0; args], 0);
            if has_reply(opcode) {
                let bytes = bytes_of(queue, &request, 79);
                let (header, used_len) = raw(queue, &bytes, 400)?;
                assert_eq!((header.unique, header.len_bytes), (79, used_len));
            } else {
                let bytes = bytes_of(queue, &request, 79);
                assert_eq!(raw(queue, &bytes, 400)?, (UNTOUCHED, 0));
            }
        }
    }
    // What the root is depends on nothing that is agreed on.
    assert_eq!(errno(queue.getattr(ROOT_NODE, None)), 0);
    client.initialise(config().init_flags)?;
    scene.check(client)
}

#[test]
fn g2_second_init_begins_a_session_without_what_the_first_knew() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    std::fs::write(scene.host("file"), "content")?;
    let entry = client.queue().lookup(ROOT_NODE, "file")?;
    let opened = client.queue().open(entry.node, 0)?;
    client.initialise(config().init_flags)?;
    let queue = client.queue();
    let node = entry.node;
    assert_eq!(errno(queue.getattr(node, None)), libc::ENOENT);
    assert_eq!(errno(queue.read(node, opened.handle, 0, 7)), libc::EBADF);
    let closed = queue.release_file(node, opened.handle);
    assert_eq!(errno(closed), libc::EBADF);
    let again = queue.lookup(ROOT_NODE, "file")?;
    assert_ne!(again.node, node);
    scene.check(client)
}

#[test]
fn g2_init_of_other_versions_is_answered_as_the_protocol_says() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    // `fuse.h` FUSE_INIT: a major number too new is answered with ours, and asked again.
    for (major, minor, expected) in [
        (0, 0, Err(libc::EPROTO)),
        (6, 45, Err(libc::EPROTO)),
        (7, 0, Err(libc::EPROTO)),
        (7, 26, Err(libc::EPROTO)),
        (7, 27, Ok((7, 45))),
        (7, u32::MAX, Ok((7, 45))),
        (8, 0, Ok((7, 45))),
        (u32::MAX, u32::MAX, Ok((7, 45))),
    ] {
        let mut request = Request::init(config().init_flags);
        request.args[..4].copy_from_slice(&major.to_le_bytes());
        request.args[4..8].copy_from_slice(&minor.to_le_bytes());
        let answer = queue.call(&request);
        let version = match answer {
            Ok(reply) => Ok((
                u32::from_le_bytes(reply[..4].try_into()?),
                u32::from_le_bytes(reply[4..8].try_into()?),
            )),
            other => Err(errno(other)),
        };
        assert_eq!(version, expected, "version {major}.{minor}");
    }
    client.initialise(config().init_flags)?;
    // All flags there are, and none.
    client.initialise(InitFlags::from_bits_retain(u64::MAX))?;
    client.initialise(InitFlags::empty())?;
    assert_eq!(client.init.flags, InitFlags::empty());
    client.initialise(config().init_flags)?;
    scene.check(client)
}

#[test]
fn f2_6_init_again_and_again_is_told_of_once_a_second() -> TestResult {
    let none = InitFlags::empty();
    for (args, minor, flags, word) in [
        (&[][..], 0, config().init_flags, "is too old"),
        (&[], 45, none, "agreed to"),
        (&["--posix-acl"], 45, none, "no POSIX ACLs, and must"),
        (
            &["--security-label"],
            45,
            none,
            "no security labels, and must",
        ),
        (&["--posix-acl=auto"], 45, none, "no POSIX ACLs: going on"),
        (
            &["--security-label=auto"],
            45,
            none,
            "no security labels: going on",
        ),
    ] {
        let scene = Scene::start(args)?;
        let mut client = scene.client()?;
        let mut request = Request::init(flags);
        request.args[4..8].copy_from_slice(&u32::to_le_bytes(minor));
        let start = Instant::now();
        for _ in 0..2000 {
            let _ = client.queue().call(&request);
        }
        let log = scene.log();
        let lines = log.matches(word).count();
        let seconds = usize::try_from(start.elapsed().as_secs())?;
        // Two more for the sessions before.
        assert!(
            (1..=seconds + 4).contains(&lines),
            "{lines} in {seconds} s: {word}"
        );
        assert_eq!(flood(&log), None);
        client.initialise(config().init_flags)?;
        scene.check(client)?;
    }
    Ok(())
}

#[test]
fn f2_6_all_that_the_guest_lacks_is_told_of_at_once() -> TestResult {
    let scene = Scene::start(&["--posix-acl=auto", "--security-label=auto"])?;
    let mut client = scene.client()?;
    client.initialise(InitFlags::empty())?;
    let log = scene.log();
    for word in ["no POSIX ACLs", "no security labels"] {
        assert_eq!(log.matches(word).count(), 1, "{word}: {log}");
    }
    client.initialise(config().init_flags)?;
    scene.check(client)
}

#[test]
fn g15_mappings_without_a_window_are_enosys() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (entry, opened) = queue.create(ROOT_NODE, "file", 2, 0o600)?;
    let mut setup = opened.handle.to_le_bytes().to_vec();
    for field in [0_u64, 4096, 3, 0] {
        setup.extend(field.to_le_bytes());
    }
    let mut remove = 1_u32.to_le_bytes().to_vec();
    remove.extend([0; 16]);
    for (opcode, args) in [
        (opcode::SETUPMAPPING, setup),
        (opcode::REMOVEMAPPING, remove),
    ] {
        let request = Request::new(opcode, entry.node, args, 0);
        assert_eq!(errno(queue.call(&request)), libc::ENOSYS);
    }
    scene.check(client)
}

#[test]
fn g16_reply_without_room_for_its_header_is_not_written_and_nothing_is_done() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let make = bytes_of(queue, &Request::mkdir(ROOT_NODE, "made", 0o755, 0), 80);
    for room in 1..16 {
        let slot = queue.acquire()?;
        queue.submit_bytes(slot, &make, room)?;
        queue.publish()?;
        assert_eq!(queue.wait()?.used_len, 0, "room for {room}");
        let header = queue.reply_header(slot);
        let seen = header.len_bytes.to_le_bytes();
        assert!(seen[..room.min(4)].iter().all(|&byte| byte == 0xa5));
        queue.release(slot);
    }
    // Nothing to write at all.
    assert_eq!(raw(queue, &make, 0)?.1, 0);
    assert!(!scene.host("made").exists());
    scene.check(client)
}

#[test]
fn g16_reply_with_too_little_room_is_refused_before_anything_is_done() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let cases = [
        (Request::mkdir(ROOT_NODE, "made", 0o755, 0), 144),
        (Request::create(ROOT_NODE, "made", 2, 0o600, 0), 160),
        (
            Request::mknod(ROOT_NODE, "made", libc::S_IFREG | 0o600, 0, 0),
            144,
        ),
        (Request::symlink(ROOT_NODE, "made", "there"), 144),
        (Request::getattr(ROOT_NODE, None), 120),
        (Request::statfs(ROOT_NODE), 96),
        (Request::statx(ROOT_NODE, None, 0, 0xfff), 304),
        (Request::opendir(ROOT_NODE, 0), 32),
    ];
    for (request, needed) in cases {
        let bytes = bytes_of(queue, &request, 81);
        for room in [16, 17, 24, needed - 1] {
            assert_eq!(
                raw(queue, &bytes, room)?,
                refusal(81, libc::EINVAL),
                "operation {} with room for {room}",
                request.opcode
            );
        }
        assert_eq!(std::fs::read_dir(scene.host(""))?.count(), 0);
        // Exactly enough, and more than enough: of that nothing is written.
        let (header, used_len) = raw(queue, &bytes, needed)?;
        assert_eq!((header.error, used_len as usize), (0, needed));
        if scene.host("made").is_dir() {
            std::fs::remove_dir(scene.host("made"))?;
        } else if std::fs::symlink_metadata(scene.host("made")).is_ok() {
            std::fs::remove_file(scene.host("made"))?;
        }
    }
    scene.check(client)
}

#[test]
fn g16_nothing_is_written_behind_the_reply() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let bytes = bytes_of(queue, &Request::statfs(ROOT_NODE), 82);
    let slot = queue.acquire()?;
    queue.submit_bytes(slot, &bytes, 1000)?;
    queue.publish()?;
    assert_eq!(queue.wait()?.used_len, 96);
    let mut payload = [0; 984];
    queue.read_reply(slot, &mut payload);
    assert_eq!(payload[80..], [0xa5; 904]);
    queue.release(slot);
    scene.check(client)
}
