// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G6: devices, FIFOs and sockets in the share are never opened, however it is tried.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringside_frontend::fuse::flags::{ROOT_NODE, SetAttrValid};
use ringside_frontend::fuse::types::{CopyFileRange, SetAttr};
use ringside_frontend::fuse::{FuseClient, Request};
use ringside_tests::hostile::{Result, TestResult, wait_until};
use ringside_tests::process::thread_activity;
use ringside_tests::skip;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::scene::{Scene, errno, is_root};

/// Which special file, made on the host or by the guest.
const NAMES: [&str; 6] = ["fifo", "socket", "null", "disk", "own-fifo", "own-null"];

/// Sees who opens a file; holding it with `O_PATH` does not count.
struct Watch(OwnedFd);

impl Watch {
    fn on(path: &Path) -> Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let seen = WatchFlags::OPEN | WatchFlags::ACCESS | WatchFlags::MODIFY;
        inotify::add_watch(&fd, path, seen)?;
        Ok(Self(fd))
    }

    /// Events since the last call.
    fn events(&self) -> usize {
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut room);
        let mut events = 0;
        while reader.next().is_ok() {
            events += 1;
        }
        events
    }
}

/// Puts all of them into the share.
fn make(scene: &Scene, client: &mut FuseClient) -> TestResult {
    let mode = Mode::from_raw_mode(0o666);
    let device = |name: &str, kind, major, minor| {
        mknodat(CWD, scene.host(name), kind, mode, makedev(major, minor))
    };
    device("fifo", FileType::Fifo, 0, 0)?;
    device("null", FileType::CharacterDevice, 1, 3)?;
    // A loop device that nothing is bound to.
    device("disk", FileType::BlockDevice, 7, 250)?;
    // The listener is gone, its socket is not.
    drop(UnixListener::bind(scene.host("socket"))?);
    let queue = client.queue();
    queue.mknod(ROOT_NODE, "own-fifo", libc::S_IFIFO | 0o666, 0)?;
    queue.mknod(ROOT_NODE, "own-null", libc::S_IFCHR | 0o666, 0x103)?;
    Ok(())
}

/// All requests that could open a node, without a handle or with one that is made up.
fn attempts(node: u64) -> Vec<(Request, &'static [i32])> {
    const NEVER: &[i32] = &[libc::ENXIO];
    const NO_HANDLE: &[i32] = &[libc::EBADF];
    let truncate = SetAttr {
        valid: SetAttrValid::SIZE,
        ..SetAttr::default()
    };
    let copy = CopyFileRange {
        node_out: node,
        len_bytes: 1,
        ..CopyFileRange::default()
    };
    let mut all: Vec<_> = [
        0,
        1,
        2,
        0o1000,
        0o1002,
        0o4000,
        0o2002,
        0o10_000_000,
        u32::MAX,
    ]
    .into_iter()
    .map(|flags| (Request::open(node, flags), NEVER))
    .collect();
    all.extend([
        (Request::opendir(node, 0), NEVER),
        (Request::ioctl(node, 0, 0x8008_6601, &[], 8), NEVER),
        (Request::ioctl(node, 0, 0x5401, &[], 64), &[libc::ENOTTY]),
        (Request::syncfs(node), NEVER),
        (Request::setattr(node, &truncate), &[libc::EINVAL]),
        (Request::read(node, 0, 0, 1), NO_HANDLE),
        (Request::write(node, 0, 0, 1), NO_HANDLE),
        (Request::lseek(node, 0, 0, 3), NO_HANDLE),
        (Request::fallocate(node, 0, 0, 1, 0), NO_HANDLE),
        (Request::copy_file_range(node, &copy), NO_HANDLE),
        (Request::fsync(node, 0, false), &[libc::EBADF, libc::ENXIO]),
        (Request::fsyncdir(node, 0, false), NO_HANDLE),
        (Request::readdir(node, 0, 0, 100), NO_HANDLE),
        (Request::lookup(node, "x"), &[libc::ENOTDIR]),
    ]);
    all
}

fn never_opened(args: &[&str], no_open: bool) -> TestResult {
    if !is_root() {
        skip!("not root");
    }
    let scene = Scene::start(args)?;
    let mut client = scene.client()?;
    make(&scene, &mut client)?;
    let watches = NAMES
        .iter()
        .map(|name| Watch::on(&scene.host(name)))
        .collect::<Result<Vec<_>>>()?;
    let queue = client.queue();
    for (name, watch) in NAMES.iter().zip(&watches) {
        let node = queue.lookup(ROOT_NODE, name)?.node;
        for (request, expected) in attempts(node) {
            let answer = errno(queue.call(&request));
            let skipped = no_open && answer == libc::ENOSYS && matches!(request.opcode, 14 | 27);
            assert!(
                skipped || expected.contains(&answer),
                "operation {} on {name}: {answer}",
                request.opcode
            );
        }
        // Opens what is there, unless it is to be new.
        let create = queue.create(ROOT_NODE, name, 2, 0o600);
        assert_eq!(errno(create), libc::ESTALE, "CREATE {name}");
        let create = queue.create(ROOT_NODE, name, 2 | 0o200, 0o600);
        assert_eq!(errno(create), libc::EEXIST, "CREATE {name}, O_EXCL");
        // What needs no open works.
        assert_eq!(errno(queue.getattr(node, None)), 0, "{name}");
        assert_eq!(errno(queue.access(node, 4)), 0, "{name}");
        let value = queue.getxattr(node, "user.a", 9);
        assert_eq!(errno(value), libc::ENODATA, "{name}");
        assert_eq!(watch.events(), 0, "{name} was opened");
    }
    // They do see what they are to see.
    let fifo = scene.host("fifo");
    let mut options = OpenOptions::new();
    drop(options.read(true).write(true).open(fifo)?);
    assert_eq!(watches[0].events(), 1);
    scene.check(client)
}

#[test]
fn g6_special_files_are_never_opened() -> TestResult {
    never_opened(&[], false)
}

#[test]
fn g6_special_files_are_never_opened_for_a_guest_that_does_not_open() -> TestResult {
    never_opened(&["--no-open", "--cache=always"], true)
}

#[test]
fn g6_special_files_are_never_opened_where_nodes_keep_descriptors() -> TestResult {
    never_opened(&["--inode-file-handles=never"], false)
}

#[test]
fn g6_writer_of_a_fifo_waits_whatever_the_guest_does() -> TestResult {
    if !is_root() {
        skip!("not root");
    }
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    make(&scene, &mut client)?;
    let path = scene.host("fifo");
    let opened = Arc::new(AtomicBool::new(false));
    let writer = {
        let (path, opened) = (path.clone(), Arc::clone(&opened));
        let named = std::thread::Builder::new().name("fifo-writer".to_owned());
        named.spawn(move || -> std::io::Result<()> {
            let mut fifo = OpenOptions::new().write(true).open(path)?;
            opened.store(true, Ordering::SeqCst);
            fifo.write_all(b"to whoever reads")
        })?
    };
    wait_until("the writer waits in open(2)", || {
        let threads = thread_activity(std::process::id())?;
        let writer = threads.iter().find(|(_, t)| t.name == "fifo-writer");
        let Some((id, _)) = writer else {
            return Ok(false);
        };
        let status = std::fs::read_to_string(format!("/proc/self/task/{id}/status"))?;
        Ok(status.contains("State:\tS"))
    })?;
    let queue = client.queue();
    let node = queue.lookup(ROOT_NODE, "fifo")?.node;
    for (request, expected) in attempts(node) {
        assert!(expected.contains(&errno(queue.call(&request))));
    }
    scene.serves(&mut client)?;
    assert!(!opened.load(Ordering::SeqCst), "somebody has read the FIFO");
    let mut all = String::new();
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_CLOEXEC);
    options.open(path)?.read_to_string(&mut all)?;
    assert_eq!(all, "to whoever reads");
    writer
        .join()
        .map_err(|_panic| "the writer has panicked")??;
    scene.check(client)
}
