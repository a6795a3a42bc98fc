// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G8: bits and attributes that give rights to whoever runs a file, and when they have to go.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use ringside_frontend::fuse::flags::{InitFlags, ROOT_NODE, SetAttrValid};
use ringside_frontend::fuse::types::SetAttr;
use ringside_frontend::fuse::{Caller, FuseQueue, Request};
use ringside_tests::hostile::{Result, TestResult};
use ringside_tests::skip;

use crate::scene::{Scene, errno, is_root};

/// Set-user-ID and set-group-ID, for all to run.
const PRIVILEGED: u32 = 0o6777;
/// `FUSE_WRITE_KILL_SUIDGID`
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID`
const OPEN_KILL_SUIDGID: u32 = 1;

/// CVE-2022-0358: in a directory that gives its group away, a caller who is not of that group must
/// not get a file that makes one of it.
#[test]
fn g8_set_group_id_of_a_group_the_caller_is_not_in_is_taken_off() -> TestResult {
    if !is_root() {
        skip!("not root");
    }
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    fs::create_dir(scene.host("dir"))?;
    chown(scene.host("dir"), Some(0), Some(5))?;
    fs::set_permissions(scene.host("dir"), fs::Permissions::from_mode(0o2777))?;
    let queue = client.queue();
    let dir = queue.lookup(ROOT_NODE, "dir")?.node;
    queue.caller = Caller {
        uid: 1000,
        gid: 1000,
        pid: 1,
    };
    queue.create(dir, "created", 2, 0o2775)?;
    queue.mknod(dir, "made", libc::S_IFREG | 0o2775, 0)?;
    for name in ["created", "made"] {
        let meta = fs::metadata(scene.host("dir").join(name))?;
        assert_eq!((meta.uid(), meta.gid()), (1000, 5), "{name}");
        assert_eq!(meta.mode() & 0o7000, 0, "{name}: {:o}", meta.mode());
    }
    // A directory hands it on.
    queue.mkdir(dir, "sub", 0o755)?;
    let meta = fs::metadata(scene.host("dir/sub"))?;
    assert_eq!((meta.gid(), meta.mode() & 0o7000), (5, 0o2000));
    queue.caller = Caller::default();
    scene.check(client)
}

#[test]
fn g8_callers_without_rights_on_the_host_make_nothing_there() -> TestResult {
    if !is_root() {
        skip!("not root");
    }
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    fs::set_permissions(scene.host(""), fs::Permissions::from_mode(0o755))?;
    let queue = client.queue();
    queue.caller = Caller {
        uid: 1000,
        gid: 1000,
        pid: 1,
    };
    assert_eq!(errno(queue.create(ROOT_NODE, "a", 2, 0o600)), libc::EACCES);
    assert_eq!(errno(queue.mkdir(ROOT_NODE, "a", 0o700)), libc::EACCES);
    // A device is nothing that a user makes, wherever it may write.
    fs::set_permissions(scene.host(""), fs::Permissions::from_mode(0o777))?;
    let device = queue.mknod(ROOT_NODE, "null", libc::S_IFCHR | 0o666, 0x103);
    assert_eq!(errno(device), libc::EPERM);
    queue.caller = Caller::default();
    scene.check(client)
}

/// A file with all such bits, open to write.
fn privileged(scene: &Scene, queue: &mut FuseQueue, name: &str) -> Result<(u64, u64)> {
    let (entry, opened) = queue.create(ROOT_NODE, name, 2, 0o777)?;
    queue.write(entry.node, opened.handle, 0, b"content")?;
    fs::set_permissions(scene.host(name), fs::Permissions::from_mode(PRIVILEGED))?;
    Ok((entry.node, opened.handle))
}

fn bits(scene: &Scene, name: &str) -> Result<u32> {
    Ok(fs::metadata(scene.host(name))?.mode() & 0o7000)
}

#[test]
fn g8_bits_go_when_the_guest_says_so() -> TestResult {
    if !is_root() {
        skip!("not root");
    }
    let scene = Scene::start(&["--killpriv-v2"])?;
    let mut client = scene.client()?;
    let agreed = client.init.flags;
    assert!(agreed.contains(InitFlags::HANDLE_KILLPRIV_V2));
    let queue = client.queue();
    // A write of a process that may keep them, and one of a process that may not.
    for (flags, expected) in [(0, 0o6000), (WRITE_KILL_SUIDGID, 0)] {
        let name = format!("write-{flags}");
        let (node, handle) = privileged(&scene, queue, &name)?;
        let mut request = Request::write(node, handle, 0, 3);
        request.args[20..24].copy_from_slice(&flags.to_le_bytes());
        queue.call_with(&request, b"abc")?;
        assert_eq!(bits(&scene, &name)?, expected, "{name}");
    }
    for (kills, expected) in [
        (SetAttrValid::empty(), 0o6000),
        (SetAttrValid::KILL_SUIDGID, 0),
    ] {
        let name = format!("truncate-{expected}");
        let (node, _) = privileged(&scene, queue, &name)?;
        let set = SetAttr {
            valid: SetAttrValid::SIZE | kills,
            ..SetAttr::default()
        };
        queue.setattr(node, &set)?;
        assert_eq!(bits(&scene, &name)?, expected, "{name}");
    }
    for (flags, expected) in [(0, 0o6000), (OPEN_KILL_SUIDGID, 0)] {
        let name = format!("open-{flags}");
        let (node, _) = privileged(&scene, queue, &name)?;
        let mut request = Request::open(node, 0o1002);
        request.args[4..].copy_from_slice(&flags.to_le_bytes());
        queue.call(&request)?;
        assert_eq!(bits(&scene, &name)?, expected, "{name}");
    }
    let (node, _) = privileged(&scene, queue, "chown")?;
    let set = SetAttr {
        valid: SetAttrValid::UID,
        uid: 1000,
        ..SetAttr::default()
    };
    queue.setattr(node, &set)?;
    assert_eq!(bits(&scene, "chown")?, 0);
    scene.check(client)
}

/// CVE-2021-20263: the capabilities of a file have another name on the host, which does not take
/// them off when the file changes.
#[test]
fn g8_capabilities_of_files_go_when_the_file_changes() -> TestResult {
    if !is_root() {
        skip!("not root");
    }
    const CAPABILITY: &str = "security.capability";
    let scene = Scene::start(&["--xattrmap", ":map::user.virtiofs.:"])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let value = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (entry, opened) = queue.create(ROOT_NODE, "file", 2, 0o755)?;
    let node = entry.node;
    let own = |valid| SetAttr {
        valid,
        ..SetAttr::default()
    };
    let changes = [
        Request::write(node, opened.handle, 0, 0),
        Request::setattr(node, &own(SetAttrValid::SIZE)),
        Request::setattr(node, &own(SetAttrValid::UID)),
        Request::open(node, 0o1002),
    ];
    for change in changes {
        queue.setxattr(node, CAPABILITY, &value, 0)?;
        let on_host = rustix::fs::getxattr(
            scene.host("file"),
            "user.virtiofs.security.capability",
            &mut [0; 64],
        );
        assert_eq!(on_host, Ok(20));
        queue.call(&change)?;
        let left = queue.getxattr(node, CAPABILITY, 64);
        assert_eq!(errno(left), libc::ENODATA, "operation {}", change.opcode);
    }
    scene.check(client)
}
