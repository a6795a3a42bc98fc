// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G3: nodes and handles that the guest was never given, has given back, or that are of another
//! kind.

use std::fs;

use ringside_frontend::fuse::flags::{ROOT_NODE, SetAttrValid, opcode};
use ringside_frontend::fuse::types::{CopyFileRange, SetAttr};
use ringside_frontend::fuse::{FuseQueue, Request};
use ringside_tests::hostile::TestResult;

use crate::scene::{Scene, errno};

/// Requests about a node alone.
fn about_node(node: u64) -> Vec<Request> {
    let set = SetAttr {
        valid: SetAttrValid::MODE,
        mode: 0,
        ..SetAttr::default()
    };
    vec![
        Request::lookup(node, "x"),
        Request::getattr(node, None),
        Request::getattr(node, Some(1)),
        Request::setattr(node, &set),
        Request::statx(node, None, 0, 0xfff),
        Request::readlink(node),
        Request::symlink(node, "x", "y"),
        Request::mknod(node, "x", libc::S_IFREG, 0, 0),
        Request::mkdir(node, "x", 0o755, 0),
        Request::unlink(node, "x"),
        Request::rmdir(node, "x"),
        Request::rename((node, "x"), (ROOT_NODE, "y"), 0),
        Request::rename((ROOT_NODE, "x"), (node, "y"), 0),
        Request::link(node, ROOT_NODE, "y"),
        Request::link(ROOT_NODE, node, "y"),
        Request::open(node, 0),
        Request::opendir(node, 0),
        Request::create(node, "x", 2, 0o600, 0),
        Request::tmpfile(node, 2, 0o600, 0),
        Request::statfs(node),
        Request::access(node, 0),
        Request::syncfs(node),
        Request::setxattr(node, "user.a", b"v", 0, false),
        Request::getxattr(node, "user.a", 64),
        Request::listxattr(node, 64),
        Request::removexattr(node, "user.a"),
        Request::ioctl(node, 0, 0x8008_6601, &[], 8),
    ]
}

/// Requests about an open file.
fn about_file(node: u64, handle: u64) -> Vec<Request> {
    let copy = |handle_in, handle_out| CopyFileRange {
        handle_in,
        node_out: node,
        handle_out,
        len_bytes: 1,
        ..CopyFileRange::default()
    };
    vec![
        Request::read(node, handle, 0, 10),
        Request::write(node, handle, 0, 10),
        Request::fallocate(node, handle, 0, 10, 0),
        Request::lseek(node, handle, 0, 3),
        Request::copy_file_range(node, &copy(handle, handle)),
    ]
}

fn refused(queue: &mut FuseQueue, requests: Vec<Request>, expected: i32, what: &str) {
    for request in requests {
        let answer = errno(queue.call(&request));
        let opcode = request.opcode;
        assert_eq!(answer, expected, "operation {opcode} on {what}");
    }
}

#[test]
fn g3_nodes_never_given_or_forgotten_are_enoent() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    // The session is told of the longer form; these requests have the shorter.
    let flags = client.init.flags & !ringside_frontend::fuse::flags::InitFlags::SETXATTR_EXT;
    client.initialise(flags)?;
    fs::write(scene.host("file"), "content")?;
    let forgotten = client.queue().lookup(ROOT_NODE, "file")?.node;
    client.forget(forgotten, 1)?;
    let before = scene.all_told()?;
    let queue = client.queue();
    for node in [0, 2, 3, 1 << 20, 1 << 32, 1 << 63, u64::MAX, forgotten] {
        let what = format!("node {node}");
        refused(queue, about_node(node), libc::ENOENT, &what);
        refused(queue, about_file(node, 1), libc::EBADF, &what);
    }
    assert_eq!(scene.all_told()?, before);
    scene.check(client)
}

#[test]
fn g3_handles_never_given_released_or_of_another_node_are_ebadf() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (file, opened) = queue.create(ROOT_NODE, "file", 2, 0o600)?;
    let (other, of_other) = queue.create(ROOT_NODE, "other", 2, 0o600)?;
    let released = queue.open(file.node, 2)?.handle;
    queue.release_file(file.node, released)?;
    let again = queue.release_file(file.node, released);
    assert_eq!(errno(again), libc::EBADF);
    let root = queue.opendir(ROOT_NODE)?.handle;
    for handle in [0, 77, 1 << 32, u64::MAX, released, of_other.handle, root] {
        let mut requests = about_file(file.node, handle);
        requests.push(Request::fsync(file.node, handle, false));
        requests.push(Request::fsyncdir(file.node, handle, true));
        requests.push(Request::readdir(file.node, handle, 0, 1000));
        requests.push(Request::readdirplus(file.node, handle, 0, 1000));
        if handle != 0 {
            requests.push(Request::release(file.node, handle, 0));
        }
        refused(queue, requests, libc::EBADF, &format!("handle {handle}"));
    }
    for (node, handle) in [(file.node, opened.handle), (other.node, of_other.handle)] {
        assert_eq!(queue.write(node, handle, 0, b"mine")?, 4);
        queue.release_file(node, handle)?;
    }
    queue.releasedir(ROOT_NODE, root)?;
    scene.check(client)
}

#[test]
fn g3_handles_of_the_other_kind_are_refused() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (file, opened) = queue.create(ROOT_NODE, "file", 2, 0o600)?;
    let root = queue.opendir(ROOT_NODE)?.handle;
    refused(
        queue,
        about_file(ROOT_NODE, root),
        libc::EISDIR,
        "a directory",
    );
    for request in [
        Request::readdir(file.node, opened.handle, 0, 1000),
        Request::readdirplus(file.node, opened.handle, 0, 1000),
        Request::opendir(file.node, 0),
    ] {
        assert_eq!(errno(queue.call(&request)), libc::ENOTDIR);
    }
    let opened_dir = queue.open(ROOT_NODE, 0);
    assert_eq!(errno(opened_dir), libc::EISDIR);
    for request in [
        Request::lookup(file.node, "x"),
        Request::mkdir(file.node, "x", 0o755, 0),
        Request::create(file.node, "x", 2, 0o600, 0),
        Request::unlink(file.node, "x"),
        Request::rename((file.node, "x"), (ROOT_NODE, "y"), 0),
        Request::symlink(file.node, "x", "y"),
    ] {
        assert_eq!(errno(queue.call(&request)), libc::ENOTDIR);
    }
    assert_eq!(errno(queue.readlink(file.node)), libc::ENOENT);
    scene.check(client)
}

#[test]
fn g3_forgetting_more_than_was_told_takes_nothing_else_away() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    for name in ["a", "b"] {
        fs::write(scene.host(name), name)?;
    }
    let kept = client.queue().lookup(ROOT_NODE, "b")?.node;
    // `nlookup` is the guest's word alone: whatever it says, no more than that node goes.
    for too_many in [2, u64::from(u32::MAX), 1 << 63, u64::MAX] {
        let node = client.queue().lookup(ROOT_NODE, "a")?.node;
        client.forget(node, too_many)?;
        client.forget(node, too_many)?;
        let queue = client.queue();
        assert_eq!(errno(queue.getattr(node, None)), libc::ENOENT);
        let again = queue.lookup(ROOT_NODE, "a")?;
        assert_ne!(again.node, node);
        client.forget(again.node, 1)?;
    }
    for root in [0, 1, u64::MAX] {
        client.forget(ROOT_NODE, root)?;
    }
    client.forget(0, u64::MAX)?;
    let queue = client.queue();
    for node in [ROOT_NODE, kept] {
        assert_eq!(errno(queue.getattr(node, None)), 0);
    }
    // None at all is none.
    client.forget(kept, 0)?;
    assert_eq!(errno(client.queue().getattr(kept, None)), 0);
    scene.check(client)
}

#[test]
fn g3_batches_that_claim_other_than_they_have_are_ignored() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    fs::write(scene.host("a"), "a")?;
    let node = client.queue().lookup(ROOT_NODE, "a")?.node;
    for count in [0, 2, 1 << 16, 1 << 28, u32::MAX] {
        let mut request = Request::batch_forget(&[(node, 1)]);
        request.args[..4].copy_from_slice(&count.to_le_bytes());
        client.hiprio.send(&request)?;
        client.queue().send(&request)?;
        let known = client.queue().getattr(node, None);
        assert_eq!(errno(known), 0, "{count} entries claimed");
    }
    let mut many = vec![(0, u64::MAX); 1000];
    many.push((ROOT_NODE, u64::MAX));
    many.push((node, 1));
    client.queue().send(&Request::batch_forget(&many))?;
    let gone = client.queue().getattr(node, None);
    assert_eq!(errno(gone), libc::ENOENT);
    scene.check(client)
}

#[test]
fn g3_open_file_outlives_its_node() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (file, opened) = queue.create(ROOT_NODE, "file", 2, 0o600)?;
    queue.write(file.node, opened.handle, 0, b"content")?;
    queue.unlink(ROOT_NODE, "file")?;
    queue.forget(file.node, 1)?;
    assert_eq!(queue.read(file.node, opened.handle, 0, 7)?, b"content");
    assert_eq!(errno(queue.getattr(file.node, None)), libc::ENOENT);
    queue.release_file(file.node, opened.handle)?;
    let read = queue.read(file.node, opened.handle, 0, 7);
    assert_eq!(errno(read), libc::EBADF);
    scene.check(client)
}

#[test]
fn g3_interrupts_of_requests_that_are_not_there_are_ignored() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    for unique in [0, 1, 2, u64::MAX] {
        client.hiprio.send(&Request::interrupt(unique))?;
        client.queue().send(&Request::interrupt(unique))?;
    }
    let odd = Request::new(opcode::INTERRUPT, 0, vec![0; 7], 0);
    client.queue().send(&odd)?;
    scene.check(client)
}
