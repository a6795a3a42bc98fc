// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G4: names that are none, in every operation that takes one.

use std::fs;

use ringside_frontend::fuse::flags::{ROOT_NODE, opcode};
use ringside_frontend::fuse::{FuseQueue, Request};
use ringside_tests::hostile::{Result, TestResult};

use crate::scene::{Scene, errno};

/// The operations with names, and where in them the hostile one is.
const OPERATIONS: [(&str, Named); 13] = [
    ("LOOKUP", |_, name| Request::lookup(ROOT_NODE, name)),
    ("MKNOD", |_, name| {
        Request::mknod(ROOT_NODE, name, libc::S_IFREG | 0o600, 0, 0)
    }),
    ("MKDIR", |_, name| Request::mkdir(ROOT_NODE, name, 0o700, 0)),
    ("SYMLINK", |_, name| {
        Request::symlink(ROOT_NODE, name, "target")
    }),
    ("LINK", |known, name| {
        Request::link(known.file, ROOT_NODE, name)
    }),
    ("CREATE", |_, name| {
        Request::create(ROOT_NODE, name, 2, 0o600, 0)
    }),
    ("UNLINK", |_, name| Request::unlink(ROOT_NODE, name)),
    ("RMDIR", |_, name| Request::rmdir(ROOT_NODE, name)),
    ("RENAME from", |known, name| {
        rename(known.dir, name, b"moved")
    }),
    ("RENAME to", |known, name| rename(known.dir, b"file", name)),
    ("RENAME2 from", |known, name| {
        Request::rename((ROOT_NODE, name), (known.dir, "moved"), 1)
    }),
    ("RENAME2 to", |known, name| {
        Request::rename((ROOT_NODE, "file"), (known.dir, name), 1)
    }),
    // Exchanges, so that both names are old and new.
    ("RENAME2 exchange", |known, name| {
        Request::rename((ROOT_NODE, name), (known.dir, name), 2)
    }),
];

/// A request with a name.
type Named = fn(&Known, &[u8]) -> Request;

/// Nodes that requests refer to.
struct Known {
    /// `file` in the root.
    file: u64,
    /// `a` in the root.
    dir: u64,
}

/// `FUSE_RENAME`, the form without flags, out of the root.
fn rename(to: u64, name: &[u8], new_name: &[u8]) -> Request {
    let mut args = to.to_le_bytes().to_vec();
    for name in [name, new_name] {
        args.extend_from_slice(name);
        args.push(0);
    }
    Request::new(opcode::RENAME, ROOT_NODE, args, 0)
}

/// What hostile names would find, were they resolved: inside, in the directory above, in the root
/// of the host.
fn targets(scene: &Scene, queue: &mut FuseQueue) -> Result<Known> {
    fs::create_dir(scene.host("a"))?;
    fs::write(scene.host("a/b"), "inside")?;
    fs::write(scene.host("file"), "inside")?;
    Ok(Known {
        file: queue.lookup(ROOT_NODE, "file")?.node,
        dir: queue.lookup(ROOT_NODE, "a")?.node,
    })
}

#[test]
fn g4_names_that_are_none_are_refused_and_nothing_anywhere_changes() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let known = targets(&scene, queue)?;
    let absolute = scene.outside("x").into_os_string().into_encoded_bytes();
    let (long, far) = ([b'n'; 256], [b'n'; 4096]);
    let names: [(&[u8], i32); 14] = [
        (b"", libc::EINVAL),
        (b".", libc::EINVAL),
        (b"..", libc::EINVAL),
        (b"a/b", libc::EINVAL),
        (b"/abs", libc::EINVAL),
        (b"../x", libc::EINVAL),
        (b"fi\0le", libc::EINVAL),
        (&long, libc::ENAMETOOLONG),
        (&far, libc::ENAMETOOLONG),
        (&absolute, libc::EINVAL),
        (b"/", libc::EINVAL),
        (b"file/", libc::EINVAL),
        (b"a/../../x", libc::EINVAL),
        (b"./file", libc::EINVAL),
    ];
    let before = scene.all_told()?;
    for (operation, request) in OPERATIONS {
        for (name, expected) in names {
            let answer = errno(queue.call(&request(&known, name)));
            let shown = String::from_utf8_lossy(name);
            assert_eq!(answer, expected, "{operation} {shown:?}");
        }
    }
    assert_eq!(scene.all_told()?, before);
    assert!(!fs::exists("/abs")?, "a file in the root of the host");
    scene.check(client)
}

#[test]
fn g4_names_without_nul_are_refused() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let known = targets(&scene, queue)?;
    let before = scene.all_told()?;
    for (operation, request) in OPERATIONS {
        let mut request = request(&known, b"name");
        assert_eq!(request.args.pop(), Some(0));
        let answer = errno(queue.call(&request));
        assert_eq!(answer, libc::EINVAL, "{operation} without NUL");
        request.args.clear();
        let answer = errno(queue.call(&request));
        assert_eq!(answer, libc::EINVAL, "{operation} without anything");
    }
    assert_eq!(scene.all_told()?, before);
    scene.check(client)
}

/// Whether the matrix above says anything: with a name that is one, each operation succeeds.
#[test]
fn g4_names_of_any_other_bytes_are_served() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let known = targets(&scene, queue)?;
    let any = [
        b"\xff\xfe \n\\:*".as_slice(),
        &[0x80; 255],
        b"...",
        b"-",
        b"a\x01",
    ];
    for name in any {
        let path = scene.host("").join(os(name));
        let inside = scene.host("a").join(os(name));
        for (operation, request) in OPERATIONS {
            match operation {
                "LOOKUP" | "UNLINK" | "RENAME from" | "RENAME2 from" => fs::write(&path, "")?,
                "RMDIR" => fs::create_dir(&path)?,
                "RENAME2 exchange" => {
                    fs::write(&path, "outer")?;
                    fs::write(&inside, "inner")?;
                }
                _ => {}
            }
            let answer = errno(queue.call(&request(&known, name)));
            assert_eq!(answer, 0, "{operation} {name:?}");
            let exists = fs::symlink_metadata(&path).is_ok();
            let gone = [
                "UNLINK",
                "RMDIR",
                "RENAME from",
                "RENAME to",
                "RENAME2 from",
                "RENAME2 to",
            ];
            assert_eq!(exists, !gone.contains(&operation), "{operation} {name:?}");
            match operation {
                "RENAME from" | "RENAME2 from" => fs::remove_file(scene.host("a/moved"))?,
                "RENAME to" | "RENAME2 to" => fs::rename(&inside, scene.host("file"))?,
                "RENAME2 exchange" => {
                    assert_eq!(
                        (fs::read(&path)?, fs::read(&inside)?),
                        (b"inner".into(), b"outer".into())
                    );
                    fs::remove_file(&inside)?;
                    fs::remove_file(&path)?;
                }
                "MKDIR" => fs::remove_dir(&path)?,
                _ if exists => fs::remove_file(&path)?,
                _ => {}
            }
        }
    }
    scene.check(client)
}

/// The kernel sends "/" here, and no name is made of it.
#[test]
fn g4_name_of_a_file_without_one_is_not_used() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let known = targets(&scene, queue)?;
    let before = scene.outside_told()?;
    for (name, expected) in [
        (b"".as_slice(), 0),
        (b".", 0),
        (b"..", 0),
        (b"a/b", 0),
        (b"/abs", 0),
        (b"../x", 0),
        (b"a\0b", libc::EINVAL),
        (&[b'n'; 4096], libc::ENAMETOOLONG),
    ] {
        let mut request = Request::create(ROOT_NODE, name, 2, 0o600, 0);
        request.opcode = opcode::TMPFILE;
        assert_eq!(errno(queue.call(&request)), expected, "{name:?}");
    }
    assert_eq!(scene.outside_told()?, before);
    assert_eq!(fs::read_dir(scene.host(""))?.count(), 2);
    assert_eq!(fs::read_dir(scene.host("a"))?.count(), 1);
    assert_eq!(errno(queue.getattr(known.file, None)), 0);
    scene.check(client)
}

/// Attributes have names too, which lead nowhere.
#[test]
fn g4_names_of_attributes_that_are_none_are_refused() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let known = targets(&scene, queue)?;
    let before = scene.all_told()?;
    let long = [b"user.".as_slice(), &[b'n'; 251]].concat();
    for (name, expected) in [
        (b"".as_slice(), libc::ERANGE),
        (b"user.a\0b", libc::EINVAL),
        (&long, libc::ERANGE),
        (b"none", libc::EOPNOTSUPP),
        (b"../user.a", libc::EOPNOTSUPP),
        (b"/user.a", libc::EOPNOTSUPP),
        (b"system.posix_acl_access", libc::EOPNOTSUPP),
        (b"system.posix_acl_default", libc::EOPNOTSUPP),
    ] {
        let shown = String::from_utf8_lossy(name);
        let got = errno(queue.getxattr(known.file, name, 64));
        assert_eq!(got, expected, "GETXATTR {shown:?}");
        let removed = errno(queue.removexattr(known.file, name));
        assert_eq!(removed, expected, "REMOVEXATTR {shown:?}");
        if !name.contains(&0) {
            let set = errno(queue.setxattr(known.file, name, b"value", 0));
            assert_eq!(set, expected, "SETXATTR {shown:?}");
        }
    }
    assert_eq!(scene.all_told()?, before);
    scene.check(client)
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}
