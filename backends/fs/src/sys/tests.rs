// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The calls on files of all kinds.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Access, FileType, XattrFlags, mkdirat, mknodat, symlinkat};

use super::by_number::{
    access, chmod, chmod_before_6_6, getxattr, link, listxattr, removexattr, setxattr, truncate,
};
use super::handle::{FileHandle, name_to_handle, name_to_handle_before_6_12, open_by_handle};
use super::*;
use crate::credentials::ThreadContext;
use crate::error::Errno;
use crate::testing::{as_root, context, skip};

/// A directory with a node of each kind that is not a device.
struct Tree {
    directory: tempfile::TempDir,
    fd: File,
}

impl Tree {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fd = File::open(directory.path()).unwrap();
        std::fs::write(directory.path().join("file"), b"12345").unwrap();
        mkdirat(&fd, c"directory", Mode::RWXU).unwrap();
        symlinkat(c"file", &fd, c"symlink").unwrap();
        mknodat(&fd, c"fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
        Self { directory, fd }
    }

    fn hold(&self, name: &CStr) -> OwnedFd {
        open_beneath(self.fd.as_fd(), name, HOLD, Mode::empty()).unwrap()
    }

    fn kind(&self, name: &CStr) -> u16 {
        statx_at(self.fd.as_fd(), name).unwrap().stx_mode & 0o170_000
    }
}

fn read(context: &ThreadContext, node: &OwnedFd, name: &CStr) -> Result<Vec<u8>> {
    let mut value = vec![0; getxattr(context, node.as_fd(), name, &mut [])?];
    let len = getxattr(context, node.as_fd(), name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

#[test]
fn open_beneath_of_a_link_or_the_parent_is_refused() {
    let tree = Tree::new();
    let open = |name, flags| open_beneath(tree.fd.as_fd(), name, flags, Mode::empty());
    let link = statx_of(tree.hold(c"symlink").as_fd()).unwrap();
    assert_eq!(link.stx_mode & 0o170_000, 0o120_000);
    assert_eq!(open(c"symlink", OPEN).unwrap_err(), Errno::LOOP);
    assert_eq!(open(c"..", HOLD).unwrap_err(), Errno::XDEV);
    assert_eq!(open(c"/etc", HOLD).unwrap_err(), Errno::XDEV);
    // A pipe with nobody at the other end is not waited for.
    open(c"fifo", OPEN).unwrap();
    let flags = OPEN | OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
    assert_eq!(open(c"file", flags).unwrap_err(), Errno::EXIST);
}

#[test]
fn statx_has_birth_and_mount() {
    let tree = Tree::new();
    let node = tree.hold(c"file");
    let by_fd = statx_of(node.as_fd()).unwrap();
    let by_name = statx_at(tree.fd.as_fd(), c"file").unwrap();
    assert_eq!(by_fd.stx_size, 5);
    assert_eq!(by_fd.stx_ino, by_name.stx_ino);
    assert_eq!(by_fd.stx_mnt_id, by_name.stx_mnt_id);
    let proc = File::open("/proc/self").unwrap();
    let elsewhere = statx_of(proc.as_fd()).unwrap();
    assert_ne!(by_fd.stx_mnt_id, elsewhere.stx_mnt_id);
    let wanted = StatxFlags::BASIC_STATS.bits();
    assert_eq!(by_fd.stx_mask & wanted, wanted);
}

#[test]
fn handle_is_small_and_equal_by_content() {
    assert!(size_of::<FileHandle>() <= 32);
    let bytes: Vec<u8> = (0..128).collect();
    for len in [0, 1, 20, 21, 128] {
        let handle = FileHandle::new(-1, &bytes[..len]).unwrap();
        assert_eq!((handle.kind(), handle.bytes()), (-1, &bytes[..len]));
        assert_eq!(FileHandle::new(-1, &bytes[..len]), Some(handle.clone()));
        assert_ne!(FileHandle::new(1, &bytes[..len]), Some(handle));
    }
    assert_ne!(FileHandle::new(1, &[0]), FileHandle::new(1, &[0, 0]));
    assert_eq!(FileHandle::new(1, &[0; 129]), None);
}

#[test]
fn handle_finds_the_node_until_it_is_gone() {
    as_root(|| {
        let tree = Tree::new();
        let by_name = match name_to_handle(tree.fd.as_fd(), c"file", AtFlags::empty()) {
            Err(Errno::OPNOTSUPP) => {
                return skip(
                    "handle_finds_the_node_until_it_is_gone",
                    "a file system without handles",
                );
            }
            result => result.unwrap(),
        };
        let node = tree.hold(c"file");
        let by_fd = name_to_handle(node.as_fd(), c"", AtFlags::empty()).unwrap();
        let stat = statx_of(node.as_fd()).unwrap();
        assert_eq!(by_name, by_fd);
        assert_eq!(by_fd.1, stat.stx_mnt_id);
        let old = name_to_handle_before_6_12(node.as_fd(), c"", AtFlags::EMPTY_PATH);
        assert_eq!(old, Ok(by_fd.clone()));
        drop(node);

        let (handle, _) = by_fd;
        let again = open_by_handle(tree.fd.as_fd(), &handle, HOLD).unwrap();
        assert_eq!(statx_of(again.as_fd()).unwrap().stx_ino, stat.stx_ino);
        drop(again);
        std::fs::remove_file(tree.directory.path().join("file")).unwrap();
        let gone = open_by_handle(tree.fd.as_fd(), &handle, HOLD);
        assert_eq!(gone.unwrap_err(), Errno::STALE);
    });
}

#[test]
fn handle_of_a_file_system_without_them_is_refused() {
    let proc = File::open("/proc/self").unwrap();
    let result = name_to_handle(proc.as_fd(), c"", AtFlags::empty());
    assert_eq!(result.unwrap_err(), Errno::OPNOTSUPP);
}

#[test]
fn xattr_by_number_works_on_nodes_of_all_kinds() {
    as_root(|| {
        let context = context();
        let tree = Tree::new();
        for kind in [c"file", c"directory", c"symlink", c"fifo"] {
            let node = tree.hold(kind);
            let name = c"trusted.ringside";
            let set = |value, flags| setxattr(&context, node.as_fd(), name, value, flags);
            assert_eq!(read(&context, &node, name), Err(Errno::NODATA), "{kind:?}");
            assert_eq!(set(b"value", XattrFlags::CREATE), Ok(()), "{kind:?}");
            assert_eq!(set(b"value", XattrFlags::CREATE), Err(Errno::EXIST));
            assert_eq!(read(&context, &node, name), Ok(b"value".to_vec()));
            let short = getxattr(&context, node.as_fd(), name, &mut [0; 4]);
            assert_eq!(short, Err(Errno::RANGE));
            let mut list = [0; 64];
            let len = listxattr(&context, node.as_fd(), &mut list).unwrap();
            assert_eq!(&list[..len], b"trusted.ringside\0");
            let short = listxattr(&context, node.as_fd(), &mut [0; 4]);
            assert_eq!(short, Err(Errno::RANGE));
            assert_eq!(removexattr(&context, node.as_fd(), name), Ok(()));
            assert_eq!(
                removexattr(&context, node.as_fd(), name),
                Err(Errno::NODATA)
            );
        }
    });
}

#[test]
fn xattr_of_users_is_refused_on_links_and_pipes_as_by_linux() {
    as_root(|| {
        let context = context();
        let tree = Tree::new();
        let set = |node: &OwnedFd| {
            let flags = XattrFlags::empty();
            setxattr(&context, node.as_fd(), c"user.ringside", b"v", flags)
        };
        let file = tree.hold(c"file");
        assert_eq!(set(&file), Ok(()));
        assert_eq!(read(&context, &file, c"user.ringside"), Ok(b"v".to_vec()));
        for kind in [c"symlink", c"fifo"] {
            let node = tree.hold(kind);
            assert_eq!(set(&node), Err(Errno::PERM));
            assert_eq!(read(&context, &node, c"user.ringside"), Err(Errno::NODATA));
        }
    });
}

#[test]
fn chmod_changes_what_is_held_and_no_link() {
    std::thread::spawn(|| {
        let context = context();
        let tree = Tree::new();
        let mode = Mode::from_bits_retain(0o1701);
        for kind in [c"file", c"directory", c"fifo"] {
            let node = tree.hold(kind);
            assert_eq!(chmod(&context, node.as_fd(), mode), Ok(()));
            let stat = statx_of(node.as_fd()).unwrap();
            assert_eq!(stat.stx_mode & 0o7777, 0o1701);
            assert_eq!(chmod_before_6_6(&context, node.as_fd(), Mode::RUSR), Ok(()));
            let stat = statx_of(node.as_fd()).unwrap();
            assert_eq!(stat.stx_mode & 0o7777, 0o400);
        }
        let link = tree.hold(c"symlink");
        assert_eq!(chmod(&context, link.as_fd(), mode), Err(Errno::OPNOTSUPP));
    })
    .join()
    .unwrap();
}

#[test]
fn access_is_told_of_nodes_of_every_kind() {
    std::thread::spawn(|| {
        let context = context();
        let tree = Tree::new();
        for name in [c"file", c"directory", c"fifo", c"symlink"] {
            let node = tree.hold(name);
            let all = Access::READ_OK | Access::WRITE_OK;
            assert_eq!(access(&context, node.as_fd(), all), Ok(()), "{name:?}");
        }
        let file = tree.hold(c"file");
        chmod(&context, file.as_fd(), Mode::RUSR | Mode::WUSR).unwrap();
        let runs = access(&context, file.as_fd(), Access::EXEC_OK);
        assert_eq!(runs, Err(Errno::ACCESS));
    })
    .join()
    .unwrap();
}

#[test]
fn truncate_changes_files_only() {
    std::thread::spawn(|| {
        let context = context();
        let tree = Tree::new();
        let to = |name, bytes| truncate(&context, tree.hold(name).as_fd(), bytes);
        assert_eq!(to(c"file", 3), Ok(()));
        assert_eq!(statx_at(tree.fd.as_fd(), c"file").unwrap().stx_size, 3);
        assert_eq!(to(c"file", u64::MAX), Err(Errno::FBIG));
        assert_eq!(to(c"directory", 0), Err(Errno::ISDIR));
        assert_eq!(to(c"fifo", 0), Err(Errno::INVAL));
        assert_eq!(to(c"symlink", 0), Err(Errno::INVAL));
    })
    .join()
    .unwrap();
}

#[test]
fn link_by_number_names_the_node_itself() {
    std::thread::spawn(|| {
        let context = context();
        let tree = Tree::new();
        let to = |name, new| link(&context, tree.hold(name).as_fd(), tree.fd.as_fd(), new);
        assert_eq!(to(c"file", c"file2"), Ok(()));
        assert_eq!(to(c"symlink", c"symlink2"), Ok(()));
        assert_eq!(to(c"file", c"symlink2"), Err(Errno::EXIST));
        assert_eq!(to(c"directory", c"directory2"), Err(Errno::PERM));
        let nlink = |name: &str| {
            let path = tree.directory.path().join(name);
            std::fs::symlink_metadata(path).unwrap().nlink()
        };
        assert_eq!((nlink("file2"), nlink("symlink2")), (2, 2));
        assert_eq!(tree.kind(c"symlink2"), 0o120_000);

        let flags = OPEN | OFlags::TMPFILE | OFlags::RDWR;
        let nameless = open_beneath(tree.fd.as_fd(), c".", flags, Mode::RUSR).unwrap();
        let name = CString::new("named").unwrap();
        link(&context, nameless.as_fd(), tree.fd.as_fd(), &name).unwrap();
        assert_eq!(nlink("named"), 1);
    })
    .join()
    .unwrap();
}
