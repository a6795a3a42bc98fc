// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G5: ways out of the share that are there already: links, and the directory above.

use std::fs;
use std::os::unix::fs::symlink;

use ringside_frontend::fuse::Request;
use ringside_frontend::fuse::flags::{InitFlags, ROOT_NODE, SetAttrValid};
use ringside_frontend::fuse::types::{SetAttr, Time};
use ringside_tests::fs_back_end::{FsBackEnd, FsProgram};
use ringside_tests::hostile::TestResult;
use ringside_tests::skip;

use crate::scene::{Scene, config, errno, is_root};

#[test]
fn g5_symbolic_links_out_of_the_share_are_links_and_no_more() -> TestResult {
    if !is_root() {
        skip!("not root");
    }
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    symlink("../outside", scene.host("up"))?;
    symlink(scene.outside("outside"), scene.host("absolute"))?;
    symlink("../outside/secret", scene.host("file"))?;
    symlink("../outside/new", scene.host("dangling"))?;
    symlink("/proc/self/root", scene.host("magic"))?;
    symlink(".", scene.host("here"))?;
    symlink("loop", scene.host("loop"))?;
    let before = scene.outside_told()?;
    let queue = client.queue();
    for link in [
        "up", "absolute", "file", "dangling", "magic", "here", "loop",
    ] {
        let entry = queue.lookup(ROOT_NODE, link)?;
        assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK, "{link}");
        let node = entry.node;
        for (request, expected) in [
            (Request::lookup(node, "secret"), libc::ENOTDIR),
            (Request::mkdir(node, "made", 0o755, 0), libc::ENOTDIR),
            (Request::create(node, "made", 2, 0o600, 0), libc::ENOTDIR),
            (Request::unlink(node, "secret"), libc::ENOTDIR),
            (Request::open(node, 0), libc::ELOOP),
            (Request::open(node, 0o1001), libc::ELOOP),
            (Request::opendir(node, 0), libc::ELOOP),
            (Request::tmpfile(node, 2, 0o600, 0), libc::ENOTDIR),
            // The guest is to look again: there is something by that name.
            (Request::create(ROOT_NODE, link, 2, 0o600, 0), libc::ESTALE),
            (
                Request::create(ROOT_NODE, link, 2 | 0o1000, 0o600, 0),
                libc::ESTALE,
            ),
            (
                Request::mknod(ROOT_NODE, link, libc::S_IFREG, 0, 0),
                libc::EEXIST,
            ),
            (Request::ioctl(node, 0, 0x8008_6601, &[], 8), libc::ELOOP),
        ] {
            let answer = errno(queue.call(&request));
            assert_eq!(answer, expected, "operation {} on {link}", request.opcode);
        }
        changes_the_link_at_most(queue, node);
    }
    assert_eq!(scene.outside_told()?, before);
    scene.check(client)
}

/// What changes attributes does it to the link itself, or not at all.
fn changes_the_link_at_most(queue: &mut ringside_frontend::fuse::FuseQueue, node: u64) {
    let all = [
        (SetAttrValid::MODE, libc::EOPNOTSUPP),
        (SetAttrValid::SIZE, libc::EINVAL),
        (SetAttrValid::UID | SetAttrValid::GID, 0),
        (SetAttrValid::ATIME | SetAttrValid::MTIME, 0),
    ];
    for (valid, expected) in all {
        let set = SetAttr {
            valid,
            mode: 0o777,
            uid: 1234,
            gid: 1234,
            mtime: Time::new(1, 0),
            ..SetAttr::default()
        };
        assert_eq!(errno(queue.setattr(node, &set)), expected, "{valid:?}");
    }
    let set = queue.setxattr(node, "user.a", b"value", 0);
    assert_eq!(errno(set), libc::EPERM);
}

#[test]
fn g5_hard_link_to_a_symbolic_link_is_to_the_link() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    symlink("../outside/secret", scene.host("link"))?;
    let before = scene.outside_told()?;
    let queue = client.queue();
    let node = queue.lookup(ROOT_NODE, "link")?.node;
    let hard = queue.link(node, ROOT_NODE, "hard")?;
    assert_eq!(hard.node, node);
    assert!(fs::symlink_metadata(scene.host("hard"))?.is_symlink());
    assert_eq!(scene.outside_told()?, before);
    scene.check(client)
}

#[test]
fn g5_directory_above_the_root_is_the_root() -> TestResult {
    let scene = Scene::start(&["--export"])?;
    let mut client = scene.client()?;
    let flags = client.init.flags;
    assert!(flags.contains(InitFlags::EXPORT_SUPPORT));
    let queue = client.queue();
    let root = queue.getattr(ROOT_NODE, None)?.0.ino;
    for name in [".", ".."] {
        let entry = queue.lookup(ROOT_NODE, name)?;
        assert_eq!((entry.node, entry.attr.ino), (ROOT_NODE, root), "{name}");
    }
    let dir = queue.mkdir(ROOT_NODE, "dir", 0o755)?;
    let deep = queue.mkdir(dir.node, "deep", 0o755)?;
    assert_eq!(queue.lookup(deep.node, "..")?.node, dir.node);
    assert_eq!(queue.lookup(dir.node, "..")?.node, ROOT_NODE);
    // These two are still no names of anything else.
    for name in [".", ".."] {
        let made = queue.mkdir(ROOT_NODE, name, 0o755);
        assert_eq!(errno(made), libc::EINVAL);
        let gone = queue.rmdir(dir.node, name);
        assert_eq!(errno(gone), libc::EINVAL);
    }
    scene.check(client)
}

#[test]
fn g5_directory_moved_out_of_the_share_does_not_lead_on_from_there() -> TestResult {
    let scene = Scene::start(&["--export"])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let dir = queue.mkdir(ROOT_NODE, "dir", 0o755)?;
    let deep = queue.mkdir(dir.node, "deep", 0o755)?;
    fs::rename(scene.host("dir"), scene.outside("outside/dir"))?;
    for node in [dir.node, deep.node] {
        let above = queue.lookup(node, "..");
        assert_eq!(errno(above), libc::ESTALE);
    }
    scene.check(client)
}

/// The links below `/proc/<pid>` lead anywhere, whatever they say; a share of `/proc` has them.
#[test]
fn g5_magic_links_lead_nowhere() -> TestResult {
    let scene = Scene::start(&[])?;
    let client = scene.client()?;
    let args = ["--xattr", "--num-request-queues", "2"];
    let proc = std::path::Path::new("/proc");
    let back_end = FsBackEnd::start_program(FsProgram::Ringside, proc, &args)?;
    let mut guest = ringside_frontend::fuse::FuseClient::connect(&back_end.socket(), &config())?;
    let queue = guest.queue();
    let pid = back_end.process().id().to_string();
    let process = queue.lookup(ROOT_NODE, &pid)?.node;
    for name in ["root", "cwd", "exe"] {
        let link = queue.lookup(process, name)?;
        assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK, "{name}");
        let below = queue.lookup(link.node, "etc");
        assert_eq!(errno(below), libc::ENOTDIR, "{name}");
        assert_eq!(errno(queue.opendir(link.node)), libc::ELOOP, "{name}");
        assert_eq!(errno(queue.open(link.node, 0)), libc::ELOOP, "{name}");
    }
    drop(guest);
    drop(back_end);
    scene.check(client)
}
