// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that are open.

use super::*;
use crate::wire::flags::{OpenInFlags, OpenOutFlags};
use crate::wire::operation::Release;

impl Guest {
    pub(super) fn open(&mut self, node: u64) -> Result<u64> {
        let opened = self.ask(node, |fs, cx| fs.open(cx, 0, OpenInFlags::empty()));
        opened.map(|opened| opened.handle)
    }

    pub(super) fn release(&mut self, node: u64, handle: u64) -> Result<()> {
        let release = Release {
            handle,
            ..Release::default()
        };
        self.ask(node, |fs, cx| fs.release(cx, &release))
    }
}

#[test]
fn handle_is_of_its_node_and_gone_once_it_is_released() {
    let mut guest = Guest::new(FsConfig::default());
    for name in ["a", "b"] {
        std::fs::write(guest.path(name), name).unwrap();
    }
    let a = guest.lookup(ROOT_NODE, c"a").unwrap().node;
    let b = guest.lookup(ROOT_NODE, c"b").unwrap().node;
    let handle = guest.open(a).unwrap();
    guest.fs.handles.file(handle, a).unwrap();
    assert_eq!(guest.fs.handles.get(handle, b).unwrap_err(), Errno::BADF);
    assert_eq!(guest.release(b, handle), Err(Errno::BADF));
    assert_eq!(guest.release(a, handle + 1), Err(Errno::BADF));
    assert_eq!(guest.release(a, handle), Ok(()));
    assert_eq!(guest.release(a, handle), Err(Errno::BADF));
    assert!(guest.fs.handles.is_empty());
    let again = guest.open(a).unwrap();
    assert_ne!(again, handle);
    assert_eq!(guest.fs.handles.get(handle, a).unwrap_err(), Errno::BADF);
}

#[test]
fn handle_of_a_directory_is_none_of_a_file() {
    let mut guest = Guest::new(FsConfig::default());
    assert_eq!(guest.open(ROOT_NODE), Err(Errno::ISDIR));
    let opened = guest.ask(ROOT_NODE, |fs, cx| fs.open_dir(cx)).unwrap();
    let handles = &guest.fs.handles;
    handles.get(opened.handle, ROOT_NODE).unwrap();
    let file = handles.file(opened.handle, ROOT_NODE);
    assert_eq!(file.unwrap_err(), Errno::ISDIR);
    std::fs::write(guest.path("a"), "").unwrap();
    let a = guest.lookup(ROOT_NODE, c"a").unwrap().node;
    let open = guest.ask(a, |fs, cx| fs.open_dir(cx));
    assert_eq!(open.unwrap_err(), Errno::NOTDIR);
    // Room that was not filled is given back.
    assert_eq!(guest.fs.handles.len(), 1);
}

#[test]
fn handles_beyond_the_limit_are_refused_until_one_is_released() {
    let mut guest = Guest::with_files(FsConfig::default(), 64);
    std::fs::write(guest.path("a"), "").unwrap();
    let a = guest.lookup(ROOT_NODE, c"a").unwrap().node;
    let handles: Vec<_> = std::iter::from_fn(|| guest.open(a).ok()).take(64).collect();
    // Of 32 two are for nodes and one for a directory.
    assert_eq!(handles.len(), 29);
    assert_eq!(guest.open(a), Err(Errno::NFILE));
    // What fails takes no room.
    for _ in 0..10 {
        assert_eq!(guest.open(ROOT_NODE), Err(Errno::ISDIR));
    }
    guest.release(a, handles[0]).unwrap();
    guest.open(a).unwrap();
    assert_eq!(guest.open(a), Err(Errno::NFILE));
    guest.fs.reset();
    assert!(guest.fs.handles.is_empty());
    assert_eq!(guest.fs.nodes.len(), 1);
}

#[test]
fn what_is_no_file_is_not_opened() {
    let mut guest = Guest::new(FsConfig::default());
    rustix::fs::mknodat(
        rustix::fs::CWD,
        guest.path("fifo"),
        rustix::fs::FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    std::os::unix::fs::symlink("fifo", guest.path("link")).unwrap();
    let fifo = guest.lookup(ROOT_NODE, c"fifo").unwrap().node;
    let link = guest.lookup(ROOT_NODE, c"link").unwrap().node;
    assert_eq!(guest.open(fifo), Err(Errno::NXIO));
    assert_eq!(guest.open(link), Err(Errno::LOOP));
}

/// A guest that is not asked for FLUSH keeps what was written to a mapping when the file is closed.
#[test]
fn f3_7_flush_is_asked_for_of_every_file_that_is_open_to_write() {
    let mut guest = Guest::new(FsConfig::default());
    guest.fs.negotiated.store(0, Ordering::Release);
    std::fs::write(guest.path("old"), "").unwrap();
    let node = guest.lookup(ROOT_NODE, c"old").unwrap().node;
    for (mode, skips) in [
        (libc::O_RDONLY, true),
        (libc::O_WRONLY, false),
        (libc::O_WRONLY | libc::O_APPEND, false),
        (libc::O_RDWR, false),
    ] {
        let flags = mode.cast_unsigned();
        let opened = guest.ask(node, |fs, cx| fs.open(cx, flags, OpenInFlags::empty()));
        let file = NewFile {
            flags,
            mode: 0o644,
            umask: 0,
            open_flags: OpenInFlags::empty(),
        };
        let new = CString::new(format!("new{mode}")).unwrap();
        let created = guest.ask(ROOT_NODE, |fs, cx| {
            fs.create(cx, name(&new), file, &Creation::default())
        });
        for flags in [opened.unwrap().flags, created.unwrap().opened.flags] {
            assert_eq!(flags.contains(OpenOutFlags::NOFLUSH), skips, "{mode}");
        }
    }
}
