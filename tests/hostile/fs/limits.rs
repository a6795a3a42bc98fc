// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G12: a guest that wants more than there is.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ringside_frontend::fuse::FuseClient;
use ringside_frontend::fuse::flags::{ROOT_NODE, opcode};
use ringside_tests::hostile::TestResult;
use ringside_tests::skip;

use crate::queues::Locked;
use crate::scene::{Scene, errno, is_root};

/// What fails when the limit is reached, and what must not.
fn goes_on(scene: &Scene, client: &mut FuseClient) -> TestResult {
    let queue = client.queue();
    fs::write(scene.host("there"), "there")?;
    queue.statfs(ROOT_NODE)?;
    queue.getattr(ROOT_NODE, None)?;
    queue.mkdir(ROOT_NODE, "dir", 0o755)?;
    queue.rmdir(ROOT_NODE, "dir")?;
    let entry = queue.lookup(ROOT_NODE, "there")?;
    queue.unlink(ROOT_NODE, "there")?;
    queue.forget(entry.node, 1)?;
    Ok(())
}

#[test]
fn g12_open_files_end_with_enfile_and_others_are_served() -> TestResult {
    let scene = Scene::start(&["--rlimit-nofile", "2000"])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let (file, first) = queue.create(ROOT_NODE, "file", 2, 0o600)?;
    let mut handles = vec![first.handle];
    let refused = loop {
        match queue.open(file.node, 0) {
            Ok(opened) => handles.push(opened.handle),
            Err(error) => break error.errno(),
        }
        assert!(handles.len() < 2000, "more than there are");
    };
    assert_eq!(refused, Some(libc::ENFILE));
    assert!(handles.len() > 100, "only {} files", handles.len());
    let created = queue.create(ROOT_NODE, "other", 2, 0o600);
    assert_eq!(errno(created), libc::ENFILE);
    assert!(!fs::exists(scene.host("other"))?);
    // A few are left for directories: there has to be a way to see what there is.
    let listed = queue.opendir(ROOT_NODE)?;
    queue.releasedir(ROOT_NODE, listed.handle)?;
    assert_eq!(errno(queue.tmpfile(ROOT_NODE, 2, 0o600)), libc::ENFILE);
    goes_on(&scene, &mut client)?;
    let queue = client.queue();
    for handle in handles {
        queue.release_file(file.node, handle)?;
    }
    let again = queue.open(file.node, 0)?;
    queue.release_file(file.node, again.handle)?;
    scene.check(client)
}

#[test]
fn g12_names_looked_up_take_no_descriptors() -> TestResult {
    if !is_root() {
        skip!("not root");
    }
    const NAMES: u32 = 20_000;
    let scene = Scene::start(&["--rlimit-nofile", "2000"])?;
    let mut client = scene.client()?;
    for number in 0..NAMES {
        fs::write(scene.host(&format!("{number}")), "")?;
    }
    let queue = client.queue();
    let nodes = (0..NAMES)
        .map(|number| Ok(queue.lookup(ROOT_NODE, format!("{number}"))?.node))
        .collect::<Result<Vec<_>, Box<dyn std::error::Error>>>()?;
    // All are known, those first looked up too.
    for (number, &node) in nodes.iter().enumerate() {
        let (attr, _) = queue.getattr(node, None)?;
        if number.is_multiple_of(1000) {
            let meta = fs::metadata(scene.host(&format!("{number}")))?;
            assert_eq!(attr.ino, meta.ino());
        }
    }
    for number in 0..NAMES {
        fs::remove_file(scene.host(&format!("{number}")))?;
    }
    scene.check(client)
}

#[test]
fn g12_names_that_take_descriptors_end_with_enfile_and_others_are_served() -> TestResult {
    let scene = Scene::start(&["--rlimit-nofile", "2000", "--inode-file-handles=never"])?;
    let mut client = scene.client()?;
    for number in 0..2000 {
        fs::write(scene.host(&format!("{number}")), "")?;
    }
    let queue = client.queue();
    let mut nodes = Vec::new();
    let refused = loop {
        match queue.lookup(ROOT_NODE, format!("{}", nodes.len())) {
            Ok(entry) => nodes.push(entry.node),
            Err(error) => break error.errno(),
        }
    };
    assert_eq!(refused, Some(libc::ENFILE));
    assert!(nodes.len() > 100, "only {} nodes", nodes.len());
    // What is known is served, and files can be opened: their descriptors are others.
    queue.getattr(nodes[0], None)?;
    let opened = queue.open(nodes[0], 0)?;
    queue.release_file(nodes[0], opened.handle)?;
    for node in nodes {
        queue.forget(node, 1)?;
    }
    goes_on(&scene, &mut client)?;
    scene.check(client)
}

/// Each owner of locks takes a descriptor.
#[test]
fn g12_owners_of_locks_end_with_enolck_and_others_are_served() -> TestResult {
    let scene = Scene::start(&["--posix-lock", "--rlimit-nofile", "2000"])?;
    let mut client = scene.client()?;
    let locked = Locked::on(&scene, &mut client)?;
    locked.unlock()?;
    let queue = client.queue();
    let lock = |owner| {
        let mut request = locked.wait_for(owner);
        request.opcode = opcode::SETLK;
        // Shared, so that all may have it.
        request.args[32..36].fill(0);
        request
    };
    let mut owners = 0;
    let refused = loop {
        match queue.call_empty(&lock(owners + 1)) {
            Ok(()) => owners += 1,
            Err(error) => break error.errno(),
        }
        assert!(owners < 2000, "more than there are");
    };
    assert_eq!(refused, Some(libc::ENOLCK));
    assert!(owners > 100, "only {owners} owners");
    goes_on(&scene, &mut client)?;
    let queue = client.queue();
    queue.flush(locked.node, locked.handle, 1)?;
    queue.call_empty(&lock(owners + 1))?;
    scene.check(client)
}
